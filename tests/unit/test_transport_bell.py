"""When a rank looks for messages: at once after a ring, seldom where all who send ring, with back-off elsewhere."""

from __future__ import annotations

import select
from types import SimpleNamespace
from typing import Any

from droid.bell import Bell, meet
from droid.transport import RUNG, SENDING, WITHIN, Transport

FIRST, LAST = 0.001, 0.02


class Comm:
    """Messages arrive when the test says so, and are seen at the second look, as with Open MPI."""

    def __init__(self) -> None:
        self.arrived, self.seen, self.stuck = 0, False, False

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 2

    def Set_errhandler(self, handler: Any) -> None: ...

    def Iprobe(self, source: int, tag: int, status: Any) -> bool:
        found = self.seen
        self.seen = self.arrived > 0
        return found

    def Recv(self, what: Any, source: int, tag: int) -> None:
        self.arrived -= 1
        self.seen = False

    def Isend(self, what: Any, rank: int, tag: int) -> Any:
        return SimpleNamespace(Test=lambda: not self.stuck)


def transport(rung: bool) -> tuple[Transport, Comm, Bell]:
    status = SimpleNamespace(Get_source=lambda: 1, Get_count=lambda kind: 0)
    mpi = SimpleNamespace(ERRORS_RETURN=0, Status=lambda: status, BYTE=0, ANY_SOURCE=-1, Exception=RuntimeError)
    comm = Comm()
    made = Transport(mpi, comm)
    made.bell, made._rung = Bell(), rung
    other = Bell()
    other.know({0: made.bell.address})
    return made, comm, other


def test_a_ring_wakes_and_is_forgotten() -> None:
    ours, _, theirs = transport(rung=True)
    assert ours.bell is not None
    poll = select.poll()
    poll.register(ours.bell, select.POLLIN)
    assert not poll.poll(0)
    theirs.ring(0)
    assert poll.poll(5000)
    ours.hush()
    assert not poll.poll(0)


def test_what_arrived_is_found_at_the_first_receive() -> None:
    ours, comm, _ = transport(rung=True)
    comm.arrived = 1
    assert ours.receive() is not None
    assert ours.receive() is None


def test_who_is_rung_for_sleeps_and_looks_again_only_if_a_message_is_owed() -> None:
    ours, comm, theirs = transport(rung=True)
    assert ours.pause(False, FIRST, LAST) == RUNG
    theirs.ring(0)
    comm.arrived = 1
    ours.hush()
    assert ours.receive() is not None
    assert ours.pause(True, FIRST, LAST) == RUNG
    theirs.ring(0)  # the message is still on its way
    ours.hush()
    assert ours.receive() is None
    pauses = [ours.pause(False, FIRST, LAST) for _ in range(6)]
    assert pauses == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, 16 * FIRST, RUNG]  # then it is forgotten


def test_a_message_that_came_before_its_ring_leaves_nothing_owed() -> None:
    ours, comm, theirs = transport(rung=True)
    comm.arrived = 1
    assert ours.receive() is not None
    assert ours.pause(True, FIRST, LAST) == RUNG
    theirs.ring(0)
    ours.hush()
    assert ours.receive() is None
    assert ours.pause(False, FIRST, LAST) == RUNG


def test_who_is_not_rung_for_probes_with_back_off_from_the_first_moment() -> None:
    ours, _, _ = transport(rung=False)
    assert [ours.pause(False, FIRST, LAST) for _ in range(6)] == [
        *(FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, 16 * FIRST, LAST)
    ]
    assert [ours.pause(True, FIRST, LAST), *(ours.pause(False, FIRST, LAST) for _ in range(6))] == [
        *(FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, 16 * FIRST, LAST, LAST)
    ]


def test_who_waits_for_a_send_to_be_taken_backs_off() -> None:
    for rung in (False, True):
        ours, comm, _ = transport(rung)
        comm.stuck = True
        ours.send(1, b"x")
        pauses = [ours.pause(False, FIRST, LAST) for _ in range(6)]
        assert pauses == [FIRST, 2 * FIRST, 4 * FIRST, SENDING, SENDING, SENDING]
        comm.stuck = False
        assert ours.pause(False, FIRST, LAST) in (2 * SENDING, RUNG)


