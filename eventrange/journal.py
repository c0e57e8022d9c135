"""The journal: framed, checksummed, append-only; the only truth about progress.

A file belongs to one allocation and is written by its Yoda alone. Frame, little endian:

    magic 8, version 2, type 2, journal id 4, sequence 4, count 4, payload bytes 4, payload crc32 4, header crc32 4

Type 1 carries `count` records of `records.RECORD`, type 2 one JSON note. The header has a checksum of its own, so that
a magic inside garbage is refused without reading what it promises; the journal id (from task fingerprint and allocation
name) keeps stale blocks of another journal out; the sequence number makes a duplicated block harmless. After damage the
reader goes to the next true header. In what lies between it looks for records at every byte (`salvage`): a record's
check word is salted with journal id and sequence number, so that neither a stale block of another journal nor an old
block of this one can pass for a record of the damaged frame, and losing a header, or bytes, costs no record that is
still there (L7).

A new writer never appends to an old file: a torn tail stays the last thing in its file, and nothing can be glued to it.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eventrange import records, salvage
from eventrange.durable import FILES, DurableFile, Files
from eventrange.intervals import IntervalSet

MAGIC = b"\xf5YODAjn\n"
_HEADER = struct.Struct("<8sHHIIIIII")
HEADER_SIZE = _HEADER.size
RECORDS, NOTE = 1, 2
FRAME_RECORDS = 1024  #: records per frame at most
FRAME_BYTES = 1 << 20  #: no frame is larger, so a header that promises more is garbage
_AHEAD = HEADER_SIZE + FRAME_BYTES  #: with as much in hand, a frame that is not whole will never be
_BLOCK = 1 << 23  #: bytes read at a time: memory of a replay is a few of these, not the journal
_SECTOR = 4096  #: what one unreadable spot of a disk costs

Entry = NDArray[Any] | dict[str, Any]


def journal_id(fingerprint: str, allocation: str) -> int:
    return zlib.crc32(f"{fingerprint}/{allocation}".encode("utf-8", "surrogateescape"))


class JournalWriter:
    """Appends to one allocation's journal. `flush` hands frames to the kernel, `file.sync()` makes them durable.

    The shell calls `flush`, then has a Syncer do the sync: many records per fsync (group commit).
    """

    def __init__(self, path: str, fingerprint: str, allocation: str, files: Files = FILES, **about: Any) -> None:
        self.file = DurableFile(path, files)
        self._id = journal_id(fingerprint, allocation)
        self._sequence = 0
        self._waiting: list[Entry] = []
        self.note("journal", allocation=allocation, fingerprint=fingerprint, version=records.VERSION, **about)

    def append(self, rows: NDArray[Any]) -> None:
        """Add records (stamped when they are flushed). The array must not be changed before that."""
        self._waiting.append(rows)

    def note(self, name: str, **values: Any) -> None:
        """Add a note; `values` must be JSON types."""
        self._waiting.append({"note": name, **values})

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def flush(self) -> int:
        """Write what waits; returns the file size that a sync must reach to make it durable. Order is kept."""
        waiting, self._waiting = self._waiting, []
        out: list[bytes] = []
        run: list[NDArray[Any]] = []
        for entry in waiting:
            if isinstance(entry, dict):
                self._records(run, out)
                run = []
                self._frame(NOTE, 1, _note_bytes(entry), out)
            else:
                run.append(entry)
        self._records(run, out)
        if out:
            self.file.append(b"".join(out))
        return self.file.size

    def _records(self, run: list[NDArray[Any]], out: list[bytes]) -> None:
        if not run:
            return
        # A copy: the caller's arrays stay unstamped. (np.concatenate compares the dtypes of all, for 15 us each.)
        rows = np.frombuffer(bytearray().join(part.tobytes() for part in run), records.RECORD)
        for at in range(0, len(rows), FRAME_RECORDS):
            part = records.stamp(rows[at : at + FRAME_RECORDS], salvage.salt(self._id, self._sequence))
            self._frame(RECORDS, len(part), part.tobytes(), out)

    def _frame(self, kind: int, count: int, payload: bytes, out: list[bytes]) -> None:
        head = struct.pack(
            "<8sHHIIIII",
            MAGIC,
            records.VERSION,
            kind,
            self._id,
            self._sequence,
            count,
            len(payload),
            zlib.crc32(payload),
        )
        self._sequence += 1
        out += (head, zlib.crc32(head).to_bytes(4, "little"), payload)


def _note_bytes(entry: dict[str, Any]) -> bytes:
    data = json.dumps(entry, separators=(",", ":"), default=str).encode()
    if len(data) > FRAME_BYTES:  # evidence belongs into quarantine/, but a note must never make the journal unreadable
        short = {"note": entry["note"], "time": entry.get("time"), "cut": len(data)}
        data = json.dumps(short, separators=(",", ":"), default=str).encode()
    return data


@dataclass
class Damage:
    """What a replay could not use. `tail` is an unfinished frame at the end: a commit that was under way, or is
    still."""

    spots: list[tuple[int, int]] = field(default_factory=list)  #: (offset, bytes) that are no frame
    records_lost: int = 0  #: records promised by the header of a damaged frame and not found
    records_saved: int = 0  #: records found outside whole frames
    frames_lost: int = (
        0  #: frames that were written and are not there whole; with their header gone, this is all we know
    )
    notes_lost: int = 0
    duplicates: int = 0  #: frames seen a second time and ignored
    foreign: int = 0  #: frames of another journal
    unknown: int = 0  #: frames of a version or type this program does not know
    unreadable: int = 0  #: bytes the disk would not give back
    tail: int = 0  #: bytes

    def __bool__(self) -> bool:
        return bool(
            self.spots or self.frames_lost or self.duplicates or self.foreign or self.unknown or self.unreadable
        )


class _Header(NamedTuple):
    own: bool
    version: int
    kind: int
    sequence: int
    number: int  # of records
    nbytes: int
    crc: int


class JournalReader:
    """Iterates over the entries of one journal: arrays of records, and notes, in order.

    Iterating again goes on behind the last whole frame, so a journal that is still being written can be followed; what
    is at the end and not (yet) a frame is `damage.tail`. `rest` gives the records that are in it, for a journal nobody
    writes any more. Memory is bounded by the block size. Never raises on damaged content; OSError if the file
    cannot be read at all.
    """

    def __init__(self, path: str, fingerprint: str, allocation: str, files: Files = FILES) -> None:
        self.path, self.allocation, self.files = path, allocation, files
        self.damage = Damage()
        self.offset = 0  #: file offset of the first byte not yet used
        self._id = journal_id(fingerprint, allocation)
        self._next = 0  # sequence numbers below this have been seen, but for
        self._missing = IntervalSet()
        self._owed: dict[int, int] = {}  # damaged frame -> records not found
        self._saved: dict[int, set[bytes]] = {}  # damaged frame -> records found

    def __iter__(self) -> Iterator[Entry]:
        return self._open(final=False)

    def rest(self) -> Iterator[Entry]:
        """What can still be read of the tail. It ends the reader: no writer can be followed after it."""
        return self._open(final=True)

    def _open(self, final: bool) -> Iterator[Entry]:
        self.damage.tail = 0
        # A thing of that name need not be a file; opening a pipe would wait for ever.
        fd = self.files.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            yield from self._entries(fd, final)
        finally:
            self.files.close(fd)

    def _entries(self, fd: int, final: bool) -> Iterator[Entry]:
        data, at, end = b"", 0, False
        view = memoryview(data)
        batch: list[memoryview] = []  # payloads of whole frames, given out together: small frames cost little then
        while True:
            if not end and len(data) - at < _AHEAD:
                if batch:
                    yield _rows(batch)
                    batch = []
                data, end = self._more(fd, data[at:])
                at, view = 0, memoryview(data)
            used = self._run(data, view, at, batch)
            if used:
                at += used
                continue
            head = self._header(data, at)
            if head is not None:
                start, stop = at + HEADER_SIZE, at + HEADER_SIZE + head.nbytes
                payload = view[start:stop]
                if len(payload) == head.nbytes and zlib.crc32(payload) == head.crc:
                    if batch:
                        yield _rows(batch)
                        batch = []
                    usable = self._usable(head)
                    if not head.own:
                        self._spot(stop - at)
                    self.offset += stop - at
                    at = stop
                    if usable:
                        yield from self._late(head, payload) if head.kind == RECORDS else self._note(payload)
                    continue
            if batch:
                yield _rows(batch)
                batch = []
            size = len(data) - at
            stop = self._next_header(data, at + 1)
            torn = False
            if stop < 0:
                if end and not final and size <= _AHEAD:
                    self.damage.tail = size
                    return
                torn = end and ((head is not None and size < HEADER_SIZE + head.nbytes) or _begins(data[at:]))
                # Not all, for what is at the end may go on in the next block.
                stop = len(data) - (0 if end and final else _AHEAD // 2)
                if stop <= at:
                    return
            known = self._next
            rows = self._search(data, at, stop, None if torn else head)
            if torn:  # never finished, so never acknowledged: that this frame is not whole is no damage
                self._missing.remove(known, self._next)
                self.damage.frames_lost = self._missing.total
                self.damage.tail = size
            else:
                self._spot(stop - at)
            self.offset += stop - at
            at = stop
            if len(rows):
                yield rows

    def _run(self, data: bytes, view: memoryview, at: int, batch: list[memoryview]) -> int:
        """Take the run of expected, whole record frames at `at`, which is nearly all there ever is; returns its bytes.

        The same checks as below, without a call for each: with small frames this loop is what a resume waits for.
        """
        begin, last, sequence, crc32 = at, len(data) - HEADER_SIZE, self._next, zlib.crc32
        if self._saved:  # after damage a frame may hold what has been found before
            return 0
        expected, unpack = (MAGIC, records.VERSION, RECORDS, self._id), _HEADER.unpack_from
        while at <= last:
            head = unpack(data, at)
            start = at + HEADER_SIZE
            payload = view[start : start + head[6]]
            if (
                head[:4] != expected
                or head[4] != sequence
                or head[6] != head[5] * records.SIZE
                or head[8] != crc32(view[at : start - 4])
                or len(payload) != head[6]
                or head[7] != crc32(payload)
            ):
                break
            batch.append(payload)
            sequence += 1
            at = start + head[6]
        self._next = sequence
        self.offset += at - begin
        return at - begin

    def _more(self, fd: int, data: bytes) -> tuple[bytes, bool]:
        """`data` and what follows it in the file, enough to hold any frame; and whether that is the end of the file."""
        parts, size = [data], len(data)
        while size < _AHEAD:
            block = self._read(fd, self.offset + size)
            if not block:
                return b"".join(parts), True
            parts.append(block)
            size += len(block)
        return b"".join(parts), False

    def _read(self, fd: int, offset: int) -> bytes:
        size = _BLOCK
        while True:
            try:
                return self.files.pread(fd, size, offset)
            except OSError as error:
                # A bad spot of the disk is damage like any other: read up to it, and around it.
                rest = self.files.size(fd) - offset
                if error.errno != errno.EIO or rest <= 0:
                    raise
                sector = min(rest, _SECTOR - offset % _SECTOR)
                if size <= sector:
                    self.damage.unreadable += sector
                    return bytes(sector)
            size = max(size // 2, sector)

    def _header(self, data: bytes, at: int) -> _Header | None:
        """The header at `at`, or None if there is none."""
        if len(data) - at < HEADER_SIZE or data[at : at + 8] != MAGIC:
            return None
        _, version, kind, owner, sequence, count, nbytes, crc, check = _HEADER.unpack_from(data, at)
        if zlib.crc32(data[at : at + HEADER_SIZE - 4]) != check or nbytes > FRAME_BYTES:
            return None
        return _Header(owner == self._id, version, kind, sequence, count, nbytes, crc)

    def _next_header(self, data: bytes, at: int) -> int:
        """Where the next header is, at or after `at`; -1 if there is none."""
        found = data.find(MAGIC, at)
        while found >= 0 and self._header(data, found) is None:
            found = data.find(MAGIC, found + 1)
        return found

    def _usable(self, head: _Header) -> bool:
        """Whether a whole frame is news to us; keeps account of what has been seen."""
        if not head.own:
            self.damage.foreign += 1
            return False
        if head.sequence < self._next and head.sequence not in self._missing:
            self.damage.duplicates += 1
            return False
        self._expect(head.sequence)
        if self._missing.remove(head.sequence, head.sequence + 1):
            self.damage.frames_lost = self._missing.total
        sizes = {NOTE: head.nbytes, RECORDS: head.number * records.SIZE}
        if head.version != records.VERSION or sizes.get(head.kind) != head.nbytes:
            self.damage.unknown += 1
            return False
        return True

    def _expect(self, sequence: int) -> None:
        """A frame of this number was written, and so were all before it."""
        if sequence >= self._next:
            self._missing.add(self._next, sequence + 1)
            self._next = sequence + 1

    def _late(self, head: _Header, payload: memoryview) -> Iterator[Entry]:
        """The records of a whole frame, without those that were found before, when it was not whole."""
        rows = np.frombuffer(payload, records.RECORD)
        known = self._saved.pop(head.sequence, set())
        self._owed.pop(head.sequence, None)
        self.damage.records_lost = sum(self._owed.values())
        news = rows[[row.tobytes() not in known for row in rows]] if known else rows
        if len(news):
            yield news

    def _note(self, payload: memoryview) -> Iterator[Entry]:
        try:
            note = json.loads(bytes(payload))
        except ValueError:
            note = None
        if isinstance(note, dict):
            yield note
        else:
            self.damage.notes_lost += 1

    def _search(self, data: bytes, at: int, stop: int, head: _Header | None) -> NDArray[Any]:
        """The records that begin in data[at:stop], which is no whole frame; `head` is the header there, if any."""
        if head is not None and head.own:
            self._expect(head.sequence)
            if head.sequence in self._missing and head.version == records.VERSION:
                if head.kind == NOTE:
                    self.damage.notes_lost += 1
                elif head.kind == RECORDS:
                    self._owed[head.sequence] = head.number - len(self._saved.setdefault(head.sequence, set()))
        # The frames that can be here are those missing so far, and new ones up to the header that ends this place.
        after = self._header(data, stop)
        upper = after.sequence if after is not None and after.own else self._next + salvage.WINDOW
        keep = []
        rows, sequences = salvage.find(data, at, stop, self._id)
        for number, sequence in enumerate(sequences.tolist()):
            if self._next <= sequence < upper or sequence in self._missing:
                known, row = self._saved.setdefault(sequence, set()), rows[number].tobytes()
                if row not in known:
                    known.add(row)
                    keep.append(number)
                    if sequence in self._owed:
                        self._owed[sequence] -= 1
        if keep:
            self._expect(int(sequences[keep].max()))
        self.damage.records_saved += len(keep)
        self.damage.records_lost = sum(self._owed.values())
        self.damage.frames_lost = self._missing.total
        return rows[keep]

    def _spot(self, size: int) -> None:
        spots = self.damage.spots
        if spots and sum(spots[-1]) == self.offset:
            spots[-1] = (spots[-1][0], spots[-1][1] + size)
        else:
            spots.append((self.offset, size))


def _rows(payloads: list[memoryview]) -> NDArray[Any]:
    return np.frombuffer(payloads[0] if len(payloads) == 1 else b"".join(payloads), records.RECORD)


def _begins(data: bytes) -> bool:
    """Whether `data` is the beginning of a header."""
    return len(data) < HEADER_SIZE and data[:8] == MAGIC[: min(8, len(data))]
