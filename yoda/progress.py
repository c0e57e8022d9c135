"""The progress line of `yoda run` on a terminal, shown by the process that started the ranks.

Rank 0's stderr is a pipe of the launcher, so it cannot draw; this process has the terminal. It follows the journals
like any other onlooker and asks nobody. What the ranks print passes through here and appears above the line.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from eventrange.errors import YodaError

if TYPE_CHECKING:
    from yoda.live import Live

#: Set for the ranks while this line is shown: rank 0 then keeps its own progress lines to its log.
SHOWN = "YODA_PROGRESS_SHOWN"
SECONDS = 1.0  #: between two looks, at least
SHARE = 0.02  #: of one core that looking may cost


class Shown:
    """What the launcher has to start its child with, and the threads that look after what it prints."""

    def __init__(self, live: Live | None) -> None:
        self.live = live
        self.environment: dict[str, str] = {SHOWN: "1"} if live else {}
        self.pipes: dict[str, Any] = {}
        if live:
            self.pipes["stderr"] = subprocess.PIPE
            if sys.stdout.isatty():
                self.pipes["stdout"] = subprocess.PIPE
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._screen: Any = None

    def attach(self, child: subprocess.Popen[bytes]) -> None:
        """Begin: `child` runs."""
        if self.live is None:
            return
        from rich.console import Console
        from rich.live import Live as Screen

        self._screen = Screen("", console=Console(file=sys.stderr), auto_refresh=False, transient=True)
        self._screen.start()
        pipes = [pipe for pipe in (child.stderr, child.stdout) if pipe is not None]
        self._start(self._draw)
        for pipe in pipes:
            self._start(self._pass_on, pipe)

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _pass_on(self, pipe: IO[bytes]) -> None:
        from rich.text import Text

        with contextlib.suppress(OSError, ValueError):
            for line in io.TextIOWrapper(pipe, errors="replace"):
                self._screen.console.print(Text.from_ansi(line.rstrip("\r\n")), soft_wrap=True)

    def _draw(self) -> None:
        from rich.text import Text

        from yoda.watch import line

        pause = SECONDS
        while self.live is not None and not self._over.wait(pause):
            begun = time.thread_time()
            try:
                words = line(self.live.state(), self._screen.console.width - 1)
            except (OSError, YodaError):
                continue  # the task directory may be slow to answer; the next look will tell
            self._screen.update(Text(words, no_wrap=True, overflow="ellipsis"), refresh=True)
            pause = max(SECONDS, (time.thread_time() - begun) / SHARE)

    def close(self) -> None:
        """The child has ended: show the rest of what it printed, take the line away."""
        self._over.set()
        for thread in self._threads:
            thread.join(2.0)  # somebody may have been left behind who holds the pipe
        if self._screen is not None:
            self._screen.stop()


@contextlib.contextmanager
def shown(prepared: Any) -> Iterator[Shown]:
    """The line for a task (rank0.Prepared); nothing is shown where stderr is no terminal or cannot move its cursor."""
    terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    live = None
    if terminal:
        from yoda.live import Live

        frozen = prepared.frozen
        live = Live(prepared.setting.taskdir, frozen.task, frozen.fingerprint, prepared.axis)
    found = Shown(live)
    try:
        yield found
    finally:
        found.close()
