"""The axis: all events of a task numbered 0..E-1 in the order of the input files, and what people call its parts.

Three ways to say where an event is, and no others:

* a *position* on the axis, 0-based, as in the `event` dataset of the merged file and everywhere in the code;
* a *range* `[start, stop)` of positions that crosses no cut;
* a *name*, for people: `FILE:first-last`, 1-based and inclusive within the file, as PanDA writes it.

Where someone else named the ranges (eventrange.named), the axis consists of their events alone, in input order: then
positions count those, names keep counting the events of the file, and a fourth way to say where events are is the name
that the range was given.

Memory grows with the number of files, never with the number of events or of named ranges.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eventrange.errors import ConfigError, RangesDamaged

if TYPE_CHECKING:
    from eventrange.named import NamedRanges

GENERATE = "generate"
"""What stands in the place of a file name where events are generated and not read."""

_SLICE = 1 << 16  # named ranges looked at together
_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class AxisFile:
    """One input file as the axis sees it: `events` events of it, at positions `start` to `start + events - 1`.

    It `holds` so many in all, and they begin at `origin` on the axis of all events of all files; both differ from
    `events` and `start` only where ranges are named.
    """

    path: str
    events: int
    start: int
    name: str
    holds: int
    origin: int


class Axis:
    """Input files as one axis of `total` events.

    `files` are (path, events in the file); `limit` keeps the first so many events only. `ranges` are those that someone
    else named, in the events of these files: then the axis is made of them.
    Raises ConfigError for a limit below 1 or beyond the events there are.
    """

    def __init__(
        self,
        files: Iterable[tuple[str, int]],
        *,
        limit: int | None = None,
        ranges: NamedRanges | None = None,
        where: str = "job file",
    ) -> None:
        given = [(os.fspath(path), int(events)) for path, events in files]
        for path, events in given:
            if events < 0:
                raise ValueError(f"{path}: {events} events")
        kept = given if limit is None else _limited(given, limit, where)
        names = unique_names([path for path, _ in kept])
        origins = np.zeros(len(kept) + 1, np.int64)
        np.cumsum([events for _, events in kept], out=origins[1:])
        self.ranges = ranges
        self._origins: list[int] = origins.tolist()
        starts = origins
        if ranges is not None:
            starts = ranges.at[np.searchsorted(ranges.origin, origins)]
        self.files: tuple[AxisFile, ...] = tuple(
            AxisFile(path, stop - start, start, name, holds, origin)
            for (path, holds), start, stop, name, origin in zip(
                kept, starts[:-1].tolist(), starts[1:].tolist(), names, self._origins[:-1], strict=True
            )
        )
        self._by_name = {file.name: number for number, file in enumerate(self.files)}
        self.total = int(starts[-1])
        self.cuts: Sequence[int] = self._origins if ranges is None else ranges.cuts
        """Sorted positions, both ends of the axis included, that no range crosses."""

    @classmethod
    def generate(cls, events: int) -> Axis:
        """The axis of a task without input files: an event is its position."""
        return cls([(GENERATE, events)])

    def named(self, ranges: NamedRanges) -> Axis:
        """The axis of `ranges`, which lie in the events of this one."""
        return Axis([(file.path, file.holds) for file in self.files], ranges=ranges)

    # --- positions --------------------------------------------------------------------------------------------------

    def locate(self, position: int) -> tuple[int, int]:
        """(number of the file, 0-based position in it) of an axis position. IndexError outside the axis."""
        origin = self.origin(position)
        number = bisect_right(self._origins, origin) - 1
        return number, origin - self._origins[number]

    def origin(self, position: int) -> int:
        """The place of an axis position among all events of all input files, whether the task has them or not.

        It is what an event is known by to its payload: its random numbers do not depend on which ranges were named.
        """
        if not 0 <= position < self.total:
            raise IndexError(f"position {position} is outside the axis of {self.total} events")
        if self.ranges is None:
            return position
        number = self.ranges.number(position)
        return int(self.ranges.origin[number]) + position - self.ranges.bounds(number)[0]

    def pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(number of the file, start, stop in that file) for every stretch of one file in [start, stop), in order."""
        if not 0 <= start <= stop <= self.total:
            raise IndexError(f"[{start}, {stop}) is not an interval of the axis of {self.total} events")
        if self.ranges is None:
            return self._in_files(start, stop)
        found: list[tuple[int, int, int]] = []
        first = self.ranges.number(start)
        if stop <= self.ranges.bounds(first)[1]:  # what a worker asks for
            origin = int(self.ranges.origin[first]) + start - self.ranges.bounds(first)[0]
            return self._in_files(origin, origin + stop - start)
        last = self.ranges.number(max(start, stop - 1)) + 1
        for at in range(first, last, _SLICE):
            to = min(at + _SLICE, last)
            edges = np.clip(self.ranges.at[at : to + 1], start, stop)
            begins = self.ranges.origin[at:to] + (edges[:-1] - self.ranges.at[at:to])
            ends = begins + np.diff(edges)
            apart = np.flatnonzero(begins[1:] != ends[:-1])
            begins, ends = begins[np.append(0, apart + 1)], ends[np.append(apart, to - at - 1)]
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
                for number, low, high in self._in_files(begin, end):
                    if found and found[-1][0] == number and found[-1][2] == low:
                        low = found.pop()[1]
                    found.append((number, low, high))
        return found

    def _in_files(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """The same for [begin, end) of all events of all files."""
        found = []
        number = bisect_right(self._origins, begin) - 1
        while begin < end:
            file = self.files[number]
            stop = min(end, file.origin + file.holds)
            if stop > begin:
                found.append((number, begin - file.origin, stop - file.origin))
            begin, number = stop, number + 1
        return found

    # --- names ------------------------------------------------------------------------------------------------------

    def name(self, start: int, stop: int) -> str:
        """`FILE:first-last` of a range, 1-based and inclusive within the file.

        ValueError for an empty interval and for one that crosses a file boundary or a gap: neither is a range.
        """
        pieces = self.pieces(start, stop)
        if len(pieces) != 1:
            raise ValueError(
                f"[{start}, {stop}) is in {len(pieces)} pieces; only events in a row of one file have a name"
            )
        number, first, last = pieces[0]
        return f"{self.files[number].name}:{first + 1}-{last}"

    def names(self, start: int, stop: int) -> list[str]:
        """Names of the parts of any interval, one for each stretch of a file in it."""
        return [f"{self.files[number].name}:{first + 1}-{last}" for number, first, last in self.pieces(start, stop)]

    def parse(self, name: str) -> tuple[int, int]:
        """The positions [start, stop) that a name means: the inverse of `name`.

        Besides `FILE:first-last` it takes the name that someone else gave to a range, `FILE:n`, `FILE` (all of it),
        `first-last` or `n` (1-based and inclusive on the whole axis), and `#p` (the one event at position p, 0-based,
        as in the `event` dataset of the output). FILE may also be the full path. Raises ConfigError that says what is
        wrong and what would be right.
        """
        text = name.strip()
        if self.ranges is not None and (number := self.ranges.find(text)) is not None:
            return self.ranges.bounds(number)
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
        file = self._file(label) if colon else None
        if colon and file is None:
            raise self._bad(name, f"no input file is called {label!r}{self._hint(label)}")
        events, of = (self.total, "the task") if file is None else (file.holds, file.name)
        if not 1 <= first <= last <= events:
            raise self._bad(name, f"events of {of} are numbered 1 to {events}")
        if file is None:
            return first - 1, last
        start, stop = self._position(file.origin + first - 1), self._position(file.origin + last - 1)
        if start is None or stop is None or stop - start != last - first:
            raise self._bad(name, "not all of these events are in a named range")
        return start, stop + 1

    def _position(self, origin: int) -> int | None:
        """The inverse of `origin`; None for an event that is in no named range."""
        if self.ranges is None:
            return origin
        number = int(np.searchsorted(self.ranges.origin, origin, side="right")) - 1
        if number < 0:
            return None
        start, stop = self.ranges.bounds(number)
        position = start + origin - int(self.ranges.origin[number])
        return position if position < stop else None

    def member(self, task: str, start: int, stop: int) -> str:
        """What the image of a range is called in its segment.

        `TASK.FIRST-LAST.h5`, positions counted from 1; `TASK.<name>` of a range that someone else named, and
        `TASK.<name>.FIRST-LAST` of a part of one, as its file counts.
        """
        from eventrange.segment import member_name  # who only looks at an axis does not need it

        if self.ranges is None:
            return member_name(task, start + 1, stop)
        number = self.ranges.number(start)
        name = f"{task}.{self.ranges.name(number)}"
        return (
            name
            if self.ranges.bounds(number) == (start, stop)
            else f"{name}.{self.name(start, stop).rpartition(':')[2]}"
        )

    def _file(self, label: str) -> AxisFile | None:
        number = self._by_name.get(label)
        if number is not None:
            return self.files[number]
        same = [file for file in self.files if file.path == label]
        return same[0] if len(same) == 1 else None

    def _hint(self, label: str) -> str:
        import difflib

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
        if self.ranges is not None:
            for entry, file in zip(plain["files"], self.files, strict=True):
                entry["holds"] = file.holds
            plain["ranges"] = {
                "path": self.ranges.path,
                "count": self.ranges.count,
                "sha256": self.ranges.sha256,
            }
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Axis:
        """Raises RangesDamaged where named ranges cannot be read."""
        ranges = None
        if named := plain.get("ranges"):
            from eventrange.named import NamedRanges  # what few tasks have

            ranges = NamedRanges(named["path"])
            if ranges.sha256 != named["sha256"]:
                raise RangesDamaged(path=ranges.path, detail="it is of other ranges")
        return cls([(file["path"], file.get("holds", file["events"])) for file in plain["files"]], ranges=ranges)

    def __len__(self) -> int:
        return self.total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Axis) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.files)

    def __repr__(self) -> str:
        named = f", {self.ranges.count} named ranges" if self.ranges is not None else ""
        return f"Axis({len(self.files)} files, {self.total} events{named})"


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
