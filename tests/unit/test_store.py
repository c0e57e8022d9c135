"""When a Droid's images are made durable."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from droid.store import EARLY, Choices, Store
from eventrange import records
from eventrange.durable import Files
from eventrange.errors import CannotWrite
from eventrange.records import Kind
from eventrange.segment import SegmentWriter, checksum
from eventrange.taskdir import TaskDir


def add(store: Store, start: int, now: float) -> None:
    rows = records.new(kind=Kind.DONE, start=start, stop=start + 1, size=3, checksum=checksum(b"abc"))
    store.add(rows, memoryview(b"abc"), np.ones(1, bool), now)


def test_what_comes_seldom_is_durable_at_once_and_what_comes_often_together(tmp_path: Path) -> None:
    store = Store(TaskDir(str(tmp_path)), "a", "t", 1, Choices(commit_seconds=60.0, commit_least=60.0), lambda: None)

    def settle(now: float) -> None:
        until = time.monotonic() + 10
        while not store.settled and time.monotonic() < until:
            time.sleep(0.001)
            store.pump(now, True)

    add(store, 0, 100.0)
    assert store.due(100.0, busy=True) == 0
    settle(100.0)
    assert store.settled and len(store.ready) == 1
    for number in (1, 2, 3):
        add(store, number, 130.0)
    assert store.due(130.0, busy=True) == 30
    store.pump(130.0, busy=True)
    assert not store.settled
    assert store.due(130.0, busy=False) == 0
    settle(160.0)
    assert store.settled and [len(rows) for rows in store.ready] == [1, 3]
    store.close()


def test_who_is_awake_commits_a_little_early_and_waits_for_what_is_quick(tmp_path: Path) -> None:
    woken: list[None] = []
    store = Store(TaskDir(str(tmp_path)), "a", "t", 1, Choices(commit_seconds=60.0), lambda: woken.append(None))
    store._syncer._took, store.apart = 0.0, 10.0
    store._syncer.settle = lambda seconds, wait=store._syncer.settle: wait(60.0)  # type: ignore[method-assign,misc]
    add(store, 0, 100.0)
    store.pump(100.0, True)
    assert len(store.ready) == 1 and store.settled and not woken
    add(store, 1, 101.0)
    assert store.due(101.0, True) == 9.0, "what nobody is awake for"
    store.pump(110.0 - 1.01 * EARLY * 10.0, True)
    assert not store.settled
    store._syncer._took = 0.0
    store.pump(110.0 - 0.99 * EARLY * 10.0, True)
    assert store.settled and len(store.ready) == 2 and not woken
    store._syncer._took = 1.0
    add(store, 2, 120.0)
    store.pump(120.0, True)
    assert not store.settled, "a slow one is not waited for"
    store.close()
    assert woken


def test_a_commit_is_never_earlier_than_the_file_system_asks_for(tmp_path: Path) -> None:
    choices = Choices(commit_seconds=60.0, commit_least=9.0)
    store = Store(TaskDir(str(tmp_path)), "a", "t", 1, choices, lambda: None)
    store._syncer._took, store.apart = 1.0, 10.0
    store._synced = 100.0
    add(store, 0, 101.0)
    store.pump(108.9, True)
    assert not store._syncing
    store.apart = 100.0  # more than is allowed
    store.choices = Choices(commit_seconds=10.0, commit_least=9.0)
    store.pump(108.9, True)
    assert not store._syncing and store.due(108.9, True) == pytest.approx(1.1)
    store.pump(109.1, True)
    assert store._syncing
    store.close()


def test_what_is_in_a_segment_that_cannot_be_sealed_is_durable_or_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment gets full in the middle of a batch: it is sealed when all that is in it has been synced."""
    unsynced: list[int] = []

    def seal(segment: SegmentWriter) -> None:
        unsynced.append(segment.file.size - segment.file.synced)
        raise CannotWrite(path="x", detail="no room")

    monkeypatch.setattr(SegmentWriter, "seal", seal)
    store = Store(TaskDir(str(tmp_path)), "a", "t", 1, Choices(segment_bytes=1500), lambda: None)
    for batch in range(2):
        rows = records.new(4, kind=Kind.DONE, size=1000)
        rows["start"] = 4 * batch + np.arange(4)
        rows["stop"] = rows["start"] + 1
        store.add(rows, memoryview(bytes(4000)), np.ones(4, bool), 100.0)
    assert unsynced == [0]
    store.close()


class Broken(Files):
    """The first file cannot be synced, which is known when it is `let_go`, nor written while not `sound`."""

    def __init__(self) -> None:
        self.opened, self.sound = 0, True
        self.asked, self.let_go = threading.Event(), threading.Event()

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        self.opened += 1
        return super().open(path, flags, mode)

    def write(self, fd: int, data: Any) -> int:
        if self.opened == 1 and not self.sound:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        if self.opened == 1:
            self.asked.set()
            assert self.let_go.wait(10)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(fd)


def _under_sync(tmp_path: Path) -> tuple[Store, Broken]:
    """A store whose first segment has an image and is being synced."""
    files = Broken()
    store = Store(TaskDir(str(tmp_path)), "a", "t", 1, Choices(commit_seconds=60.0), lambda: None, files)
    store._syncer._took = 1.0
    add(store, 0, 100.0)
    store.pump(100.0, True)
    return store, files


def test_a_file_that_breaks_under_a_sync_and_a_write_is_one_error(tmp_path: Path) -> None:
    """The next segment, which is sound, is neither closed nor what it holds undone."""
    store, files = _under_sync(tmp_path)
    assert files.asked.wait(10)
    files.sound = False
    add(store, 1, 100.1)
    add(store, 2, 100.2)
    assert files.opened == 2, "a new segment is tried"
    files.let_go.set()
    store.seal()
    kinds = {int(row["start"]): int(row["kind"]) for rows in store.ready for row in rows}
    assert kinds == {0: Kind.RETURNED, 1: Kind.RETURNED, 2: Kind.DONE}
    assert store.trouble is None and [note["segment"] for note in store.sealed] == [1]
    store.close()


def test_so_are_two_syncs_of_it(tmp_path: Path) -> None:
    store, files = _under_sync(tmp_path)
    add(store, 1, 100.1)
    threading.Timer(0.1, files.let_go.set).start()
    store.seal()
    add(store, 2, 100.2)
    store.seal()
    kinds = {int(row["start"]): int(row["kind"]) for rows in store.ready for row in rows}
    assert kinds == {0: Kind.RETURNED, 1: Kind.RETURNED, 2: Kind.DONE}
    assert store.trouble is None
    store.close()
