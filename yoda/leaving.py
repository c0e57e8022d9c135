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
import time
from collections.abc import Mapping
from typing import Any

from yoda.master import MasterShell

MEET = 10.0  #: seconds all ranks have to come to the end before one is believed stuck, or stopped
FINALIZE = 60  #: seconds MPI_Finalize may take
LEAVE = 5.0  #: seconds ranks have to leave on their own


def leave(mpi: Any, shell: MasterShell | None, code: int, environ: Mapping[str, str], code_counts: bool) -> None:
    """End all ranks, this one's MPI included; returns only when MPI was finalized in good order.

    `shell` is None if the run failed before or in its loop. `code_counts` says that the launcher's exit status is what
    the user sees; it is not where a file carries the code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    fault_tolerant = environ.get("OMPI_MCA_mpi_ft_enable") in ("1", "true")
    if shell is not None:
        together = shell.together
        if together or fault_tolerant:  # elsewhere a rank that leaves ends the job, and with it our exit code
            shell.stop(together)
        if together and shell.transport.meet(MEET):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(FINALIZE)  # MPI_Finalize lets no Python run, so only the kernel can end one that does not end
            mpi.Finalize()
            signal.alarm(0)
            return
        if fault_tolerant and _gone(shell, 0.0 if together else LEAVE) and code_counts and code == 0:
            os._exit(0)
    mpi.COMM_WORLD.Abort(code if code or code_counts else 1)


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
