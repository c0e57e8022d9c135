"""How fast a task goes and when it may end: measured seconds per event, recent rate, and an honest range. Pure.

The estimate is events to do x seconds per event / workers now busy. Its range has three parts, added up: the spread of
that many random event times, the wobble of the rate over the last minutes, and one slow event at the end, which no
number of cores makes shorter. Before `ENOUGH` events are done there is no estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange.records import Kind
from eventrange.times import PER_OCTAVE, SHORTEST, quantile

WINDOW = 60  #: seconds that "recent" means
KEPT = 600  #: seconds of rate that are remembered
ENOUGH = 10  #: events that must be done before the future is spoken of


@dataclass(frozen=True)
class Eta:
    """Seconds to go: expected, and the range it should be in."""

    seconds: float
    low: float
    high: float


class Pace:
    """Sums over DONE records. Memory does not grow with their number."""

    def __init__(self) -> None:
        self.ranges = self.events = 0
        self.single = 0  #: events that were a range of their own
        self.wall = 0.0
        self._squares = 0.0  # sum of wall^2 / events per range
        self.times: dict[int, int] = {}  #: bin (eventrange.times) -> events, each counted with its range's mean
        self.by_second: dict[int, int] = {}  #: unix second -> events that ended in it, the last KEPT of them

    def add(self, rows: NDArray[Any]) -> None:
        """Take in records of any kind; `rows` RECORD, shape (n,)."""
        rows = rows[rows["kind"] == Kind.DONE]
        count = (rows["stop"] - rows["start"]).astype(np.int64)
        wall = rows["wall"].astype(np.float64)
        good = (count > 0) & np.isfinite(wall) & (wall > 0) & (wall < 1e9)
        if not good.all():
            rows, count, wall = rows[good], count[good], wall[good]
        if not len(rows):
            return
        self.ranges += len(rows)
        self.events += int(count.sum())
        self.single += int((count == 1).sum())
        self.wall += float(wall.sum())
        self._squares += float((wall * wall / count).sum())
        bins, inverse = np.unique(time_bins(wall / count), return_inverse=True)
        for bin_, events in zip(bins.tolist(), np.bincount(inverse, count).astype(int).tolist(), strict=True):
            self.times[bin_] = self.times.get(bin_, 0) + events
        ends = (rows["time"] + wall).astype(np.int64)
        newest = int(ends.max())
        fresh = ends > newest - KEPT
        first = int(ends[fresh].min())
        for at, events in enumerate(np.bincount(ends[fresh] - first, count[fresh]).astype(int).tolist(), first):
            if events:
                self.by_second[at] = self.by_second.get(at, 0) + events
        if len(self.by_second) > 2 * KEPT:
            self.by_second = {at: n for at, n in self.by_second.items() if at > newest - KEPT}

    def merge(self, other: Pace) -> None:
        """Add what `other` has taken in."""
        self.ranges, self.events, self.wall = (
            self.ranges + other.ranges,
            self.events + other.events,
            self.wall + other.wall,
        )
        self.single += other.single
        self._squares += other._squares
        for mine, theirs in ((self.times, other.times), (self.by_second, other.by_second)):
            for key, events in theirs.items():
                mine[key] = mine.get(key, 0) + events

    @property
    def mean(self) -> float:
        """Seconds of one core per event; 0 if unknown."""
        return self.wall / self.events if self.events else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of the time of one event, from the times of ranges (their events taken as independent)."""
        if self.ranges < 2:
            return self.mean
        return math.sqrt(max(0.0, (self._squares - self.mean * self.mean * self.events) / (self.ranges - 1)))

    def rate(self, now: float, since: float = 0.0) -> float:
        """Events per second over the last WINDOW seconds before `now`, or since `since` if that is later."""
        begin = max(now - WINDOW, since)
        events = sum(n for at, n in self.by_second.items() if begin <= at <= now)
        return events / max(1.0, now - begin)

    def wobble(self, now: float) -> float:
        """Relative standard deviation of the rate between the last windows of ten seconds; 0 if there are too few."""
        parts: dict[int, int] = {}
        for at, n in self.by_second.items():
            if now - 300 < at <= now - 1:
                parts[at // 10] = parts.get(at // 10, 0) + n
        inner = [parts.get(k, 0) for k in range(min(parts) + 1, max(parts))] if parts else []
        if len(inner) < 3:
            return 0.0
        mean = sum(inner) / len(inner)
        return math.sqrt(sum((n - mean) ** 2 for n in inner) / len(inner)) / mean if mean else 0.0

    def eta(self, now: float, open_events: int, busy: float) -> Eta | None:
        """Seconds until `open_events` are done by `busy` cores; None while too little is known or nobody works."""
        if open_events <= 0:
            return Eta(0.0, 0.0, 0.0)
        if self.events < ENOUGH or busy <= 0:
            return None
        expected = open_events * self.mean / min(busy, open_events)
        chance = math.sqrt(open_events) * self.deviation / busy
        spread = 2 * chance + expected * self.wobble(now) / math.sqrt(max(1.0, expected / 10))
        slowest = quantile(self.times, 0.995)
        return Eta(expected, max(0.0, expected - spread), max(expected, slowest) + spread)


def time_bins(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """`times.time_bin` of an array."""
    bins = np.floor(PER_OCTAVE * np.log2(np.maximum(seconds, 1e-7))).astype(np.int64)
    return np.maximum(bins, SHORTEST)
