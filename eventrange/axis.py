"""The axis: all events of a task numbered 0..E-1 in the order of the input files, and what people call its parts.

Three ways to say where an event is, and no others:

* a *position* on the axis, 0-based, as in the `event` dataset of the merged file and everywhere in the code;
* a *range* `[start, stop)` of positions that crosses no cut;
* a *name*, for people: `FILE:first-last`, 1-based and inclusive within the file, as PanDA writes it.

Memory grows with the number of files and of foreign cuts, never with the number of events.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange.errors import ConfigError

GENERATE = "generate"
"""What stands in the place of a file name where events are generated and not read."""

_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class AxisFile:
    """One input file as the axis sees it: `events` events of it, at positions `start` to `start + events - 1`."""

    path: str
    events: int
    start: int
    name: str


class Axis:
    """Input files and cuts, as one axis of `total` events.

    `files` are (path, events in the file); `limit` keeps the first so many events only; `cuts` are positions that no
    range may cross besides the file boundaries (the edges of ranges that someone else named).
    Raises ConfigError for a limit below 1 or beyond the events there are, and for a cut outside the axis.
    """

    def __init__(
        self,
        files: Iterable[tuple[str, int]],
        *,
        limit: int | None = None,
        cuts: Iterable[int] = (),
        where: str = "job file",
    ) -> None:
        given = [(os.fspath(path), int(events)) for path, events in files]
        for path, events in given:
            if events < 0:
                raise ValueError(f"{path}: {events} events")
        kept = given if limit is None else _limited(given, limit, where)
        names = unique_names([path for path, _ in kept])
        starts = np.zeros(len(kept) + 1, np.int64)
        np.cumsum([events for _, events in kept], out=starts[1:])
        self._starts = starts
        self.files: tuple[AxisFile, ...] = tuple(
            AxisFile(path, events, start, name)
            for (path, events), start, name in zip(kept, starts[:-1].tolist(), names, strict=True)
        )
        self._by_name = {file.name: number for number, file in enumerate(self.files)}
        self.total = int(starts[-1])
        foreign = np.unique(np.asarray(list(cuts), np.int64))
        if foreign.size and (foreign[0] < 0 or foreign[-1] > self.total):
            bad = foreign[0] if foreign[0] < 0 else foreign[-1]
            raise ConfigError(
                file=where,
                key="ranges",
                detail=f"a cut at position {bad} lies outside the axis of {self.total} events",
                hint=f"name ranges between 0 and {self.total}",
            )
        self.foreign_cuts: NDArray[np.int64] = foreign
        self.cuts: NDArray[np.int64] = np.union1d(starts, foreign)
        """Sorted positions, both ends of the axis included, that no range crosses."""

    @classmethod
    def generate(cls, events: int, *, cuts: Iterable[int] = ()) -> Axis:
        """The axis of a task without input files: an event is its position."""
        return cls([(GENERATE, events)], cuts=cuts)

    # --- positions --------------------------------------------------------------------------------------------------

    def locate(self, position: int) -> tuple[int, int]:
        """(number of the file, 0-based position in it) of an axis position. IndexError outside the axis."""
        if not 0 <= position < self.total:
            raise IndexError(f"position {position} is outside the axis of {self.total} events")
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return number, int(position - self._starts[number])

    def locate_many(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`locate` for an array of positions: (numbers of files, positions in them), both of the same shape."""
        positions = np.asarray(positions, np.int64)
        if positions.size and (positions.min() < 0 or positions.max() >= self.total):
            raise IndexError(f"a position is outside the axis of {self.total} events")
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        return numbers, positions - self._starts[numbers]

    def split(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The pieces of [start, stop) that cross no cut, in order. Nothing for an empty interval."""
        self._check(start, stop)
        if start == stop:
            return []
        low = int(np.searchsorted(self.cuts, start, side="right"))
        high = int(np.searchsorted(self.cuts, stop, side="left"))
        edges = [start, *self.cuts[low:high].tolist(), stop]
        return list(itertools.pairwise(edges))

    def split_many(self, intervals: NDArray[np.int64]) -> NDArray[np.int64]:
        """`split` for sorted disjoint intervals, shape (n, 2) -> (m, 2), without a Python loop."""
        intervals = np.asarray(intervals, np.int64).reshape(-1, 2)
        intervals = intervals[intervals[:, 0] < intervals[:, 1]]
        if not len(intervals):
            return intervals
        if intervals[0, 0] < 0 or intervals[-1, 1] > self.total or (intervals[1:, 0] < intervals[:-1, 1]).any():
            raise ValueError(f"intervals must be sorted, disjoint and within 0 and {self.total}")
        owner = np.searchsorted(intervals[:, 0], self.cuts, side="right") - 1
        inside = (owner >= 0) & (self.cuts > intervals[owner, 0]) & (self.cuts < intervals[owner, 1])
        inner = self.cuts[inside]
        return np.stack(
            [
                np.sort(np.concatenate([intervals[:, 0], inner])),
                np.sort(np.concatenate([intervals[:, 1], inner])),
            ],
            axis=1,
        )

    def pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(number of the file, start, stop in that file) for every file that [start, stop) touches, in order."""
        self._check(start, stop)
        found = []
        while start < stop:
            number, local = self.locate(start)
            length = min(stop - start, self.files[number].events - local)
            found.append((number, local, local + length))
            start += length
        return found

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.total:
            raise IndexError(f"[{start}, {stop}) is not an interval of the axis of {self.total} events")

    # --- names ------------------------------------------------------------------------------------------------------

    def name(self, start: int, stop: int) -> str:
        """`FILE:first-last` of a range, 1-based and inclusive within the file.

        ValueError for an empty interval and for one that crosses a file boundary: neither is a range.
        """
        pieces = self.pieces(start, stop)
        if len(pieces) != 1:
            raise ValueError(f"[{start}, {stop}) touches {len(pieces)} files; only a range within one file has a name")
        number, first, last = pieces[0]
        return f"{self.files[number].name}:{first + 1}-{last}"

    def names(self, start: int, stop: int) -> list[str]:
        """Names of the parts of any interval, one for each file it touches."""
        return [f"{self.files[number].name}:{first + 1}-{last}" for number, first, last in self.pieces(start, stop)]

    def parse(self, name: str) -> tuple[int, int]:
        """The positions [start, stop) that a name means: the inverse of `name`.

        Besides `FILE:first-last` it takes `FILE:n`, `FILE` (all of it), `first-last` or `n` (1-based and inclusive on
        the whole axis), and `#p` (the one event at position p, 0-based, as in the `event` dataset of the output).
        FILE may also be the full path. Raises ConfigError that says what is wrong and what would be right.
        """
        text = name.strip()
        if text.startswith("#") and text[1:].isdecimal():
            position = int(text[1:])
            if position >= self.total:
                raise self._bad(name, f"the axis has {self.total} events, positions #0 to #{max(self.total - 1, 0)}")
            return position, position + 1
        whole = self._file(text)
        if whole is not None:
            return whole.start, whole.start + whole.events
        label, colon, numbers = text.rpartition(":")
        match = _NUMBERS.fullmatch(numbers)
        if match is None:
            raise self._bad(name, f"it is neither FILE:first-last nor first-last nor #position{self._hint(text)}")
        first, last = int(match[1]), int(match[2] or match[1])
        start, events, of = 0, self.total, "the task"
        if colon:
            file = self._file(label)
            if file is None:
                raise self._bad(name, f"no input file is called {label!r}{self._hint(label)}")
            start, events, of = file.start, file.events, file.name
        if not 1 <= first <= last <= events:
            raise self._bad(name, f"events of {of} are numbered 1 to {events}")
        return start + first - 1, start + last

    def _file(self, label: str) -> AxisFile | None:
        number = self._by_name.get(label)
        if number is not None:
            return self.files[number]
        same = [file for file in self.files if file.path == label]
        return same[0] if len(same) == 1 else None

    def _hint(self, label: str) -> str:
        near = difflib.get_close_matches(label, self._by_name, n=1)
        return f"; did you mean {near[0]!r}?" if near else ""

    def _bad(self, name: str, detail: str) -> ConfigError:
        example = next((self.name(file.start, file.start + 1) for file in self.files if file.events), "FILE:1-10")
        return ConfigError(
            file="command line", key=f"range {name!r}", detail=detail, hint=f"write for example {example}"
        )

    # --- as plain data ----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for task.yaml; `from_dict` gives the same axis back."""
        plain: dict[str, Any] = {"files": [{"path": file.path, "events": file.events} for file in self.files]}
        if self.foreign_cuts.size:
            plain["cuts"] = self.foreign_cuts.tolist()
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Axis:
        return cls([(file["path"], file["events"]) for file in plain["files"]], cuts=plain.get("cuts", ()))

    def __len__(self) -> int:
        return self.total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Axis) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.files, self.foreign_cuts.tobytes()))

    def __repr__(self) -> str:
        return f"Axis({len(self.files)} files, {self.total} events, {self.foreign_cuts.size} foreign cuts)"


