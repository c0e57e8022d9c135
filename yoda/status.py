"""What `yoda status` says, from task.yaml, journals and leases: a versioned dict for programs, a page for people."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from eventrange.axis import Axis
from eventrange.history import JournalState, Story
from eventrange.intervals import IntervalSet
from eventrange.quantity import span
from eventrange.taskdir import TaskDir
from stageout.catalogue import Catalogue
from yoda.accounting import NOBODY, account_entries
from yoda.core_seconds import Account, Allocation, CoreSeconds, Merging
from yoda.lease_view import leases_and_dead
from yoda.lease_view import render as lease_lines
from yoda.lease_view import words as lease_words
from yoda.pace import Pace
from yoda.storage_view import render as storage_lines
from yoda.storage_view import render_switched, storage_view, switched_view

if TYPE_CHECKING:
    from eventrange.named import NamedRanges

VERSION = 1
#: An allocation that has not ended is taken to be alive for this many seconds after its last entry: three pulses.
ALIVE = 30.0
LISTED = 100  #: quarantined events, holes and Droids listed at most; their numbers are always given in full


def status(taskdir: TaskDir, now: float | None = None) -> dict[str, Any]:
    """All that is known of the task in `taskdir` at unix time `now`; JSON types only.

    Raises NotATask, TaskDamaged (exit 78). Damaged journals raise nothing and are listed.
    """
    from yoda.task import need_task

    frozen = need_task(taskdir)
    leases, dead = leases_and_dead(taskdir, now)
    axis = Axis.from_dict(frozen.axis)
    found = task_status(taskdir, frozen.task, frozen.fingerprint, axis.total, now, dead, axis.ranges)
    found["leases"] = leases
    if os.path.isdir(taskdir.slurm):
        from yoda.slurm_view import slurm_view

        found["slurm"] = slurm_view(taskdir, frozen.task)
    return found


def task_status(
    taskdir: TaskDir,
    name: str,
    fingerprint: str,
    total: int,
    now: float | None = None,
    dead: Mapping[str, float] = NOBODY,
    ranges: NamedRanges | None = None,
) -> dict[str, Any]:
    """The same, from the journals alone, for a task whose `name`, `fingerprint` and number of events are known.

    `dead` are allocations that are, if their last word is so many seconds old; `ranges` are those that someone else
    named. Keys: see docs of `yoda status`.

    `core_seconds` has six parts that sum to its `total`; `core_seconds_detail` has all of them, which do so too.
    """
    now = time.time() if now is None else now
    stories: list[Story] = []
    pace = Pace()
    catalogue = Catalogue()

    def story() -> Any:
        again = bool(stories)
        stories.append(Story(taskdir, fingerprint))
        for allocation, entry in stories[-1].whole():
            if isinstance(entry, dict) and not again:
                catalogue.add(allocation, entry)
            if not (again or isinstance(entry, dict)):
                pace.add(entry)
            yield allocation, entry

    account = account_entries(story, now - ALIVE, last_words(dead, now))
    found = compose(taskdir, name, fingerprint, total, account, stories[-1].journals, pace, now, ranges)
    views = {"storage": storage_view(catalogue), "breakers": switched_view(catalogue)}
    return {**found, **{name: view for name, view in views.items() if view is not None}}


def last_words(dead: Mapping[str, float], now: float) -> dict[str, float]:
    """`dead`, allocations that are if their last word is so many seconds old, as Accountant.result wants it."""
    return {name: now - age for name, age in dead.items()}


def compose(
    taskdir: TaskDir,
    name: str,
    fingerprint: str,
    total: int,
    account: Account,
    journals: dict[str, JournalState],
    pace: Pace,
    now: float,
    ranges: NamedRanges | None = None,
) -> dict[str, Any]:
    """The status of a task from what has been read of its journals."""
    done, quarantined, attempts = account.fold.result()
    alive = living(account, now)
    open_events = max(0, total - done.total - quarantined.total)
    in_flight = min(open_events, sum(_count(a.pulse, "in_flight") for a in alive))
    rate = sum((events_per_second(a, now) for a in alive), 0.0)
    known = {a.name: a for a in account.allocations}
    workers, busy = at_work(alive)
    eta = pace.eta(now, open_events, busy)
    nodes = account.nodes()
    named = {} if ranges is None else {"named_ranges": ranges.progress(done, quarantined)}
    return {
        "version": VERSION,
        "task": name,
        "fingerprint": fingerprint,
        "directory": os.path.abspath(taskdir.root),
        "time": now,
        "complete": open_events == 0,
        "events": {
            "total": total,
            "done": done.total,
            "quarantined": quarantined.total,
            "in_flight": in_flight,
            "pending": open_events - in_flight,
            "failed_before": len(attempts),
        },
        "ranges_done": sum(life.ranges for a in account.allocations for life in a.droids.values()),
        **named,
        "events_per_second": round(rate, 3),
        "eta_seconds": 0.0 if open_events == 0 else round(open_events / rate, 1) if rate > 0 else None,
        "eta": None if eta is None else {name: round(value, 1) for name, value in vars(eta).items()},
        "seconds_per_event": round(pace.mean, 6),
        "workers": {"total": workers, "busy": busy},
        "allocations": [_allocation(known.get(n, Allocation(n)), state, now) for n, state in journals.items()],
        "core_seconds": account.core_seconds.folded(),
        "core_seconds_detail": detail(account.core_seconds),
        "nodes": {host: seconds.folded() for host, seconds in nodes.items()},
        "nodes_detail": {host: detail(seconds) for host, seconds in nodes.items()},
        "quarantined": list(islice((event for a, b in quarantined for event in range(a, b)), LISTED)),
        "holes": _holes(done, quarantined, total),
        "damaged": sorted(n for n, state in journals.items() if state.damaged),
        "merged": os.path.exists(os.path.join(taskdir.merged, "merge.json")),
    }


def living(account: Account, now: float) -> list[Allocation]:
    """Allocations that have not ended, and are taken to be alive at unix time `now`."""
    return [one for one in account.allocations if one.end is None and _fresh(one, one.last, now)]


def at_work(alive: list[Allocation]) -> tuple[int, int]:
    """(workers, busy ones) of allocations that are alive; of one that has not pulsed yet, all are taken to be busy."""
    workers = busy = 0
    for one in alive:
        here = sum(life.workers for life in one.droids.values() if life.left is None)
        workers += _count(one.pulse, "workers") if one.pulse else here
        busy += min(_count(one.pulse, "busy"), _count(one.pulse, "workers")) if one.pulse else here
    return workers, busy


def detail(seconds: CoreSeconds) -> dict[str, float]:
    """All parts, those of `idle` too, and their total."""
    return {**seconds.parts(), **seconds.finer()}


def events_per_second(allocation: Allocation, now: float) -> float:
    """Mean rate of an allocation since its first Droid joined; 0 before anything is done."""
    begun = min((d.joined for d in allocation.droids.values() if d.joined is not None), default=now)
    return allocation.events / (now - begun) if now > begun else 0.0


def _allocation(allocation: Allocation, state: JournalState, now: float) -> dict[str, Any]:
    droids = sorted(allocation.droids.values(), key=lambda life: life.droid)
    return {
        "name": allocation.name,
        "state": _state(allocation, now),
        "why": _why(allocation, now),
        "exit_code": allocation.end.get("exit_code") if allocation.end else None,
        "host": allocation.about.get("host"),
        "created": allocation.created or None,
        "last_sign_of_life": allocation.last or None,
        "events_done": allocation.events,
        "signals": allocation.signals,
        "core_seconds": allocation.core_seconds.folded(),
        "core_seconds_detail": detail(allocation.core_seconds),
        "merging": _merging(allocation.merging),
        "damage": str(state) if state.damaged or state.damage.tail else "",
        "droids": [
            {
                "droid": life.droid,
                "host": life.host,
                "workers": life.workers,
                "events_done": life.events,
                "last_sign_of_life": life.last or None,
                "left": life.reason or None,
            }
            for life in droids[:LISTED]
        ],
        "droids_total": len(droids),
    }


def _merging(merging: Merging | None) -> dict[str, Any] | None:
    """The merge at the end of an allocation: since when, how far, and how it ended (null: it has not)."""
    if merging is None:
        return None
    over = merging.over
    return {
        "begun": merging.begin,
        "last_sign_of_life": merging.last,
        "events": merging.done,
        "events_total": merging.total,
        "exit_code": None if over is None else over.get("exit_code"),
        "reason": None if over is None else str(over.get("reason", "")),
    }


def _state(allocation: Allocation, now: float) -> str:
    """`ended`, `merging` (ended, and at that), `alive`, `killed` (no end written), or `none` (a journal without Droids:
    written by a command)."""
    if allocation.end is not None:
        merging = allocation.merging
        return "merging" if merging and merging.over is None and _fresh(allocation, merging.last, now) else "ended"
    fresh = _fresh(allocation, allocation.last, now)
    if not allocation.droids and allocation.pulse is None:
        return "alive" if fresh and allocation.about.get("started") else "none"
    return "alive" if fresh else "killed"


def _fresh(allocation: Allocation, last: float, now: float) -> bool:
    """Whether a word of the unix time `last` is that of a living allocation."""
    return last > now - ALIVE and not allocation.dead


def _why(allocation: Allocation, now: float) -> str:
    state, merging = _state(allocation, now), allocation.merging
    if allocation.end is not None:
        reason = str(allocation.end.get("reason", ""))
        if state == "merging" and merging is not None:
            return f"{reason}; merging{f', {100 * merging.done / merging.total:.0f} %' if merging.total else ''}"
        if merging is not None and merging.over is None:
            return f"{reason}; killed while it merged"
        if merging is not None and merging.over is not None and merging.over.get("exit_code"):
            return f"{reason}; the merge failed: {merging.over.get('reason', '?')}"
        return reason
    if state == "none":
        return "no Droid worked in it"
    before = f"while draining ({allocation.drain.get('reason')})" if allocation.drain else "without warning"
    return f"killed {before}" if state == "killed" else ""


def _holes(done: IntervalSet, quarantined: IntervalSet, total: int) -> list[list[int]]:
    """The first intervals [start, stop) that are still to do."""
    out: list[list[int]] = []
    for start, stop in done.gaps(0, total):
        out += [[a, b] for a, b in quarantined.gaps(start, stop)]
        if len(out) >= LISTED:
            break
    return out[:LISTED]


def _count(note: dict[str, Any] | None, key: str) -> int:
    value = (note or {}).get(key, 0)
    return int(value) if isinstance(value, int) else 0


def render(state: dict[str, Any], width: int = 80) -> str:
    """A page of at most `width` columns for people."""
    events, seconds = state["events"], state["core_seconds"]
    share = events["done"] / events["total"] if events["total"] else 1.0
    lines = [f"{state['task']}: {'complete' if state['complete'] else f'{100 * share:.1f} % done'}"]
    lines.append(progress_bar(events, width))
    lines.append(
        f"events   {events['done']:,} of {events['total']:,} done, {events['in_flight']:,} in flight, "
        f"{events['pending']:,} pending"
    )
    if named := state.get("named_ranges"):
        failed = f", {named['failed']:,} with quarantined events" if named["failed"] else ""
        lines.append(f"ranges   {named['done']:,} of {named['total']:,} named ones done{failed}")
    if events["quarantined"]:
        first = ", ".join(str(event) for event in state["quarantined"][:5])
        more = ", ..." if events["quarantined"] > 5 else ""
        lines.append(f"         {events['quarantined']:,} quarantined: positions {first}{more}")
    if state["eta_seconds"] and state["events_per_second"]:
        lines.append(f"rate     {state['events_per_second']:,.1f} events/s, {span(state['eta_seconds'])} to go")
    if seconds["total"]:
        lines.append(f"cores    {span(seconds['total'])} of core time; of these")
        shares = [(100 * value / seconds["total"], name) for name, value in seconds.items() if name != "total"]
        lines.append("         " + ", ".join(f"{v:.1f} % {n.replace('_', ' ')}" for v, n in shares if v >= 0.05))
    leases = {one["allocation"]: one for one in state.get("leases", ())}
    new = lease_lines(list(leases.values()), {one["name"] for one in state["allocations"]})
    if state["allocations"] or new:
        lines.append("allocations")
    for one in state["allocations"]:
        lines.append(f"  {one['name']}  {one['state']}, {one['events_done']:,} events, {one['droids_total']} Droids")
        if one["why"]:
            lines.append(f"    {one['why'].splitlines()[0]}")
        if one["name"] in leases:
            lines.append(f"    {lease_words(leases[one['name']])}")
        if one["damage"]:
            lines.append(f"    journal: {one['damage']}")
    lines += new
    if state.get("storage"):
        lines += storage_lines(state["storage"])
    if state.get("breakers"):
        lines += render_switched(state["breakers"])
    if state.get("slurm"):
        from yoda.slurm_view import render as slurm_lines

        lines += slurm_lines(state["slurm"])
    alive = any(one["state"] == "alive" for one in state["allocations"]) or bool(new)
    if not state["complete"] and not alive and not _queued(state):
        lines.append("nothing is running; the same `yoda run` goes on with it")
    return "\n".join(part for line in lines for part in _wrap(line, width))


def progress_bar(events: dict[str, int], width: int) -> str:
    """`#` for what is done, `x` for what is quarantined; whatever there is of either has one character at least."""
    room, total = width - 2, max(1, events["total"])
    bad = min(room, max(round(room * events["quarantined"] / total), events["quarantined"] > 0))
    done = min(room - bad, max(room * events["done"] // total, events["done"] > 0))
    if events["done"] + events["quarantined"] >= events["total"]:
        done = room - bad
    return f"[{'#' * done}{'x' * bad}{'.' * (room - done - bad)}]"


def _queued(state: dict[str, Any]) -> bool:
    """Whether Slurm has a job that will go on with the task."""
    return any(job["state"] != "GONE" for job in (state.get("slurm") or {}).get("jobs", ()))


def _wrap(line: str, width: int) -> list[str]:
    import textwrap

    indent = " " * (9 if not line.startswith(" ") else len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
