"""Images out of segments, by offset, size and checksum of the record: never by what the archive says of itself."""

from __future__ import annotations

import errno
import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from numpy.typing import NDArray

from eventrange.errors import ImageDamaged, ImageMissing, ImageUnreadable

GAP = 64 * 1024  #: bytes nobody wants that are read along rather than asking twice


def read_image(source: str | int, offset: int, size: int, crc: int, path: str = "") -> bytes:
    """The image at `offset` of a file (path or descriptor), checked. Raises ImageDamaged, ImageMissing."""
    if isinstance(source, str):
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(error, source, offset) from error
        try:
            return read_image(fd, offset, size, crc, source)
        finally:
            os.close(fd)
    path = path or f"descriptor {source}"
    try:
        data = os.pread(source, size, offset)
        while len(data) < size:
            more = os.pread(source, size - len(data), offset + len(data))
            if not more:
                raise ImageDamaged(path=path, offset=offset, detail=f"the file ends after {len(data)} of {size} bytes")
            data += more
    except OSError as error:
        raise unreadable(error, path, offset) from error
    verify(data, size, crc, path, offset)
    return data


def verify(data: bytes | memoryview, size: int, crc: int, path: str, offset: int) -> None:
    """Raise ImageDamaged unless `data` has the size and the checksum of its record."""
    if len(data) != size:
        raise ImageDamaged(path=path, offset=offset, detail=f"{len(data)} bytes, should be {size}")
    found = zlib.crc32(data)
    if found != crc:
        raise ImageDamaged(path=path, offset=offset, detail=f"checksum {found:08x}, should be {crc:08x}")


class SegmentReader:
    """Reads images from many segments and keeps the last `limit` of them open. For one thread."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, offset: int, size: int, crc: int) -> bytes:
        """The image, checked. Raises ImageDamaged, ImageMissing."""
        return read_image(self._descriptor(path, offset), offset, size, crc, path)

    def read_many(self, path: str, images: NDArray[Any]) -> list[memoryview | None]:
        """Images of one segment, of which `images` (k,) has the fields offset, size and checksum; neighbours in one
        read. None for each that `read` should be asked for (and that then says what is wrong). Holds as much memory as
        all of them together."""
        out: list[memoryview | None] = [None] * len(images)
        wanted = [images[name].tolist() for name in ("offset", "size", "checksum")]
        order = sorted(entry for entry in zip(*wanted, range(len(images)), strict=True) if entry[1])
        at = 0
        try:
            fd = self._descriptor(path)
            for begin, end, count in spans((offset, size) for offset, size, *_ in order):
                view = memoryview(os.pread(fd, end - begin, begin))
                for offset, size, crc, number in order[at : at + count]:
                    image = view[offset - begin : offset - begin + size]
                    if len(image) == size and zlib.crc32(image) == crc:
                        out[number] = image
                at += count
        except (OSError, ImageDamaged):
            pass  # what is missing is asked for again, one by one
        return out

    def _descriptor(self, path: str, offset: int = 0) -> int:
        fd = self._open.get(path)
        if fd is None:
            try:
                fd = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise unreadable(error, path, offset) from error
            if len(self._open) > self._limit:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(path)
        return fd

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spans(images: Iterable[tuple[int, int]], most: float = math.inf) -> Iterator[tuple[int, int, int]]:
    """(begin, end, images) of the reads for `images`, (offset, size) each, in the order of their offsets. Of at most
    `most` bytes, but for an image that is larger."""
    begin = end = count = 0
    for offset, size in images:
        if count and (offset - end > GAP or offset + size - begin > most):
            yield begin, end, count
            count = 0
        if not count:
            begin = end = offset
        end, count = max(end, offset + size), count + 1
    if count:
        yield begin, end, count


#: What says nothing of the file: no permission, no descriptor or memory left, a file server that is restarted.
_NOT_NOW = {
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ESHUTDOWN),
}


def unreadable(error: OSError, path: str, offset: int) -> ImageDamaged:
    """What an error of opening or reading a segment means for the image at `offset`."""
    gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
    kind = ImageMissing if gone else ImageUnreadable if error.errno in _NOT_NOW else ImageDamaged
    return kind(path=path, offset=offset, detail=error.strerror or str(error))
