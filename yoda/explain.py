"""`yoda explain`: the story of one range or event, and of a task: why is nothing running, why did it end, what next.

From the journals alone, like everything that looks at a task; only where an image is now is looked up on the disk.
"""

from __future__ import annotations

import os
import textwrap
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange import records
from eventrange.axis import Axis
from eventrange.history import Story
from eventrange.interval_arrays import unite
from eventrange.intervals import IntervalSet
from eventrange.quantity import span
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from stageout.winners import winners
from yoda.lease_view import words as lease_words
from yoda.names import foreign_name, range_name
from yoda.status import status
from yoda.storage_view import explain_switched
from yoda.verdict import verdict

Copies = dict[tuple[str, int, int], dict[str, str]]  #: (allocation, droid, segment) -> endpoint -> place
MOST = 400  #: entries told at most, the first and the last ones; and images, the first ones
VERSION = 1


@dataclass
class Told:
    """What was found about a range."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    rows: list[NDArray[Any]] = field(default_factory=list)  #: done and pending records, in journal order
    allocations: list[str] = field(default_factory=list)  #: of each of these
    quarantined: IntervalSet = field(default_factory=IntervalSet)  #: done or not


def explain_range(taskdir: TaskDir, name: str) -> dict[str, Any]:
    """Everything the journals know of the range or event called `name` (Axis.parse). Plain values.

    Raises NotATask, TaskDamaged, ConfigError (exit 78) where the name means nothing.
    """
    from yoda.task import need_task

    frozen = need_task(taskdir)
    axis = Axis.from_dict(frozen.axis)
    start, stop = axis.parse(name)
    droids: dict[tuple[str, int], dict[str, Any]] = {}
    sealed: dict[tuple[str, int, int], dict[str, Any]] = {}
    staged: Copies = {}
    told = Told()
    ended: dict[str, str] = {}
    for allocation, entry in Story(taskdir, frozen.fingerprint).whole():
        if isinstance(entry, dict):
            _note(told, allocation, entry, start, stop, droids, sealed, staged, ended)
        else:
            rows = entry[(entry["start"] < stop) & (entry["stop"] > start)]
            _records(told, allocation, rows, start, stop)
            for row in rows:
                _tell(told, _entry(axis, allocation, row, droids))
    images, count, done = _images(told, axis, droids, start, stop)
    for one in images:
        one["member"] = axis.member(frozen.task, one["start"], one["stop"])
        _locate(one, taskdir, sealed, staged)
    for first, last in done:
        told.quarantined.remove(first, last)
    open_grants = _open(told.entries)
    for entry in open_grants:
        fate = ended.get(entry["allocation"], "its allocation was killed, or is at it")
        entry["outcome"] = f"not heard of again: {fate}"
    return {
        "version": VERSION,
        "task": frozen.task,
        "range": range_name(axis, start, stop),
        "named": foreign_name(axis, start, stop),
        "start": start,
        "stop": stop,
        "events": stop - start,
        "done": done.total,
        "state": _state(stop - start, done.total, told),
        "entries": told.entries,
        "entries_total": told.count,
        "images": images,
        "images_total": count,
        "merged": os.path.exists(os.path.join(taskdir.merged, "merge.json")),
    }


def _records(told: Told, allocation: str, rows: NDArray[Any], start: int, stop: int) -> None:
    """Take in what `rows` say of the state of [start, stop)."""
    kind = rows["kind"]
    racing = (kind == Kind.DONE) | (kind == Kind.PENDING)
    if racing.any():
        told.rows.append(rows[racing])
        told.allocations.append(allocation)
    given_up = (kind == Kind.QUARANTINED) | (kind == Kind.PENDING)
    for what, first, last in rows[given_up][["kind", "start", "stop"]].tolist():
        change = told.quarantined.add if what == Kind.QUARANTINED else told.quarantined.remove
        change(max(first, start), min(last, stop))


def _entry(axis: Axis, allocation: str, row: Any, droids: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """What a record says."""
    kind, start, stop = int(row["kind"]), int(row["start"]), int(row["stop"])
    droid = int(row["droid"])
    home = droids.get((allocation, droid), {})
    entry: dict[str, Any] = {
        "time": float(row["time"]),
        "what": Kind(kind).name.lower() if kind in list(Kind) else str(kind),
        "range": range_name(axis, start, stop),
        "start": start,
        "stop": stop,
        "allocation": allocation,
    }
    if droid:
        entry |= {"droid": droid, "host": home.get("host", "?")}
    if kind in (Kind.DONE, Kind.FAILED):
        entry |= {"worker": int(row["worker"]), "seconds": float(row["wall"]), "cpu": float(row["cpu"])}
    if kind == Kind.GRANTED and row["code"]:
        entry["what"] = "kept"
    if kind in (Kind.FAILED, Kind.RETURNED):
        code = int(row["code"])
        entry["code"] = Code(code).name.lower() if code in list(Code) else str(code)
        entry["seconds"] = float(row["wall"])
    if kind in (Kind.GRANTED, Kind.FAILED, Kind.QUARANTINED):
        entry["attempt"] = int(row["attempt"]) + (kind != Kind.QUARANTINED)
    return entry


def _tell(told: Told, entry: dict[str, Any]) -> None:
    told.count += 1
    told.entries.append(entry)
    if len(told.entries) > MOST:
        del told.entries[MOST // 2]


def _note(
    told: Told,
    allocation: str,
    note: dict[str, Any],
    start: int,
    stop: int,
    droids: dict[tuple[str, int], dict[str, Any]],
    sealed: dict[tuple[str, int, int], dict[str, Any]],
    staged: Copies,
    ended: dict[str, str],
) -> None:
    what = note.get("note")
    if what == "joined":
        droids[allocation, int(note.get("droid") or 0)] = note
    elif what == "sealed":
        sealed[allocation, int(note.get("droid") or 0), int(note.get("segment") or 0)] = note
    elif what == "staged":
        staged.setdefault(_segment(note), {})[str(note.get("endpoint"))] = str(note.get("url") or note.get("key"))
    elif what == "removed":
        staged.get(_segment(note), {}).pop(str(note.get("endpoint")), None)
    elif what == "end":
        ended[allocation] = f"the allocation ended: {note.get('reason', '?')}"
    elif what == "evidence" and isinstance(note.get("event"), int) and start <= note["event"] < stop:
        keys = ("event", "attempt", "droid", "host", "worker", "text", "stderr")
        entry = {"time": float(note.get("time") or 0), "what": "evidence", "allocation": allocation}
        _tell(told, entry | {key: note.get(key) for key in keys})


def _segment(note: dict[str, Any]) -> tuple[str, int, int]:
    return str(note.get("allocation")), int(note.get("droid") or 0), int(note.get("segment") or 0)


def _images(
    told: Told, axis: Axis, droids: dict[tuple[str, int], dict[str, Any]], start: int, stop: int
) -> tuple[list[dict[str, Any]], int, IntervalSet]:
    """Of [start, stop): the first images that count, by position, with how many events of it each covers; how many
    there are; and what is done."""
    rows = np.concatenate([records.new(0), *told.rows])
    placed = winners(rows, np.arange(len(rows)))  # a record may win several pieces, so its number goes with each
    begin, end = placed["keep_start"].clip(start, stop), placed["keep_stop"].clip(start, stop)
    inside = begin < end
    numbers, which = np.unique(placed["allocation"][inside], return_inverse=True)
    covers = np.zeros(len(numbers), np.int64)
    np.add.at(covers, which, (end - begin)[inside])
    batches = np.cumsum([len(batch) for batch in told.rows])
    out = []
    for at in np.argsort(rows["start"][numbers], kind="stable")[:MOST].tolist():
        row = rows[numbers[at]]
        entry = _entry(axis, told.allocations[int(np.searchsorted(batches, numbers[at], "right"))], row, droids)
        image = {name: int(row[name]) for name in ("segment", "offset", "size")}
        out.append({**entry, **image, "checksum": f"{int(row['checksum']):08x}", "covers": int(covers[at])})
    return out, len(numbers), IntervalSet.from_arrays(*unite(begin, end))


def _locate(
    one: dict[str, Any],
    taskdir: TaskDir,
    sealed: dict[tuple[str, int, int], dict[str, Any]],
    staged: Copies,
) -> None:
    """Where the image of a done record is now."""
    if not one["size"]:
        one["where"] = ["it has no image"]
        return
    key = (one["allocation"], one["droid"], one["segment"])
    path = taskdir.segment(*key)
    words = []
    if os.path.exists(path):
        words.append(f"{path} at byte {one['offset']} ({'sealed' if key in sealed else 'not sealed'})")
    words += [f"{endpoint}: {url} at byte {one['offset']}" for endpoint, url in staged.get(key, {}).items()]
    one["where"] = words or [f"nowhere: {path} is gone; `yoda merge` makes its events pending again"]


def _open(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Grants of which nothing came back to this allocation's journal."""
    out = []
    for number, entry in enumerate(entries):
        if entry["what"] != "granted":
            continue
        later = entries[number + 1 :]
        answered = any(
            other["what"] in ("done", "failed", "returned")
            and other["allocation"] == entry["allocation"]
            and other.get("droid") == entry["droid"]
            and other["start"] < entry["stop"]
            and other["stop"] > entry["start"]
            for other in later
            if "start" in other
        )
        if not answered:
            out.append(entry)
    return out


