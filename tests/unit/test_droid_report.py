"""A report that comes too early is held back, and the loop knows until when; nothing waits for the next tick."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from lines import Lines

from droid.rank import REPORT_GAP, SEEN, UNSEEN, DroidShell, Options
from droid.slots import Slots
from droid.store import MOMENT, Choices
from eventrange import messages, records
from eventrange.taskdir import TaskDir


@contextmanager
def droid(folder: Path, workers: int) -> Iterator[tuple[DroidShell, Any]]:
    """A Droid's shell that has not heard from Yoda yet, and the Lines it has to it."""
    here, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lines: Any = Lines()
    with here, zygote:
        shell = DroidShell(lines, TaskDir(str(folder)), Options(workers), here, Slots(workers), str(folder), 0.0)
        yield shell, lines
        if shell.store is not None:
            shell.store._syncing.clear()
            shell.store.close()


def welcome(shell: DroidShell) -> None:
    shell._message(messages.Welcome({"name": "t", "axis": {"files": []}}, "a"))


def syncs(shell: DroidShell, took: float) -> None:
    """Its workers are ready, and a row is on its way to the disk, for which it `took` so long before."""
    assert shell.store is not None
    for worker in shell.core.workers:
        worker.state = "ready"
    shell.store._syncing.append((records.new(1), 1000.0, cast(Any, None)))
    shell.store._syncer._took = took


def give(shell: DroidShell) -> None:
    """Something to each worker, and to the backlog."""
    for worker in shell.core.workers:
        worker.given.append((0, 1, 0))
    shell.core.holding.backlog.append((1, 2, 0))


def test_a_held_back_report_says_when_it_is_due(tmp_path: Path) -> None:
    with droid(tmp_path, 1) as (shell, lines):
        assert shell._report(1000.0) == math.inf  # Yoda has not said who we are
        welcome(shell)
        shell.notes.append({"note": "first"})
        assert shell._report(1000.0) == math.inf and len(lines.sent) == 1
        shell.notes.append({"note": "second"})
        assert shell._report(1000.0 + REPORT_GAP / 4) == pytest.approx(0.75 * REPORT_GAP) and len(lines.sent) == 1
        assert shell._report(1000.0 + 2 * REPORT_GAP) == math.inf and len(lines.sent) == 2
        assert lines.sent[-1].notes == [{"note": "second"}]


def test_who_has_work_asks_for_more_together_with_what_is_being_made_durable(tmp_path: Path) -> None:
    with droid(tmp_path, 3) as (shell, lines):
        welcome(shell)
        shell._report(1000.0)
        syncs(shell, took=MOMENT / 20)
        give(shell)
        before = len(lines.sent)
        wait = shell._report(1001.0 + MOMENT / 4)
        assert len(lines.sent) == before and wait == pytest.approx(MOMENT)
        assert shell._report(1001.0 + 2 * MOMENT) == math.inf  # it takes too long
        assert lines.sent[-1].want > 0


def test_who_has_nothing_asks_at_once(tmp_path: Path) -> None:
    with droid(tmp_path, 3) as (shell, lines):
        welcome(shell)
        shell._report(1000.0)
        syncs(shell, took=MOMENT / 20)
        wait = shell._report(1001.0 + MOMENT / 4)
        assert lines.sent[-1].want > 0 and wait == math.inf


def test_nobody_waits_for_a_sync_that_takes_long(tmp_path: Path) -> None:
    with droid(tmp_path, 3) as (shell, lines):
        welcome(shell)
        syncs(shell, took=2 * MOMENT)
        give(shell)
        assert shell._report(1001.0) == math.inf and lines.sent[-1].want > 0


def test_results_that_no_worker_rings_for_are_looked_for(tmp_path: Path) -> None:
    with droid(tmp_path, 2) as (shell, _):
        holding = shell.core.holding
        holding.unseen = 0.1
        assert shell._unheard(0.1) == math.inf, "they ring for everything"
        holding.far = True
        assert shell._unheard(0.1) == math.inf, "nobody is at work"
        give(shell)
        assert shell._unheard(0.05) == pytest.approx(0.05)
        welcome(shell)
        shell._commit(1000.0)
        assert shell.store is not None
        assert holding.unseen == shell.store.spacing > 0.1, "as often as they are made durable"
        shell.store.choices = Choices(commit_seconds=60.0, commit_least=9.0)
        shell._commit(1000.0)
        assert holding.unseen == UNSEEN < shell.store.spacing, "but soon"
        shell.store.choices, shell.store._syncer._took = Choices(), 1e-6
        shell._commit(1000.0)
        assert holding.unseen == SEEN > shell.store.spacing, "but not without a pause"
        holding.far, holding.unseen = False, 0.1
        assert shell._unheard(0.05) == math.inf
        shell.core.workers[0].given.append((10**6, 10**6 + 1, 0))
        assert shell._unheard(0.05) == pytest.approx(0.05), "it had more when it was far, and does not ring"


def test_who_has_nothing_to_tell_does_not_wake_up_for_it(tmp_path: Path) -> None:
    with droid(tmp_path, 1) as (shell, lines):
        welcome(shell)
        shell.notes.append({"note": "first"})
        shell._report(1000.0)
        assert len(lines.sent) == 1
        assert shell._report(1000.0 + REPORT_GAP / 4) == math.inf
        shell.core.workers[0].state = "ready"  # it has no work
        assert shell._report(1000.0 + REPORT_GAP / 4) == pytest.approx(0.75 * REPORT_GAP)
