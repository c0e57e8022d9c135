"""What the records of one allocation say of its Droids, as sums by Droid number. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Seconds without work that are a range's overhead (image, pipe, next range) and not a wait for work.
GAP = 0.1


class Lanes(NamedTuple):
    """Workers of one Droid that worked: how many, the highest number, the latest end, and the sum of their ends and of
    the later of their ends and `since`, each less `base`."""

    number: int
    highest: int
    latest: float
    sum: float
    later: float
    base: float


NOTHING = Lanes(0, -1, 0.0, 0.0, 0.0, 0.0)


class DroidSums:
    """Sums by Droid number, shape (droids,) each; seconds, but for `open`, `ranges` and `events`."""

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

    def by_droid(self, since: float = 0.0) -> dict[int, Lanes]:
        """What is known of the workers of each Droid that worked; `since` unix seconds."""
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
            np.add.reduceat(np.maximum(self.ends, since) - base, group),
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return {droid: Lanes(count, high, last, total, later, base) for droid, count, high, last, total, later in rows}

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
