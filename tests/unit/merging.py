"""A task in miniature for tests of the merge: events, images in segments in memory or on disk, records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from eventrange import image, records
from eventrange.segment import SegmentWriter, checksum
from eventrange.segmentreader import SegmentReader, read_image
from stageout.merge import winners


def event(position: int) -> dict[str, Any]:
    """Fields that depend on the position alone; `hits` and `words` are jagged, `trio` is fixed."""
    random = np.random.default_rng(position)
    return {
        "energy": float(random.normal()),
        "trio": random.integers(0, 99, 3).astype("i2"),
        "hits": random.normal(size=(position % 4, 2)).astype("f4"),
        "words": np.array([f"w{n}" for n in range(position % 3)], "U4"),
        "label": f"event {position}",
    }


def numbers(position: int) -> dict[str, Any]:
    """The same without strings: such images are read many at a time."""
    return {name: value for name, value in event(position).items() if name not in ("words", "label")}


class Task:
    """Images appended one after another to one segment, and their records."""

    def __init__(self, folder: str, make: Callable[[int], dict[str, Any]] = event) -> None:
        self.folder, self.make = folder, make
        self.path = os.path.join(folder, "segment.tar")
        self._segment = SegmentWriter(self.path)
        self.records: list[NDArray[Any]] = []
        self.allocations: list[int] = []

    def done(self, start: int, stop: int, allocation: int = 0) -> None:
        data = image.build(start, None, [self.make(position) for position in range(start, stop)], {"task": "t"})
        offset = self._segment.append(f"t.{start}-{stop}", data)
        self.note(records.Kind.DONE, start, stop, allocation, offset=offset, size=len(data), checksum=checksum(data))

    def note(self, kind: int, start: int, stop: int, allocation: int = 0, **values: Any) -> None:
        self.records.append(records.new(kind=kind, start=start, stop=stop, **values))
        self.allocations.append(allocation)

    def placed(self, order: Iterable[int] | None = None) -> NDArray[Any]:
        rows = list(range(len(self.records)) if order is None else order)
        if not rows:
            return winners(records.new(0))
        of = np.array([self.allocations[row] for row in rows])
        return winners(np.concatenate([self.records[row] for row in rows]), of)

    def fetch(self, row: Any) -> bytes:
        return read_image(self.path, int(row["offset"]), int(row["size"]), int(row["checksum"]))

    def fetch_many(self, rows: Any) -> list[memoryview | None]:
        with SegmentReader() as reader:
            return reader.read_many(self.path, rows)


def whole(folder: str, count: int, size: int = 7, make: Callable[[int], dict[str, Any]] = event) -> Task:
    """A task of `count` events done in ranges of `size`."""
    os.makedirs(folder, exist_ok=True)
    task = Task(folder, make)
    for start in range(0, count, size):
        task.done(start, min(start + size, count))
    return task


def events_in(path: str) -> dict[int, dict[str, Any]]:
    """All events of a merged file, read with plain h5py; {position: fields}. Fails when one is there twice."""
    out: dict[int, dict[str, Any]] = {}
    with h5py.File(path) as file:
        columns: dict[str, Any] = {}
        for name, data in file.items():
            if name == "event" or name.endswith("_count"):
                continue
            text = h5py.check_string_dtype(data.dtype)
            values = data.asstr()[()] if text else data[()]
            if f"{name}_count" in file:
                values = np.split(values, np.cumsum(file[f"{name}_count"][()])[:-1])
            columns[name] = values
        for at, position in enumerate(file["event"][()].tolist()):
            assert position not in out
            out[position] = {name: values[at] for name, values in columns.items()}
    return out


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return set(found) == set(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)