def _state(events: int, done: int, told: Told) -> str:
    if done >= events:
        return "done"
    if told.quarantined:
        return "quarantined" if events == 1 else f"{done} of {events} events done, some quarantined"
    if done:
        return f"{done} of {events} events done"
    return "pending" if not told.entries or told.entries[-1]["what"] != "granted" else "granted"


def render_range(found: dict[str, Any]) -> str:
    """The story for people."""
    size = f"one event, position {found['start']}"
    if found["events"] > 1:
        size = f"{found['events']:,} events, positions {found['start']} to {found['stop'] - 1}"
    out = [f"{found['range']} of {found['task']}: {size}"]
    if found["named"]:
        out.append(f"of the named range {found['named']}")
    out.append(f"state: {found['state']}")
    for one in found["images"][:20]:
        out.append(f"image of {one['range']} ({one['size']:,} bytes), member {one['member']}:")
        out += [f"  {where}" for where in one["where"]]
    if found["images_total"] > 20:
        out.append(f"and {found['images_total'] - 20:,} more images")
    if found["merged"]:
        out.append("the task has been merged")
    out.append("")
    if not found["entries"]:
        out.append("Nobody has been given it yet.")
    last = ""
    for entry in found["entries"]:
        if entry["allocation"] != last:
            last = entry["allocation"]
            out.append(f"allocation {last}")
        out += _sentence(entry)
    if found["entries_total"] > len(found["entries"]):
        out.append(f"({found['entries_total'] - len(found['entries']):,} entries in the middle are left out)")
    return "\n".join(out)


