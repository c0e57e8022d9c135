"""Sorted sets of disjoint half-open intervals of the axis.

Two forms. `IntervalSet` changes one interval at a time: two sorted Python lists and bisect, so that an operation costs
a binary search and a short memmove, a microsecond or two up to some hundred thousand holes. The functions work on
whole numpy arrays at once: they fold millions of journal records on resume.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]
Array = NDArray[np.int64]


def union(starts: Array, stops: Array) -> tuple[Array, Array]:
    """Union of intervals, shape (n,) each, in any order and overlapping at will; touching ones are joined.

    Returns sorted disjoint (starts, stops), shape (m,) with m <= n. Empty intervals vanish.
    """
    keep = stops > starts
    starts, stops = starts[keep], stops[keep]
    if not len(starts):
        return starts.astype(np.int64), stops.astype(np.int64)
    if np.any(starts[1:] < starts[:-1]):
        order = np.argsort(starts, kind="stable")
        starts, stops = starts[order], stops[order]
    reach = np.maximum.accumulate(stops)
    first = np.empty(len(starts), bool)
    first[0] = True
    np.greater(starts[1:], reach[:-1], out=first[1:])
    at = np.flatnonzero(first)
    return starts[at], reach[np.append(at[1:], len(starts)) - 1]


def joined(pairs: list[Pair]) -> list[Pair]:
    """`pairs` sorted, touching ones joined: a batch of a thousand tiny ranges is one step for a set."""
    out: list[Pair] = []
    for start, stop in sorted(pairs):
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], stop)
        else:
            out.append((start, stop))
    return out


class IntervalSet:
    """A mutable set of positions, kept as sorted, disjoint, non-touching intervals. `len` counts intervals; `total`
    positions."""

    __slots__ = ("starts", "stops", "total")

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self.starts: list[int] = []
        self.stops: list[int] = []
        self.total = 0
        for start, stop in pairs:
            self.add(start, stop)

    @classmethod
    def from_arrays(cls, starts: Array, stops: Array) -> IntervalSet:
        """Take sorted disjoint arrays, as `union` returns them."""
        made = cls()
        made.starts, made.stops = starts.tolist(), stops.tolist()
        made.total = int((stops - starts).sum()) if len(starts) else 0
        return made

    def __iter__(self) -> Iterator[Pair]:
        return iter(zip(self.starts, self.stops, strict=True))

    def __len__(self) -> int:
        return len(self.starts)

    def __bool__(self) -> bool:
        return bool(self.starts)

    def __repr__(self) -> str:
        return f"IntervalSet({list(self)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self.starts == other.starts and self.stops == other.stops

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, position: int) -> bool:
        at = bisect_right(self.starts, position) - 1
        return at >= 0 and position < self.stops[at]

    def covers(self, start: int, stop: int) -> bool:
        """Whether all of [start, stop) is in the set."""
        at = bisect_right(self.starts, start) - 1
        return start >= stop or (at >= 0 and stop <= self.stops[at])

    def add(self, start: int, stop: int) -> int:
        """Add [start, stop); returns how many positions are new."""
        if start >= stop:
            return 0
        low = bisect_left(self.stops, start)
        high = bisect_right(self.starts, stop)
        before = self.total
        if low < high:
            for at in range(low, high):
                self.total -= self.stops[at] - self.starts[at]
            start, stop = min(start, self.starts[low]), max(stop, self.stops[high - 1])
        self.starts[low:high] = [start]
        self.stops[low:high] = [stop]
        self.total += stop - start
        return self.total - before

    def remove(self, start: int, stop: int) -> int:
        """Remove [start, stop); returns how many positions were there."""
        low = bisect_right(self.stops, start)
        high = bisect_left(self.starts, stop)
        if start >= stop or low >= high:
            return 0
        first, last = self.starts[low], self.stops[high - 1]
        removed = 0
        for at in range(low, high):
            removed += min(stop, self.stops[at]) - max(start, self.starts[at])
        new_starts, new_stops = [], []
        if first < start:
            new_starts.append(first)
            new_stops.append(start)
        if stop < last:
            new_starts.append(stop)
            new_stops.append(last)
        self.starts[low:high] = new_starts
        self.stops[low:high] = new_stops
        self.total -= removed
        return removed

    def overlap(self, start: int, stop: int) -> list[Pair]:
        """The parts of [start, stop) that are in the set, in order."""
        low = bisect_right(self.stops, start)
        high = bisect_left(self.starts, stop)
        return [(max(start, self.starts[at]), min(stop, self.stops[at])) for at in range(low, high)]

    def gaps(self, start: int, stop: int) -> list[Pair]:
        """The parts of [start, stop) that are not in the set, in order."""
        out, at = [], start
        for a, b in self.overlap(start, stop):
            if at < a:
                out.append((at, a))
            at = b
        if at < stop:
            out.append((at, stop))
        return out

    def next_from(self, position: int) -> Pair | None:
        """The first part of the set at or after `position`; wraps round to the beginning; None if the set is empty."""
        if not self.starts:
            return None
        at = bisect_right(self.stops, position)
        if at == len(self.starts):
            return self.starts[0], self.stops[0]
        return max(position, self.starts[at]), self.stops[at]
