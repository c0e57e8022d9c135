"""Text files of events: reading them once from end to end, and any piece of them afterwards.

A plain file is read in place. A gzip file cannot be entered in its middle, and the state of zlib cannot be stored from
Python, so the one pass that counts events also writes a re-blocked copy: a series of gzip members of 64 KiB of text
each (still readable by zcat), and where each begins. A piece then costs the blocks it touches, each with its own CRC.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterator
from typing import IO

import numpy as np

from droid.inputs.index import Index, local_path
from eventrange.errors import InputChanged, InputDamaged, InputMissing

CHUNK = 1 << 22  # read size of the first pass: large enough that Python's share is small, small enough for 64 processes
BLOCK = 1 << 16  # text per member of a copy, as in BGZF: 0.2 ms to unpack, 3 % larger than one long stream
_GZIP = b"\x1f\x8b"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


def is_gzip(path: str) -> bool:
    """Whether the file begins as gzip does. Raises InputDamaged for other compressions, whatever the file's suffix."""
    try:
        with open(local_path(path), "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise InputMissing(path=path, detail=error.strerror or str(error)) from error
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise InputDamaged(
                path=path,
                detail=f"is compressed with {name}; event files may be plain text or gzip",
                hint="unpack it, or pack it again with gzip",
            )
    return head.startswith(_GZIP)


def chunks(path: str) -> Iterator[bytes]:
    """The text of a plain or gzip file, from end to end, in pieces of about CHUNK bytes.

    Raises InputDamaged where a gzip stream ends early, fails its check, or is followed by something else.
    """
    packed = is_gzip(path)
    with open(local_path(path), "rb") as file:
        if packed:
            yield from _unpacked(path, file)
            return
        while piece := _read(path, file):
            yield piece


def _read(path: str, file: IO[bytes]) -> bytes:
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise InputDamaged(
            path=path,
            detail=f"cannot be read at byte {file.tell()}: {error.strerror}",
            hint="copy the file again from its source; the storage reported an error",
        ) from error


def _unpacked(path: str, file: IO[bytes]) -> Iterator[bytes]:
    written = 0

    def damaged(detail: str) -> InputDamaged:
        return InputDamaged(
            path=path,
            detail=f"{detail} after {written} bytes of text (byte {file.tell()} of the file)",
            hint="copy the file again from its source; `gzip -t` must accept it",
        )

    member = zlib.decompressobj(31)
    waiting = b""
    while True:
        waiting = waiting or _read(path, file)
        if not waiting:
            raise damaged("the gzip stream ends early,")
        try:
            piece = member.decompress(waiting, CHUNK)
        except zlib.error as error:
            raise damaged(f"the gzip stream is damaged ({error})") from error
        written += len(piece)
        if piece:
            yield piece
        waiting = member.unconsumed_tail
        if member.eof:
            waiting = member.unused_data
            while not waiting.strip(b"\0"):  # padding is allowed after a member
                waiting = _read(path, file)
                if not waiting:
                    return
            waiting = waiting.lstrip(b"\0")
            member = zlib.decompressobj(31)


class Reblocker:
    """Writes the copy of a gzip file while the first pass goes over its text."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._starts = array("q", [0])
        self._waiting = bytearray()

    def add(self, text: bytes) -> None:
        self._waiting += text
        whole = len(self._waiting) // BLOCK * BLOCK
        for begin in range(0, whole, BLOCK):
            self._put(self._waiting[begin : begin + BLOCK])
        del self._waiting[:whole]

    def finish(self) -> np.ndarray:
        """Where each block begins in the copy, and its end: int64, one more than there are blocks."""
        if self._waiting:
            self._put(self._waiting)
        return np.array(self._starts, np.int64)

    def _put(self, text: bytes | bytearray) -> None:
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        packed = packer.compress(text) + packer.flush()
        self._target.write(packed)
        self._starts.append(self._starts[-1] + len(packed))


class Text:
    """Any piece of the text of an indexed file: `piece(begin, end)`, by byte offsets in the unpacked text."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.path = index.path
        self._starts = index.arrays.get("blocks")
        self._whole: bytes | None = None
        self._block: tuple[int, bytes] = (-1, b"")
        self._fd = -1
        if index.copy is None and index.meta.get("gzip"):
            # No copy was kept (a reader without a cache directory): hold the text, the small files of a test or a try.
            self._whole = b"".join(chunks(self.path))
            return
        path = index.copy or local_path(self.path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputMissing(path=path, detail=error.strerror or str(error)) from error

    def piece(self, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of the text. Raises InputChanged if the file became shorter, InputDamaged."""
        if self._whole is not None:
            return self._whole[begin:end]
        if self._starts is None:
            return self._pread(begin, end - begin)
        if end <= begin:
            return b""
        low, high = begin // BLOCK, (end - 1) // BLOCK
        if low == high == self._block[0]:
            text = self._block[1]
        else:
            text = self._blocks(low, high)
        return text[begin - low * BLOCK : end - low * BLOCK]

    def _blocks(self, low: int, high: int) -> bytes:
        assert self._starts is not None
        first = int(self._starts[low])
        packed = self._pread(first, int(self._starts[high + 1]) - first)
        parts = []
        for number in range(low, high + 1):
            begin, end = (int(value) - first for value in self._starts[number : number + 2])
            try:
                parts.append(zlib.decompress(packed[begin:end], 31))
            except zlib.error as error:
                raise InputDamaged(
                    path=self.index.copy,
                    detail=f"block {number} of this copy of {self.path} is damaged ({error})",
                    hint="remove it; it is made again from the input file at the next start",
                ) from error
        self._block = (high, parts[-1])  # the next range usually begins where this one ended
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def _pread(self, begin: int, length: int) -> bytes:
        try:
            parts = []
            while length > 0 and (part := os.pread(self._fd, length, begin)):
                parts.append(part)
                begin += len(part)
                length -= len(part)
        except OSError as error:
            raise InputDamaged(
                path=self.path,
                detail=f"cannot be read at byte {begin}: {error.strerror}",
                hint="copy the file again from its source; the storage reported an error",
            ) from error
        if length:
            raise InputChanged(path=self.path, detail=f"it ends at byte {begin}, and had {length} bytes more")
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Offsets:
    """Where events begin, as the first pass finds them: every one, or every 2nd, 4th, ... of very many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept = array("q")
        self.stride = 1
        self.count = 0

    def add(self, offset: int) -> None:
        if self.count % self.stride == 0:
            if len(self._kept) >= self._most:
                self._kept = self._kept[::2]
                self.stride *= 2
            if self.count % self.stride == 0:
                self._kept.append(offset)
        self.count += 1

    def array(self) -> np.ndarray:
        return np.array(self._kept, np.int64)
