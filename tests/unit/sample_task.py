"""A task directory with a story: two allocations, one killed, one that drains, failures, a quarantined event."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from eventrange import records
from eventrange.journal import JournalWriter
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from yoda.frozen import Frozen, FrozenInputs, FrozenPayload
from yoda.leasedir import Heart
from yoda.task import _text

BEGIN = 1.7e9
EVENTS = 400
BAD = 17  #: the event that is given up
EVIL = '<script>alert("x")</script>'


def frozen(root: Path, events: int = EVENTS) -> Frozen:
    axis = {"files": [{"path": "generate", "events": events}]}
    payload = FrozenPayload("p.py:P", None, {}, "0" * 64)
    return Frozen("sample", 1, FrozenInputs("generate", events, {}, ()), payload, str(root / "job.yaml"), {}, axis)


def sample_task(root: Path, finish: bool = False) -> TaskDir:
    """300 of 400 events done by 2 Droids of 4 workers in the allocation that was killed, then more by one that drains;
    with `finish` all."""
    task = TaskDir(str(root))
    task.make()
    one = frozen(root)
    Path(task.task_file).write_text(_text(one))
    writer = JournalWriter(task.journal("1"), one.fingerprint, "1", created=BEGIN, started=BEGIN, host="n0")
    for droid in (1, 2):
        writer.note("joined", time=BEGIN + 2, droid=droid, host=f"n{droid}", workers=4, startup=2.0, versions={})
    writer.note("payload", time=BEGIN + 2, jagged=[], versions={"numpy": "2.0", "evil": EVIL})
    granted = records.new(1, kind=Kind.GRANTED, start=0, stop=EVENTS, droid=1, time=BEGIN + 2)
    writer.append(granted)
    writer.append(_done(range(0, 300, 2), 2, BEGIN + 2, 1.0, (1, 2)))
    for attempt in range(3):
        failed = records.new(1, kind=Kind.FAILED, code=Code.EXCEPTION, attempt=attempt, droid=1, wall=0.5)
        failed["start"], failed["stop"], failed["time"] = BAD, BAD + 1, BEGIN + 3 + attempt
        writer.append(failed)
        text = f"Traceback ...\nValueError: {EVIL} in event {BAD}"
        writer.note(
            "evidence", time=BEGIN + 4 + attempt, event=BAD, attempt=attempt, code=1, text=text, stderr="", cpu=0.5,
            wall=0.5, worker=2, droid=1, host="n1",
        )  # fmt: skip
    writer.append(records.new(1, kind=Kind.QUARANTINED, start=BAD, stop=BAD + 1, attempt=3, time=BEGIN + 7))
    writer.note(
        "pulse", time=BEGIN + 40, workers=8, busy=8, pending=0, in_flight=100, done=299, droids=2, lag=0.2,
        slowest=[[310, 12.5, 1], [311, 3.0, 2]], silent=[[2, 31.0], [1, 0.1]],
    )  # fmt: skip
    writer.flush()
    writer.file.close()
    second = JournalWriter(task.journal("2"), one.fingerprint, "2", created=BEGIN + 5000, started=BEGIN + 5000)
    begin = BEGIN + 5002
    second.note("joined", time=begin, droid=1, host="n3", workers=4, startup=2.0, versions={})
    second.append(records.new(1, kind=Kind.GRANTED, start=300, stop=EVENTS, droid=1, time=begin))
    second.append(_done(range(300, EVENTS if finish else 350, 2), 2, begin, 1.0, (1,)))
    change = {"before": "closed", "after": "open", "reason": "5 of 8 failed"}
    second.note("breaker", time=begin + 5, key="endpoint:primary", **change)
    second.note("drain", time=begin + 14, reason="SIGTERM", grace=5.0, deadline=None)
    if not finish:
        back = records.new(1, kind=Kind.RETURNED, code=Code.DRAINED, droid=1, time=begin + 17, wall=1.5)
        back["start"], back["stop"] = 350, EVENTS
        second.append(back)
    second.note("sealed", time=begin + 18, droid=1, segment=0, size=1000, adler32="0", sha256="0", members=25)
    second.note("left", time=begin + 18, droid=1, host="n3", reason="drained")
    second.note("end", time=begin + 18.5, reason="SIGTERM", exit_code=75, done=349, quarantined=1, total=EVENTS)
    second.flush()
    second.file.close()
    return task


@contextmanager
def beating(task: TaskDir, allocation: str, state: str = "working") -> Iterator[None]:
    """That allocation is alive, in our process; afterwards nothing is left of it but its journal."""
    heart = Heart(task, allocation, None, 60.0, 60.0)
    heart.rest(state)
    heart.forget = True
    try:
        yield
    finally:
        heart.stop()


def merged_task(task: TaskDir) -> JournalWriter:
    """Add to `sample_task` an allocation with everything it lacks: it merges, stages out, and tells event times."""
    journal = JournalWriter(
        task.journal("3"), frozen(Path(task.root)).fingerprint, "3", created=BEGIN + 6000, host="n1"
    )
    journal.note("joined", time=BEGIN + 6001, droid=1, host="n1", workers=4, startup=1.0)
    rows = records.new(2, kind=Kind.DONE, droid=1, time=BEGIN + 6002, wall=2.0, cpu=2.0, size=10)
    rows["start"], rows["stop"], rows["attempt"], rows["worker"] = [350, 374], [374, 400], [0, 1], [0, 1]
    journal.append(rows)
    journal.note("times", time=BEGIN + 6003, times=[[-20, 1]])
    journal.note("times", time=BEGIN + 6005, times=[[-20, 48], [4, 2]])
    journal.note("endpoints", time=BEGIN + 6000, endpoints=[{"name": "tape", "url": "file:///t"}], rules={})
    journal.note("sealed", time=BEGIN + 6005, droid=1, segment=0, size=7_000_000, adler32="0", sha256="1", members=3)
    where = {"allocation": "3", "droid": 1, "segment": 0, "endpoint": "tape", "key": "k", "url": "file:///t/k"}
    journal.note("staged", time=BEGIN + 6006, **where, size=7_000_000, adler32="0", sha256="1")
    for at, before, after in ((1, "closed", "open"), (3, "open", "half-open"), (4, "half-open", "exhausted")):
        journal.note("breaker", time=BEGIN + 6000 + at, key="node:n7", before=before, after=after, reason="why not")
    journal.note("left", time=BEGIN + 6008, droid=1, host="n1", reason="drained")
    journal.note("end", time=BEGIN + 6009, reason="complete", exit_code=0)
    journal.note("merging", time=BEGIN + 6010, done=0, total=0)
    journal.note("merged", time=BEGIN + 6020, exit_code=0, reason="")
    journal.flush()
    return journal


def _done(starts: range, size: int, begin: float, wall: float, droids: tuple[int, ...]) -> np.ndarray:
    """Ranges of `size` events, one after another on every worker; the range of the bad event lacks it."""
    start = np.array(starts)
    rows = records.new(len(start), kind=Kind.DONE, wall=wall, cpu=wall, size=2000)
    lane = np.arange(len(start)) % (4 * len(droids))
    rows["start"], rows["stop"] = start, start + size
    inside = (start <= BAD) & (start + size > BAD)
    rows["stop"][inside] = BAD
    rows["droid"], rows["worker"] = np.array(droids)[lane // 4], lane % 4
    rows["time"] = begin + (np.arange(len(start)) // (4 * len(droids))) * (wall * 1.5)
    return rows
