"""Sealing what a dead allocation left open: a copy of the segment up to its last image that has a record.

Trusted are exactly the members whose record and checksum agree. They keep their offsets, so that the records stay true
of the copy; what follows the last of them was never acknowledged and is left out. The original is not touched: should
its writer only have slept, what it goes on to append is there, and makes another copy. Where the original needed only
its note (the writer was killed between sealing and telling), no copy is made.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange.durable import FILES, Files, explain
from eventrange.errors import ImageDamaged
from eventrange.segment import SegmentWriter, digest, scan, tar_header, writer
from eventrange.segmentreader import SegmentReader
from stageout.catalogue import REPAIRED

COPY = 1 << 22  # bytes copied at a time


def seal_left_open(path: str, rows: NDArray[Any], beyond: int = 0, files: Files = FILES) -> dict[str, Any] | None:
    """Seal the segment at `path` of which `rows` (RECORD, DONE, of this segment) tell. `beyond` is the `end` of what
    was sealed before, should its writer only have slept.

    Returns what a `sealed` note says (file, size, adler32, sha256, members; and `end`, where the last image ends that
    there was a record of: in a zip file a directory follows), or None when no image in it, beyond what
    was sealed before, can be used. Raises CannotWrite.
    """
    rows = rows[np.argsort(rows["offset"], kind="stable")]
    with SegmentReader(1) as reader:
        if not any(_whole(reader, path, row) for row in rows[rows["offset"] + rows["size"] > beyond]):
            return None
        good = [row for row in rows if _whole(reader, path, row)]
    names = {member.offset: member.name for member in scan(path)}
    root, extension = os.path.splitext(path)
    # The one from before may be on an endpoint under its name, whether or not a journal knows.
    target = f"{root}{REPAIRED}{f'-{beyond}' if beyond else ''}{extension}"
    if os.path.exists(target):
        os.unlink(target)  # of a repair that was interrupted: nobody was told of it
    copy = writer(target, extension[1:], files)
    try:
        with open(path, "rb", buffering=0) as source:
            for row in good:
                _take(copy, source.fileno(), extension, names.get(int(row["offset"]), ""), row)
        sealed = copy.seal()
    except OSError as error:
        raise explain(error, target) from error
    finally:
        copy.close()
    name = os.path.basename(target)
    if os.path.getsize(path) == sealed.size and digest(path) == (sealed.size, sealed.adler32, sealed.sha256):
        os.unlink(target)
        name = ""
    return {
        "file": name,
        "size": sealed.size,
        "adler32": f"{sealed.adler32:08x}",
        "sha256": sealed.sha256,
        "members": sealed.members,
        "end": int((rows["offset"] + rows["size"]).max()),
    }


def _whole(reader: SegmentReader, path: str, row: Any) -> bool:
    try:
        reader.read(path, int(row["offset"]), int(row["size"]), int(row["checksum"]))
    except ImageDamaged:
        return False
    return True


def _take(copy: SegmentWriter, source: int, extension: str, name: str, row: Any) -> None:
    """One image to the same place of the copy; what lies between the last one and it goes along as it is."""
    offset, size = int(row["offset"]), int(row["size"])
    if offset < copy.size:
        return  # a second record of the same image
    name = name or f"{int(row['start']) + 1}-{int(row['stop'])}.h5"
    crc = int(row["checksum"])
    head = len(tar_header(name, size, crc)) if extension == ".tar" else 30 + len(name.encode())
    at = copy.size
    while (gap := offset - head - at) > 0:
        copy.raw(_read(source, min(gap, COPY), at))
        at = copy.size
    data = _read(source, size, offset)
    if copy.size + head == offset:
        copy.append(name, data, crc)
    else:  # its own header is damaged and we do not know how long it was: the image alone, found by its record
        copy.raw(_read(source, offset - copy.size, copy.size))
        copy.raw(data)
        copy.members += 1


def _read(source: int, size: int, offset: int) -> bytes:
    """So many bytes, zeros where the file has none or the disk does not give them back."""
    try:
        data = os.pread(source, size, offset)
    except OSError:
        return bytes(size)
    if data and len(data) < size:
        data += _read(source, size - len(data), offset + len(data))
    return data or bytes(size)
