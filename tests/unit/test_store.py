"""When a Droid's images are made durable."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from droid.store import Choices, Store
from eventrange import records
from eventrange.records import Kind
from eventrange.segment import checksum
from eventrange.taskdir import TaskDir


def test_what_comes_seldom_is_durable_at_once_and_what_comes_often_together(tmp_path: Path) -> None:
    store = Store(TaskDir(str(tmp_path)), "a", "t", 1, Choices(commit_seconds=60.0, commit_least=60.0), lambda: None)

    def add(start: int, now: float) -> None:
        rows = records.new(kind=Kind.DONE, start=start, stop=start + 1, size=3, checksum=checksum(b"abc"))
        store.add(rows, memoryview(b"abc"), np.ones(1, bool), now)

    def settle(now: float) -> None:
        until = time.monotonic() + 10
        while not store.settled and time.monotonic() < until:
            time.sleep(0.001)
            store.pump(now, True)

    add(0, 100.0)
    assert store.due(100.0, busy=True) == 0
    settle(100.0)
    assert store.settled and len(store.ready) == 1
    for number in (1, 2, 3):
        add(number, 130.0)
    assert store.due(130.0, busy=True) == 30
    store.pump(130.0, busy=True)
    assert not store.settled
    assert store.due(130.0, busy=False) == 0
    settle(160.0)
    assert store.settled and [len(rows) for rows in store.ready] == [1, 3]
    store.close()
