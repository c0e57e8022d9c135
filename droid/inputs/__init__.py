"""Input files as a worker sees them: any range of the axis, at the cost of that range.

| format | an event is |
|---|---|
| `lhe` | `LHEEvent`: header fields, `particles`, `weights`, `text`, and `head` for what the file begins with |
| `hdf5` | `{field: array}` |
| `root` | `{branch: value}` |
| `hepmc` | `pyhepmc.GenEvent` |
| `generate` | its position, an int |
"""

from __future__ import annotations

import os
from collections import OrderedDict
from os import PathLike
from typing import Any

from droid.inputs.formats import FORMATS, Input, index_file, open_input
from droid.inputs.index import Index, index_path
from droid.inputs.plan import plan_axis
from eventrange.axis import Axis
from eventrange.errors import InputChanged, InputDamaged

KEEP_OPEN = 4
"""Files a worker keeps open: ranges come in runs from one file, and 128 workers share the node's descriptors."""


class InputSet:
    """All input files of a task, in axis order, for one worker.

    Opens nothing until it is asked to read. After a fork the child opens its own files: handles of HDF5 and ROOT hold a
    position and caches that must not be shared.
    """

    def __init__(
        self, format: str, axis: Axis, indexes_dir: str | PathLike[str], options: dict[str, Any] | None = None
    ) -> None:
        self.format = format
        self.axis = axis
        self._indexes_dir = indexes_dir
        self._options = dict(options or {})
        self._open: OrderedDict[int, Input] = OrderedDict()
        self._pid = os.getpid()

    def read(self, start: int, stop: int) -> list[Any]:
        """The events at axis positions [start, stop), one item each.

        Raises IndexError outside the axis, InputChanged for a file that is not the one the task was planned with,
        InputMissing and InputDamaged for what cannot be read.
        """
        if self.format == "generate":
            return [event for _, low, high in self.axis.pieces(start, stop) for event in range(low, high)]
        events: list[Any] = []
        for number, low, high in self.axis.pieces(start, stop):
            found = self._input(number).read(low, high)
            if len(found) != high - low:  # whatever a reader does, an event must not get lost or shift the others
                raise InputDamaged(
                    path=self.axis.files[number].path,
                    detail=f"gave {len(found)} events for events {low + 1} to {high}",
                    hint="copy the file again from its source; if it is whole, report this",
                )
            events.extend(found)
        return events

    def input(self, position: int) -> Input:
        """The open file that holds an axis position, for what belongs to the file and not to an event."""
        return self._input(self.axis.locate(position)[0])

    def _input(self, number: int) -> Input:
        if self._pid != os.getpid():
            self._open = OrderedDict()
            self._pid = os.getpid()
        found = self._open.get(number)
        if found is not None:
            self._open.move_to_end(number)
            return found
        file = self.axis.files[number]
        index = Index.load(index_path(self._indexes_dir, self.format, file.path, self._options))
        if index is None:
            # The cache was cleaned while the task was away; without it this worker pays what it saves.
            index = index_file(self.format, file.path, self._options)
        else:
            index.check()
        if index.count < file.events:
            raise InputChanged(path=file.path, detail=f"it has {index.count} events; {file.events} are on the axis")
        opened = open_input(self.format, file.path, index, self._options)
        self._open[number] = opened
        if len(self._open) > KEEP_OPEN:
            self._open.popitem(last=False)[1].close()
        return opened

    def close(self) -> None:
        """Close every open file; reading again opens them again."""
        if self._pid == os.getpid():
            for opened in self._open.values():
                opened.close()
        self._open = OrderedDict()


__all__ = ["FORMATS", "Index", "Input", "InputSet", "index_file", "open_input", "plan_axis"]
