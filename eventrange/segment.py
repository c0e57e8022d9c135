"""Append-only archives of images, one per Droid at a time.

A segment is a plain tar (or a zip without compression) that only ever grows, written by one process, so it has no
holes. Readers go by the offsets in the journal and the checksum of the image, never by the archive's own structure: a
segment that was cut off in the middle of anything gives back every image that is whole.

Headers carry nothing of the clock or the user. The name of the group is `crc32:HHHHHHHH` of the member (`tar tv` shows
it, extracting ignores it), so that `scan` tells whole members from damaged ones without a journal. A zip has that.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from eventrange.durable import FILES, DurableFile, Files
from eventrange.segmentreader import unreadable

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

BLOCK = 512
HASH_TOGETHER, HASH_BEHIND = 1 << 20, 64 << 20
_JOIN_BELOW = 256 * 1024  #: up to this size copying header, image and padding together is cheaper than three writes


def checksum(data: Any) -> int:
    """The checksum of an image as records carry it: crc32."""
    return zlib.crc32(data)


def member_name(task: str, first: int, last: int) -> str:
    """The name of an image in its segment, `first` and `last` inclusive as people count them."""
    return f"{task}.{first}-{last}.h5"


@dataclass(frozen=True)
class Sealed:
    """What a finished segment is: bytes, checksums, and how many images are in it."""

    size: int
    adler32: int
    sha256: str
    members: int


class Digests:
    """adler32 and sha256 of bytes that come in pieces. A thread computes them, since sha256 takes longer than writing;
    it starts with the first megabyte, and is never more than HASH_BEHIND bytes behind."""

    def __init__(self) -> None:
        self._adler32, self._sha256 = 1, hashlib.sha256()
        self._parts: list[bytes | memoryview] = []  # not handed over yet
        self._size = 0
        self._behind: deque[tuple[int, Future[None]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def add(self, part: bytes | memoryview) -> None:
        """The next piece; must not change any more."""
        self._parts.append(part)
        self._size += len(part)
        if self._size < HASH_TOGETHER:
            return
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # late: small segments do without

            self._pool = ThreadPoolExecutor(1)
        self._behind.append((self._size, self._pool.submit(self._take, self._parts)))
        self._parts, self._size = [], 0
        while self._behind and (self._behind[0][1].done() or sum(size for size, _ in self._behind) > HASH_BEHIND):
            self._behind.popleft()[1].result()

    def _take(self, parts: list[bytes | memoryview]) -> None:
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._adler32 = zlib.adler32(data, self._adler32)
        self._sha256.update(data)

    def result(self) -> tuple[int, str]:
        """(adler32, sha256 in hex) of everything."""
        self.close()
        self._take(self._parts)
        self._parts = []
        return self._adler32, self._sha256.hexdigest()

    def close(self) -> None:
        """End the thread, when it has done what it was given."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class SegmentWriter:
    """The segment a Droid is filling. Any error makes it `broken` for good (CannotWrite); then open another one.

    `file` is the DurableFile, for a Syncer. Folders are not made.
    """

    def __init__(self, path: str, files: Files = FILES) -> None:
        self.path = path
        self.file = DurableFile(path, files)
        self.members = 0
        self._digests = Digests()

    @property
    def size(self) -> int:
        """Bytes in the file, headers included."""
        return self.file.size

    def append(self, name: str, data: bytes | memoryview, crc: int | None = None) -> int:
        """Add one image; returns the offset of its first byte in the file. Not durable before `sync`."""
        crc = checksum(data) if crc is None else crc
        header, padding = self._frame(name, len(data), crc)
        offset = self.file.size + len(header)
        self._write(header, data, padding)
        self.members += 1
        return offset

    def raw(self, data: bytes) -> None:
        """Add bytes as they are, to keep what follows at its offset. No image in them counts as a member."""
        self._write(data)

    def sync(self) -> int:
        """Make everything appended so far durable; may be called from another thread. Returns the bytes that are."""
        return self.file.sync()

    def seal(self) -> Sealed:
        """Write what ends the archive, make all of it durable and close it."""
        try:
            self._write(self._ending())
            self.file.sync()
        finally:
            self._digests.close()
            self.file.close()
        return Sealed(self.file.size, *self._digests.result(), self.members)

    def close(self) -> None:
        """Let go of the file as it is; it can be read by record, or sealed by nobody any more."""
        self._digests.close()
        self.file.close()

    def _write(self, *parts: Any) -> None:
        if sum(map(len, parts)) <= _JOIN_BELOW:
            parts = (b"".join(parts),)
        self.file.append(*parts)
        for part in parts:
            self._digests.add(part)

    def _frame(self, name: str, size: int, crc: int) -> tuple[bytes, bytes]:
        return tar_header(name, size, crc), bytes(-size % BLOCK)

    def _ending(self) -> bytes:
        return bytes(2 * BLOCK)


def tar_header(name: str, size: int, crc: int) -> bytes:
    """The header of one member: 512 bytes of ustar, more (pax) where the name is long or not ASCII."""
    group = f"crc32:{crc:08x}"
    if len(name) > 100 or not name.isascii():
        import tarfile  # late: nearly all do without

        info = tarfile.TarInfo(name)
        info.size, info.gname = size, group
        return info.tobuf(tarfile.PAX_FORMAT)
    head = name.encode().ljust(100, b"\0") + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (0o644, 0, 0, size, 0)
    rest = b"0" + bytes(100) + b"ustar\x0000" + bytes(32) + group.encode().ljust(32, b"\0") + bytes(183)
    total = sum(head) + sum(rest) + 8 * 32
    return head + b"%06o\0 " % total + rest


