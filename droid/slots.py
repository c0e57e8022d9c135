"""Shared memory between a Droid and its workers: one slot per worker.

A worker writes, before each event, which event it is on and since when; the Droid reads it whenever it wants, also
after the worker was shot. In the other direction there is one flag: finish the event at hand and come back. Nothing
here needs a lock: each field has one writer, and a reading that is one event old is as good, for each field by itself.
So fields are overwritten with bytes that are ready (`pack_into` would first fill them with zeros, which are an event,
and a time long ago), and times before the event they belong to.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: `event` axis position of the event (or first of the group) being processed, -1 none; `count` events in the group;
#: `since` CLOCK_MONOTONIC seconds, which all processes of a node share; `begun` the same, of the range it belongs to;
#: `cpu` seconds of CPU the process had used by then, or a moment before; `cut` set by the Droid.
SLOT = np.dtype(
    [
        *(("event", "<i8"), ("count", "<i8"), ("since", "<f8"), ("begun", "<f8"), ("cpu", "<f8")),
        *(("cut", "<i8"), ("spare", "<i8", (2,))),
    ]
)
_ON = struct.Struct("<qq")
_NOW = struct.Struct("<qqd")
_TIMES = struct.Struct("<ddd")
_DOUBLE = struct.Struct("<d")
_NOTHING = _ON.pack(-1, 0)
_WHOLE = struct.Struct("<qqddd24x")
assert _WHOLE.size == SLOT.itemsize
_SINCE = SLOT.fields["since"][1]  # type: ignore[index]
_CPU = SLOT.fields["cpu"][1]  # type: ignore[index]
_CUT = SLOT.fields["cut"][1]  # type: ignore[index]


class Slots:
    """All slots of a Droid; made before the zygote is forked, inherited by it and by every worker."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, max(1, count) * SLOT.itemsize)
        self.table: NDArray[Any] = np.frombuffer(self._memory, SLOT)
        self.table["event"] = -1

    def worker(self, index: int) -> Slot:
        return Slot(self._memory, index)

    def snapshot(self) -> NDArray[Any]:
        """A copy of the table, shape (workers,)."""
        return self.table.copy()

    def running(self) -> list[tuple[int, float, float]]:
        """(event, since, begun) of every worker that is on one."""
        slots = _WHOLE.iter_unpack(self._memory)
        return [(event, since, begun) for event, _, since, begun, _ in slots if event >= 0]

    def cut(self, index: int, on: bool) -> None:
        self.table["cut"][index] = on

    def clear(self, index: int) -> None:
        """Nobody is at work here any more."""
        self.table["event"][index] = -1
        self.table["cut"][index] = 0


class Slot:
    """One worker's slot, as the worker uses it; a write costs a few hundred nanoseconds."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        self._memory = memory
        offset = index * SLOT.itemsize
        self._on = slice(offset, offset + _ON.size)
        self._now = slice(offset, offset + _NOW.size)
        self._times = slice(offset + _SINCE, offset + _SINCE + _TIMES.size)
        self._cpu = slice(offset + _CPU, offset + _CPU + _DOUBLE.size)
        self._cut = offset + _CUT

    def begin(self, event: int, count: int, now: float, cpu: float) -> None:
        """A range begins."""
        self._memory[self._times] = _TIMES.pack(now, now, cpu)
        self._memory[self._on] = _ON.pack(event, count)

    def used(self, cpu: float) -> None:
        """Seconds of CPU used so far."""
        self._memory[self._cpu] = _DOUBLE.pack(cpu)

    def enter(self, event: int, count: int, now: float) -> None:
        self._memory[self._now] = _NOW.pack(event, count, now)

    def leave(self) -> None:
        self._memory[self._on] = _NOTHING

    @property
    def cut(self) -> bool:
        return self._memory[self._cut] != 0

    def take_cut(self) -> bool:
        """Whether the Droid asked to come back; clears the request."""
        asked = self._memory[self._cut] != 0
        if asked:
            self._memory[self._cut] = 0
        return asked
