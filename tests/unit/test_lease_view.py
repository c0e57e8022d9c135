"""What `yoda status` says of who holds what."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sample_task import BEGIN, beating, frozen, sample_task

from eventrange.journal import JournalWriter
from eventrange.taskdir import TaskDir
from yoda.lease_view import QUIET, leases_and_dead, render, words
from yoda.status import status


def lease(**keys: Any) -> dict[str, Any]:
    return {
        "allocation": "a",
        "host": "n1",
        "pid": 7,
        "state": "working",
        "wants": False,
        "parts": 3,
        "beat_age": 2.0,
        "merges": False,
        **keys,
    }


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (lease(), "working: holds 3 parts of the axis, last beat 2.0 s ago"),
        (lease(parts=0, wants=True), "working: holds 0 parts of the axis and waits for work, last beat 2.0 s ago"),
        (lease(state="merging", parts=1, merges=True), "merging: merges the task, last beat 2.0 s ago"),
        (lease(state="dead", parts=1), "dead; holds 1 part of the axis until another allocation looks"),
        (lease(state="dead", parts=0), "dead"),
        (
            lease(state="silent", beat_age=125.0),
            "silent, last beat 2 min 05 s ago; holds 3 parts of the axis until lease_timeout has passed for another"
            " allocation",
        ),
    ],
)
def test_words(one: dict[str, Any], said: str) -> None:
    assert words(one) == said


def test_allocations_without_a_journal_are_told_of() -> None:
    leases = [lease(), lease(allocation="b", state="starting", parts=0), lease(allocation="c", state="dead")]
    [line] = render(leases, {"a"})
    assert line == "  b  process 7 on n1: starting: holds 0 parts of the axis, last beat 2.0 s ago"


def test_an_allocation_whose_file_is_gone_or_says_so_is_dead(tmp_path: Path) -> None:
    task = TaskDir(str(tmp_path))
    task.make()
    for name in ("a", "c", "unread", "cleared"):
        Path(task.journal(name)).touch()
    with beating(task, "a"):
        words_of_a = Path(task.leases, "a.alive").read_text()
        Path(task.leases, "c.alive").write_text(words_of_a.replace(f'"pid": {os.getpid()}', f'"pid": {2**22 + 1}'))
        Path(task.leases, "unread.alive").touch()
        leases, dead = leases_and_dead(task)
        assert {one["allocation"]: one["state"] for one in leases} == {"a": "working", "c": "dead"}
        assert dead == {"c": 0.0, "cleared": QUIET}
    shutil.rmtree(task.leases)
    assert leases_and_dead(task) == ([], {}), "nobody has a file"


def test_a_killed_one_is_not_alive_again_once_its_file_is_cleared_away(tmp_path: Path) -> None:
    """A minute's work of two allocations: the one that is left ends before the other's last word is old."""
    task = sample_task(tmp_path)
    journal = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 6000)
    journal.note("joined", time=BEGIN + 6000, droid=1, host="n1", workers=4, startup=1.0)
    journal.flush()

    def state(after: float) -> str:
        return str(status(task, BEGIN + 6000 + after)["allocations"][-1]["state"])

    with beating(task, "3"):
        assert state(QUIET + 1) == "alive"
    assert state(QUIET + 1) == "killed"
    assert state(QUIET - 1) == "alive", "the folder we see may be an old one"


def test_one_that_died_before_any_droid_was_there_is_not_alive(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    began = BEGIN + 6000
    JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=began, started=began).flush()
    with beating(task, "3"):
        assert status(task, began + QUIET + 1)["allocations"][-1]["state"] == "alive"
    assert status(task, began + QUIET + 1)["allocations"][-1]["state"] == "none"
