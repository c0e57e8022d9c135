"""Messages over MPI, for the two shells. Nothing here ever blocks.

A blocking receive burns a core in every MPI, so both shells probe with back-off while they wait for other things. Sends
are immediate and kept until MPI has taken them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

TAG = 1
KEPT = 256  #: sends kept at most before those that MPI has taken are looked for


class Transport:
    """All ranks of a communicator as mailboxes. `mpi` is the module mpi4py.MPI, imported by the shell when it may
    be."""

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi, self.comm = mpi, comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        comm.Set_errhandler(mpi.ERRORS_RETURN)
        self._status = mpi.Status()
        self._sending: list[tuple[int, Any, bytes]] = []
        self._sweep_at = KEPT
        self._known_failed = 0
        self._can_tell = True
        self.gone: set[int] = set()  #: ranks that MPI reports dead
        self._told: set[int] = set()  # those that `failed` has given

    def send(self, rank: int, data: bytes) -> None:
        """Send `data`; a rank that is dead gets nothing and that is no error here: `failed` will tell."""
        if rank in self.gone:
            return
        try:
            self._sending.append((rank, self.comm.Isend([data, self._mpi.BYTE], rank, TAG), data))
        except self._mpi.Exception:
            self._look()
        if len(self._sending) >= self._sweep_at:  # a shell that is never idle does not ask for `sending`
            self._sweep_at = KEPT + 2 * self._unfinished()

    def receive(self) -> tuple[int, bytearray] | None:
        """The next message as (rank, data), or None if none is there."""
        try:
            if not self.comm.Iprobe(self._mpi.ANY_SOURCE, TAG, self._status):
                return None
            source = self._status.Get_source()
            data = bytearray(self._status.Get_count(self._mpi.BYTE))
            self.comm.Recv([data, self._mpi.BYTE], source, TAG)
            return source, data
        except self._mpi.Exception:
            self._look()
            return None

    @property
    def sending(self) -> bool:
        """Whether sends are not finished; finishes those it can."""
        return self._unfinished() > 0

    def _unfinished(self) -> int:
        """How many sends MPI has not taken; forgets the others."""
        if self._sending:
            self._sending = [(r, q, d) for r, q, d in self._sending if r not in self.gone and not self._tested(q)]
        return len(self._sending)

    def failed(self) -> set[int]:
        """Ranks that died since the last call, where the MPI can tell (ULFM); else nothing, ever."""
        self._look()
        news = self.gone - self._told  # a probe or a send may have been the first to notice
        self._told |= news
        return news

    def meet(self, seconds: float) -> bool:
        """Whether all ranks call this within `seconds`. Only then is MPI_Finalize safe: it waits for all."""
        until = time.monotonic() + seconds
        try:
            request = self.comm.Ibarrier()
        except self._mpi.Exception:
            return False
        while not self._tested(request):
            if time.monotonic() > until or self.failed():
                return False
            time.sleep(0.002)
        self._look()
        return not self.gone

    def _tested(self, request: Any) -> bool:
        try:
            return bool(request.Test())
        except self._mpi.Exception:
            return True  # the other side is dead

    def _look(self) -> None:
        if not self._can_tell:
            return
        try:
            group = self.comm.Get_failed()
            if group.size > self._known_failed:
                self._known_failed = group.size
                world = self.comm.Get_group()
                self.gone |= set(self._mpi.Group.Translate_ranks(group, None, world))
                self.comm.Ack_failed(group.size)
        except (self._mpi.Exception, NotImplementedError):
            self._can_tell = False


def start_mpi(seconds: float) -> Any:
    """Start MPI and return mpi4py.MPI; ends this process (SIGALRM) if not all ranks have started within `seconds`.

    MPI_Init waits for every rank, lets no Python run meanwhile, and with a fault-tolerant Open MPI waits for ever if
    one was killed before it got there. So only the kernel can end this.
    """
    with _limited(seconds):
        from mpi4py import MPI
    return MPI


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(max(1, ceil(seconds)))
    try:
        yield
    finally:
        signal.alarm(0)


def sharing(mpi: Any, comm: Any, seconds: float = 120.0) -> int:
    """How many Droids of this node may use the same cores as this one, itself included. Collective: every rank calls it
    right after MPI has started; ends this process if one does not within `seconds`."""
    mine = tuple(sorted(os.sched_getaffinity(0)))
    with _limited(seconds):
        node = comm.Split_type(mpi.COMM_TYPE_SHARED)
        masks = node.allgather((comm.Get_rank(), mine))
        node.Free()
    return max(1, sum(1 for rank, mask in masks if rank > 0 and mask == mine))
