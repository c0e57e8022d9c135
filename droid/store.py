"""A Droid's images on their way to disk: the open segment and the group commit.

Rows come in with their images; they come out, in `ready`, when what they say is true: the images are on disk, or the
row has none. One sync at a time runs in the Syncer's thread while the next group gathers (L1).
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eventrange.durable import FILES, DurableFile, Files, Syncer, explain
from eventrange.errors import CannotWrite
from eventrange.records import Code, Kind
from eventrange.segment import SegmentWriter, member_name, writer
from eventrange.taskdir import TaskDir
from eventrange.times import add, time_bin

if TYPE_CHECKING:
    from eventrange.axis import Axis

INSTANT = 0.002  #: and that are not worth going to sleep for
MOMENT = 0.02  #: seconds that are worth waiting for a sync
EARLY = 0.4  #: of the time between group commits
_DONE = int(Kind.DONE)  # comparing with a member of an enum costs more
_FINAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Choices:
    """What the site decides. Seconds and bytes."""

    segment_bytes: int = 1 << 30
    segment_seconds: float = 1800.0
    segment_format: str = "tar"
    commit_seconds: float = 0.875  #: between group commits at most
    commit_least: float = 0.0  #: and at least, but for the end: all Droids together should not overload a file server
    commit_bytes: int = 64 << 20


class Store:
    """Owns the segments of one Droid in one allocation. `wake` is called, from a thread, when a sync is finished."""

    def __init__(
        self,
        taskdir: TaskDir,
        allocation: str,
        task: str,
        rank: int,
        choices: Choices,
        wake: Callable[[], None],
        files: Files = FILES,
    ) -> None:
        self.taskdir, self.allocation, self.task, self.rank = taskdir, allocation, task, rank
        self.choices, self.files = choices, files
        self.ready: list[NDArray[Any]] = []  #: rows that may be reported
        self.sealed: list[dict[str, Any]] = []  #: notes of segments that were finished
        self.axis: Axis | None = None  #: set where someone else named the ranges: it knows their names
        self.apart = 0.0  #: seconds between group commits that are worth it
        self.trouble: CannotWrite | None = None  #: set when nothing more can be stored here
        self._segment: SegmentWriter | None = None
        self._number = -1
        self._begun = 0.0
        self._unsynced: list[NDArray[Any]] = []
        self._synced = -math.inf  # when the last sync began
        self._bytes = 0
        self.commits: dict[int, int] = {}  #: histogram (times.py) of the seconds a commit took, not what it was put off
        # Asked of the Syncer, in order: rows, when, and the file they are in.
        self._syncing: deque[tuple[NDArray[Any], float, DurableFile]] = deque()
        self._errors = 0
        self._syncer = Syncer(wake)

    @property
    def settled(self) -> bool:
        """Whether everything that was added is on disk and in `ready`."""
        return not self._unsynced and not self._syncing

    def add(self, rows: NDArray[Any], images: memoryview, keep: NDArray[np.bool_], now: float) -> None:
        """Take rows, RECORD (n,), and the images of those with a size, one after another. Rows not in `keep` are
        dropped.

        If an image cannot be written its range is returned instead, and so are all that wait for the same segment.
        """
        # Plain numbers: most batches are a few rows, for which numpy's price per call is more than the work.
        sizes = rows["size"].tolist()
        wanted = [k and kind == _DONE for k, kind in zip(keep.tolist(), rows["kind"].tolist(), strict=True)]
        good = np.array(wanted, bool)
        if not all(wanted):
            rows["size"][~good] = 0
        at, stored = 0, 0
        if any(sizes):
            self._roll(now)  # between two batches: of the images in a segment that is sealed all rows are known
        try:
            for number, size in enumerate(sizes):
                if size and wanted[number]:
                    self._append(rows[number], images[at : at + size], now)
                    stored += 1
                at += size
        except CannotWrite as error:
            self._undo(rows, good & (rows["size"] > 0))
            self._give_up(error)
            self.ready.append(rows[keep])
            return
        if stored == len(rows):
            self._unsynced.append(rows)
            return
        there = good & (rows["size"] > 0)
        if (keep & ~there).any():
            self.ready.append(rows[keep & ~there])
        if stored:
            self._unsynced.append(rows[there])

    def due(self, now: float, busy: bool) -> float:
        """Seconds until the next group commit; infinite if nothing waits. Nobody at work: at once.

        It is so long after the last one, not after what waits came: what comes seldom is durable at once.
        """
        if not self._unsynced or self._syncing:
            return float("inf")
        if self._bytes >= self.choices.commit_bytes or not busy:
            return 0.0
        return max(0.0, self._synced + self.spacing - now)

    @property
    def spacing(self) -> float:
        """Seconds between group commits."""
        least = max(self.apart, self.choices.commit_least)
        return self._syncer.spacing(self.choices.commit_seconds, least)

    @property
    def soon(self) -> bool:
        """Whether there are rows that will be durable in a moment, by what the last syncs took."""
        return bool(self._syncing) and self._syncer.takes < MOMENT

    def pump(self, now: float, busy: bool) -> None:
        """Collect finished syncs and ask for the next when it is due."""
        self._collect(now)
        if self.due(now + self._early, busy) <= 0 and self._segment is not None:
            self._synced = now
            self._request(now, self._segment.file)
            if self._syncer.takes < INSTANT and busy:
                self._syncer.settle(2 * INSTANT)
                self._collect(time.monotonic())

    @property
    def _early(self) -> float:
        """Seconds by which a commit is early while we are awake, which saves waking up for it; unless the file system
        asks for more time."""
        asked = self._syncer.spacing(self.choices.commit_seconds, self.choices.commit_least)
        return min(EARLY * self.spacing, self.spacing - asked)

    def _collect(self, now: float) -> None:
        for rows, error in self._syncer.done():
            _, asked, file = self._syncing.popleft()
            add(self.commits, {time_bin(now - asked): 1})
            if error is not None:
                # What an fsync refused is not on disk, whatever a later one says: those events are open again.
                self._undo(rows, rows["size"] > 0)
                if self._segment is not None and self._segment.file is file:  # else it was given up before, and counted
                    self._give_up(error)
            self.ready.append(rows)

    def discard(self) -> None:
        """The images of all rows that are not handed out yet are of no use: return their ranges."""
        for rows in (*self._unsynced, *(rows for rows, _, _ in self._syncing), *self.ready):
            void(rows, Code.FIELDS)

    def seal(self) -> None:
        """Finish the open segment, waiting for what is not yet on disk."""
        if self._unsynced and self._segment is not None:
            self._request(time.monotonic(), self._segment.file)
        while self._syncing:
            time.sleep(0.001)
            self.pump(time.monotonic(), True)
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            done = segment.seal()
        except CannotWrite:
            return  # the images in it are durable and recorded; only the end of the archive is missing
        self.sealed.append(
            {
                "note": "sealed",
                "droid": self.rank,
                "segment": self._number,
                "size": done.size,
                "adler32": f"{done.adler32:08x}",
                "sha256": done.sha256,
                "members": done.members,
            }
        )

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        self._syncer.close()

    # -- inner workings ----------------------------------------------------------------------------------------------

    def _append(self, row: Any, data: memoryview, now: float) -> None:
        segment = self._open(now)
        start, stop = int(row["start"]), int(row["stop"])
        name = (
            member_name(self.task, start + 1, stop) if self.axis is None else self.axis.member(self.task, start, stop)
        )
        row["segment"] = self._number
        row["offset"] = segment.append(name, data, int(row["checksum"]))
        self._bytes += len(data)

    def _open(self, now: float) -> SegmentWriter:
        if self._segment is None:
            self._number += 1
            path = self.taskdir.segment(self.allocation, self.rank, self._number, self.choices.segment_format)
            folder = os.path.dirname(path)
            try:
                os.makedirs(folder, exist_ok=True)
                if not self._number:
                    self.files.fsync_folder(os.path.dirname(folder))
            except OSError as error:
                raise explain(error, folder) from error
            self._segment = writer(path, self.choices.segment_format, self.files)
            self._begun = now
        return self._segment

    def _roll(self, now: float) -> None:
        """Seal a segment that is large or old enough."""
        segment, choices = self._segment, self.choices
        old = now - self._begun >= choices.segment_seconds
        if segment is not None and (old or segment.size >= choices.segment_bytes):
            self.seal()

    def _request(self, now: float, file: DurableFile) -> None:
        rows, self._unsynced, self._bytes = np.concatenate(self._unsynced), [], 0
        self._syncing.append((rows, now, file))
        self._syncer.request(rows, file)

    def _undo(self, rows: NDArray[Any], which: NDArray[np.bool_]) -> None:
        rows["kind"][which], rows["size"][which], rows["code"][which] = Kind.RETURNED, 0, Code.STORAGE

    def _give_up(self, error: CannotWrite) -> None:
        """A segment that failed is never written again. No room is final; else a new one is tried, once."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        for rows in self._unsynced:
            self._undo(rows, rows["size"] > 0)
            self.ready.append(rows)
        self._unsynced, self._bytes = [], 0
        self._errors += 1
        cause = error.__cause__
        if self._errors > 1 or (isinstance(cause, OSError) and cause.errno in _FINAL):
            self.trouble = self.trouble or error


def void(rows: NDArray[Any], code: Code) -> None:
    """Turn the rows that have an image into RETURNED ones, in place."""
    which = (rows["kind"] == Kind.DONE) & (rows["size"] > 0)
    rows["kind"][which], rows["size"][which], rows["code"][which] = Kind.RETURNED, 0, code
