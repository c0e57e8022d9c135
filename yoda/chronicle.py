"""Everything the report draws, gathered in one further reading of the journals: bounded by the pictures, not the task.

The first reading is the accounting's: it says who lived when. From it follow the time axis and the lanes; this reading
then adds every record to the sums of the pictures.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange.history import JournalState, Story
from eventrange.interval_arrays import Sum
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from eventrange.times import add
from stageout.catalogue import Catalogue
from yoda.core_seconds import Account, Allocation, DroidLife
from yoda.lanes import Grid
from yoda.lifetime import merger_of
from yoda.pace import Pace
from yoda.timeaxis import TimeAxis

COLUMNS = 800
LANES = 64  #: of one picture at most
SLOWEST = 20
EVIDENCE, PER_EVENT, TEXT = 200, 3, 1500  #: events with evidence, attempts of each, characters of each text


@dataclass
class Life:
    """A Droid, and where it is drawn."""

    droid: DroidLife
    alive: bool
    node: int = -1  #: lane in the picture of nodes
    core: int = -1  #: lane of its first core in the picture of cores
    cores: int = 0  #: cores of it that are drawn


@dataclass
class Chronicle:
    """What the pictures need."""

    axis: TimeAxis
    nodes: Grid
    cores: Grid
    node_labels: list[str]
    core_labels: list[str]
    cores_total: int  #: the most cores that worked side by side, in lanes
    droids_total: int
    pace: Pace = field(default_factory=Pace)
    done: NDArray[np.float64] = field(default_factory=lambda: np.zeros(COLUMNS))  #: events that ended, by column
    bytes: float = 0.0  #: of images
    attempts: Counter[int] = field(default_factory=Counter)  #: attempts before it was done -> events
    failed: Counter[str] = field(default_factory=Counter)  #: category -> attempts that failed
    failed_seconds: dict[str, float] = field(default_factory=dict)
    returned: Counter[str] = field(default_factory=Counter)  #: category -> events given back
    returned_seconds: dict[str, float] = field(default_factory=dict)
    granted: int = 0  #: events
    handed: Sum = field(default_factory=Sum)  #: the same, each event once
    slowest: list[tuple[float, int, int, float, str, int, int]] = field(default_factory=list)
    evidence: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    ranges: Counter[int] = field(default_factory=Counter)  #: the same -> ranges
    consumers: list[NDArray[np.int64]] = field(default_factory=list)  #: events of every worker that did any
    times: dict[int, int] = field(default_factory=dict)  #: of events (eventrange.times)
    single: int = 0  #: events in it that have their own time, and not the mean of their range
    breaker: list[dict[str, Any]] = field(default_factory=list)
    catalogue: Catalogue = field(default_factory=Catalogue)
    versions: dict[str, str] = field(default_factory=dict)
    journals: dict[str, JournalState] = field(default_factory=dict)


def chronicle(taskdir: TaskDir, fingerprint: str, account: Account) -> Chronicle:
    """Read the journals of a task whose accounting is known."""
    lives = {one.name: _lives(one) for one in account.allocations}
    spans = [(life.droid.begin, life.droid.end) for mine in lives.values() for life in mine.values()]
    axis = TimeAxis(spans, COLUMNS)
    out = _layout(axis, account.allocations, lives)
    quarantined = account.fold.result()[1]
    readers = {one.name: _Reader(out, one, lives[one.name]) for one in account.allocations}
    story = Story(taskdir, fingerprint)
    times: dict[str, Any] = {}
    for name, entry in story.whole():
        if isinstance(entry, dict):
            if entry.get("note") == "times":
                times[name] = entry.get("times")  # the sum of the allocation so far
            out.catalogue.add(name, entry)
            _note(out, name, entry, quarantined)
        elif name in readers:
            readers[name].rows(entry)
    for reader in readers.values():
        reader.finish()
    for name, reader in readers.items():
        out.pace.merge(reader.pace)
        _event_times(out, reader.pace, times.get(name))
    out.breaker.sort(key=lambda note: note["time"])  # allocations and commands may have worked side by side
    out.slowest.sort(reverse=True)
    out.journals = story.journals
    return out


def _lives(one: Allocation) -> dict[int, Life]:
    return {droid: Life(life, one.alive and life.left is None) for droid, life in one.droids.items()}


def _layout(axis: TimeAxis, allocations: list[Allocation], lives: dict[str, dict[int, Life]]) -> Chronicle:
    """Give every Droid its lanes. Allocations one after another share lanes; those side by side get their own."""
    tracks: list[tuple[float, list[list[Life]]]] = []  # (when it is free, Droids of each allocation in it)
    everybody = [[life for _, life in sorted(lives[one.name].items())] for one in allocations if lives[one.name]]
    for mine in sorted(everybody, key=lambda mine: min(life.droid.begin for life in mine)):
        begin, end = min(x.droid.begin for x in mine), max(x.droid.end for x in mine)
        free = next((n for n, (until, _) in enumerate(tracks) if until <= begin), None)
        if free is None:
            tracks.append((end, [mine]))
        else:
            tracks[free] = (end, [*tracks[free][1], mine])
    droids = sum(max(len(mine) for mine in track) for _, track in tracks)
    cores = sum(max(sum(x.droid.workers for x in mine) for mine in track) for _, track in tracks)
    per_lane = -(-droids // LANES) if droids else 1
    shown = min(droids, 16) if cores > LANES else droids
    each = LANES // max(1, shown) if cores > LANES else LANES
    first_node = first_core = 0
    node_labels: dict[int, set[str]] = {}
    core_labels: dict[int, str] = {}
    for _, track in tracks:
        height = max(len(mine) for mine in track)
        chosen = _spread(height, max(1, round(shown * height / max(1, droids))))
        place, base = {}, first_core
        for index in chosen:
            place[index] = base
            base += min(each, max(mine[index].droid.workers for mine in track if index < len(mine)))
        for mine in track:
            for index, life in enumerate(mine):
                life.node = (first_node + index) // per_lane
                several = sum(other.droid.host == life.droid.host for other in mine) > 1 if height <= LANES else False
                host = f"{life.droid.host}/{life.droid.droid}" if several else life.droid.host
                node_labels.setdefault(life.node, set()).add(host)
                if index in place and place[index] < LANES:
                    life.core, life.cores = place[index], min(each, life.droid.workers, LANES - place[index])
                    for worker in range(life.cores):
                        core_labels[life.core + worker] = f"{host} {worker}"
        first_node, first_core = first_node + height, base
    lanes = max(core_labels, default=0) + 1
    labels = [_label(node_labels.get(n, set()), n, per_lane, droids) for n in range(max(node_labels, default=0) + 1)]
    return Chronicle(
        axis,
        Grid(len(labels), COLUMNS),
        Grid(lanes, COLUMNS),
        labels,
        [core_labels.get(n, "") for n in range(lanes)],
        cores,
        droids,
    )


def _spread(height: int, count: int) -> list[int]:
    return sorted({round(n * (height - 1) / max(1, count - 1)) for n in range(count)})


def _label(hosts: set[str], lane: int, per_lane: int, droids: int) -> str:
    if per_lane > 1:
        return f"nodes {lane * per_lane + 1}-{min(droids, (lane + 1) * per_lane)}"
    return next(iter(hosts)) if len(hosts) == 1 else f"node {lane + 1}"


def _event_times(out: Chronicle, pace: Pace, told: Any) -> None:
    """Add those of one allocation. `told` is what its `times` note has, [bin, events] each: it knows single events, but
    of an allocation that was killed not the last minute. The records know all, but only the means of ranges."""
    exact: dict[int, int] = {}
    with contextlib.suppress(TypeError, ValueError):
        exact = {int(bin_): int(events) for bin_, events in told}
    if pace.ranges == pace.events or 2 * sum(exact.values()) < pace.events:
        add(out.times, pace.times)
        out.single += pace.single
    else:
        add(out.times, exact)
        out.single += min(pace.events, sum(exact.values()))


class _Reader:
    """Adds the records of one allocation."""

    def __init__(self, out: Chronicle, one: Allocation, lives: dict[int, Life]) -> None:
        self.out, self.allocation, self.lives = out, one, lives
        size = max(lives, default=0) + 1
        self.workers = max((life.droid.workers for life in lives.values()), default=1) or 1
        self.node, self.core, self.count = (np.full(size, -1, np.int64) for _ in range(3))
        for droid, life in lives.items():
            self.node[droid], self.core[droid], self.count[droid] = life.node, life.core, life.cores
        self.ends = np.zeros((size, self.workers))  # end of the latest work of each worker
        self.pace = Pace()
        self.did = np.zeros((size, self.workers), np.int64)  # events done by each worker
        self.open = np.zeros(size)
        self.back: list[tuple[int, float, float]] = []  # droid, begin, end of work lost with what came back
        self.gone: list[tuple[int, float, float]] = []  # droid, time, seconds of all its workers that were lost with it

    def rows(self, rows: NDArray[Any]) -> None:
        rows = rows[(rows["droid"] < len(self.node)) & (rows["time"] > 0) & (rows["time"] < 1e12) & (rows["wall"] >= 0)]
        kind = rows["kind"]
        length = (rows["stop"] - rows["start"]).astype(np.float64)
        granted, done = kind == Kind.GRANTED, kind == Kind.DONE
        failed, back = kind == Kind.FAILED, kind == Kind.RETURNED
        size = len(self.open)
        self.open += np.bincount(rows["droid"][granted], length[granted], size)[:size]
        closed = done | failed | back
        self.open -= np.bincount(rows["droid"][closed], length[closed], size)[:size]
        handed = granted & (rows["code"] == Code.NONE)
        self.out.granted += int(length[handed].sum())
        self.out.handed.add(rows["start"][handed], rows["stop"][handed])
        self._work("productive", rows[done])
        self._work("failed", rows[failed])
        if done.any():
            self._done(rows[done], length[done])
        for chosen, counts, seconds in (
            (rows[failed], self.out.failed, self.out.failed_seconds),
            (rows[back], self.out.returned, self.out.returned_seconds),
        ):
            for code in np.unique(chosen["code"]).tolist():
                name = _code(code)
                mine = chosen["code"] == code
                counts[name] += int((chosen["stop"] - chosen["start"])[mine].sum())
                seconds[name] = seconds.get(name, 0.0) + float(chosen["wall"][mine].sum(dtype=np.float64))
        lost = rows[back & (rows["wall"] > 0)]
        for droid, time, wall, code in lost[["droid", "time", "wall", "code"]].tolist():
            if code == Code.DROID_LOST:
                self.gone.append((droid, time, wall))
            else:
                self.back.append((droid, time - wall, time))

    def _work(self, state: str, rows: NDArray[Any]) -> None:
        if not len(rows):
            return
        droid, worker = rows["droid"].astype(np.int64), np.minimum(rows["worker"], self.workers - 1).astype(np.int64)
        ends = rows["time"] + rows["wall"]
        np.maximum.at(self.ends, (droid, worker), ends)
        begin, end = self.out.axis.place(rows["time"]), self.out.axis.place(ends)
        self.out.nodes.add(state, self.node[droid], begin, end)
        core = np.where(worker < self.count[droid], self.core[droid] + worker, -1)
        self.out.cores.add(state, core, begin, end)

    def _done(self, rows: NDArray[Any], length: NDArray[np.float64]) -> None:
        out = self.out
        self.pace.add(rows)
        column = np.minimum(out.axis.place(rows["time"] + rows["wall"]).astype(np.int64), COLUMNS - 1)
        out.done += np.bincount(column, length, COLUMNS)
        out.bytes += float(rows["size"].sum(dtype=np.float64))
        for attempt in np.unique(rows["attempt"]).tolist():
            mine = rows["attempt"] == attempt
            out.attempts[attempt] += int(length[mine].sum())
            out.ranges[attempt] += int(mine.sum())
        lane = rows["droid"].astype(np.int64) * self.workers + np.minimum(rows["worker"], self.workers - 1)
        self.did += np.bincount(lane, length, self.did.size).astype(np.int64).reshape(self.did.shape)
        per_event = rows["wall"] / np.maximum(length, 1)
        floor = out.slowest[0][0] if len(out.slowest) == SLOWEST else 0.0
        candidates = np.flatnonzero(per_event > floor)
        if len(candidates) > SLOWEST:
            candidates = candidates[np.argpartition(per_event[candidates], -SLOWEST)[-SLOWEST:]]
        for at in candidates.tolist():
            row = rows[at]
            entry = (
                float(per_event[at]),
                int(row["start"]),
                int(row["stop"]),
                float(row["time"]),
                self.allocation.name,
                int(row["droid"]),
                int(row["worker"]),
            )
            (heapq.heappush if len(out.slowest) < SLOWEST else heapq.heappushpop)(out.slowest, entry)

    def finish(self) -> None:
        """What no record says: lives, start-up, draining, and what was under way when a Droid was lost."""
        self.out.consumers.append(self.did[self.did > 0])
        axis, drain = self.out.axis, self.allocation.drain
        merging, merger = self.allocation.merging, merger_of(self.allocation)
        drained = float(drain["time"]) if drain and isinstance(drain.get("time"), (int, float)) else None
        for droid, life in self.lives.items():
            known = life.droid
            joined = known.joined or known.begin
            ready = joined + known.starting / max(1, known.workers)
            begin, start, end = axis.place([known.begin, min(ready, known.end), known.end]).tolist()
            cores = np.arange(life.core, life.core + life.cores) if life.core >= 0 else np.zeros(0, np.int64)
            parts = [("alive", begin, end), ("startup", begin, start)]
            if drained is not None:
                until = merging.begin if merging is not None else known.end
                parts.append(("draining", float(axis.place(max(drained, joined))), float(axis.place(until))))
            for state, a, b in parts:
                self.out.nodes.add(state, life.node, a, b, life.droid.workers)
                self.out.cores.add(state, cores, np.full(len(cores), a), np.full(len(cores), b))
            if merging is not None and droid == merger:
                a, b = axis.place([max(merging.begin, joined), merging.last]).tolist()
                self.out.nodes.add("merge", life.node, a, b)
                self.out.cores.add("merge", life.core, a, b)
            if (known.killed or life.alive) and self.open[droid] > 0:
                since = np.where(self.ends[droid] > 0, self.ends[droid], joined)[: known.workers]
                latest = np.argsort(-since, kind="stable")[: int(min(self.open[droid], len(since)))]
                self._tail("productive" if life.alive else "lost", life, cores, latest, axis.place(since[latest]), end)
        used: set[tuple[int, int]] = set()
        for droid, lost_since, lost_until in self.back:
            if droid in self.lives:
                self._came_back(self.lives[droid], lost_since, lost_until, used)

        for droid, time, seconds in self.gone:
            if droid in self.lives:
                self._went_with(self.lives[droid], time, seconds)

    def _went_with(self, life: Life, time: float, seconds: float) -> None:
        """Work lost with a Droid, `seconds` of its workers together: of those longest without a record, since then."""
        since = np.where(self.ends[life.droid.droid] > 0, self.ends[life.droid.droid], life.droid.joined or 0.0)
        for worker in np.argsort(since[: life.droid.workers], kind="stable").tolist():
            took = min(seconds, max(0.0, time - float(since[worker])))
            seconds -= took
            begin, end = self.out.axis.place([time - took, time]).tolist()
            self.out.nodes.add("lost", life.node, begin, end)
            if worker < life.cores:
                self.out.cores.add("lost", life.core + worker, begin, end)

    def _tail(self, state: str, life: Life, cores: Any, workers: Any, since: Any, end: float) -> None:
        self.out.nodes.add(state, np.full(len(workers), life.node), since, np.full(len(workers), end))
        drawn = workers < len(cores)
        lanes = life.core + workers[drawn]
        self.out.cores.add(state, lanes, since[drawn], np.full(int(drawn.sum()), end))

    def _came_back(self, life: Life, since: float, until: float, used: set[tuple[int, int]]) -> None:
        """Work that was broken off: its record does not say whose it was, so it goes to the worker it fits best."""
        ends = self.ends[life.droid.droid]
        free = [w for w in range(life.droid.workers) if (life.droid.droid, w) not in used]
        if not free:
            return
        worker = min(free, key=lambda w: abs(ends[w] - since))
        used.add((life.droid.droid, worker))
        begin, end = self.out.axis.place([max(since, ends[worker]), until]).tolist()
        self.out.nodes.add("lost", life.node, begin, end)
        if worker < life.cores:
            self.out.cores.add("lost", life.core + worker, begin, end)


def _note(out: Chronicle, allocation: str, note: dict[str, Any], quarantined: Any) -> None:
    what = note.get("note")
    if what == "evidence" and isinstance(note.get("event"), int) and note["event"] in quarantined:
        known = out.evidence.get(note["event"])
        if known is None and len(out.evidence) < EVIDENCE:
            known = out.evidence[note["event"]] = []
        if known is not None and len(known) < PER_EVENT:
            short = {key: value[-TEXT:] if isinstance(value, str) else value for key, value in note.items()}
            known.append({**short, "allocation": allocation})
    elif what == "breaker" and isinstance(note.get("time"), (int, float)):
        out.breaker.append(note)
    elif what == "payload" and not out.versions:
        versions = note.get("versions")
        out.versions = versions if isinstance(versions, dict) else {}


def _code(code: int) -> str:
    try:
        return Code(code).name.lower().replace("_", " ")
    except ValueError:
        return f"code {code}"
