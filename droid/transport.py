"""Messages over MPI, for the two shells. Nothing here ever blocks.

A blocking receive burns a core in every MPI, so both shells probe with back-off while they wait for other things, and
seldom where all they hear from are on their node and ring (bell.py). Sends are immediate and kept until MPI has taken
them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from droid.bell import Bell, bell, meet

TAG = 1
RUNG = 1.0  #: seconds between probes where whoever sends rings, in case one is not heard
SENDING = 0.005  #: and at most, while a message is not taken
_LATE = 1  #: rings still to come for messages that are here, at most; more are lost
WITHIN = (
    2048  #: bytes that lie in the memory two ranks of a node share as soon as they are sent, with every MPI we know
)
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
        self.bell: Bell | None = None
        self._rung = False  # whether `bell` is rung for every message to this rank, so that it need not probe
        self._owed = 0  # rings for which no message was found yet; less than none: the message was first
        self._pause = 0.0
        self._heard: set[int] = set()  # ranks of which a message has come: the way there is made
        self._searching = False  # for a message that was rung for, since the last ring
        self._late = False  # one was not there when we heard the ring: short messages take their time here

    def neighbours(self, seconds: float = 120.0) -> int:
        """Meet the other ranks of this node; how many Droids there may use the same cores as this one, itself included.
        Collective: every rank calls it right after MPI has started; ends this process if one does not within
        `seconds`."""
        with _limited(seconds):
            self.bell = bell()
            sharing, self._rung = meet(self._mpi, self.comm, self.bell)
        return sharing

    def send(self, rank: int, data: bytes) -> None:
        """Send `data`; a rank that is dead gets nothing and that is no error here: `failed` will tell."""
        if rank in self.gone:
            return
        try:
            request = self.comm.Isend([data, self._mpi.BYTE], rank, TAG)
        except self._mpi.Exception:
            self._look()
            return
        if not self._tested(request):
            self._sending.append((rank, request, data))
        self._ring(rank)
        if len(self._sending) >= self._sweep_at:  # a shell that is never idle does not ask for `sending`
            self._sweep_at = KEPT + 2 * self._unfinished()

    def _ring(self, rank: int) -> None:
        if self.bell is not None:
            self.bell.ring(rank)

    def receive(self) -> tuple[int, bytearray] | None:
        """The next message as (rank, data), or None if none is there."""
        try:
            # Open MPI first looks at what it has and only then at what has arrived: the second look finds that.
            if not self._probe() and not self._probe():
                return None
            source = self._status.Get_source()
            data = bytearray(self._status.Get_count(self._mpi.BYTE))
            self.comm.Recv([data, self._mpi.BYTE], source, TAG)
            self._owed -= 1
            self._heard.add(source)
            self._late = self._late or self._searching
            return source, data
        except self._mpi.Exception:
            self._look()
            return None

    def _probe(self) -> bool:
        return bool(self.comm.Iprobe(self._mpi.ANY_SOURCE, TAG, self._status))

    def hush(self) -> None:
        """`bell` is readable: forget what rang."""
        if self.bell is not None:
            self._owed += self.bell.hush()
            self._searching = False

    def pause(self, moved: bool, first: float, last: float) -> float:
        """Seconds until the next `receive`, if nothing rings before: from `first`, when something has `moved`, doubling
        to `last`; RUNG where rings can be relied on and none is without its message."""
        if self._needed():  # one that is suspended should not keep us at it
            self._pause = first if moved or self._pause > SENDING else min(max(first, 2 * self._pause), SENDING)
        elif not self._rung:
            self._pause = first if moved else min(max(first, 2 * self._pause), last)
        elif self._owed > 0 and (again := first if moved or self._pause >= RUNG else 2 * self._pause) <= last:
            self._pause, self._searching = again, True
        else:  # a ring too many is forgotten, as is one that got lost
            self._searching = False
            self._owed, self._pause = max(min(self._owed, 0), -_LATE), RUNG
        return self._pause

    @property
    def sending(self) -> bool:
        """Whether sends are not finished; finishes those it can."""
        return self._unfinished() > 0

    def _needed(self) -> bool:
        """Whether the other side of a send waits for us to go on; finishes those it can."""
        return self.sending and any(self._waited_for(rank, data) for rank, _, data in self._sending)

    def _waited_for(self, rank: int, data: bytes) -> bool:
        """Whether a send that MPI has not finished may need us. A short one to a rank whose memory we share was there
        when we rang; MPI only waits to hear that it was taken."""
        if len(data) > WITHIN or self._late or rank not in self._heard:
            return True
        return self.bell is None or not self.bell.reaches(rank)

    def _unfinished(self) -> int:
        """How many sends MPI has not taken; forgets the others."""
        kept = []
        for rank, request, data in self._sending:
            if rank not in self.gone:
                if self._tested(request):
                    if self._waited_for(rank, data):
                        self._ring(rank)
                else:
                    kept.append((rank, request, data))
        self._sending = kept
        return len(kept)

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
