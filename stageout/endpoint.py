"""What a storage endpoint is: a few verbs, each checked by content, and six ways to fail.

`put` is conditional and repeatable: it never replaces different content, and finding the same content already there is
success. So a stager that was killed anywhere simply does it again. An endpoint that returns from `put` holds exactly
these bytes: size and checksum were compared on both sides.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from eventrange.errors import SegmentDamaged, SegmentUnreadable, StorageError
from eventrange.errors import StorageConflict as Conflict
from eventrange.errors import StorageCorrupt as Corrupt
from eventrange.errors import StorageFull as Full
from eventrange.errors import StorageMissing as Missing
from eventrange.errors import StoragePermanent as Permanent
from eventrange.errors import StorageTransient as Transient
from stageout.site import EndpointSite

__all__ = [
    "Conflict",
    "Corrupt",
    "Endpoint",
    "Full",
    "Missing",
    "Permanent",
    "SegmentDamaged",
    "SegmentUnreadable",
    "Stat",
    "StorageError",
    "Summer",
    "Tools",
    "Transient",
    "check_key",
]

CHUNK = 1 << 20  # bytes per read: large enough that hashing dominates, small enough to keep memory flat


@dataclass(frozen=True)
class Stat:
    """One object: its size in bytes, and its checksums where the endpoint knows them without reading it."""

    key: str
    size: int
    adler32: int | None = None
    sha256: str | None = None  # 64 lower-case hex digits


class Summer:
    """Size, adler32 and sha256 of a stream of bytes, computed in one pass; without `sha`, adler32 has to do."""

    def __init__(self, sha: bool = True) -> None:
        self.size, self.adler32, self._sha256, self._sha = 0, 1, hashlib.sha256(), sha

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        self.size += len(data)
        self.adler32 = zlib.adler32(data, self.adler32)
        if self._sha:
            self._sha256.update(data)

    @property
    def sha256(self) -> str:
        """The digest so far as 64 hex digits."""
        return self._sha256.hexdigest()

    def stat(self, key: str) -> Stat:
        """What was summed, as the `Stat` of `key`."""
        return Stat(key, self.size, self.adler32, self.sha256 if self._sha else None)


@dataclass(frozen=True)
class Tools:
    """The outside world as an endpoint sees it; tests pass their own."""

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = field(default_factory=lambda: random.SystemRandom().random)


class Endpoint(Protocol):
    """A place for objects. Keys are relative, `/`-separated, without `.` and `..`; errors are those of this module."""

    name: str
    site: EndpointSite

    def put(self, source: str | bytes, key: str, *, size: int, adler32: int, sha256: str) -> Stat:
        """Store a local file (by path) or bytes under `key`, verified.

        Raises Conflict when other content has this key, SegmentDamaged when `source` is not what the checksums say,
        SegmentUnreadable when that cannot be told now.
        """

    def get(self, key: str, path: str) -> Stat:
        """Copy the object to the local file `path`, atomically; Corrupt when it is not what was stored."""

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; Corrupt when the object is shorter, Missing when it is not there."""

    def head(self, key: str) -> Stat:
        """Size and known checksums; Missing when there is no such object."""

    def digest(self, key: str) -> Stat:
        """Size and checksums computed by reading the whole object."""

    def delete(self, key: str) -> None:
        """Remove the object; success when it is not there."""

    def list(self, prefix: str) -> Iterator[Stat]:
        """All objects whose key begins with `prefix`, in key order."""

    def url(self, key: str) -> str:
        """The object's address for catalogues and people; holds no credentials."""

    def clean(self, prefix: str, older_than: float = 0.0) -> int:
        """Remove what interrupted uploads of this program left below `prefix`, if at least that many seconds old."""

    def close(self) -> None:
        """Break off what is under way and let go of connections."""


def check_key(key: str) -> str:
    """`key` itself if it is safe to use as object name and as relative path; ValueError otherwise."""
    if not key or key.startswith("/") or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"not a usable object name: {key!r}")
    return key


def read_source(source: str | bytes, name: str, key: str, step: int) -> Iterator[bytes]:
    """The source in pieces of `step` bytes; SegmentDamaged when the file is gone, SegmentUnreadable when it cannot be
    read now."""
    if isinstance(source, bytes):
        for start in range(0, len(source), step):
            yield source[start : start + step]
        return
    try:
        with open(source, "rb", buffering=0) as file:
            while data := _read_full(file.fileno(), step):
                yield data
    except OSError as error:
        detail = f"cannot read {source}: {os.strerror(error.errno or 0)}"
        kind = SegmentDamaged if error.errno == errno.ENOENT else SegmentUnreadable
        raise kind(endpoint=name, operation="put", key=key, detail=detail) from None


def _read_full(file: int, size: int) -> bytes:
    """`size` bytes, fewer only at the end of the file (a plain read may stop earlier)."""
    data = os.read(file, size)
    if len(data) in (0, size):
        return data
    pieces, total = [data], len(data)
    while total < size and (data := os.read(file, size - total)):
        pieces.append(data)
        total += len(data)
    return b"".join(pieces)


def compare_source(seen: Stat, wanted: Stat, name: str) -> None:
    """SegmentDamaged unless the bytes just read from the local segment are those it was sealed with."""
    same = seen.adler32 == wanted.adler32 if seen.sha256 is None else seen.sha256 == wanted.sha256
    if seen.size != wanted.size or not same:
        sums = f"{seen.adler32:08x} {seen.sha256 or ''}".strip()
        detail = (
            f"the local file has {seen.size} bytes, {sums}; sealed: {wanted.size}, {wanted.adler32:08x} {wanted.sha256}"
        )
        raise SegmentDamaged(endpoint=name, operation="put", key=wanted.key, detail=detail)


def same_content(endpoint: Endpoint, found: Stat, wanted: Stat) -> bool:
    """Whether an object already there is the wanted one; reads it if its checksum is not recorded beside it."""
    if found.size != wanted.size:
        return False
    if found.sha256 is not None and found.sha256 != wanted.sha256:
        return False
    return endpoint.digest(wanted.key).sha256 == wanted.sha256 if found.sha256 is None else True


class Throttle:
    """Keeps the bytes per second of all threads of a process under a limit; one second may be saved up."""

    def __init__(self, rate: int | None, tools: Tools) -> None:
        self._rate, self._tools, self._lock, self._free_at = rate, tools, threading.Lock(), 0.0

    def take(self, size: int) -> None:
        """Wait until `size` more bytes may be sent."""
        if not self._rate:
            return
        with self._lock:
            now = self._tools.clock()
            start = max(self._free_at, now - 1.0)
            self._free_at = start + size / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._tools.sleep(wait)
