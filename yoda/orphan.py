"""Whether the `yoda run` that started our launcher is still there.

A launcher is told when it is not (launch.py), but MPICH's forgets a signal that comes before its ranks are connected;
the run would go on, and nobody would know of it. So rank 0 looks for itself.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping

STARTER = "YODA_STARTED_BY"  #: process id of the `yoda run` on this machine that started our launcher
GONE = "the command that started this run is gone"
DEAD = "the launcher is dead"
PARENT = os.getppid()  #: as this process begins: the launcher's process on this node, which may die while MPI starts


def orphaned(environ: Mapping[str, str]) -> Callable[[], bool]:
    """A function that says whether it is gone; never, where there is none or the kernel is too old to tell."""
    try:
        fd = os.pidfd_open(int(environ[STARTER]))
    except ProcessLookupError:
        return lambda: True
    except (KeyError, ValueError, AttributeError, OSError):
        return lambda: False
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return lambda: bool(poll.poll(0))
