"""The fold of all journals: order between allocations, voiding, things in the journal folder that are no journals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrange import records
from eventrange.history import Story, done_records, read_progress
from eventrange.interval_arrays import Sum, covered, difference, overlaps, unite
from eventrange.intervals import IntervalSet
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from stageout.winners import winners
from yoda.accounting import account_entries
from yoda.follower import Follower
from yoda.prepared import ledger_of
from yoda.rank0 import _take_up


@pytest.fixture
def task(tmp_path: Path) -> TaskDir:
    made = TaskDir(str(tmp_path))
    made.make()
    return made


def write(task: TaskDir, name: str, *entries: Any) -> None:
    """Entries are (kind, start, stop) or a dict."""
    writer = JournalWriter(task.journal(name), "f", name)
    for entry in entries:
        if isinstance(entry, dict):
            writer.note(**entry)
        else:
            kind, start, stop = entry
            writer.append(records.new(1, kind=kind, start=start, stop=stop, droid=4))
    writer.flush()
    writer.file.close()


def test_no_task_directory_yet() -> None:
    found = read_progress(TaskDir("/nonexistent"), "f")
    assert not found.done and not found.journals and not found.damage


def test_fold(task: TaskDir) -> None:
    write(
        task, "1", (Kind.DONE, 0, 10), (Kind.FAILED, 12, 13), (Kind.FAILED, 14, 15), {"name": "schema", "schema": "s1"}
    )
    write(
        *(task, "2", (Kind.DONE, 10, 12), (Kind.FAILED, 14, 15), (Kind.QUARANTINED, 14, 15), (Kind.FAILED, 16, 17)),
        *((Kind.DONE, 12, 13), {"name": "schema", "schema": "s2"}, {"name": "end", "reason": "complete"}),
    )
    found = read_progress(task, "f")
    assert list(found.done) == [(0, 13)] and list(found.quarantined) == [(14, 15)]
    assert found.attempts == {16: (1, (("2", 4),))}
    assert found.schema == "s1" and found.ended == {"2": "complete"} and found.records == 8
    assert not found.damage and list(found.journals) == ["1", "2"]


def test_failures_on_a_droid_that_was_doubted_count_against_no_event(task: TaskDir) -> None:
    write(task, "1", (Kind.FAILED, 12, 13), (Kind.FAILED, 14, 15), {"name": "doubted", "droid": 4, "reason": "r"})
    write(task, "2", (Kind.FAILED, 14, 15))  # droid 4 of this allocation is another
    found = read_progress(task, "f")
    assert found.attempts == {14: (1, (("2", 4),))}
    follower = Follower(task, "f", "3")
    assert follower.read(lambda name: True).attempts == {14: 1}
    ledger = ledger_of(20, found)
    assert 12 in ledger.pending and ledger.retries[14].attempts == 1


def test_only_some_allocations(task: TaskDir) -> None:
    write(task, "1", (Kind.DONE, 0, 10))
    write(task, "2", (Kind.DONE, 20, 30))
    assert list(read_progress(task, "f", only=["2"]).done) == [(20, 30)]


def test_pending_voids_earlier_journals_and_not_later_ones(task: TaskDir) -> None:
    write(task, "1", (Kind.DONE, 0, 10), (Kind.QUARANTINED, 10, 11), (Kind.FAILED, 12, 13))
    write(task, "2", (Kind.DONE, 3, 4), (Kind.PENDING, 2, 13), (Kind.DONE, 5, 6))
    write(task, "3", (Kind.DONE, 7, 8))
    found = read_progress(task, "f")
    assert list(found.done) == [(0, 2), (5, 6), (7, 8)] and not found.quarantined and not found.attempts
    rows, index, names = done_records(task, "f")
    assert rows["start"].tolist() == [0, 3, 2, 5, 7] and index.tolist() == [0, 1, 1, 1, 2] and names == ["1", "2", "3"]
    assert set(rows["kind"].tolist()) == {Kind.DONE, Kind.PENDING}


def test_two_allocations_that_retry_at_once_take_nothing_back(task: TaskDir) -> None:
    """Both read the journals before the other had written; the first does the event, and the second begins behind it
    in journal order."""
    write(task, "1", (Kind.DONE, 0, 5), (Kind.QUARANTINED, 5, 7))
    write(task, "2", (Kind.FAILED, 6, 7))
    follower, journals = Follower(task, "f", "4"), []
    follower.read(lambda name: True)
    follower.retry(IntervalSet([(5, 7)]))
    for name in "34":
        known = read_progress(task, "f", "12")
        journals.append(JournalWriter(task.journal(name), "f", name))
        _take_up(journals[-1], known, lambda words: None)
        assert known.quarantined.total == 0
        assert read_progress(task, "f").quarantined.total == 0, "on the disk before anything is claimed"
    journals[0].append(records.new(1, kind=Kind.DONE, start=5, stop=6, size=9))
    for journal in journals:
        journal.flush()
        journal.file.close()
    found = read_progress(task, "f")
    assert list(found.done) == [(0, 6)] and not found.quarantined and not found.attempts
    assert follower.read(lambda name: False).done[1].tolist() == [6]
    placed = winners(*done_records(task, "f")[:2])
    assert [(int(row["keep_start"]), int(row["keep_stop"])) for row in placed] == [(0, 5), (5, 6)]
    account = account_entries(lambda: iter(Story(task, "f")))
    assert list(account.fold.result()[0]) == [(0, 6)]


def test_done_beats_quarantined(task: TaskDir) -> None:
    write(task, "1", (Kind.DONE, 5, 6), (Kind.QUARANTINED, 5, 6))
    found = read_progress(task, "f")
    assert list(found.done) == [(5, 6)] and not found.quarantined


def test_what_is_no_journal_is_told_and_not_refused(task: TaskDir) -> None:
    write(task, "good", (Kind.DONE, 0, 5))
    os.mkdir(task.journal("a-folder"))
    Path(task.journal("empty")).touch()
    os.mkfifo(task.journal("pipe"))
    os.symlink("/nonexistent/x", task.journal("dangling"))
    os.symlink(task.journal("loop"), task.journal("loop"))
    Path(task.journal("text")).write_text("this is no journal\n" * 99)
    os.link(task.journal("good"), task.journal("renamed"))
    Path(task.journals, "README").write_text("not looked at")
    Path(os.fsencode(task.journal("x"))[:-4].decode() + "\udcff.yj").touch()
    found = read_progress(task, "f")
    assert list(found.done) == [(0, 5)]
    assert set(found.damage) == {"a-folder", "empty", "pipe", "dangling", "loop", "text", "renamed", "\udcff"}
    assert found.damage["empty"] == "empty" and "directory" in found.damage["a-folder"]
    assert "no journal" in found.damage["text"] and "another journal" in found.damage["renamed"]
    assert len(done_records(task, "f")[0]) == 1


def test_an_unreadable_journal(task: TaskDir) -> None:
    write(task, "1", (Kind.DONE, 0, 5))
    write(task, "2", (Kind.DONE, 5, 9))
    os.chmod(task.journal("1"), 0)
    found = read_progress(task, "f")
    if os.access(task.journal("1"), os.R_OK):  # nothing is forbidden to root
        assert found.done.total == 9
    else:
        assert found.done.total == 4 and "denied" in found.damage["1"]


def test_another_tasks_journal(task: TaskDir) -> None:
    write(task, "1", (Kind.DONE, 0, 5))
    found = read_progress(task, "g")
    assert not found.done and "another journal" in found.damage["1"]


def test_torn_tail_is_not_called_damage_and_its_whole_records_count(task: TaskDir) -> None:
    write(task, "1", *[(Kind.DONE, n, n + 1) for n in range(10)])
    content = Path(task.journal("1")).read_bytes()
    Path(task.journal("1")).write_bytes(content[:-70])
    found = read_progress(task, "f")
    assert list(found.done) == [(0, 8)] and not found.damage
    assert "unfinished commit" in str(found.journals["1"])


def test_a_story_goes_on(task: TaskDir) -> None:
    writer = JournalWriter(task.journal("1"), "f", "1")
    story = Story(task, "f")
    for number in range(3):
        writer.append(records.new(1, kind=Kind.DONE, start=number, stop=number + 1))
        writer.flush()
        assert [e["start"].tolist() for _, e in story if not isinstance(e, dict)] == [[number]]
    write(task, "2", (Kind.DONE, 7, 8))
    assert [name for name, e in story if not isinstance(e, dict)] == ["2"]


SETS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=12)


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 0] + table[:, 1]


def positions(starts: np.ndarray, stops: np.ndarray) -> set[int]:
    return {x for a, b in zip(starts.tolist(), stops.tolist(), strict=True) for x in range(a, b)}


@given(SETS, SETS)
def test_interval_arrays(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    a, b = unite(*arrays(first)), unite(*arrays(second))
    for found, pairs in ((a, first), (b, second)):
        assert positions(*found) == positions(*arrays(pairs))
        assert IntervalSet.from_arrays(*found) == IntervalSet((s, s + n) for s, n in pairs)
    rest = difference(*a, *b)
    assert positions(*rest) == positions(*a) - positions(*b)
    assert IntervalSet.from_arrays(*rest) == IntervalSet(zip(*(x.tolist() for x in rest), strict=True))
    inside = [len(set(range(s, s + n)) & positions(*b)) for s, n in first]
    assert covered(*arrays(first), *b).tolist() == inside
    assert overlaps(*arrays(first), *b).tolist() == [n > 0 for n in inside]
    total = Sum()
    total.add(*arrays(first))
    total.subtract(*b)
    total.add(*arrays(first[:3]))
    assert positions(*total.result()) == positions(*a) - positions(*b) | positions(*arrays(first[:3]))


def test_a_sum_of_many_batches() -> None:
    rng = np.random.default_rng(1)
    order = rng.permutation(2_000_000)
    total = Sum()
    for part in np.array_split(order, 30):
        total.add(part * 2, part * 2 + 1 + (part % 1000 > 0))
    starts, stops = total.result()
    assert len(starts) == 2001 and int((stops - starts).sum()) == 4_000_000 - 2000
