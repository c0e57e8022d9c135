"""Ranks of one node wake each other.

MPI has nothing to sleep on, so a loop that waits for messages must probe, which costs a core that belongs to payloads a
tenth of a millisecond each time, and a message its wait for the next probe. Ranks of one node can do better: who has
sent something rings, and who hears everybody it has to do with sleeps until then. Nothing but time depends on it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

_FULL = 64  #: rings taken at most at a time


class Bell:
    """A datagram socket with a name the kernel chose and forgets with us."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind("")
        self.address: bytes = self._socket.getsockname()
        self._others: dict[int, bytes] = {}

    def fileno(self) -> int:
        return self._socket.fileno()

    def know(self, others: dict[int, bytes]) -> None:
        """Ranks that hear a ring, with their addresses."""
        self._others = others

    def reaches(self, rank: int) -> bool:
        """Whether `rank` can be woken."""
        return rank in self._others

    def ring(self, rank: int) -> None:
        """Wake `rank`, if it is one that can be woken."""
        address = self._others.get(rank)
        if address is not None:
            with contextlib.suppress(OSError):  # full: it is awake; refused: it is gone, as MPI will say
                self._socket.sendto(b"!", address)

    def hush(self) -> int:
        """Forget what rang; how often it did."""
        rings = 0
        with contextlib.suppress(OSError):
            while rings < _FULL:
                self._socket.recv(1)
                rings += 1
        return rings

    def close(self) -> None:
        self._socket.close()


def bell() -> Bell | None:
    """One, or None where the system has none to give."""
    try:
        return Bell()
    except OSError:
        return None


def meet(mpi: Any, comm: Any, bell: Bell | None) -> tuple[int, bool]:
    """(Droids of this node that may use the same cores as this rank, itself included; whether our bell is rung for
    everything this rank ever hears: by Yoda, or for Yoda by all Droids).

    Collective: every rank calls it right after MPI has started. Containers on one node may hear nothing of each other;
    so rank 0 rings, and whoever hears it is heard by it.
    """
    mine = tuple(sorted(os.sched_getaffinity(0)))
    node = comm.Split_type(mpi.COMM_TYPE_SHARED)
    rank = comm.Get_rank()
    here = node.allgather((rank, mine, bell.address if bell is not None else b""))
    masks, addresses = {r: mask for r, mask, _ in here}, {r: address for r, _, address in here}
    if rank == 0 and bell is not None:
        bell.know({other: address for other, address in addresses.items() if other and address})
        for other in addresses:
            bell.ring(other)
    node.Barrier()
    hearing = {other for other in node.allgather(rank if bell is not None and bell.hush() else 0) if other}
    node.Free()
    sharing = sum(1 for other, mask in masks.items() if other > 0 and mask == mine)
    if rank:
        hearing = {0} if rank in hearing else set()
    if bell is not None:
        bell.know({other: addresses[other] for other in hearing})
    return max(1, sharing), len(hearing) == (1 if rank else comm.Get_size() - 1)
