"""Interval sets as whole numpy arrays: what folds millions of journal records.

Everywhere: (starts, stops), int64, shape (n,) each; "a set" means sorted, disjoint, not touching.
"""

from __future__ import annotations

import numpy as np

from eventrange.intervals import Array

_BATCH = 1 << 19  # intervals sorted at a time: 8 MB, about a processor's cache
_FAR = np.iinfo(np.int64).max


def unite(starts: Array, stops: Array) -> tuple[Array, Array]:
    """The set of all positions in intervals of any order and overlap.

    Starts and stops are sorted each on its own: before the i-th start, i intervals have begun; if the i-th smallest
    stop lies before it, all i have ended, and there is a gap. Sorting numbers is several times faster than an argsort.
    """
    keep = stops > starts
    if not keep.all():
        starts, stops = starts[keep], stops[keep]
    if not len(starts):
        return starts.astype(np.int64), stops.astype(np.int64)
    if np.any(starts[1:] < starts[:-1]):
        starts = np.sort(starts)
    if np.any(stops[1:] < stops[:-1]):
        stops = np.sort(stops)
    gap = np.flatnonzero(starts[1:] > stops[:-1])
    return np.concatenate((starts[:1], starts[gap + 1])), np.concatenate((stops[gap], stops[-1:]))


def overlaps(
    starts: Array, stops: Array, set_starts: Array, set_stops: Array
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the intervals share a position with the set; bool, shape (n,)."""
    if not len(set_starts):
        return np.zeros(len(starts), np.bool_)
    at = np.searchsorted(set_stops, starts, "right")
    result: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.append(set_starts, _FAR)[at] < stops
    return result & (starts < stops)


def covered(starts: Array, stops: Array, set_starts: Array, set_stops: Array) -> Array:
    """How many positions of each interval are in the set; shape (n,)."""
    if not len(set_starts):
        return np.zeros(len(starts), np.int64)
    before = np.concatenate(([0], np.cumsum(set_stops - set_starts)))

    def below(positions: Array) -> Array:
        at = np.searchsorted(set_starts, positions, "right")
        last = np.maximum(at - 1, 0)
        inside = np.minimum(positions, set_stops[last]) - set_starts[last]
        return np.where(at > 0, before[last] + inside, 0)

    return below(stops) - below(starts)


def difference(starts: Array, stops: Array, set_starts: Array, set_stops: Array) -> tuple[Array, Array]:
    """What of the first set is not in the second."""
    if not len(set_starts) or not len(starts):
        return starts, stops
    gap_starts, gap_stops = np.append(-_FAR, set_stops), np.append(set_starts, _FAR)
    first = np.searchsorted(gap_stops, starts, "right")
    last = np.searchsorted(gap_starts, stops, "left")
    count = np.maximum(last - first, 0)
    which = np.repeat(np.arange(len(starts)), count)
    gap = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
    return np.maximum(starts[which], gap_starts[gap]), np.minimum(stops[which], gap_stops[gap])


class Sum:
    """A set that grows by batches. Batches are united like the runs of a merge sort, so that even a set with very many
    holes is gone through a few times only."""

    def __init__(self) -> None:
        self._runs: list[tuple[Array, Array]] = []
        self._waiting: list[tuple[Array, Array]] = []
        self._count = 0

    def add(self, starts: Array, stops: Array) -> None:
        self._waiting.append((starts.astype(np.int64), stops.astype(np.int64)))  # a copy: not a view of whole records
        self._count += len(starts)
        if self._count >= _BATCH:
            self._push(unite(*_joined(self._waiting)))
            self._waiting, self._count = [], 0

    def subtract(self, starts: Array, stops: Array) -> None:
        """Take a set out."""
        if len(starts):
            self._runs = [difference(*self.result(), starts, stops)]

    def result(self) -> tuple[Array, Array]:
        if self._waiting or len(self._runs) != 1:
            self._runs = [unite(*_joined(self._runs + self._waiting))]
            self._waiting, self._count = [], 0
        return self._runs[0]

    def _push(self, run: tuple[Array, Array]) -> None:
        self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]) + 1024:
            self._runs[-2:] = [unite(*_joined(self._runs[-2:]))]


def _joined(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
