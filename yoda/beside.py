"""Beside a run: a process that stages out what earlier allocations left, started by rank 0 before MPI (L11).

It is `yoda stageout` with nobody waiting for it: low priority, a journal of its own, and it dies with rank 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yoda.frozen import Frozen
    from yoda.setting import Setting


class Beside:
    """The process, if there is one."""

    def __init__(self, process: subprocess.Popen[bytes] | None = None) -> None:
        self.process = process

    def wait(self, seconds: float) -> None:
        """Let it finish; it ends by itself when storage takes nothing."""
        if self.process is not None:
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass

    def end(self) -> None:
        """Break it off, if it still runs: everything it has not noted is done again by the next one."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def stage_out_rest(setting: Setting, frozen: Frozen) -> None:
    """A finished task is run again: nothing is left to do but what storage did not take then."""
    if not setting.site.stageout:
        return
    from yoda.stageout import stage_out

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    done = stage_out(setting.taskdir, frozen.task, frozen.fingerprint, None, site=setting.site, say=say)
    if done.left:
        say(f"{done.left} segments are not staged: `yoda stageout {setting.taskdir.root}` tries again")


@contextmanager
def beside(setting: Setting, log: str) -> Iterator[Beside]:
    """Start it where the site has endpoints and there were allocations before; `log` is the file for what it says."""
    if not setting.site.stageout or not setting.taskdir.allocations():
        yield Beside()
        return
    import eventrange.entry

    words = [sys.executable, os.path.abspath(eventrange.entry.__file__), "stageout", setting.taskdir.root]
    if setting.request.site is not None:
        words += ["--site", setting.request.site]
    for value in setting.request.sets:
        words += ["--set", value]
    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [*words, "--beside", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # signals to the job are no business of it
        )
    found = Beside(process)
    try:
        yield found
    finally:
        found.end()
