"""A task of 10^9 events is kept in as much memory as one of 10^3 with as many holes (L12): counted, not timed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eventrange import messages, records
from eventrange.axis import Axis
from eventrange.history import Progress, read_progress
from eventrange.intervals import IntervalSet
from eventrange.journal import JournalWriter
from eventrange.messages import Report
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from yoda.dispatcher import Dispatcher, Send, Settings
from yoda.prepared import ledger_of

SMALL, LARGE = 10**3, 10**9
HOLES, DROIDS, ROUNDS = 10, 4, 20


def history(events: int) -> list[tuple[int, int]]:
    """What earlier allocations have done: every other of 2 x HOLES parts."""
    part = events // (2 * HOLES)
    return [(2 * k * part, (2 * k + 1) * part) for k in range(HOLES)]


def report(rows: Any, want: int) -> Report:
    return Report(rows.tobytes(), [], want, 0, 0, 0.01, b"", {}, "x")


def work(events: int) -> Dispatcher:
    """A Yoda that has taken up a task with HOLES holes, and served DROIDS Droids ROUNDS times."""
    axis = Axis.from_dict(Axis.generate(events).to_dict())
    known = Progress(done=IntervalSet(history(axis.total)))
    d = Dispatcher(ledger_of(axis.total, known), [0], Settings(), axis.total)
    given: dict[int, list[tuple[int, int]]] = {rank: [] for rank in range(1, DROIDS + 1)}
    for rank in given:
        d.hello(0.0, rank, f"n{rank}", 2)
    for turn in range(ROUNDS):
        for rank in given:
            rows = records.new(len(given[rank]), kind=Kind.DONE, size=1)
            if len(rows):
                rows["start"], rows["stop"] = zip(*given[rank], strict=True)
            given[rank] = []
            for step in d.report(float(turn), rank, report(rows, 4), rows):
                if isinstance(step, Send) and isinstance(step.message, messages.Grant):
                    given[step.droid] += [(a, b) for a, b, _ in messages.unpack_ranges(step.message.ranges)]
    return d


def peak(call: Any, *values: Any) -> tuple[int, Any]:
    """(most bytes that were allocated while `call` ran, what it returned)."""
    tracemalloc.start()
    try:
        found = call(*values)
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


def test_yoda_holds_holes_not_events() -> None:
    work(SMALL)  # imports and caches
    small, d = peak(work, SMALL)
    large, e = peak(work, LARGE)
    # Each Droid works its way into a hole: one interval more of pending events than there are holes, and what it holds.
    for one in (d, e):
        assert len(one.ledger.pending) <= HOLES + DROIDS
        assert sum(len(held) for held in one.ledger.granted.values()) <= 2 * DROIDS
        assert one.ledger.done > HOLES * (one.total // (2 * HOLES))
    assert e.ledger.open + e.ledger.done == LARGE
    assert large < 1.25 * small + 4096  # numbers beyond 2^30 take four bytes more


@pytest.mark.parametrize("pieces", [1, 50])
def test_resume_holds_holes_not_events(tmp_path: Path, pieces: int) -> None:
    """As many records, of short ranges or of long ones: the same memory, and as many intervals as there are holes."""

    def write(events: int) -> TaskDir:
        taskdir = TaskDir(str(tmp_path / f"{events}-{pieces}"))
        Path(taskdir.journals).mkdir(parents=True)
        journal = JournalWriter(taskdir.journal("a"), "f", "a")
        for start, stop in history(events):
            edges = np.linspace(start, stop, pieces + 1).astype(np.int64)
            rows = records.new(pieces, kind=Kind.DONE, size=1)
            rows["start"], rows["stop"] = edges[:-1], edges[1:]
            journal.append(rows)
        journal.flush()
        journal.file.close()
        return taskdir

    tasks = {events: write(events) for events in (SMALL, LARGE)}
    read_progress(tasks[SMALL], "f")
    small, few = peak(read_progress, tasks[SMALL], "f")
    large, many = peak(read_progress, tasks[LARGE], "f")
    assert list(few.done) == history(SMALL)
    assert list(many.done) == history(LARGE)
    assert large < 1.25 * small + 4096
