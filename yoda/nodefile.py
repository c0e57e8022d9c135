"""Shell of nodes.py: the breaker file is read when a run starts and written when a node went on or off.

Who is to be told that a node is off for good is told by a process of its own, started before MPI (L11) and only where
the site names somebody; it waits on a pipe and ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import msgspec

from stageout import breakerfile
from yoda.nodes import Nodes

if TYPE_CHECKING:
    from yoda.dispatcher import Instruction
    from yoda.setting import Setting

PATIENCE = 45.0  #: seconds for telling people at the end: longer than one alert may take


class NodeFile:
    """The nodes of a run, and their file. `alerts` takes one JSON object per line; None: nobody is to be told."""

    def __init__(self, setting: Setting, alerts: IO[bytes] | None = None) -> None:
        site = setting.site
        self._path, self._alerts = breakerfile.state_path(site.stageout_rules, setting.taskdir.root), alerts
        self._task = setting.job.task
        self.nodes = Nodes(site.node_breaker, breakerfile.load(self._path), time.time() - time.monotonic())

    def tick(self, now: float) -> list[Instruction]:
        """Save what has changed, and have people told. Gives no orders."""
        if self.nodes.changed:
            self.nodes.changed = False
            breakerfile.save(self._path, self.nodes.state)
        for change in self.nodes.alerts:
            told = {"node": change.key.partition(":")[2], "state": change.after, "reason": change.reason}
            self._tell({**told, "time": change.time, "task": self._task})
        self.nodes.alerts.clear()
        return []

    def _tell(self, what: dict[str, Any]) -> None:
        if self._alerts is not None:
            with contextlib.suppress(OSError):
                self._alerts.write(json.dumps(what).encode() + b"\n")
                self._alerts.flush()


@contextmanager
def alerts(setting: Setting) -> Iterator[IO[bytes] | None]:
    """The process that tells people, if there is somebody to tell; it gets the time it needs at the end."""
    rules = setting.site.stageout_rules
    if not rules.alert_command and rules.alert_url is None:
        yield None
        return
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "stageout.alert"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # signals to the job are no business of it
    )
    assert process.stdin is not None
    try:
        process.stdin.write(msgspec.json.encode(rules) + b"\n")
        process.stdin.flush()
        yield process.stdin
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
