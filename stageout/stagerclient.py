"""The parent's end of the stage-out process: starts it, talks to it without ever waiting for it.

A parent that has MPI may not fork: it starts the process before MPI, and later ones through somebody who may (`Spawn`).
Commands that do not fit into the pipe are kept and go out with the next `send` or `flush`; reports are whatever has
arrived. `fileno` is for `select`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO

import msgspec

from eventrange.errors import StagerGone
from stageout import protocol

#: Start a program (words, additions to the environment, stdin, stdout and stderr); False: that cannot be done now.
Spawn = Callable[[list[str], dict[str, str], tuple[int, int, int]], bool]


class StagerProcess:
    """A running stage-out process."""

    def __init__(
        self,
        start: protocol.Start | None = None,
        stderr: int | IO[bytes] | None = None,
        spawn: Spawn | None = None,
    ) -> None:
        """`start` is its first command; where it is not known yet, `send` it later, before any other. Without `spawn`
        the process is our child. Raises StagerGone when `spawn` refuses."""
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        environment = {"PYTHONPATH": os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])}
        words = [sys.executable, "-m", "stageout.stager"]
        error = 2 if stderr is None else stderr if isinstance(stderr, int) else stderr.fileno()
        theirs_in, self._in = os.pipe()
        self._out, theirs_out = os.pipe()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._child: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._unsent = bytearray()
        self._line = b""
        self._open = True  # its end of the reports, so it lives
        self._closed = False
        self.ended = False  # no more reports will come
        try:
            if spawn is None:
                words += ["--parent", str(os.getpid())]
                self._child = subprocess.Popen(
                    words, stdin=theirs_in, stdout=theirs_out, stderr=error, env={**os.environ, **environment}
                )
                self._pid = self._child.pid
            elif not spawn(words, environment, (theirs_in, theirs_out, error)):
                raise StagerGone(detail="it cannot be started now")
        except BaseException:
            os.close(self._in)
            os.close(self._out)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        if start is not None:
            self.send(start)

    @property
    def pid(self) -> int:
        """Its process id; 0 as long as somebody else's child has not said it."""
        return self._pid

    def fileno(self) -> int:
        """Readable when there are reports."""
        return self._out

    @property
    def unsent(self) -> int:
        """Bytes of commands that the process has not taken yet; call `flush` now and then while there are any."""
        return len(self._unsent)

    def send(self, command: protocol.Command) -> None:
        """Give a command. Never waits, never raises: a dead process is noticed by `receive`."""
        self._unsent += protocol.encode(command)
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent and not self._closed:
                del self._unsent[: os.write(self._in, self._unsent[: 1 << 16])]

    def receive(self) -> list[protocol.AnyReport]:
        """The reports that have arrived. Raises StagerGone when the process died without saying `Ended`."""
        self.flush()
        reports: list[protocol.AnyReport] = []
        while self._open:
            try:
                data = os.read(self._out, 1 << 16)
            except BlockingIOError:
                break
            self._open = bool(data)
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                try:
                    reports.append(protocol.decode_report(line))
                except (msgspec.DecodeError, msgspec.ValidationError) as error:
                    raise StagerGone(detail=f"it said something that is no report: {error}") from None
        for report in reports:
            if isinstance(report, protocol.Ready):
                self._pid = report.pid
            elif isinstance(report, protocol.Ended):
                self.ended = True
        if not self._open and not reports and not self.ended:
            self.ended = True
            raise StagerGone(detail=f"exit status {self._child.wait()}" if self._child else "it was killed or crashed")
        return reports

    def close(self, timeout: float = 10.0) -> None:
        """End of its stdin: it breaks off and goes; killed when it does not within `timeout` seconds."""
        if self._closed:
            return
        self._closed = True
        os.close(self._in)
        if self._child is not None:
            try:
                self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        elif self._open and not self._silent(timeout) and self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        os.close(self._out)

    def _silent(self, timeout: float) -> bool:
        """Wait for the end of the reports of a process that is not our child."""
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            if select.select([self._out], [], [], left)[0]:
                with contextlib.suppress(BlockingIOError):
                    if not os.read(self._out, 1 << 16):
                        return True
        return False
