"""Bytes that stay: the one way this project writes files that must survive.

`Files` is the file system as the writers see it. Tests hand in one that fails at the n-th call; nothing is patched.

A failed fsync is final for that file: the kernel may have dropped the dirty pages and marked them clean, so a second
fsync that succeeds proves nothing (PostgreSQL, 2018). `DurableFile` refuses every use after its first error.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from eventrange.errors import CannotWrite


class Files:
    """Calls to the operating system, as methods, so that tests can make any of them fail."""

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def write(self, fd: int, data: Any) -> int:
        return os.write(fd, data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def fsync(self, fd: int) -> None:
        os.fdatasync(fd)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def fsync_folder(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:  # some network file systems cannot, and need not
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(fd)

    def close(self, fd: int) -> None:
        os.close(fd)


FILES = Files()


def explain(error: OSError, path: str) -> CannotWrite:
    """The error a user sees for an OSError on `path`; says how much room is left where that is the trouble."""
    detail = f"{error.strerror or error} (errno {error.errno})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            room = os.statvfs(os.path.dirname(path) or ".")
            detail += f", {room.f_bavail * room.f_frsize / 1e6:.0f} MB free there"
        except OSError:
            pass
    return CannotWrite(path=path, detail=detail)


class DurableFile:
    """An append-only file that one process owns.

    `size` counts bytes written, `synced` those known to be on disk. After any error the file is `broken` and every
    further call raises the same CannotWrite.
    """

    def __init__(self, path: str, files: Files = FILES, exclusive: bool = True) -> None:
        self.path, self.files = path, files
        self.size = self.synced = 0
        self.broken: CannotWrite | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_EXCL if exclusive else 0)
        self.fd = -1
        try:
            self.fd = files.open(path, flags)
            files.fsync_folder(os.path.dirname(path) or ".")
        except OSError as error:
            self.close()
            raise explain(error, path) from error

    def append(self, *parts: Any) -> int:
        """Write all of `parts` (bytes-like), however the kernel cuts them; returns the offset of the first byte."""
        offset = self.size
        for part in parts:
            view = memoryview(part).cast("B")
            while len(view):
                written = self._call(self._write, view)
                view = view[written:]
        self.size = offset + sum(memoryview(part).nbytes for part in parts)
        return offset

    def sync(self) -> int:
        """Make everything appended so far durable; returns `synced`. May be called from another thread."""
        size = self.size
        if size > self.synced:
            self._call(self.files.fsync, self.fd)
            self.synced = size
        return self.synced

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.files.close(fd)

    def _write(self, view: memoryview) -> int:
        written = self.files.write(self.fd, view)
        if written <= 0:  # never seen, but the loop above would not end
            raise OSError(errno.EIO, "nothing was written")
        return written

    def _call(self, call: Callable[..., Any], *values: Any) -> Any:
        if self.broken is not None:
            raise self.broken
        try:
            while True:
                try:
                    return call(*values)
                except InterruptedError:
                    continue
        except OSError as error:
            self.broken = explain(error, self.path)
            raise self.broken from error


def write_file(path: str, data: bytes, files: Files = FILES) -> None:
    """Put `data` at `path` so that a reader sees the old file or the whole new one, also after a crash."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        _remove(temporary)  # of an earlier process of this number
        out = DurableFile(temporary, files)
        try:
            out.append(data)
            out.sync()
        finally:
            out.close()
        files.replace(temporary, path)
        files.fsync_folder(os.path.dirname(path) or ".")
    except (OSError, CannotWrite) as error:
        _remove(temporary)
        known = explain(error, path) if isinstance(error, OSError) else error
        raise CannotWrite(path=path, detail=known.values["detail"]) from error


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


SPARED = 40.0  #: between group commits there is so much more time than an fsync takes,
POLITE = 0.125  #: or so many seconds


class Syncer:
    """A thread that fsyncs files for a loop that must not wait.

    `request(token, file)` asks; `done()` returns, in order, the (token, error) pairs that are finished. `wake` is
    called from the thread whenever there is something to collect. An fsync on a busy parallel file system takes from a
    tenth of a millisecond to seconds; in the meantime the next group of commits gathers.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._took: float | None = None  # seconds of an fsync, smoothed
        self._asked: list[tuple[Any, DurableFile]] = []
        self._finished: list[tuple[Any, CannotWrite | None]] = []
        self._condition = threading.Condition()
        self._ending = self._awaited = False
        self._thread = threading.Thread(target=self._run, name="syncer", daemon=True)
        self._thread.start()

    def spacing(self, most: float, least: float = 0.0) -> float:
        """Seconds there should be between two group commits: few where an fsync takes next to none, so that a kill
        costs less; `least` if that is longer, but never more than `most`."""
        return min(most, max(least, min(POLITE, SPARED * self.takes)))

    @property
    def takes(self) -> float:
        """Seconds an fsync takes, by the last ones; infinite while none is known."""
        return math.inf if self._took is None else self._took

    def request(self, token: Any, file: DurableFile) -> None:
        with self._condition:
            self._asked.append((token, file))
            self._condition.notify()

    def done(self) -> list[tuple[Any, CannotWrite | None]]:
        with self._condition:
            finished, self._finished = self._finished, []
        return finished

    def settle(self, seconds: float) -> None:
        """Wait for what was asked for, at most so long. What is quick need not wake anybody."""
        with self._condition:
            self._awaited = True
            self._condition.wait_for(lambda: self._finished, seconds)
            self._awaited = False

    def close(self) -> None:
        with self._condition:
            self._ending = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._asked and not self._ending:
                    self._condition.wait()
                if not self._asked:
                    return
                asked, self._asked = self._asked, []
            for token, file in asked:
                error: CannotWrite | None = None
                begun = time.monotonic()
                try:
                    file.sync()
                except CannotWrite as caught:
                    error = caught
                except Exception as caught:  # whatever it is: a thread that dies in silence would stop all commits
                    detail = f"{caught.__class__.__name__}: {caught}"
                    error = file.broken = CannotWrite(path=file.path, detail=detail)
                took = time.monotonic() - begun
                with self._condition:
                    self._took = took if self._took is None else 0.75 * self._took + 0.25 * took
                    self._finished.append((token, error))
            with self._condition:
                self._condition.notify_all()
                awaited = self._awaited
            if not awaited:
                self._wake()
