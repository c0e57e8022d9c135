"""What starting costs: no threads for numpy, and no numpy at all in a launcher that has nothing to fold."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import eventrange.entry
from eventrange.journal import JournalWriter
from eventrange.taskdir import TaskDir
from yoda.merge_notes import PULSE, MergeNotes
from yoda.prepared import may_be_finished

_HELP = """
import os, runpy, sys
sys.argv = ["yoda", "run", "--help"]
try:
    runpy.run_path({entry!r}, run_name="__main__")
except SystemExit:
    pass
import yoda.launch, yoda.prepared
print("numpy" in sys.modules, os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"])
import numpy
print(len(os.listdir("/proc/self/task")))
"""


def _run(**environ: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name not in eventrange.entry.ONE_THREAD}
    code = _HELP.format(entry=os.path.abspath(eventrange.entry.__file__))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**kept, **environ}
    )
    return done.stdout.splitlines()[-2:]


def test_one_thread_and_no_numpy() -> None:
    assert _run() == ["False 1 1", "1"]


def test_what_the_user_says_of_threads_counts() -> None:
    assert _run(OMP_NUM_THREADS="3")[0] == "False 1 3"


def test_only_an_allocation_that_said_so_can_have_finished(tmp_path: Path) -> None:
    taskdir = TaskDir(str(tmp_path))
    assert not may_be_finished(taskdir)
    taskdir.make()
    _journal(taskdir, "a", "end", done=9, quarantined=1, total=10)
    _journal(taskdir, "b", "pulse")
    assert may_be_finished(taskdir)
    os.unlink(taskdir.journal("a"))
    assert not may_be_finished(taskdir)


def test_one_that_was_drained_has_not(tmp_path: Path) -> None:
    taskdir = TaskDir(str(tmp_path))
    taskdir.make()
    _journal(taskdir, "a", "end", reason='"SIGTERM"', exit_code=75, done=8, quarantined=1, total=10)
    assert not may_be_finished(taskdir)
    _journal(taskdir, "b", "end", reason="complete", exit_code=0, done=10, quarantined=0, total=10)
    _journal(taskdir, "c", "end", reason="SIGTERM", exit_code=75, done=9, quarantined=0, total=10)
    assert may_be_finished(taskdir)


def test_one_whose_merge_took_long_can_have(tmp_path: Path) -> None:
    taskdir = TaskDir(str(tmp_path))
    taskdir.make()
    _journal(taskdir, "a", "end", done=10, quarantined=0, total=10)
    journal = JournalWriter(taskdir.journal("b"), "f" * 64, "b")
    notes = MergeNotes(journal, count(1e9, PULSE).__next__)
    with notes:
        for done in range(1000):
            notes.progress(done, 1000)
    os.unlink(taskdir.journal("a"))
    assert may_be_finished(taskdir)


def test_what_is_no_journal_is_passed_over(tmp_path: Path) -> None:
    taskdir = TaskDir(str(tmp_path))
    taskdir.make()
    os.mkfifo(taskdir.journal("zz"))
    os.mkdir(taskdir.journal("yy"))
    assert not may_be_finished(taskdir)
    _journal(taskdir, "a", "end", done=10, quarantined=0, total=10)
    assert may_be_finished(taskdir)
    os.rename(taskdir.journals, tmp_path / "elsewhere")
    Path(taskdir.journals).touch()
    assert not may_be_finished(taskdir)


def _journal(taskdir: TaskDir, name: str, last: str, **values: Any) -> None:
    journal = JournalWriter(taskdir.journal(name), "f" * 64, name)
    journal.note("joined", text="x" * 10_000)
    journal.note(last, time=1.0, **values)
    journal.flush()
    journal.file.close()
