"""Where every core-second of every allocation went, from the journals alone (pure; streaming).

A Droid's core-seconds are workers x (its end - the start of its process). The parts:

    productive      wall time of done ranges, of the record that won its events (L2) and whose image is still of use
    lost_in_flight  work under way when a Droid was lost, drained or killed
    retried         work that brought nothing: failed attempts, second copies, ranges broken off and begun again, images
                    made pending again
    hung            attempts ended by their time limit
    quarantined     attempts at events that were given up in the end
    idle_waiting    workers without work before or between ranges: Yoda had none for them, or not yet
    idle_input      waiting for input within ranges
    idle_tail       workers without work behind their last range
    idle_draining   the same, once nothing new is begun because the allocation is to end
    idle_merging    all other cores while one of them merges
    startup         from the start of the Droid's process until its workers were ready
    merge           the core that merges at the end of an allocation
    overhead        gaps of at most GAP between ranges of one worker, and whatever else is not work

What a killed allocation never wrote down is inferred: a Droid without `left` ends with the last sign of life of
its allocation, and what its workers did since their last record is lost in flight as far as they had work granted.

All sums are kept in whole microseconds, so the parts always sum to the total.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange import records
from eventrange.history import Fold, Story
from eventrange.interval_arrays import covered, difference, overlaps, unite
from eventrange.intervals import IntervalSet
from eventrange.journal import Entry
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from yoda.core_seconds import Account, Allocation, CoreSeconds, DroidLife, Merging
from yoda.droid_sums import DroidSums
from yoda.lifetime import share_out

#: Records taken together: a column of so many stays in the processor's cache, which saves a third.
CHUNK = 1 << 15
NOBODY: Mapping[str, float] = MappingProxyType({})


def account(
    taskdir: TaskDir, fingerprint: str, only: Collection[str] | None = None, alive_since: float = 0.0
) -> Account:
    """Read all journals of a task, or of the allocations in `only`.

    An allocation without `end` whose last sign of life is later than `alive_since` (unix seconds; 0: none is) is taken
    to be alive: what it has in flight is not lost.
    """
    return account_entries(lambda: Story(taskdir, fingerprint, only).whole(), alive_since)


def account_entries(
    story: Callable[[], Iterable[tuple[str, Entry]]], alive_since: float = 0.0, dead: Mapping[str, float] = NOBODY
) -> Account:
    """The same from `story()`, all (allocation, entry) in journal order. `dead`: see Accountant.result.

    It is read twice only where a record voids what was believed productive.
    """
    first = Accountant()
    first.read(story())
    if not first.voids:
        return first.result(alive_since, dead)
    second = Accountant(first.voids)
    second.read(story())
    return second.result(alive_since, dead)


class Accountant:
    """Takes in entries in journal order. `voids`: (ordinal, start, stop) of records that void, from a first reading."""

    def __init__(self, voids: Iterable[tuple[int, int, int]] = ()) -> None:
        self.fold = Fold()
        self.voids: list[tuple[int, int, int]] = []
        self._coming = list(voids)
        void = np.array([v[1:] for v in self._coming], np.int64).reshape(-1, 2)
        self._voided = unite(void[:, 0], void[:, 1])
        self._later: tuple[int, IntervalSet] = (-1, IntervalSet())
        self._ordinal = 0
        self.allocations: dict[str, Allocation] = {}
        self._work: dict[str, DroidSums] = {}
        self._failed: list[tuple[str, int, int, float]] = []  # allocation, droid, event, wall

    def read(self, story: Iterable[tuple[str, Entry]]) -> None:
        for name, entry in story:
            self.add(name, entry)

    def add(self, name: str, entry: Entry) -> None:
        allocation = self.allocations.get(name)
        if allocation is None:
            allocation = self.allocations[name] = Allocation(name)
            self._work[name] = DroidSums()
        if isinstance(entry, dict):
            self._note(allocation, entry)
            return
        for at in range(0, len(entry), CHUNK):
            self._records(name, allocation, entry[at : at + CHUNK])

    def _records(self, name: str, allocation: Allocation, entry: NDArray[Any]) -> None:
        voids = records.voids(entry)
        # Only between those may records be taken together.
        cuts = np.flatnonzero(voids[1:] != voids[:-1]) + 1 if voids.any() else np.zeros(0, np.int64)
        for part in np.split(entry, cuts):
            self._rows(allocation, part)
            self.fold.add(part, name)
            self._ordinal += len(part)

    def _note(self, allocation: Allocation, note: dict[str, Any]) -> None:
        what, time = note.get("note"), _number(note.get("time"))
        allocation.last = max(allocation.last, time, _number(note.get("created")))
        if what == "journal":
            allocation.about, allocation.created = note, _number(note.get("created"))
        elif what in ("joined", "left", "back", "spent") and isinstance(note.get("droid"), int):
            droid = note["droid"]
            life = allocation.droids.setdefault(droid, DroidLife(droid))
            life.last = max(life.last, time)
            if what == "joined":
                life.joined, life.startup = time, max(0.0, _number(note.get("startup")))
                if 0 <= droid < 1 << 16:
                    self._work[allocation.name].join(droid, time)
                life.host, life.workers = str(note.get("host", "?")), int(_number(note.get("workers")))
            elif what == "left":
                life.left, life.reason = time, str(note.get("reason", ""))
            elif what == "back":
                life.left, life.reason = None, ""
            else:
                life.starting = life.starting if life.spent else max(0.0, _number(note.get("starting")))
                for name in ("starting", "input", "again"):
                    life.spent[name] = life.spent.get(name, 0.0) + max(0.0, _number(note.get(name)))
        elif what == "end":
            allocation.end = note
        elif what in ("merging", "merged"):
            self._merging(allocation, note, time)
        elif what == "drain":
            allocation.drain = allocation.drain or note
        elif what == "pulse":
            allocation.pulse = note
        elif what == "signal":
            allocation.signals.append(str(note.get("signal", "?")))

    def _merging(self, allocation: Allocation, note: dict[str, Any], time: float) -> None:
        known = allocation.merging or Merging(time, time, 0, 0, None)
        last = max(time, known.last)
        if note["note"] == "merged":
            allocation.merging = known._replace(last=last, over=note)
        else:
            done, total = int(_number(note.get("done"))), int(_number(note.get("total")))
            allocation.merging = known._replace(last=last, done=done, total=total)

    def _rows(self, allocation: Allocation, rows: NDArray[Any]) -> None:
        work, kind = self._work[allocation.name], rows["kind"]
        # Whatever else stands in a record of ours, its Droid number is good; its times are looked at with some
        # distrust.
        sane = (rows["wall"] >= 0) & (rows["time"] > 0) & (rows["time"] < 1e12) & (rows["wall"] < 1e9)
        counts = np.bincount(kind, minlength=max(Kind) + 1)
        if sane.any():
            allocation.last = max(allocation.last, float((rows["time"] + _wall(rows, kind))[sane].max()))
        if counts[Kind.PENDING]:
            at = np.flatnonzero(records.voids(rows))
            starts, stops = rows["start"][at].tolist(), rows["stop"][at].tolist()
            self.voids += zip((self._ordinal + at).tolist(), starts, stops, strict=True)
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

    def _done(self, work: DroidSums, rows: NDArray[Any], numbers: NDArray[np.int64]) -> None:
        start, stop = rows["start"], rows["stop"]
        length = np.maximum(stop - start, 0)
        new = length - covered(start, stop, *self.fold.done.result())
        # Rows that share events with another one of this batch, or with a later one that voids, one after another.
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

    def result(self, alive_since: float = 0.0, dead: Mapping[str, float] = NOBODY) -> Account:
        """Finish. May be called once.

        `dead` are allocations that are known to be, unless they said a word after the unix time given.
        """
        _, quarantined, _ = self.fold.result()
        given_up: dict[str, dict[int, float]] = {}
        for name, droid, event, wall in self._failed:
            if event in quarantined:
                mine = given_up.setdefault(name, {})
                mine[droid] = mine.get(droid, 0.0) + wall
            else:
                self._work[name].add("retried", np.array([droid]), np.array([wall]))
        whole = CoreSeconds()
        for name, allocation in self.allocations.items():
            last = allocation.last
            allocation.dead = last <= dead.get(name, -math.inf)
            allocation.alive = allocation.end is None and 0 < alive_since < last and not allocation.dead
            share_out(allocation, self._work[name], given_up.get(name, {}))
            whole.add(allocation.core_seconds)
        return Account(list(self.allocations.values()), whole, self.fold)


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
