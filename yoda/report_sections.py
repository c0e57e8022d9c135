"""The sections of the report: words and tables around the pictures. HTML text out."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import numpy as np

from eventrange.times import quantile
from yoda import svg
from yoda.core_seconds import WORDS
from yoda.report_facts import Facts, merged_sizes
from yoda.report_page import details, heading, in_code, table
from yoda.status import span
from yoda.storage_view import WORDS as STATE_WORDS
from yoda.storage_view import storage_view
from yoda.verdict import HEADS, cells, rows, verdict

LISTED = 50  #: lines of a table at most; what is left out is counted


def summary(facts: Facts) -> str:
    s, e = facts.state, facts.state["events"]
    share = 100 * e["done"] / e["total"] if e["total"] else 100.0
    living = [one for one in s["allocations"] if one["state"] == "alive"]
    merging = [one for one in s["allocations"] if one["state"] == "merging"]
    worked = [one for one in s["allocations"] if one["droids_total"]]
    if s["complete"] and e["quarantined"]:
        first = f"The task is complete, but {e['quarantined']:,} of its {e['total']:,} events are quarantined."
    elif s["complete"]:
        first = f"The task is complete: all {e['total']:,} events are done."
    else:
        first = f"{e['done']:,} of {e['total']:,} events ({share:.1f} %) are done; {e['pending']:,} are pending."
        first += " It is running." if living else " Nothing is running; the same <code>yoda run</code> goes on with it."
    if merging:
        first += " Its final files are being made."
    begun = [one["created"] for one in worked if one["created"]]
    if begun:
        last = max(one["last_sign_of_life"] or 0 for one in worked)
        count = f"{len(worked)} allocation{'s' if len(worked) > 1 else ''}"
        kills = sum(one["state"] == "killed" for one in worked)
        first += (
            f" It took {count}{f', {kills} of them killed,' if kills else ''} within {span(last - min(begun))}, on up "
            f"to {facts.chronicle.cores_total:,} cores of {facts.chronicle.droids_total:,} Droids."
        )
    sums = s["core_seconds"]
    hours, detail = sums["total"] / 3600, s["core_seconds_detail"]
    tiles = [
        ("events done", f"{e['done']:,}", f"{share:.1f} % of {e['total']:,}"),
        ("quarantined", f"{e['quarantined']:,}", f"{sum(facts.chronicle.failed.values()):,} attempts failed"),
        ("core hours", f"{hours:,.{0 if hours >= 100 else 2}f}", f"{_percent(sums, 'productive')} productive"),
        ("lost in flight", _percent(sums, "lost_in_flight"), span(sums["lost_in_flight"])),
        ("per event", svg.seconds_words(s["seconds_per_event"]), "of one core, mean"),
    ]
    boxes = "".join(
        f"<div class=tile><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(more)}</small></div>"
        for name, value, more in tiles
    )
    return f"<p class=lead>{first}</p><p>{in_code(escape(verdict(detail)))}</p><div class=tiles>{boxes}</div>"


def timeline(facts: Facts, pictures: dict[str, str]) -> str:
    if "nodes" not in pictures:
        return heading("Timeline") + "<p>No Droid has worked on this task yet.</p>"
    c = facts.chronicle
    drawn = sum(bool(label) for label in c.core_labels)
    sample = f"A sample of {drawn} of {c.cores_total:,} cores." if drawn < c.cores_total else f"All {drawn} cores."
    gaps = " Pauses between allocations are cut at the dotted lines." if c.axis.gaps() else ""
    return (
        heading("Timeline")
        + "<p class=note>One line per node, or group of nodes; its height is shared by what its cores did. "
        + f"Times are UTC.{gaps} What is between two ranges of a worker is drawn as idle.</p>{pictures['nodes']}"
        + f"<p class=note>{sample} Red is what was under way when the core was taken away.</p>{pictures['cores']}"
        + "<h3>Utilisation</h3>"
        + pictures["utilisation"]
    )


def pace(facts: Facts, pictures: dict[str, str]) -> str:
    if "throughput" not in pictures:
        return ""
    out = heading("Throughput") + pictures["throughput"] + "<h3>Progress</h3>" + pictures["done"]
    if "eta" in pictures:
        note = "Events to do, over the rate of the last moments: what an honest estimate would have said at the time."
        out += f"<h3>Time left, as estimated then</h3><p class=note>{note}</p>{pictures['eta']}"
    return out


def outcome(facts: Facts, pictures: dict[str, str]) -> str:
    if "outcome" not in pictures:
        return ""
    detail = facts.state["core_seconds_detail"]
    total = detail["total"] or 1.0
    lines = [(word, span(detail[name]), f"{100 * detail[name] / total:.2f}") for name, word in WORDS.items()]
    lines.append(("all", span(detail["total"]), "100.00"))
    note = "Cores of the Droids' nodes, from the start of a Droid's process to the end of its allocation."
    c = facts.chronicle
    failures = [
        (f"{word}: {code}", f"{count:,}", span(seconds[code]))
        for word, counts, seconds in (
            ("failed", c.failed, c.failed_seconds),
            ("given back", c.returned, c.returned_seconds),
        )
        for code, count in counts.most_common()
    ]
    out = heading("Where the core time went") + f"<p class=note>{note}</p>" + pictures["outcome"]
    out += table(("outcome", "core time", "%"), lines)
    if failures:
        out += "<h3>By category</h3>" + table(("category", "events", "core time"), failures)
    return out


def attempts(facts: Facts) -> str:
    """How often it took, and by how many."""
    c, done, state = facts.chronicle, facts.state["events"]["done"], facts.state
    if not done:
        return ""
    lines = [
        (
            f"done at attempt {attempt + 1}",
            f"{ranges:,}",
            f"{c.attempts[attempt]:,}",
            f"{_share(c.attempts[attempt], done)}",
        )
        for attempt, ranges in sorted(c.ranges.items())
    ]
    given_up = state["events"]["quarantined"]
    if given_up:
        lines.append(("quarantined", f"{given_up:,}", f"{given_up:,}", _share(given_up, done)))
    twice = sum(c.attempts.values()) - done
    if twice > 0:
        lines.append(("of these done twice, or again", "", f"{twice:,}", _share(twice, done)))
    starts, stops = c.handed.result()
    again = c.granted - int((stops - starts).sum())
    if again > 0:
        lines.append(("handed out again", "", f"{again:,}", _share(again, done)))
    events = np.sort(np.concatenate(c.consumers))
    worked = sum(any(life.ranges for life in one.droids.values()) for one in facts.account.allocations)
    droids = sum(life.ranges > 0 for one in facts.account.allocations for life in one.droids.values())
    spread = [f"{int(np.quantile(events, q)):,}" for q in (0.0, 0.1, 0.5, 0.9, 1.0)]
    return (
        heading("Attempts and consumers")
        + table(("", "ranges", "events", "% of events done"), lines)
        + f"<p>Done by {len(events):,} workers of {droids:,} Droids in {worked:,} allocations (a Droid or worker of "
        "each allocation counts for itself).</p>"
        + table(("", "least", "10 %", "median", "90 %", "most"), [("events per worker", *spread)])
    )


def events(facts: Facts, pictures: dict[str, str]) -> str:
    c = facts.chronicle
    if "times" not in pictures:
        return ""
    note = ""
    if c.single < c.pace.events:
        note = f" {_share(c.single, c.pace.events)} % of the events are counted with their own time, the others, of"
        note += " allocations that were killed, with the mean of their range: there the true tail is longer."
    known = {one.name: one for one in facts.account.allocations}
    slow = []
    for seconds, start, stop, when, allocation, droid, worker in c.slowest:
        host = known[allocation].droids[droid].host if droid in known[allocation].droids else "?"
        place = f"Droid {droid} on {host}, worker {worker}"
        slow.append((facts.range(start, stop), place, allocation, _clock(when), svg.seconds_words(seconds)))
    tail = [
        (word, svg.seconds_words(quantile(c.times, q)))
        for word, q in (("50 %", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("99.9 %", 0.999))
    ]
    return (
        heading("Event times")
        + f"<p class=note>Wall time of one event on one core; both scales are logarithmic.{note}</p>"
        + pictures["times"]
        + table(("quantile", "at most"), tail)
        + details("Slowest", table(("event or range", "where", "allocation", "begun", "per event"), slow, left=4), True)
    )


def failures(facts: Facts) -> str:
    quarantined = facts.state["events"]["quarantined"]
    out = heading("Quarantined events")
    if not quarantined:
        return out + "<p>None.</p>"
    out += "<p class=note>Given up after all their attempts failed. "
    out += "<code>yoda run --retry-quarantined</code> takes them up again.</p>"
    for event in facts.state["quarantined"][:LISTED]:
        proofs = facts.chronicle.evidence.get(event, [])
        body = []
        for proof in proofs:
            where = f"attempt {int(proof.get('attempt') or 0) + 1}, Droid {proof.get('droid')} on {proof.get('host')}, "
            where += f"{span(float(proof.get('wall') or 0))}, allocation {proof['allocation']}"
            words = "\n".join(str(proof.get(key) or "").strip() for key in ("text", "stderr")).strip()
            body.append(f"<p>{escape(where)}</p><pre>{escape(words or 'no word')}</pre>")
        last = str(proofs[-1].get("text") or "").strip().splitlines() if proofs else []
        title = f"{facts.event(event)}: {last[-1] if last else 'no evidence in the journals'}"
        out += details(title, "".join(body) or "<p>No evidence is left.</p>")
    if quarantined > LISTED:
        out += f"<p>And {quarantined - LISTED:,} more.</p>"
    return out


def allocations(facts: Facts) -> str:
    lines = []
    for one in facts.state["allocations"]:
        why = " ".join(filter(None, [one["why"], one["damage"] and f"journal: {one['damage']}"])) or "at work"
        length = (one["last_sign_of_life"] or 0) - (one["created"] or 0)
        lines.append(
            (
                one["name"],
                one["state"],
                why.splitlines()[0],
                _clock(one["created"]),
                span(max(0.0, length)),
                f"{one['droids_total']:,}",
                f"{one['events_done']:,}",
                _percent(one["core_seconds"], "productive"),
                _percent(one["core_seconds"], "lost_in_flight"),
            )
        )
    heads = ("allocation", "state", "why it ended", "begun", "length", "Droids", "events", "productive", "lost")
    return heading("Allocations") + table(heads, lines[-4 * LISTED :], left=3, cut=len(lines) - 4 * LISTED)


def nodes(facts: Facts) -> str:
    found = rows(facts.state, "node")
    if not found:
        return ""
    found.sort(key=lambda entry: entry[1]["productive"] / (entry[1]["total"] or 1.0))
    note = "Per cent of the core time of each node" + ("; the least productive first." if len(found) > 1 else ".")
    lines = [cells(name, seconds) for name, seconds in found[:LISTED]]
    events: dict[str, int] = {}
    for one in facts.account.allocations:
        for life in one.droids.values():
            events[life.host] = events.get(life.host, 0) + life.events
    lines = [(*line, f"{events.get(line[0], 0):,}") for line in lines]
    heads = ("node", *HEADS[1:], "events")
    return heading("Nodes") + f"<p class=note>{note}</p>" + table(heads, lines, left=1, cut=len(found) - LISTED)


def storage(facts: Facts, pictures: dict[str, str]) -> str:
    c, frozen = facts.chronicle, facts.frozen
    sealed = [known for known in c.catalogue.segments.values() if known.sealed]
    lines = [
        ("input files", f"{len(frozen.inputs.files):,}", _bytes(sum(f.size or 0 for f in frozen.inputs.files))),
        ("images of ranges", f"{facts.state['ranges_done']:,}", _bytes(c.bytes)),
        ("sealed segments", f"{len(sealed):,}", _bytes(sum(known.size for known in sealed))),
        ("journals", f"{len(c.journals):,}", _bytes(sum(one.offset for one in c.journals.values()))),
    ]
    merged = merged_sizes(facts.taskdir)
    if merged:
        lines.append(("merged files", f"{len(merged):,}", _bytes(sum(merged))))
    out = heading("Data") + table(("what", "number", "size"), lines)
    view = storage_view(c.catalogue)
    if view is not None:
        out += "<h3>Storage</h3>" + _endpoints(view)
    if c.breaker:
        changes = [
            (
                _clock(float(note.get("time") or 0)),
                str(note.get("key", "?")),
                f"{note.get('before', '?')} to {note.get('after', '?')}",
                f"Droid {note['by']}" if note.get("by") else "rank 0, or a command",
                str(note.get("reason", "")),
            )
            for note in c.breaker
        ]
        out += (
            "<h3>Switched off and on</h3>"
            + pictures.get("breakers", "")
            + table(
                ("time", "what", "change", "seen by", "reason"), changes[-LISTED:], left=5, cut=len(changes) - LISTED
            )
        )
    return out


def _endpoints(view: dict[str, Any]) -> str:
    """Where copies of the segments are."""
    segments = view["segments"]
    words = [f"{segments['staged']:,} of {segments['sealed']:,} sealed segments are staged"]
    if segments["waiting"]:
        words.append(f"{segments['waiting']:,} wait ({_bytes(view['bytes_waiting'])})")
    if segments["deleted_here"]:
        words.append(f"{segments['deleted_here']:,} are deleted in the task directory")
    if segments["unusable"]:
        words.append(f"{segments['unusable']:,} are damaged and have no copy")
    lines = [
        (
            one["name"],
            str(one["url"] or "-"),
            STATE_WORDS[one["state"]],
            f"{one['copies']:,}",
            _bytes(one["bytes"]),
            f"{one['failures']:,}",
        )
        for one in view["endpoints"]
    ]
    return f"<p>{'; '.join(words)}.</p>" + table(
        ("endpoint", "address", "state", "segments there", "size", "failed uploads"), lines, left=3
    )


def provenance(facts: Facts) -> str:
    frozen = facts.frozen
    payload = frozen.payload.python or " ".join(frozen.payload.command or ())
    lines = [
        ("job file", frozen.job_file),
        ("task directory", facts.state["directory"]),
        ("fingerprint", frozen.fingerprint),
        ("seed", str(frozen.seed)),
        ("payload", payload),
        ("payload's sha256", frozen.payload.sha256 or ""),
        *sorted(facts.chronicle.versions.items()),
    ]
    return heading("Provenance") + details("Versions and fingerprint", table(("what", "value"), lines, left=2))


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}"


def _percent(seconds: dict[str, float], part: str) -> str:
    return f"{100 * seconds[part] / seconds['total']:.1f} %" if seconds["total"] else "-"


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) if seconds else "-"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return ""
