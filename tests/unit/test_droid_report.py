"""A report that comes too early is held back, and the loop knows until when; nothing waits for the next tick."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import pytest
from lines import Lines

from droid.rank import REPORT_GAP, DroidShell, Options
from droid.slots import Slots
from droid.store import MOMENT
from eventrange import messages, records
from eventrange.taskdir import TaskDir


def test_a_held_back_report_says_when_it_is_due(tmp_path: Path) -> None:
    here, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lines: Any = Lines()
    with here, zygote:
        shell = DroidShell(lines, TaskDir(str(tmp_path)), Options(1), here, Slots(1), str(tmp_path), 0.0)
        assert shell._report(1000.0) == math.inf  # Yoda has not said who we are
        shell._message(messages.Welcome({"name": "t", "axis": {"files": []}}, "a"))
        shell.notes.append({"note": "first"})
        assert shell._report(1000.0) == math.inf and len(lines.sent) == 1
        shell.notes.append({"note": "second"})
        assert shell._report(1000.0 + REPORT_GAP / 4) == pytest.approx(0.75 * REPORT_GAP) and len(lines.sent) == 1
        assert shell._report(1000.0 + 2 * REPORT_GAP) == math.inf and len(lines.sent) == 2
        assert lines.sent[-1].notes == [{"note": "second"}]
        assert shell.store is not None
        shell.store.close()


@pytest.mark.parametrize("idle", [False, True])
def test_more_is_asked_for_together_with_what_is_being_made_durable_unless_somebody_waits(
    tmp_path: Path, idle: bool
) -> None:
    here, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lines: Any = Lines()
    with here, zygote:
        shell = DroidShell(lines, TaskDir(str(tmp_path)), Options(3), here, Slots(3), str(tmp_path), 0.0)
        shell._message(messages.Welcome({"name": "t", "axis": {"files": []}}, "a"))
        shell._report(1000.0)
        assert shell.store is not None
        for worker in shell.core.workers:
            worker.state = "ready"
            if not idle:
                worker.given.append((0, 1, 0))
        if not idle:
            shell.core.holding.backlog.append((1, 2, 0))
        shell.store._syncing.append((records.new(1), 1000.9))  # which takes a while
        shell.store._syncer._took = MOMENT / 20
        before = len(lines.sent)
        wait = shell._report(1001.0 + MOMENT / 4)
        if idle:
            assert lines.sent[-1].want > 0 and wait == math.inf
        else:
            assert len(lines.sent) == before and wait == pytest.approx(MOMENT)
            assert shell._report(1001.0 + 2 * MOMENT) == math.inf  # it takes too long
            assert lines.sent[-1].want > 0
        shell.store._syncing.clear()
        shell.store.close()


def test_nobody_waits_for_a_sync_that_takes_long(tmp_path: Path) -> None:
    here, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lines: Any = Lines()
    with here, zygote:
        shell = DroidShell(lines, TaskDir(str(tmp_path)), Options(3), here, Slots(3), str(tmp_path), 0.0)
        shell._message(messages.Welcome({"name": "t", "axis": {"files": []}}, "a"))
        assert shell.store is not None
        for worker in shell.core.workers:
            worker.state = "ready"
            worker.given.append((0, 1, 0))
        shell.core.holding.backlog.append((1, 2, 0))
        shell.store._syncing.append((records.new(1), 1000.0))
        shell.store._syncer._took = 2 * MOMENT
        assert shell._report(1001.0) == math.inf and lines.sent[-1].want > 0
        shell.store._syncing.clear()
        shell.store.close()