def _sentence(entry: dict[str, Any]) -> list[str]:
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry["time"])) if entry["time"] else "?"
    who = f"Droid {entry['droid']} on {entry['host']}" if entry.get("droid") else ""
    what = entry["what"]
    if what == "evidence":
        words = "\n".join(str(entry.get(key) or "").strip() for key in ("text", "stderr")).strip()
        lines = [line[:200] for line in words.splitlines() if not line.startswith("Extension modules:")]
        if len(lines) > 16:  # a traceback has its gist at the end, a fault handler's stack at the beginning
            lines = [*lines[:8], "...", *lines[-8:]]
        return [f"      | {line}" for line in lines]
    if what == "granted":
        again = f", attempt {entry['attempt']}" if entry["attempt"] > 1 else ""
        more = f"; {entry['outcome']}" if "outcome" in entry else ""
        return [f"  {clock}  {entry['range']} granted to {who}{again}{more}"]
    if what == "kept":
        return [f"  {clock}  {entry['range']} had been taken from {who}, which had it all the same"]
    if what == "done":
        return [f"  {clock}  {entry['range']} done by {who}, worker {entry['worker']}, in {span(entry['seconds'])}"]
    if what == "failed":
        where = f"{who}, worker {entry['worker']}, after {span(entry['seconds'])}"
        return [f"  {clock}  {entry['range']} failed on {where}: {entry['code']}, attempt {entry['attempt']}"]
    if what == "returned":
        lost = f", {span(entry['seconds'])} of work lost" if entry["seconds"] >= 0.05 else ""
        return [f"  {clock}  {entry['range']} came back from {who}: {entry['code'].replace('_', ' ')}{lost}"]
    if what == "quarantined":
        return [f"  {clock}  {entry['range']} quarantined after {entry['attempt']} attempts"]
    if what == "pending":
        return [f"  {clock}  {entry['range']} taken up again"]
    return [f"  {clock}  {entry['range']} {what} {who}".rstrip()]


# -- the task ----------------------------------------------------------------------------------------------------------


def explain_task(taskdir: TaskDir, now: float | None = None) -> dict[str, Any]:
    """Why the task is where it is, and what to do next: sentences, and the status they come from."""
    state = status(taskdir, now)
    return {
        "version": VERSION,
        "task": state["task"],
        "verdict": verdict(state["core_seconds_detail"]),
        "why": _why(state),
        "next": _next(state),
        "status": state,
    }


