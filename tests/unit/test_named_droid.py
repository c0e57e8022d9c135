"""A Droid on whose node the list of named ranges cannot be read is sick, says why, and starts nothing."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from lines import Lines

from droid.rank import DroidShell, Options
from droid.slots import Slots
from eventrange import messages
from eventrange.errors import BAD_CONFIG
from eventrange.taskdir import TaskDir


def test_without_the_list_there_is_no_work(tmp_path: Path) -> None:
    here, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lines: Any = Lines()
    said: list[str] = []
    with here, zygote:
        shell = DroidShell(
            lines, TaskDir(str(tmp_path)), Options(1), here, Slots(1), str(tmp_path), 0.0, log=said.append
        )
        files = [{"path": "generate", "events": 2, "holds": 5}]
        ranges = {"path": str(tmp_path / "ranges.bin"), "count": 1, "sha256": "x"}
        task = {"name": "t", "axis": {"files": files, "ranges": ranges}}
        shell._message(messages.Welcome(task, "a"))
        shell.crew.ready = True
        shell._start_workers()
        shell._report(1.0)
        assert not shell._started
        zygote.setblocking(False)
    sick = [message for message in lines.sent if isinstance(message, messages.Sick)]
    assert len(sick) == 1 and sick[0].exit_code == BAD_CONFIG and "ranges.bin is damaged" in sick[0].reason
    assert "can do no work" in said[0]
