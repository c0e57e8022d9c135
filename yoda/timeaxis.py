"""The time axis of all pictures: wall time in which something ran, with the long pauses between allocations cut short.

A task may live for weeks and compute for minutes of them. Every stretch in which an allocation lived is drawn to one
common scale; a pause longer than a small part of the whole becomes a gap of fixed width with its length written on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAUSE = 0.02  #: a pause longer than this part of all working time is cut
GAP, GAPS = 0.012, 0.15  #: width of one cut, and of all of them together at most, as parts of the axis


class TimeAxis:
    """Maps unix seconds to columns 0..`columns`. `lives` are (begin, end) of everything that is to be seen."""

    def __init__(self, lives: Iterable[tuple[float, float]], columns: int) -> None:
        self.columns = columns
        merged: list[list[float]] = []
        for begin, end in sorted((b, max(b, e)) for b, e in lives):
            if merged and begin <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([begin, end])
        merged = merged or [[0.0, 1.0]]
        active = sum(end - begin for begin, end in merged) or 1.0
        self.pieces: list[tuple[float, float]] = []  #: stretches drawn to scale
        for begin, end in merged:
            if self.pieces and begin - self.pieces[-1][1] <= PAUSE * active:
                self.pieces[-1] = (self.pieces[-1][0], end)
            else:
                self.pieces.append((begin, end))
        if len(self.pieces) == 1 and self.pieces[0][1] - self.pieces[0][0] <= 0:
            self.pieces = [(self.pieces[0][0], self.pieces[0][0] + 1.0)]
        drawn = sum(end - begin for begin, end in self.pieces)
        gap = columns * min(GAP, GAPS / max(1, len(self.pieces) - 1))
        self.scale = drawn / (columns - gap * (len(self.pieces) - 1))  #: seconds per column
        times: list[float] = []
        places: list[float] = []
        at = 0.0
        for begin, end in self.pieces:
            times += [begin, end]
            places += [at, at + (end - begin) / self.scale]
            at = places[-1] + gap
        self._times, self._places = np.array(times), np.array(places)

    def place(self, time: Any) -> Any:
        """Column (float) of unix seconds, scalar or array; times outside are moved to the nearest edge."""
        return np.interp(time, self._times, self._places)

    def time(self, place: Any) -> Any:
        """Unix seconds of a column (float); within a gap, of the pause."""
        return np.interp(place, self._places, self._times)

    def gaps(self) -> list[tuple[float, float, float]]:
        """(column where it begins, where it ends, seconds it stands for) of every cut pause."""
        ends, begins = self._places[1:-1:2], self._places[2::2]
        pauses = self._times[2::2] - self._times[1:-1:2]
        return list(zip(ends.tolist(), begins.tolist(), pauses.tolist(), strict=True))

    def inside(self) -> NDArray[np.bool_]:
        """Which columns lie at least half in a drawn stretch, shape (columns,)."""
        middle = np.arange(self.columns) + 0.5
        where = np.searchsorted(self._places, middle)
        inside: NDArray[np.bool_] = where % 2 == 1
        return inside
