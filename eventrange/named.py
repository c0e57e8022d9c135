"""Ranges that someone else named: where each lies and what it is called, as one file that is mapped and never read.

Ten million names would fill gigabytes as Python objects. So they stay on the disk: sorted arrays of positions, searched
by bisection, and one block of names, each ended by a newline. Opening costs a few system calls, a look-up a few pages,
and all workers of a node share them.

    head: magic 8 | offset of the facts 8       names       at   origin   place   keys   order       facts (JSON)

`at` (n + 1) are the positions on the axis where ranges begin, and its end; `origin` (n) is where each begins among all
events of the input files; `place` (n) is the offset of its name. `keys` are the hashes of all names, sorted, and
`order` whose they are: a name is found by bisection too.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from bisect import bisect_right
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from eventrange.errors import RangesDamaged
from eventrange.intervals import Array, IntervalSet

VERSION = 1
LONGEST = 200  #: bytes of a name: it becomes part of a file name
HEAD = struct.Struct("<8sQ")
ARRAYS = ("at", "origin", "place", "keys", "order")
_MAGIC = b"YodaRng1"
_DTYPES = {"at": "<i8", "origin": "<i8", "place": "<i8", "keys": "<u8", "order": "<i4"}


def _weights() -> NDArray[np.uint64]:
    """A constant random-looking number for every place in a name."""
    at = np.arange(1, LONGEST + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    at = (at ^ (at >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (at ^ (at >> np.uint64(27))) * np.uint64(0x94D049BB133111EB) | np.uint64(1)


_WEIGHTS = _weights()


def hashes(text: bytes, lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash of 64 bits for each of the names of `lengths` bytes that stand one after another in `text`."""
    starts = np.cumsum(lengths) - lengths
    within = np.arange(len(text)) - np.repeat(starts, lengths)
    values = (np.frombuffer(text, np.uint8).astype(np.uint64) + np.uint64(1)) * _WEIGHTS[within]
    return np.add.reduceat(values, starts) if len(starts) else np.zeros(0, np.uint64)


