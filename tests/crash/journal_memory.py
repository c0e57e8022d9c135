"""A file system in memory for the journal, so that a hundred thousand damaged journals can be read in a test."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange import records
from eventrange.durable import Files
from eventrange.journal import Damage, JournalReader, JournalWriter
from eventrange.records import Kind


class Memory(Files):
    """Files that are bytes in a dict. `limit` hides all bytes from there on; `block` makes every read that short."""

    def __init__(self) -> None:
        self.content: dict[str, bytearray] = {}
        self.limit: int | None = None
        self.block = 1 << 30
        self._open: list[str] = []

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        if flags & os.O_CREAT:
            if flags & os.O_EXCL and path in self.content:
                raise FileExistsError(errno.EEXIST, "exists", path)
            self.content.setdefault(path, bytearray())
        elif path not in self.content:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self._open.append(path)
        return len(self._open) - 1

    def write(self, fd: int, data: Any) -> int:
        self.content[self._open[fd]] += data
        return len(data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        data = self.content[self._open[fd]]
        stop = len(data) if self.limit is None else min(self.limit, len(data))
        return bytes(memoryview(data)[offset : min(stop, offset + min(size, self.block))])

    def size(self, fd: int) -> int:
        return len(self.content[self._open[fd]])

    def fsync(self, fd: int) -> None: ...

    def fsync_folder(self, path: str) -> None: ...

    def close(self, fd: int) -> None: ...


class Sample:
    """A journal with `frames` flushes of `size` records and a note each; what was written, and where."""

    def __init__(self, frames: int, size: int, allocation: str = "a", fingerprint: str = "f", first: int = 0) -> None:
        files = Memory()
        writer = JournalWriter("j", fingerprint, allocation, files, time=0.0)
        rng = np.random.default_rng(first + 1)
        self.notes = 1
        parts = []
        self.ends = [writer.flush()]  #: file size after each flush
        for number in range(frames):
            start = first + number * size + np.arange(size)
            rows = records.new(size, kind=Kind.DONE, start=start, stop=start + 1, droid=3, worker=1)
            rows["time"] = 1.7e9 + rng.random(size) * 1e5
            rows["wall"], rows["checksum"], rows["offset"] = (
                rng.random(size),
                rng.integers(0, 1 << 32, size),
                start * 999,
            )
            writer.append(rows)
            parts.append(rows)
            self.ends.append(writer.flush())
            writer.note("pulse", time=float(number))
            self.notes += 1
            self.ends.append(writer.flush())
        self.fingerprint, self.allocation = fingerprint, allocation
        self.rows = np.concatenate(parts) if parts else records.new(0)
        self.content = bytes(files.content["j"])
        self._bytes = {row.tobytes()[:60] for row in self.rows}
        self.where = np.zeros(len(self.rows), np.int64)  #: offset in the file of every record; shape (n,)
        at = 0
        for number, row in enumerate(self.rows):
            at = self.where[number] = self.content.index(row.tobytes()[:60], at)

    def read(self, content: bytes, block: int = 1 << 30) -> tuple[NDArray[Any], list[dict[str, Any]], Damage]:
        """Read `content` as this journal, to the very end; checks that nothing came out that never went in."""
        files = Memory()
        files.content["j"], files.block = bytearray(content), block
        reader = JournalReader("j", self.fingerprint, self.allocation, files)
        rows, notes = drain(reader)
        self.check(rows)
        return rows, notes, reader.damage

    def check(self, rows: NDArray[Any]) -> None:
        seen = [row.tobytes()[:60] for row in rows]
        assert set(seen) <= self._bytes, "a record that was never written"
        assert len(set(seen)) == len(seen), "a record twice"


def drain(reader: JournalReader) -> tuple[NDArray[Any], list[dict[str, Any]]]:
    rows: list[NDArray[Any]] = [records.new(0)]
    notes: list[dict[str, Any]] = []
    for part in (reader, reader.rest()):
        for entry in part:
            if isinstance(entry, dict):
                notes.append(entry)
            else:
                rows.append(entry)
    return np.concatenate(rows), notes
