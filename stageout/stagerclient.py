"""The parent's end of the stage-out process: starts it, talks to it without ever waiting for it.

Start it before MPI: it is a forked program, and after MPI_Init there must be no fork. Commands that do not fit into the
pipe are kept and go out with the next `send` or `flush`; reports are whatever has arrived. `fileno` is for `select`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import IO

import msgspec

from eventrange.errors import StagerGone
from stageout import protocol


class StagerProcess:
    """A running stage-out process."""

    def __init__(self, start: protocol.Start | None = None, stderr: int | IO[bytes] | None = None) -> None:
        """`start` is its first command; where it is not known yet, `send` it later, before any other."""
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stageout.stager", "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._in.fileno(), False)
        os.set_blocking(self._out.fileno(), False)
        self._unsent = bytearray()
        self._line = b""
        self.ended = False  # no more reports will come
        if start is not None:
            self.send(start)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Readable when there are reports."""
        return self._out.fileno()

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
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ValueError):
            while self._unsent:
                del self._unsent[: os.write(self._in.fileno(), self._unsent[: 1 << 16])]

    def receive(self) -> list[protocol.AnyReport]:
        """The reports that have arrived. Raises StagerGone when the process died without saying `Ended`."""
        self.flush()
        reports: list[protocol.AnyReport] = []
        gone = False
        while not gone:
            try:
                data = os.read(self._out.fileno(), 1 << 16)
            except BlockingIOError:
                break
            gone = not data
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                try:
                    reports.append(protocol.decode_report(line))
                except (msgspec.DecodeError, msgspec.ValidationError) as error:
                    raise StagerGone(detail=f"it said something that is no report: {error}") from None
        if any(isinstance(report, protocol.Ended) for report in reports):
            self.ended = True
        if gone and not reports and not self.ended:
            self.ended = True
            raise StagerGone(detail=f"exit status {self._process.wait()}")
        return reports

    def close(self, timeout: float = 10.0) -> None:
        """End of its stdin: it breaks off and goes; killed when it does not."""
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
