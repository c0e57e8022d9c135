"""`yoda report`: one self-contained HTML page on a task, from its journals: no network, a few megabytes at most."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange.axis import Axis
from eventrange.history import Story
from eventrange.quantity import span
from eventrange.taskdir import TaskDir
from eventrange.times import PER_OCTAVE, quantile
from yoda import svg
from yoda.accounting import account_entries
from yoda.chronicle import Chronicle, chronicle
from yoda.core_seconds import Account
from yoda.names import event_name, range_name
from yoda.report_page import details, heading, page, table
from yoda.status import ALIVE, compose
from yoda.task import Frozen, need_task
from yoda.verdict import COLUMNS, HEADS, cells, rows, verdict

LISTED = 50  #: lines of a table at most; what is left out is counted


@dataclass
class Facts:
    """All that the page is made from."""

    taskdir: TaskDir
    frozen: Frozen
    axis: Axis
    state: dict[str, Any]
    account: Account
    chronicle: Chronicle

    def event(self, position: int) -> str:
        """What people call the event at `position`."""
        return f"{event_name(self.axis, position)} (#{position})"

    def range(self, start: int, stop: int) -> str:
        """The same of a range."""
        return self.event(start) if stop == start + 1 else range_name(self.axis, start, stop)


def gather(taskdir: TaskDir, now: float | None = None) -> Facts:
    """Read everything. Raises NotATask, TaskDamaged."""
    now = time.time() if now is None else now
    frozen = need_task(taskdir)
    axis, fingerprint = Axis.from_dict(frozen.axis), frozen.fingerprint
    account = account_entries(lambda: Story(taskdir, fingerprint).whole(), now - ALIVE)
    story = chronicle(taskdir, fingerprint, account, now - ALIVE)
    state = compose(taskdir, frozen.task, fingerprint, axis.total, account, story.journals, story.pace, now)
    return Facts(taskdir, frozen, axis, state, account, story)


def report(taskdir: TaskDir, output: str | None = None, images: str | None = None) -> str:
    """Write the page (default: TASK/report.html) and, where asked for, its pictures. Returns the path of the page."""
    from eventrange.durable import write_file

    facts = gather(taskdir)
    pictures = draw(facts)
    path = os.path.abspath(output or taskdir.report)
    write_file(path, render(facts, pictures).encode())
    if images:
        from yoda.report_images import write_images

        write_images(facts, pictures, images)
    return path


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw(facts: Facts) -> dict[str, str]:
    """Name -> SVG of every picture there is something to show for."""
    c = facts.chronicle
    out: dict[str, str] = {}
    if not facts.account.core_seconds.total:
        return out
    nodes = c.nodes.sums()
    out["nodes"] = svg.lanes(nodes, c.node_labels, c.axis, "Nodes over time", 420)
    out["cores"] = svg.lanes(c.cores.sums(), c.core_labels, c.axis, "Cores over time", 640)
    order = ("productive", "failed", "lost", "startup", "drained", "idle")
    layers = [(state, nodes[state].sum(axis=0)) for state in order]
    out["utilisation"] = svg.stacked(c.axis, layers, "What the cores did over time", "cores")
    rate, left = history(facts)
    out["throughput"] = svg.curve(c.axis, rate, "Events per second over time", "events/s")
    done = np.where(c.axis.inside(), 100 * np.cumsum(c.done) / max(1, facts.axis.total), np.nan)
    out["done"] = svg.curve(c.axis, done, "Events done over time", "% done")
    if np.isfinite(left).any():
        out["eta"] = svg.curve(c.axis, left, "Working time left, as estimated then", "time left", seconds=True)
    parts = facts.state["core_seconds"]
    looks = ("productive", "lost", "failed", "idle", "startup", "drained")
    words = ("productive", "lost in flight", "retried", "idle", "start-up", "overhead")
    out["outcome"] = svg.share_bar(
        [(look, word, parts[part]) for look, word, part in zip(looks, words, COLUMNS, strict=True)],
        "Core time by outcome",
    )
    if c.pace.times:
        out["times"] = _times(c.pace.times)
    return out


def history(facts: Facts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(events per second, estimated working seconds left) by column; smoothed over a fiftieth of the picture."""
    c = facts.chronicle
    inside = c.axis.inside()
    width = max(1, c.axis.columns // 50)
    box = np.ones(width)
    seen = np.convolve(inside.astype(float), box, "same") * c.axis.scale
    rate = np.where(inside, np.convolve(c.done, box, "same") / np.maximum(seen, 1e-12), np.nan)
    # An estimate looks back only: what was known then.
    back = np.convolve(c.done, box)[: c.axis.columns] / np.maximum(
        np.convolve(inside.astype(float), box)[: c.axis.columns] * c.axis.scale, 1e-12
    )
    to_do = facts.axis.total - np.cumsum(c.done)
    left = np.full(c.axis.columns, np.nan)
    known = inside & (back > 0) & (np.arange(c.axis.columns) >= width)
    left[known] = np.maximum(0.0, to_do[known] / back[known])
    if known.any():  # the first moments, from a handful of events, would only set the scale
        left[left > 4 * np.nanmedian(left) + c.axis.scale * c.axis.columns] = np.nan
    return rate, left


def _times(times: dict[int, int]) -> str:
    first, last = min(times), max(times)
    step = max(1, -(-(last - first + 1) // 80))
    values = []
    for bin_ in range(first, last + 1, step):
        word = svg.seconds_words(2.0 ** (bin_ / PER_OCTAVE))
        values.append((word, float(sum(times.get(n, 0) for n in range(bin_, bin_ + step)))))
    marks = []
    for q, word in ((0.5, "median"), (0.99, "99 %")):
        value = quantile(times, q)
        place = (PER_OCTAVE * np.log2(value) - first) / step if value > 0 else 0.0
        marks.append((float(place), f"{word} {svg.seconds_words(value)}"))
    return svg.bars(values, "Distribution of event times", "events", marks)


# -- words and tables --------------------------------------------------------------------------------------------------


def render(facts: Facts, pictures: dict[str, str]) -> str:
    """The page."""
    sections = [
        _summary(facts),
        _timeline(facts, pictures),
        _pace(facts, pictures),
        _outcome(facts, pictures),
        _events(facts, pictures),
        _failures(facts),
        _allocations(facts),
        _nodes(facts),
        _storage(facts),
        _provenance(facts),
    ]
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(facts.state["time"]))
    return page(f"{facts.frozen.task}: Yoda report", f"As of {stamp}.", "".join(sections))


def _summary(facts: Facts) -> str:
    s, e = facts.state, facts.state["events"]
    share = 100 * e["done"] / e["total"] if e["total"] else 100.0
    living = [one for one in s["allocations"] if one["state"] == "alive"]
    worked = [one for one in s["allocations"] if one["droids_total"]]
    if s["complete"] and e["quarantined"]:
        first = f"The task is complete, but {e['quarantined']:,} of its {e['total']:,} events are quarantined."
    elif s["complete"]:
        first = f"The task is complete: all {e['total']:,} events are done."
    else:
        first = f"{e['done']:,} of {e['total']:,} events ({share:.1f} %) are done; {e['pending']:,} are pending."
        first += " It is running." if living else " Nothing is running; the same <code>yoda run</code> goes on with it."
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
    tiles = [
        ("events done", f"{e['done']:,}", f"{share:.1f} % of {e['total']:,}"),
        ("quarantined", f"{e['quarantined']:,}", f"{sum(facts.chronicle.failed.values()):,} attempts failed"),
        ("core time", span(sums["total"]), f"{_percent(sums, 'productive')} productive"),
        ("lost in flight", _percent(sums, "lost_in_flight"), span(sums["lost_in_flight"])),
        ("per event", svg.seconds_words(s["seconds_per_event"]), "of one core, mean"),
    ]
    boxes = "".join(
        f"<div class=tile><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(more)}</small></div>"
        for name, value, more in tiles
    )
    return f"<p class=lead>{first}</p><p>{escape(verdict(sums))}</p><div class=tiles>{boxes}</div>"


def _timeline(facts: Facts, pictures: dict[str, str]) -> str:
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


def _pace(facts: Facts, pictures: dict[str, str]) -> str:
    if "throughput" not in pictures:
        return ""
    out = heading("Throughput") + pictures["throughput"] + "<h3>Progress</h3>" + pictures["done"]
    if "eta" in pictures:
        note = "Events to do, over the rate of the last moments: what an honest estimate would have said at the time."
        out += f"<h3>Time left, as estimated then</h3><p class=note>{note}</p>{pictures['eta']}"
    return out


def _outcome(facts: Facts, pictures: dict[str, str]) -> str:
    if "outcome" not in pictures:
        return ""
    fine, total = facts.state["core_seconds_detail"], facts.state["core_seconds"]["total"] or 1.0
    names = [
        ("productive", "productive"),
        ("lost_in_flight", "lost in flight (drained, killed, lost Droids)"),
        ("retried", "retried (failed attempts, second copies, images made again)"),
        ("hung", "hung (ended by their time limit)"),
        ("quarantined", "attempts at events that were given up"),
        ("idle_waiting", "idle, waiting for work"),
        ("idle_tail", "idle at the tail"),
        ("startup", "start-up"),
        ("overhead", "overhead"),
    ]
    lines = [(word, span(fine[name]), f"{100 * fine[name] / total:.2f}") for name, word in names]
    lines.append(("all", span(fine["total"]), "100.00"))
    c = facts.chronicle
    failures = [
        (f"{word}: {code}", f"{count:,}", span(seconds[code]))
        for word, counts, seconds in (
            ("failed", c.failed, c.failed_seconds),
            ("given back", c.returned, c.returned_seconds),
        )
        for code, count in counts.most_common()
    ]
    out = heading("Where the core time went") + pictures["outcome"] + table(("outcome", "core time", "%"), lines)
    if failures:
        out += "<h3>By category</h3>" + table(("category", "events", "core time"), failures)
    attempts = [(f"done at attempt {attempt + 1}", f"{events:,}") for attempt, events in sorted(c.attempts.items())] + [
        ("quarantined", f"{facts.state['events']['quarantined']:,}")
    ]
    if c.granted and facts.state["events"]["done"]:
        attempts.append(("handed out, per event done", f"{c.granted / facts.state['events']['done']:.3f}"))
    return out + "<h3>Attempts</h3>" + table(("events", ""), attempts)


def _events(facts: Facts, pictures: dict[str, str]) -> str:
    c = facts.chronicle
    if "times" not in pictures:
        return ""
    whole = c.pace.ranges == c.pace.events
    note = "" if whole else " A range of several events counts them all with their mean, so the true tail is longer."
    known = {one.name: one for one in facts.account.allocations}
    slow = []
    for seconds, start, stop, when, allocation, droid, worker in c.slowest:
        host = known[allocation].droids[droid].host if droid in known[allocation].droids else "?"
        place = f"Droid {droid} on {host}, worker {worker}"
        slow.append((facts.range(start, stop), place, allocation, _clock(when), svg.seconds_words(seconds)))
    tail = [
        (word, svg.seconds_words(quantile(c.pace.times, q)))
        for word, q in (("50 %", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("99.9 %", 0.999), ("slowest", 1.0))
    ]
    return (
        heading("Event times")
        + f"<p class=note>Wall time of one event on one core; bins are equal in the logarithm.{note}</p>"
        + pictures["times"]
        + table(("quantile", "at most"), tail)
        + details("Slowest", table(("event or range", "where", "allocation", "begun", "per event"), slow, left=3), True)
    )


def _failures(facts: Facts) -> str:
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


def _allocations(facts: Facts) -> str:
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


def _nodes(facts: Facts) -> str:
    found = rows(facts.state, "node")
    if not found:
        return ""
    found.sort(key=lambda entry: entry[1]["productive"] / (entry[1]["total"] or 1.0))
    note = "The least productive first; per cent of the core time of each node." if len(found) > 1 else ""
    lines = [cells(name, seconds) for name, seconds in found[:LISTED]]
    events: dict[str, int] = {}
    for one in facts.account.allocations:
        for life in one.droids.values():
            events[life.host] = events.get(life.host, 0) + life.events
    lines = [(*line, f"{events.get(line[0], 0):,}") for line in lines]
    heads = ("node", *HEADS[1:], "events")
    return heading("Nodes") + f"<p class=note>{note}</p>" + table(heads, lines, left=1, cut=len(found) - LISTED)


def _storage(facts: Facts) -> str:
    c, frozen = facts.chronicle, facts.frozen
    lines = [
        ("input files", f"{len(frozen.inputs.files):,}", _bytes(sum(f.size or 0 for f in frozen.inputs.files))),
        ("images", f"{facts.state['ranges_done']:,}", _bytes(c.bytes)),
        ("sealed segments", f"{c.sealed:,}", _bytes(c.sealed_bytes)),
        *((f"staged to {name}", "", _bytes(size)) for name, size in sorted(c.staged.items())),
        ("journals", f"{len(c.journals):,}", _bytes(sum(one.offset for one in c.journals.values()))),
    ]
    merged = _merged(facts.taskdir)
    if merged:
        lines.append(("merged files", f"{len(merged):,}", _bytes(sum(merged))))
    out = heading("Data") + table(("what", "number", "size"), lines)
    if c.breaker:
        changes = [
            (
                _clock(float(note.get("time") or 0)),
                str(note.get("key", "?")),
                f"{note.get('before', '?')} to {note.get('after', '?')}",
                str(note.get("reason", "")),
            )
            for note in c.breaker
        ]
        out += "<h3>Storage switched off and on</h3>" + table(
            ("time", "endpoint", "change", "reason"), changes[-LISTED:], left=4, cut=len(changes) - LISTED
        )
    return out


def _provenance(facts: Facts) -> str:
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


def _merged(taskdir: TaskDir) -> list[int]:
    """Sizes of the final files, as far as they are where merge puts them by default."""
    try:
        with open(os.path.join(taskdir.merged, "merge.json")) as file:
            names = [one["name"] if isinstance(one, dict) else str(one) for one in json.load(file).get("files", [])]
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    paths = [os.path.join(taskdir.merged, name) for name in names]
    return [os.path.getsize(path) for path in paths if os.path.exists(path)]


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


__all__: Sequence[str] = ("Facts", "draw", "gather", "render", "report")
