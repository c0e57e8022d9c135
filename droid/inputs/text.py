"""The one pass over a text file that makes its index, shared by LHE and HepMC."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from droid.inputs.blocks import Reblocker, chunks, is_gzip
from droid.inputs.index import MOST_OFFSETS, Index, is_remote, stamp, write_whole
from eventrange.errors import InputChanged, InputDamaged, InputMissing

LONGEST = 1 << 28
"""Bytes in which a header, a comment or one event must end: what is longer is damage, and memory stays bounded."""

UNCLOSED = "allow_unclosed"
"""Option for files whose end mark is missing although they are whole."""


class Scanner(Protocol):
    """Finds events in text that is handed over in pieces."""

    def feed(self, buffer: bytes, base: int, last: bool) -> int:
        """Look at `buffer`, which begins at byte `base` of the text; say how much of it is done with.

        What is not done with comes again, with more behind it. `last` means that the text ends with this buffer.
        """
        ...

    def result(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """(count, meta, arrays) for the index, once all is fed."""
        ...


def scan(path: str, scanner: Scanner, reblocker: Reblocker | None = None) -> int:
    """Feed a whole file to a scanner, and to the writer of the re-blocked copy if there is one. Returns its length."""
    buffer, base, length = b"", 0, 0
    for chunk in chunks(path):
        if reblocker:
            reblocker.add(chunk)
        length += len(chunk)
        buffer = buffer + chunk if buffer else chunk
        used = scanner.feed(buffer, base, False)
        buffer, base = buffer[used:], base + used
        if len(buffer) > LONGEST:
            raise InputDamaged(
                path=path,
                detail=f"what begins at byte {base} has no end within {LONGEST >> 20} MiB",
                hint="look at that place of the file: a header, comment or event is not closed there",
            )
    if length == 0:
        raise InputDamaged(path=path, detail="holds no text", hint="copy the file again from its source")
    scanner.feed(buffer, base, True)
    return length


def index_text(format: str, path: str, scanner: Scanner, copy: Path | None) -> Index:
    """The index of a text file; for a gzip file also its copy at `copy` (without `copy`, readers unpack it whole).

    Raises InputMissing, InputDamaged, InputChanged (it was written to meanwhile), CannotWrite.
    """
    if is_remote(path):
        raise InputMissing(
            path=path,
            detail=f"{format} files are read from file systems only; URLs work for the formats root and hdf5",
        )
    size, mtime_ns = stamp(path)
    packed = is_gzip(path)
    index = Index(format, path, size, mtime_ns, 0)
    length = 0
    if packed and copy is not None:

        def write(temporary: Path) -> None:
            nonlocal length
            with open(temporary, "wb") as file:
                reblocker = Reblocker(file)
                length = scan(path, scanner, reblocker)
                index.arrays["blocks"] = reblocker.finish()

        write_whole(copy, write)
        index.copy = str(copy)
        index.meta["copy_size"] = int(index.arrays["blocks"][-1])
    else:
        length = scan(path, scanner)
    index.count, meta, arrays = scanner.result()
    index.meta |= meta | {"gzip": packed, "length": length}
    index.arrays |= arrays
    if stamp(path) != (size, mtime_ns):
        raise InputChanged(path=path, detail="it was written to while it was being read")
    return index


def anchors(index: Index, start: int, stop: int) -> tuple[int, int, int]:
    """(first event, begin, end) of the text to look at for events [start, stop): begins at or before `start`."""
    if not 0 <= start <= stop <= index.count:
        raise IndexError(f"[{start}, {stop}) is outside {index.path}, which has {index.count} events")
    offsets, stride = index.arrays["offsets"], index.meta["stride"]
    after = -(-stop // stride)
    end = int(offsets[after]) if after < len(offsets) else index.meta["end"]
    return start // stride * stride, int(offsets[start // stride]), end


__all__ = ["LONGEST", "MOST_OFFSETS", "UNCLOSED", "Scanner", "anchors", "index_text", "scan"]
