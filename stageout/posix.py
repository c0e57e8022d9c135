"""`file://` endpoints: any folder that is mounted here, written so that a name only ever stands for a whole object.

A copy is made beside its final name, fsynced, read back, and then linked to the final name: a link fails when the name
is taken, so nothing is overwritten even when two nodes copy at once. File systems without hard links get a rename after
a look, which leaves a moment in which two writers of the same name could both win; the content would be the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from stageout.endpoint import (
    CHUNK,
    Conflict,
    Corrupt,
    Full,
    Missing,
    Permanent,
    Stat,
    StorageError,
    Summer,
    Throttle,
    Tools,
    Transient,
    check_key,
    compare_source,
    read_source,
    same_content,
)
from stageout.site import EndpointSite

PART = ".yoda-part."  # then a token of the writer, a dot, and the final name

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PERMANENT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class PosixEndpoint:
    """Objects as files below one folder; see `stageout.endpoint.Endpoint` for the verbs."""

    def __init__(self, site: EndpointSite, tools: Tools) -> None:
        self.name, self.site, self._tools = site.name, site, tools
        self.root = unquote(urlsplit(site.url).path).rstrip("/") or "/"
        self._throttle = Throttle(site.max_bandwidth, tools)
        self._token = f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{os.urandom(4).hex()}"
        self._closed = threading.Event()
        self._active: set[str] = set()
        self._number = 0
        self._lock = threading.Lock()

    def put(self, source: str | bytes, key: str, *, size: int, adler32: int, sha256: str) -> Stat:
        """Copy, fsync, read back, link; see `Endpoint.put`."""
        wanted, path = Stat(key, size, adler32, sha256), self._path(key)
        with self._errors("put", key):
            if os.path.lexists(path):
                return self._taken(wanted)
            self._folder(os.path.dirname(path))
            part = self._part(path)
            try:
                seen = self._copy(source, key, part)
                compare_source(seen, wanted, self.name)
                self._read_back(part, wanted)
                if not self._publish(part, path):
                    return self._taken(wanted)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(part)
                self._active.discard(part)
            self._sync(os.path.dirname(path))
        return wanted

    def get(self, key: str, path: str) -> Stat:
        """See `Endpoint.get`. A file carries no checksum of its own: compare the returned one with the journal's."""
        with self._errors("get", key):
            summer, part = Summer(), f"{path}{PART}{self._token}"
            try:
                with open(self._path(key), "rb", buffering=0) as source, open(part, "wb") as copy:
                    while data := source.read(CHUNK):
                        self._pause(key, "get", len(data))
                        summer.update(data)
                        copy.write(data)
                    copy.flush()
                    os.fsync(copy.fileno())
                os.rename(part, path)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(part)
            return summer.stat(key)

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """See `Endpoint.get_range`."""
        with self._errors("get_range", key), open(self._path(key), "rb", buffering=0) as file:
            pieces, left = [], size
            while left and (data := os.pread(file.fileno(), left, offset + size - left)):
                pieces.append(data)
                left -= len(data)
            if left:
                raise self._error(Corrupt, "get_range", key, f"ends {left} bytes before {offset}+{size}")
            return b"".join(pieces)

    def head(self, key: str) -> Stat:
        """See `Endpoint.head`; only the size is known."""
        with self._errors("head", key):
            return Stat(key, os.stat(self._path(key)).st_size)

    def digest(self, key: str) -> Stat:
        """See `Endpoint.digest`."""
        with self._errors("digest", key):
            return self._sum(self._path(key), key)

    def delete(self, key: str) -> None:
        """See `Endpoint.delete`. Folders stay."""
        with self._errors("delete", key), contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(key))

    def list(self, prefix: str) -> Iterator[Stat]:
        """See `Endpoint.list`; unfinished copies are no objects."""
        with self._errors("list", prefix):
            yield from self._walk(prefix, parts=False)

    def url(self, key: str) -> str:
        """See `Endpoint.url`."""
        return self.site.address(check_key(key))

    def clean(self, prefix: str, older_than: float = 0.0) -> int:
        """See `Endpoint.clean`."""
        count = 0
        with self._errors("clean", prefix):
            for stat in self._walk(prefix, parts=True):
                path = os.path.join(self.root, stat.key)
                with contextlib.suppress(FileNotFoundError):
                    if path not in self._active and self._tools.wall() - os.stat(path).st_mtime >= older_than:
                        os.unlink(path)
                        count += 1
        return count

    def close(self) -> None:
        """See `Endpoint.close`."""
        self._closed.set()

    # --- the steps of a put -------------------------------------------------------------------------------------------

    def _folder(self, folder: str) -> None:
        """Make the folders below the root. Its parent must exist: it may be an unmounted file system."""
        parent = os.path.dirname(self.root)
        if not os.path.isdir(parent):
            raise self._error(Permanent, "put", self.root, f"there is no folder {parent}; is its file system mounted?")
        os.makedirs(folder, exist_ok=True)

    def _mounted(self) -> bool:
        """Whether anything was ever put here that can be seen now. Where a file system is not mounted everything looks
        missing, and its root is not there, or an empty folder; folders of ours stay when their objects are deleted."""
        try:
            with os.scandir(self.root) as entries:
                return any(True for _ in entries)
        except OSError:
            return False

    def _part(self, path: str) -> str:
        folder, name = os.path.split(path)
        with self._lock:
            self._number += 1
            part = os.path.join(folder, f"{PART}{self._token}-{self._number}.{name[-120:]}")
            self._active.add(part)
        return part

    def _copy(self, source: str | bytes, key: str, part: str) -> Stat:
        summer = Summer()
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for data in read_source(source, self.name, key, CHUNK):
                self._pause(key, "put", len(data))
                summer.update(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
            os.fsync(file)
        finally:
            os.close(file)
        return summer.stat(key)

    def _read_back(self, part: str, wanted: Stat) -> None:
        """Corrupt unless the storage, not our page cache, gives back what was written."""
        if self.site.verify == "read":
            found = self._sum(part, wanted.key)
            if found != wanted:
                detail = f"wrote {wanted.size} bytes, read back {found.size} with another checksum"
                raise self._error(Corrupt, "put", wanted.key, detail)
        elif os.stat(part).st_size != wanted.size:
            raise self._error(Corrupt, "put", wanted.key, "the copy has another size")

    def _publish(self, part: str, path: str) -> bool:
        """Give the finished copy its name; False when the name is taken."""
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            if os.path.lexists(path):
                return False
            os.rename(part, path)
        return True

    def _taken(self, wanted: Stat) -> Stat:
        if not same_content(self, Stat(wanted.key, os.stat(self._path(wanted.key)).st_size), wanted):
            raise self._error(Conflict, "put", wanted.key, "another file has this name")
        # The writer may have been killed between the link and its fsync of the folder.
        self._sync(os.path.dirname(self._path(wanted.key)))
        return wanted

    # --- small things -------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        return os.path.join(self.root, check_key(key))

    def _sum(self, path: str, key: str) -> Stat:
        summer = Summer()
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while data := file.read(CHUNK):
                if self._closed.is_set():
                    raise self._error(Transient, "digest", key, "stopped")
                summer.update(data)
        return summer.stat(key)

    def _walk(self, prefix: str, parts: bool) -> Iterator[Stat]:
        """Objects, or unfinished copies of objects, whose key begins with `prefix`, sorted within each folder."""
        start = os.path.join(self.root, os.path.dirname(prefix))
        for folder, folders, names in os.walk(start):
            folders.sort()
            for name in sorted(names):
                if name.startswith(PART) != parts:
                    continue
                final = name[len(PART) :].partition(".")[2] if parts else name
                if os.path.relpath(os.path.join(folder, final), self.root).startswith(prefix):
                    path = os.path.join(folder, name)
                    with contextlib.suppress(FileNotFoundError):
                        yield Stat(os.path.relpath(path, self.root), os.stat(path).st_size)

    def _sync(self, folder: str) -> None:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def _pause(self, key: str, operation: str, size: int) -> None:
        if self._closed.is_set():
            raise self._error(Transient, operation, key, "stopped")
        self._throttle.take(size)

    def _error(self, kind: type[StorageError], operation: str, key: str, detail: str) -> StorageError:
        return kind(endpoint=self.name, operation=operation, key=key, detail=detail)

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        """Turn what the operating system says into the errors of `stageout.endpoint`."""
        try:
            yield
        except OSError as error:
            number = error.errno or 0
            kind: type[StorageError] = Transient
            detail = os.strerror(number)
            if number == errno.ENOENT and self._mounted():
                kind = Missing
            elif number == errno.ENOENT:
                detail = f"{self.root} is empty or not there; is its file system mounted?"
            elif number in _FULL:
                kind = Full
            elif number in _PERMANENT:
                kind = Permanent
            raise self._error(kind, operation, key, detail) from None
