"""Where every core-second of every allocation went, from the journals alone (pure; streaming).

A Droid's core-seconds are workers x (its end - the start of its process). The parts:

    productive      wall time of done ranges, of the record that won its events (L2) and whose image is still of use
    lost_in_flight  work under way when a Droid was lost, drained or killed
    retried         work that brought nothing: failed attempts, second copies, images made pending again
    hung            attempts ended by their time limit
    quarantined     attempts at events that were given up in the end
    idle            workers without work: idle_waiting before or between ranges, idle_tail behind the last one
    startup         from the start of the Droid's process until Yoda knew it
    overhead        gaps of at most GAP between ranges of one worker, and whatever else is not work

What a killed allocation never wrote down is inferred: a Droid without `left` ends with the last sign of life of
its allocation, and what its workers did since their last record is lost in flight as far as they had work granted.

All sums are kept in whole microseconds, so the parts always sum to the total.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eventrange.history import Fold, Story
from eventrange.interval_arrays import covered, difference, overlaps, unite
from eventrange.intervals import IntervalSet
from eventrange.journal import Entry
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from yoda.core_seconds import FINE, Account, Allocation, CoreSeconds, DroidLife

#: Seconds without work that are a range's overhead (image, pipe, next range) and not a wait for work.
GAP = 0.1


def account(
    taskdir: TaskDir, fingerprint: str, only: Collection[str] | None = None, alive_since: float = 0.0
) -> Account:
    """Read all journals of a task, or of the allocations in `only`.

    An allocation without `end` whose last sign of life is later than `alive_since` (unix seconds; 0: none is) is taken
    to be alive: what it has in flight is not lost.
    """
    return account_entries(lambda: Story(taskdir, fingerprint, only).whole(), alive_since)


def account_entries(story: Callable[[], Iterable[tuple[str, Entry]]], alive_since: float = 0.0) -> Account:
    """The same from `story()`, all (allocation, entry) in journal order.

    It is read twice only where a PENDING record takes back what was believed productive.
    """
    first = Accountant()
    first.read(story())
    if not first.voids:
        return first.result(alive_since)
    second = Accountant(first.voids)
    second.read(story())
    return second.result(alive_since)


class _Lanes(NamedTuple):
    """Workers of one Droid that worked: how many, the highest number, the latest end, and the sum of their ends, each
    less `base`."""

    number: int
    highest: int
    latest: float
    sum: float
    base: float


_NOTHING = _Lanes(0, -1, 0.0, 0.0, 0.0)


class _Work:
    """What the records of one allocation say of its Droids: sums by Droid number, shape (droids,) each."""

    NAMES = (
        "productive",
        "retried",
        "hung",
        "returned",
        "revoked",
        "overhead",
        "idle_waiting",
        "open",
        "ranges",
        "events",
    )

    def __init__(self) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {name: np.zeros(0) for name in self.NAMES}
        self.first = np.zeros(0)  #: by Droid, start of its first work; infinite where there was none
        self.joined = np.zeros(0)  #: by Droid, when it joined; nan where that is not known
        self.lanes = np.zeros(0, np.uint32)  #: droid << 16 | worker of all that worked, sorted
        self.ends = np.zeros(0)  #: end of the latest work of each of them

    def add(self, name: str, droids: NDArray[Any], values: NDArray[Any]) -> None:
        found = np.bincount(droids, values).astype(np.float64)
        mine = self.sums.get(name, np.zeros(0))
        longer, shorter = (found, mine) if len(found) > len(mine) else (mine, found)
        longer[: len(shorter)] += shorter
        self.sums[name] = longer

    def get(self, name: str, droid: int) -> float:
        mine = self.sums.get(name, ())
        return float(mine[droid]) if droid < len(mine) else 0.0

    def begun(self, droid: int, otherwise: float) -> float:
        """When the Droid's first work began."""
        return float(self.first[droid]) if droid < len(self.first) and np.isfinite(self.first[droid]) else otherwise

    def join(self, droid: int, time: float) -> None:
        """A Droid joined at `time`."""
        self._room(droid + 1)
        self.joined[droid] = time

    def _room(self, droids: int) -> None:
        if droids > len(self.first):
            more = max(droids, 2 * len(self.first)) - len(self.first)
            self.first = np.append(self.first, np.full(more, np.inf))
            self.joined = np.append(self.joined, np.full(more, np.nan))

    def by_droid(self) -> dict[int, _Lanes]:
        """What is known of the workers of each Droid that worked."""
        if not len(self.lanes):
            return {}
        droid = self.lanes >> np.uint32(16)
        group = np.flatnonzero(np.concatenate(([True], droid[1:] != droid[:-1])))
        base = float(self.ends.min())  # sums of unix times would lose microseconds
        columns = (
            droid[group],
            np.diff(np.append(group, len(droid))),
            np.maximum.reduceat(self.lanes & np.uint32(0xFFFF), group),
            np.maximum.reduceat(self.ends, group),
            np.add.reduceat(self.ends - base, group),
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return {droid: _Lanes(count, highest, latest, total, base) for droid, count, highest, latest, total in rows}

    def timeline(self, rows: NDArray[Any]) -> None:
        """Gaps between pieces of work of every worker; `rows` of kinds that carry the time they began."""
        key = rows["droid"].astype(np.uint32) << np.uint32(16) | rows["worker"]
        order = np.argsort(key, kind="stable")
        key, begin = key[order], rows["time"][order]
        end = begin + rows["wall"][order]
        if np.any((begin[1:] < begin[:-1]) & (key[1:] == key[:-1])):
            order = np.lexsort((begin, key))
            key, begin, end = key[order], begin[order], end[order]
        group = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
        before = np.empty(len(key))
        before[1:] = end[:-1]
        lanes, latest, here = key[group], np.maximum.reduceat(end, group), key[group] >> np.uint32(16)
        self._room(int(here[-1]) + 1)
        np.minimum.at(self.first, here, begin[group])
        since = np.where(np.isnan(self.joined[here]), self.first[here], self.joined[here])
        at = np.searchsorted(self.lanes, lanes)
        known = at < len(self.lanes)
        known[known] = self.lanes[at[known]] == lanes[known]
        since[known] = self.ends[at[known]]
        before[group] = since
        self.ends[at[known]] = np.maximum(self.ends[at[known]], latest[known])
        if not known.all():
            self.lanes = np.insert(self.lanes, at[~known], lanes[~known])
            self.ends = np.insert(self.ends, at[~known], latest[~known])
        gap = np.maximum(begin - before, 0.0)
        droids = key >> np.uint32(16)
        self.add("overhead", droids, np.where(gap <= GAP, gap, 0.0))
        self.add("idle_waiting", droids, np.where(gap <= GAP, 0.0, gap))


class Accountant:
    """Takes in entries in journal order. `voids`: (ordinal, start, stop) of PENDING records, from a first reading."""

    def __init__(self, voids: Iterable[tuple[int, int, int]] = ()) -> None:
        self.fold = Fold()
        self.voids: list[tuple[int, int, int]] = []
        self._coming = list(voids)
        void = np.array([v[1:] for v in self._coming], np.int64).reshape(-1, 2)
        self._voided = unite(void[:, 0], void[:, 1])
        self._later: tuple[int, IntervalSet] = (-1, IntervalSet())
        self._ordinal = 0
        self.allocations: dict[str, Allocation] = {}
        self._work: dict[str, _Work] = {}
        self._failed: list[tuple[str, int, int, float]] = []  # allocation, droid, event, wall

    def read(self, story: Iterable[tuple[str, Entry]]) -> None:
        for name, entry in story:
            self.add(name, entry)

    def add(self, name: str, entry: Entry) -> None:
        allocation = self.allocations.get(name)
        if allocation is None:
            allocation = self.allocations[name] = Allocation(name)
            self._work[name] = _Work()
        if isinstance(entry, dict):
            self._note(allocation, entry)
            return
        kind = entry["kind"]
        pending = kind == Kind.PENDING
        # Only between PENDING records may records be taken together.
        cuts = np.flatnonzero(pending[1:] != pending[:-1]) + 1 if pending.any() else np.zeros(0, np.int64)
        for part in np.split(entry, cuts):
            self._rows(allocation, part)
            self.fold.add(part, name)
            self._ordinal += len(part)

    def _note(self, allocation: Allocation, note: dict[str, Any]) -> None:
        what, time = note.get("note"), _number(note.get("time"))
        allocation.last = max(allocation.last, time, _number(note.get("created")))
        if what == "journal":
            allocation.about, allocation.created = note, _number(note.get("created"))
        elif what in ("joined", "left", "back") and isinstance(note.get("droid"), int):
            droid = note["droid"]
            life = allocation.droids.setdefault(droid, DroidLife(droid))
            life.last = max(life.last, time)
            if what == "joined":
                life.joined, life.startup = time, _number(note.get("startup"))
                if 0 <= droid < 1 << 16:
                    self._work[allocation.name].join(droid, time)
                life.host, life.workers = str(note.get("host", "?")), int(_number(note.get("workers")))
            elif what == "left":
                life.left, life.reason = time, str(note.get("reason", ""))
            else:
                life.left, life.reason = None, ""
        elif what == "end":
            allocation.end = note
        elif what == "drain":
            allocation.drain = allocation.drain or note
        elif what == "pulse":
            allocation.pulse = note
        elif what == "signal":
            allocation.signals.append(str(note.get("signal", "?")))

    def _rows(self, allocation: Allocation, rows: NDArray[Any]) -> None:
        work, kind = self._work[allocation.name], rows["kind"]
        # Whatever else stands in a record of ours, its Droid number is good; its times are looked at with some
        # distrust.
        sane = (rows["wall"] >= 0) & (rows["time"] > 0) & (rows["time"] < 1e12) & (rows["wall"] < 1e9)
        counts = np.bincount(kind, minlength=max(Kind) + 1)
        if sane.any():
            allocation.last = max(allocation.last, float((rows["time"] + _wall(rows, kind))[sane].max()))
        if counts[Kind.PENDING]:
            starts, stops = rows["start"].tolist(), rows["stop"].tolist()
            self.voids += [(self._ordinal + n, a, b) for n, (a, b) in enumerate(zip(starts, stops, strict=True))]
        length = (rows["stop"] - rows["start"]).astype(np.float64)
        granted, done, failed = kind == Kind.GRANTED, kind == Kind.DONE, kind == Kind.FAILED
        back = kind == Kind.RETURNED
        if counts[Kind.GRANTED]:
            work.add("open", rows["droid"][granted], length[granted])
        closed = done | failed | back
        if not closed.any():
            return
        work.add("open", rows["droid"][closed], -length[closed])
        timed = (done | failed) & sane & (rows["wall"] > 0)
        if timed.any():
            work.timeline(rows if timed.all() else rows[timed])
        if counts[Kind.DONE]:
            self._done(work, rows[done], np.flatnonzero(done))
        if counts[Kind.FAILED]:
            for droid, event, wall, code in rows[failed & sane][["droid", "start", "wall", "code"]].tolist():
                if code == Code.TIMEOUT:
                    work.add("hung", np.array([droid]), np.array([wall]))
                else:
                    self._failed.append((allocation.name, droid, event, wall))
        if counts[Kind.RETURNED]:
            lost = (rows["code"] == Code.DRAINED) | (rows["code"] == Code.DROID_LOST)
            for name, which in (("returned", back & sane & lost), ("revoked", back & sane & ~lost)):
                work.add(name, rows["droid"][which], rows["wall"][which])

    def _done(self, work: _Work, rows: NDArray[Any], numbers: NDArray[np.int64]) -> None:
        start, stop = rows["start"], rows["stop"]
        length = np.maximum(stop - start, 0)
        new = length - covered(start, stop, *self.fold.done.result())
        # Rows that share events with another one of this batch, or with a later PENDING record, one after another.
        special = _entangled(start, stop)
        if self._coming:
            special |= overlaps(start, stop, *self._voided)
        here = IntervalSet()
        for n in np.flatnonzero(special).tolist():
            fresh = _fresh(int(start[n]), int(stop[n]), self.fold, here)
            here.add(int(start[n]), int(stop[n]))
            new[n] = fresh.total
            if self._coming:
                later = self._voids_after(self._ordinal + int(numbers[n]))
                new[n] -= sum(d - c for a, b in fresh for c, d in later.overlap(a, b))
        wall = np.where(np.isfinite(rows["wall"]) & (rows["wall"] >= 0), rows["wall"], 0).astype(np.float64)
        good = wall * new / np.maximum(length, 1)
        work.add("productive", rows["droid"], good)
        work.add("retried", rows["droid"], wall - good)
        work.add("ranges", rows["droid"], np.ones(len(rows)))
        work.add("events", rows["droid"], new)

    def _voids_after(self, ordinal: int) -> IntervalSet:
        first = next((n for n, void in enumerate(self._coming) if void[0] > ordinal), len(self._coming))
        if self._later[0] != first:
            starts, stops = np.array([v[1:] for v in self._coming[first:]], np.int64).reshape(-1, 2).T
            self._later = first, IntervalSet.from_arrays(*unite(starts, stops))
        return self._later[1]

    def result(self, alive_since: float = 0.0) -> Account:
        """Finish. May be called once."""
        _, quarantined, _ = self.fold.result()
        given_up: dict[tuple[str, int], float] = {}
        for name, droid, event, wall in self._failed:
            if event in quarantined:
                given_up[name, droid] = given_up.get((name, droid), 0.0) + wall
            else:
                self._work[name].add("retried", np.array([droid]), np.array([wall]))
        whole = CoreSeconds()
        for name, allocation in self.allocations.items():
            work = self._work[name]
            alive = allocation.end is None and 0 < alive_since < allocation.last
            ends = work.by_droid()
            for droid in set(ends) - set(allocation.droids):
                allocation.droids[droid] = DroidLife(droid)  # its `joined` note is lost
            for droid, life in sorted(allocation.droids.items()):
                lanes = ends.get(droid, _NOTHING)
                _finish(life, work, lanes, allocation, given_up.get((name, droid), 0.0), alive)
                allocation.core_seconds.add(life.core_seconds)
                allocation.events += life.events
            whole.add(allocation.core_seconds)
        return Account(list(self.allocations.values()), whole, self.fold)


def _finish(
    life: DroidLife,
    work: _Work,
    lanes: _Lanes,
    allocation: Allocation,
    quarantined: float,
    alive: bool,
) -> None:
    """Sum up one Droid."""
    droid = life.droid
    workers = life.workers = max(life.workers, lanes.highest + 1)
    joined = life.joined if life.joined is not None else work.begun(droid, allocation.created or allocation.last)
    latest = lanes.latest if lanes.number else joined
    life.last = max(life.last, latest)
    killed = (life.left is None and allocation.end is None and not alive) or life.reason.startswith("lost")
    end = max(life.left if life.left is not None else allocation.last, latest, joined)
    life.ranges, life.events = int(work.get("ranges", droid)), int(work.get("events", droid))

    tail = lanes.number * (end - lanes.base) - lanes.sum + (workers - lanes.number) * (end - joined)
    waiting, overhead = work.get("idle_waiting", droid), work.get("overhead", droid)
    productive, revoked, lost = work.get("productive", droid), work.get("revoked", droid), work.get("returned", droid)
    # Records of returned work do not tell which worker had it since when, so its time is in the gaps: take it out
    # there.
    tail, waiting, overhead = _take(lost, tail, waiting, overhead)
    waiting, tail, overhead = _take(revoked, waiting, tail, overhead)
    if (killed or alive) and not lost and work.get("open", droid) > 0 and workers:
        under_way = tail * min(1.0, work.get("open", droid) / workers)
        tail -= under_way
        if killed:
            lost += under_way
        else:
            productive += under_way
    seconds = {
        "productive": productive,
        "lost_in_flight": lost,
        "retried": work.get("retried", droid) + revoked,
        "hung": work.get("hung", droid),
        "quarantined": quarantined,
        "idle_waiting": waiting,
        "idle_tail": tail,
        "startup": workers * life.startup,
    }
    micro = {name: max(0, round(seconds[name] * 1e6)) for name in FINE}
    micro["overhead"] = round(workers * (end - joined + life.startup) * 1e6) - sum(micro.values())
    for name in ("idle_waiting", "idle_tail", "lost_in_flight", "retried", "hung", "quarantined", "productive"):
        # Clocks of two nodes, or damaged records, can claim more work than there was time for.
        taken = min(micro[name], max(0, -micro["overhead"]))
        micro[name] -= taken
        micro["overhead"] += taken
    life.core_seconds = CoreSeconds(micro)


def _take(amount: float, *places: float) -> list[float]:
    """`places` less `amount`, taken from the first as far as it goes, then from the next."""
    out = []
    for place in places:
        taken = min(amount, max(place, 0.0))
        amount -= taken
        out.append(place - taken)
    return out


def _entangled(start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which intervals share a position with another one."""
    order = np.argsort(start, kind="stable") if np.any(start[1:] < start[:-1]) else np.arange(len(start))
    reach = np.maximum.accumulate(stop[order])[:-1]
    low, high = start[order][1:], np.minimum(stop[order][1:], reach)
    shared = low < high
    return overlaps(start, stop, *unite(low[shared], high[shared]))


def _fresh(start: int, stop: int, fold: Fold, also: IntervalSet) -> IntervalSet:
    """What of [start, stop) is neither done in `fold` nor in `also`."""
    starts, stops = fold.done.result()
    pairs = np.array(also.gaps(start, stop), np.int64).reshape(-1, 2)
    low, high = np.searchsorted(stops, start, "right"), np.searchsorted(starts, stop, "left")
    return IntervalSet.from_arrays(*difference(pairs[:, 0], pairs[:, 1], starts[low:high], stops[low:high]))


def _wall(rows: NDArray[Any], kind: NDArray[np.uint8]) -> NDArray[Any]:
    """`wall` where it comes after `time`; a returned range is stamped when it comes back."""
    return np.where((kind == Kind.DONE) | (kind == Kind.FAILED), rows["wall"], 0)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and value == value else 0.0