def met(rung: bool = True) -> tuple[Transport, Comm, Bell]:
    """Rank 1 hears us, and we have heard from it."""
    ours, comm, theirs = transport(rung)
    assert ours.bell is not None
    ours.bell.know({1: theirs.address})
    comm.arrived = 1
    assert ours.receive() is not None
    theirs.ring(0)
    ours.hush()
    assert ours.pause(False, FIRST, LAST) == RUNG
    return ours, comm, theirs


def test_a_short_send_within_the_node_is_there_whatever_mpi_says() -> None:
    """Open MPI says that it is finished when the other side has taken it: no reason to wake anybody."""
    ours, comm, theirs = met()
    comm.stuck = True
    ours.send(1, bytes(WITHIN))
    assert theirs.hush() == 1
    assert ours.pause(False, FIRST, LAST) == RUNG and ours.sending
    comm.stuck = False
    assert ours.pause(False, FIRST, LAST) == RUNG and not ours.sending
    assert theirs.hush() == 0


def test_the_first_sends_to_a_rank_need_us_until_it_has_answered() -> None:
    """MPI may still be finding the way there."""
    ours, comm, theirs = transport(rung=True)
    assert ours.bell is not None
    ours.bell.know({1: theirs.address})
    comm.stuck = True
    ours.send(1, b"x")
    assert ours.pause(False, FIRST, LAST) == FIRST
    comm.stuck = False
    assert ours.pause(False, FIRST, LAST) == RUNG and theirs.hush() == 2


def test_where_a_message_came_after_its_ring_short_sends_need_us_too() -> None:
    """No memory is shared, as between containers."""
    ours, comm, theirs = met()
    theirs.ring(0)
    ours.hush()
    assert ours.receive() is None
    assert ours.pause(False, FIRST, LAST) == FIRST
    comm.arrived = 1
    assert ours.receive() is not None
    comm.stuck = True
    ours.send(1, b"x")
    assert ours.pause(False, FIRST, LAST) <= SENDING and theirs.hush() == 1
    comm.stuck = False
    ours.pause(False, FIRST, LAST)
    assert theirs.hush() == 1


def test_a_message_with_its_own_ring_is_no_late_one() -> None:
    ours, comm, theirs = met()
    theirs.ring(0)  # one too many
    ours.hush()
    assert ours.receive() is None
    assert ours.pause(False, FIRST, LAST) == FIRST
    comm.arrived = 1
    theirs.ring(0)
    ours.hush()
    assert ours.receive() is not None
    comm.stuck = True
    ours.send(1, b"x")
    while ours.pause(False, FIRST, LAST) < RUNG:  # it still looks for the one too many
        pass
    assert ours.sending and theirs.hush() == 1


def test_a_long_send_needs_us_until_it_is_finished_and_rings_again() -> None:
    ours, comm, theirs = met()
    comm.stuck = True
    ours.send(1, bytes(WITHIN + 1))
    assert theirs.hush() == 1
    assert ours.pause(False, FIRST, LAST) == FIRST
    comm.stuck = False
    assert ours.pause(False, FIRST, LAST) == RUNG
    assert theirs.hush() == 1


def test_without_a_bell_everything_works_by_probing() -> None:
    class Alone:
        """A node with rank 0 and one other."""

        def allgather(self, mine: Any) -> list[Any]:
            return [mine, (1, mine[1], b"")] if isinstance(mine, tuple) else [mine, 0]

        def Barrier(self) -> None: ...

        def Free(self) -> None: ...

    comm = SimpleNamespace(Split_type=lambda kind: Alone(), Get_rank=lambda: 0, Get_size=lambda: 2)
    assert meet(SimpleNamespace(COMM_TYPE_SHARED=0), comm, None) == (1, False)


def test_sending_rings_those_that_hear_and_nobody_else() -> None:
    ours, _, theirs = transport(rung=True)
    assert ours.bell is not None
    ours.bell.know({1: theirs.address})
    ours.send(1, b"x")
    ours.send(2, b"x")
    assert theirs.hush() == 1
    theirs.close()
    ours.send(1, b"x")  # who is gone is no error
