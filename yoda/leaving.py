"""How rank 0 ends all ranks, whatever state they are in.

`MPI_Finalize` waits for every rank, so it is only for when all are there. Otherwise the job is aborted. One case needs
care (measured, Open MPI 5.0.11): with fault tolerance an abort with code 0 ends nobody. There the ranks that listen are
told to leave without MPI, and what is left on this node is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from yoda.master import MasterShell

FINALIZE = 20.0  #: seconds MPI_Finalize may take before some rank is believed stuck in it, or stopped
LEAVE = 5.0  #: seconds ranks have to leave on their own


def leave(mpi: Any, shell: MasterShell | None, code: int, environ: Mapping[str, str], code_counts: bool) -> None:
    """End all ranks, this one's MPI included; returns only when MPI was finalized in good order.

    `shell` is None if the run failed before or in its loop. `code_counts` says that the launcher's exit status is what
    the user sees; it is not where a file carries the code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if shell is not None and shell.together:
        shell.stop(together=True)
        watchdog = threading.Timer(FINALIZE, _abandon, (shell, code))
        watchdog.daemon = True
        watchdog.start()
        mpi.Finalize()
        watchdog.cancel()
        return
    if shell is not None and environ.get("OMPI_MCA_mpi_ft_enable") in ("1", "true"):
        shell.stop(together=False)
        if _gone(shell, LEAVE) and code_counts and code == 0:
            os._exit(0)
    mpi.COMM_WORLD.Abort(code if code or code_counts else 1)


def _abandon(shell: MasterShell, code: int) -> None:
    """A rank did not come to MPI_Finalize: end without."""
    _gone(shell, 0.0)
    os._exit(code)


def _gone(shell: MasterShell, seconds: float) -> bool:
    """Wait until every Droid of this node has ended, then kill those that have not; whether there were only such."""
    here = socket.gethostname()
    left = {pid for rank, (host, pid) in shell.processes.items() if host == here and rank not in shell.transport.gone}
    until = time.monotonic() + seconds
    while (left := {pid for pid in left if _is_droid(pid)}) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(shell.processes) == shell.transport.size - 1 and all(h == here for h, _ in shell.processes.values())


def _is_droid(pid: int) -> bool:
    """Whether process `pid` is alive and runs the same program as we do: a process id alone may be somebody else's by
    now."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as theirs, open("/proc/self/cmdline", "rb") as ours:
            return theirs.read() == ours.read()
    except OSError:
        return False
