"""Sends that MPI has taken are forgotten, also by a shell that is so busy that it never asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from droid.transport import KEPT, Transport


class Request:
    """Taken by MPI as soon as somebody asks, unless `stuck`; counts how often that is."""

    asked = 0

    def __init__(self, stuck: bool) -> None:
        self.stuck = stuck

    def Test(self) -> bool:
        Request.asked += 1
        return not self.stuck


class Comm:
    """Two ranks; every `nth` send is not taken."""

    def __init__(self, nth: int) -> None:
        self.nth, self.sends = nth, 0

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 2

    def Set_errhandler(self, handler: Any) -> None: ...

    def Isend(self, what: Any, rank: int, tag: int) -> Request:
        self.sends += 1
        return Request(self.sends % self.nth == 0)


def transport(nth: int) -> Transport:
    mpi = SimpleNamespace(ERRORS_RETURN=0, Status=lambda: None, BYTE=0, Exception=RuntimeError)
    return Transport(mpi, Comm(nth))


def test_finished_sends_are_not_kept() -> None:
    t = transport(10**9)
    for _ in range(20 * KEPT):
        t.send(1, b"x")
    assert len(t._sending) < 2 * KEPT


def test_unfinished_sends_are_kept_and_not_asked_for_at_every_send() -> None:
    t = transport(2)
    Request.asked = 0
    for _ in range(20 * KEPT):
        t.send(1, b"x")
    assert sum(request.stuck for _, request, _ in t._sending) == 10 * KEPT
    assert Request.asked < 20 * 20 * KEPT
    assert t.sending