class ZipWriter(SegmentWriter):
    """A segment as a zip archive of stored members. Its directory is at the end, so it is one only once sealed."""

    def __init__(self, path: str, files: Files = FILES) -> None:
        super().__init__(path, files)
        self._directory = bytearray()

    def _frame(self, name: str, size: int, crc: int) -> tuple[bytes, bytes]:
        text = name.encode()
        common = struct.pack("<HHHHHIIIHH", 20, 0x800, 0, 0, 0x21, crc, size, size, len(text), 0)  # 1 January 1980
        at = self.file.size
        if at < 0xFFFFFFFF:
            extra, place = b"", at
        else:
            extra, place = struct.pack("<HHQ", 1, 8, at), 0xFFFFFFFF
        head = struct.pack("<IH", 0x02014B50, 0x0314) + common[:-2] + struct.pack("<H", len(extra))
        self._directory += head + struct.pack("<HHHII", 0, 0, 0, 0o644 << 16, place) + text + extra
        return struct.pack("<I", 0x04034B50) + common + text, b""

    def _ending(self) -> bytes:
        at, size, count = self.file.size, len(self._directory), self.members
        out = bytes(self._directory)
        if at >= 0xFFFFFFFF or size >= 0xFFFFFFFF or count >= 0xFFFF:
            out += struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, at)
            out += struct.pack("<IIQI", 0x07064B50, 0, at + size, 1)
        few, small, near = min(count, 0xFFFF), min(size, 0xFFFFFFFF), min(at, 0xFFFFFFFF)
        return out + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, few, few, small, near, 0)


def writer(path: str, kind: str = "tar", files: Files = FILES) -> SegmentWriter:
    """A new segment at `path`; `kind` is `tar` or `zip`. The file must not exist yet."""
    return {"tar": SegmentWriter, "zip": ZipWriter}[kind](path, files)


# --- reading ----------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """One image found in a segment. `crc` is what its header says; `intact`: it is whole and has that checksum."""

    name: str
    offset: int
    size: int
    crc: int
    intact: bool


def digest(path: str) -> tuple[int, int, str]:
    """(bytes, adler32, sha256) of a file, as `Sealed` has them."""
    adler, sha, size = 1, hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            adler, size = zlib.adler32(data, adler), size + len(data)
            sha.update(data)
    return size, adler, sha.hexdigest()


def scan(path: str) -> Iterator[Member]:
    """Every member whose header can be read, in file order, wherever the segment is damaged or cut off.

    Goes from header to header; where there should be one and is none, to the next that is. Raises ImageMissing.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(error, path, 0) from error
    try:
        zipped = path.endswith(".zip") or _pread(fd, 4, 0) == b"PK\3\4"
        yield from _scan_zip(fd) if zipped else _scan_tar(fd)
    finally:
        os.close(fd)


def _scan_tar(fd: int) -> Iterator[Member]:
    import tarfile

    at, end, long_name = 0, os.fstat(fd).st_size, ""
    while 0 <= at <= end - BLOCK:
        head = _pread(fd, BLOCK, at)
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            at, long_name = _find(fd, b"ustar\0", at + BLOCK + 257, end, BLOCK) - 257, ""
            continue
        data = at + BLOCK
        if info.type == tarfile.XHDTYPE:
            records = _pread(fd, info.size, data).partition(b" path=")[2]
            long_name = records.partition(b"\n")[0].decode("utf-8", "surrogateescape")
        elif info.isreg():
            group, _, text = info.gname.partition(":")
            crc = int(text, 16) if group == "crc32" else -1
            yield _member(fd, long_name or info.name, data, info.size, crc)
            long_name = ""
        at = data + -(-info.size // BLOCK) * BLOCK


def _scan_zip(fd: int) -> Iterator[Member]:
    at, end = 0, os.fstat(fd).st_size
    while at >= 0:
        head = _pread(fd, 30, at)
        fields = struct.unpack("<IHHHHHIIIHH", head) if len(head) == 30 else (0,)
        if fields[:6] == (0x04034B50, 20, 0x800, 0, 0, 0x21) and fields[7] == fields[8]:
            crc, size, length, extra = fields[6], fields[8], fields[9], fields[10]
            name = _pread(fd, length, at + 30).decode("utf-8", "surrogateescape")
            found = _member(fd, name, at + 30 + length + extra, size, crc)
            yield found
            if found.intact:
                at = found.offset + size
                continue
        # a zip header has no checksum of its own: a wrong size must not make us jump over what follows
        at = _find(fd, b"PK\3\4", at + 1, end, 1)


def _member(fd: int, name: str, offset: int, size: int, crc: int) -> Member:
    data = _pread(fd, size, offset)
    found = zlib.crc32(data)
    return Member(name, offset, size, found if crc < 0 else crc, len(data) == size and crc in (-1, found))


def _pread(fd: int, size: int, offset: int) -> bytes:
    """What can be read there: less where the file ends, nothing where the disk is damaged."""
    try:
        return os.pread(fd, size, offset)
    except OSError:
        return b""


def _find(fd: int, what: bytes, at: int, end: int, step: int) -> int:
    """The first place >= `at` and equal to it modulo `step` that holds `what`; far below 0 when there is none."""
    window = 64 * 1024
    begin = at
    while begin < end:
        data = _pread(fd, window + len(what) - 1, begin)
        place = data.find(what)
        while place >= 0:
            if (begin + place - at) % step == 0:
                return begin + place
            place = data.find(what, place + 1)
        begin += window
    return -BLOCK