class NamedRanges:
    """The ranges of a task, in axis order, out of the file at `path`. Raises RangesDamaged."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            magic, offset = HEAD.unpack_from(self._map)
            facts = json.loads(self._map[offset:])
            if magic != _MAGIC or facts["version"] != VERSION:
                raise ValueError("it is no list of ranges, or of another version")
            self.count, self.sha256 = int(facts["count"]), str(facts["sha256"])
            self._sections: list[tuple[int, int]] = facts["sections"]
            self._groups: list[tuple[int, str]] = [(int(at), str(name)) for at, name in facts["groups"]]
            found = {}
            for name, (begin, size) in zip(("names", *ARRAYS), self._sections, strict=True):
                if begin + size > offset:
                    raise ValueError("it is cut short")
                if name in _DTYPES:
                    dtype = np.dtype(_DTYPES[name])
                    found[name] = np.frombuffer(self._map, dtype, size // dtype.itemsize, begin)
            if not self.count or any(len(found[name]) != self.count + (name == "at") for name in ARRAYS):
                raise ValueError("its parts are of unequal length")
        except OSError as error:
            raise RangesDamaged(path=path, detail=error.strerror or str(error)) from error
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise RangesDamaged(path=path, detail=str(error)) from error
        self.at: Array = found["at"]
        self.origin: Array = found["origin"]
        self._place: Array = found["place"]
        self._keys, self._order = found["keys"], found["order"]
        # Elements of a memoryview are plain ints, and bisect is several times faster on them than on an array.
        self.cuts: memoryview = memoryview(self.at)  # type: ignore[arg-type]

    @property
    def total(self) -> int:
        """Events in all ranges."""
        return self.cuts[self.count]

    def number(self, position: int) -> int:
        """The number of the range, in axis order, in which a position of the axis lies."""
        return bisect_right(self.cuts, position, 0, self.count) - 1

    def bounds(self, number: int) -> tuple[int, int]:
        """The positions [start, stop) of a range."""
        return self.cuts[number], self.cuts[number + 1]

    def name(self, number: int) -> str:
        """What someone else called it."""
        begin = int(self._place[number])
        return self._map[begin : self._map.find(b"\n", begin)].decode()

    def find(self, name: str) -> int | None:
        """The number of the range called `name`; None if there is none."""
        text = name.encode("utf-8", "replace")
        if not 0 < len(text) <= LONGEST:
            return None
        key = hashes(text, np.array([len(text)]))[0]
        at = int(np.searchsorted(self._keys, key))
        while at < self.count and self._keys[at] == key:
            number = int(self._order[at])
            if self.name(number) == name:
                return number
            at += 1
        return None

    def group(self, number: int) -> str:
        """The key under which the range stood in its file (the PandaID); empty if it stood under none."""
        at = bisect_right(self._groups, int(self._place[number]), key=lambda group: group[0]) - 1
        return self._groups[at][1] if at >= 0 else ""

    def inside(self, starts: Array, stops: Array) -> int:
        """How many ranges lie wholly inside a set of positions, sorted and disjoint, not touching."""
        first = np.searchsorted(self.at, starts, "left")
        last = np.searchsorted(self.at, stops, "right") - 1
        return int(np.maximum(last - first, 0).sum())

    def progress(self, done: IntervalSet, quarantined: IntervalSet) -> dict[str, int]:
        """`total` ranges; those `done`; those `failed`, of which some events are quarantined and all others done.

        Costs the number of holes.
        """
        over = IntervalSet(done)
        for start, stop in quarantined:
            over.add(start, stop)

        def wholly(known: IntervalSet) -> int:
            return self.inside(np.array(known.starts, np.int64), np.array(known.stops, np.int64))

        finished = wholly(done)
        return {"total": self.count, "done": finished, "failed": wholly(over) - finished}

    def check(self) -> None:
        """Read all of it, and raise RangesDamaged unless it is what was written."""
        sha = hashlib.sha256()
        for begin, size in self._sections:
            for at in range(begin, begin + size, 1 << 22):
                sha.update(self._map[at : min(at + (1 << 22), begin + size)])
        if sha.hexdigest() != self.sha256:
            raise RangesDamaged(path=self.path, detail="its checksum is not what it was written with")

    def __reduce__(self) -> tuple[Any, ...]:
        return NamedRanges, (self.path,)


class Writer:
    """Writes such a file: first names, as they come, then the arrays, in their order, then the facts.

    The order of names is that of the list they came from; `sha256` covers names and arrays, and so says what the list
    is, whatever its format was.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._sha = hashlib.sha256()
        self._sections: list[tuple[int, int]] = []
        self._groups: list[tuple[int, str]] = []
        self._at = file.write(bytes(HEAD.size))
        self._begin = self._at

    @property
    def offset(self) -> int:
        """Where the next name goes."""
        return self._at

    def group(self, name: str) -> None:
        """The names that follow stand under this key."""
        self._groups.append((self._at, name))

    def names(self, text: bytes) -> None:
        """Names, each with a newline behind it."""
        self._put(text)

    def array(self, values: NDArray[Any]) -> None:
        """The next of ARRAYS."""
        self._end()
        if pad := -self._at % 8:
            self._at += self.file.write(bytes(pad))
        self._begin = self._at
        dtype = _DTYPES[ARRAYS[len(self._sections) - 1]]
        self._put(np.ascontiguousarray(values, dtype).data.cast("B"))

    def finish(self, count: int) -> str:
        """Write what is left; returns the sha256."""
        self._end()
        sha = self._sha.hexdigest()
        facts = {
            "version": VERSION,
            "count": count,
            "sha256": sha,
            "sections": self._sections,
            "groups": self._groups,
        }
        self.file.write(json.dumps(facts).encode())
        self.file.seek(0)
        self.file.write(HEAD.pack(_MAGIC, self._at))
        self.file.flush()
        os.fsync(self.file.fileno())
        return sha

    def _put(self, data: Any) -> None:
        self._at += self.file.write(data)
        self._sha.update(data)

    def _end(self) -> None:
        self._sections.append((self._begin, self._at - self._begin))