def _limited(files: list[tuple[str, int]], limit: int, where: str) -> list[tuple[str, int]]:
    there = sum(events for _, events in files)
    if limit < 1:
        raise ConfigError(
            file=where, key="inputs.events", detail=f"{limit} is not a number of events", hint="write 1 or more"
        )
    if limit > there:
        raise ConfigError(
            file=where,
            key="inputs.events",
            detail=f"asks for the first {limit} events, but the {len(files)} input file(s) hold {there}",
            hint=f"write {there} or fewer, leave the key out to take all, or name more files",
        )
    kept: list[tuple[str, int]] = []
    left = limit
    for path, events in files:
        if left == 0:
            break
        kept.append((path, min(events, left)))
        left -= kept[-1][1]
    return kept


def unique_names(paths: Sequence[str]) -> list[str]:
    """Short names for paths, all different: the base name, with as many parent directories as are needed to tell
    files apart, and `~2`, `~3` behind a path that is listed again."""
    parts = [[part for part in re.split(r"/+", path) if part] or [path] for path in paths]
    depth = [1] * len(paths)

    def label(i: int) -> str:
        return "/".join(parts[i][-depth[i] :])

    groups: dict[str, list[int]] = {}
    for i in range(len(paths)):
        groups.setdefault(label(i), []).append(i)
    clashes = [group for group in groups.values() if len(group) > 1]
    while clashes:
        members = clashes.pop()
        if all(depth[i] >= len(parts[i]) for i in members):
            continue
        for i in members:
            depth[i] = min(depth[i] + 1, len(parts[i]))
        again: dict[str, list[int]] = {}
        for i in members:
            again.setdefault(label(i), []).append(i)
        clashes += [group for group in again.values() if len(group) > 1]
    taken: dict[str, int] = {}
    names = []
    for i in range(len(paths)):
        name = base = label(i)
        while name in taken:
            taken[base] += 1
            name = f"{base}~{taken[base]}"
        taken[name] = 1
        names.append(name)
    return names