def _why(state: dict[str, Any]) -> list[str]:
    events, allocations = state["events"], state["allocations"]
    out = [f"{events['done']:,} of {events['total']:,} events are done, {events['quarantined']:,} quarantined."]
    alive = [one for one in allocations if one["state"] == "alive"]
    merging = [one for one in allocations if one["state"] == "merging"]
    last = _last(allocations)
    for one in alive:
        age = span(max(0.0, state["time"] - (one["last_sign_of_life"] or state["time"])))
        droids = [droid for droid in one["droids"] if droid["left"] is None]
        if droids:
            count = f"{len(droids)} Droid{'s' * (len(droids) != 1)}"
            out.append(f"Allocation {one['name']} is at work with {count}; last sign of life {age} ago.")
        else:
            out.append(f"Allocation {one['name']} has started, but no Droid is at work in it (last word {age} ago).")
    for one in merging:
        out.append(f"Allocation {one['name']} has ended its work and makes the final files: {one['why']}.")
    if not alive and last is None:
        out.append("No allocation has worked on it yet.")
    if not alive and not merging and last is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(last["last_sign_of_life"] or 0))
        code = "" if last["exit_code"] is None else f" (exit code {last['exit_code']})"
        out.append(f"Nothing is running. The last allocation, {last['name']}, ended at {when}: {last['why']}{code}.")
        if last["state"] == "killed":
            out.append("It wrote no end, so it was killed; what was in flight is pending again, all else is kept.")
        for droid in last["droids"]:
            if droid["left"] and droid["left"].startswith(("sick", "lost")):
                out.append(f"Droid {droid['droid']} on {droid['host']} was {droid['left'].splitlines()[0]}.")
    named = {one["name"] for one in alive}
    for lease in state.get("leases", ()):
        if lease["state"] == "silent" or lease["allocation"] not in {*named, *(one["name"] for one in merging)}:
            out.append(f"Lease of {lease['allocation']} on {lease['host']}: {lease_words(lease)}.")
    for job in _queued(state):
        reason = f" ({job['reason']})" if job.get("reason") else ""
        out.append(f"Slurm has job {job['job']} of this task: {job['state'].lower()}{reason}.")
    if "breakers" in state:
        out += explain_switched(state["breakers"])
    for one in allocations:
        if one["damage"]:
            out.append(f"Journal {one['name']}: {one['damage']}.")
    return out


def _last(allocations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last one that worked."""
    worked = [one for one in allocations if one["state"] != "none"]
    return max(worked, key=lambda one: one["last_sign_of_life"] or 0.0, default=None)


def _queued(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Jobs of the task that Slurm still has."""
    return [job for job in (state.get("slurm") or {}).get("jobs", ()) if job.get("state") != "GONE"]


def _next(state: dict[str, Any]) -> list[str]:
    events, task = state["events"], state["directory"]
    out: list[str] = []
    if any(one["state"] in ("alive", "merging") for one in state["allocations"]):
        return [f"yoda status {task} --watch"]
    if state["complete"]:
        if not state["merged"]:
            out.append(f"yoda merge {task}")
        if events["quarantined"]:
            first = state["quarantined"][0]
            out.append(f"yoda explain {task} '#{first}'   # why the first quarantined event was given up")
            out.append("yoda run JOB --retry-quarantined   # after the payload is repaired")
        return out or ["Nothing: the task is complete and merged."]
    if _queued(state):
        return ["Wait: Slurm has a job that goes on with it (see `yoda status`)."]
    last = _last(state["allocations"])
    code = last["exit_code"] if last is not None else None
    if code == 78:
        out.append("Correct what the message above names, then run the same `yoda run` again.")
    elif code == 73:
        out.append("Make room where the message above says, then run the same `yoda run` again.")
    elif code == 1:
        out.append("That was a bug: its traceback is in the logs folder of the task. The same `yoda run` goes on.")
    else:
        out.append("Run the same `yoda run` (or `yoda submit`) again: it goes on where this one was cut.")
    return out


def render_task(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{found['task']}: {found['verdict']}", "", *found["why"]]
    told = [part for line in lines for part in (textwrap.wrap(line, 80, break_on_hyphens=False) or [""])]
    return "\n".join([*told, "", "next:", *(f"  {line}" for line in found["next"])])
