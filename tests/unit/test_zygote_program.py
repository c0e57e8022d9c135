"""A Droid that has MPI starts programs by way of its zygote, and never waits for that."""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from droid.crew import Crew
from droid.slots import Slots
from droid.zygote import Blueprint, start


class Payload:
    jagged: frozenset[str] = frozenset()

    def setup(self) -> None:
        os.environ["SEEN"] = "by the payload"


class Owner:
    """A Droid that hears when its zygote is ready."""

    def zygote_ready(self, message: dict[str, Any], again: bool) -> None: ...
    def zygote_failed(self, text: str, exit_code: int) -> None:
        raise AssertionError(text)

    def worker_frame(self, index: int, kind: int, payload: memoryview) -> None: ...
    def collected(self) -> None: ...
    def worker_exited(self, index: int, how: str, event: int, count: int, cpu: float) -> None: ...
    def worker_unforked(self, index: int, why: str) -> None: ...


def test_a_program_gets_its_pipes_and_the_environment_of_the_droid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "kept")
    slots, poll = Slots(1), select.poll()
    crew = Crew(start(Blueprint(Payload, str(tmp_path)), slots), slots, str(tmp_path), Owner(), poll, 2)
    names = "('OURS', 'MORE', 'SEEN')"
    code = f"import os, sys; sys.stdout.write(sys.stdin.read() + str([os.environ.get(k) for k in {names}]))"
    ours_in, ours_out = os.pipe(), os.pipe()
    fds = ours_in[0], ours_out[1], 2
    words = [sys.executable, "-c", code]
    assert not crew.program(words, {}, fds)  # the payload is not ready yet
    while not crew.ready:
        assert poll.poll(60_000)
        crew.hear()
    assert crew.program(words, {"MORE": "added"}, fds)
    os.close(ours_in[0])
    os.close(ours_out[1])
    os.write(ours_in[1], b"said ")
    os.close(ours_in[1])
    with open(ours_out[0]) as out:
        assert out.read() == "said ['kept', 'added', None]"  # its end: nobody else holds the pipe
    crew.end()
    assert os.waitpid(-1, 0)[1] == 0  # the guardian
    assert not crew.program(words, {}, (0, 1, 2))


def test_a_zygote_that_does_not_read_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        crew = Crew(ours, Slots(1), "", Owner(), select.poll(), 2)
        crew.ready = True
        asked = 0
        while crew.program(["program"], {"x": "y" * 10_000}, (0, 1, 2)):
            asked += 1
            assert asked < 10_000
        assert asked > 0


def test_a_node_has_more_workers_than_its_zygote_reads_messages() -> None:
    """The socket between them holds some two hundred."""
    workers = 400
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    poll = select.poll()
    with ours, theirs:
        crew = Crew(ours, Slots(workers), "", Owner(), poll, 2)
        crew.ready = True
        crew.set_task({"name": "task"})
        for index in range(workers):
            crew.spawn(index)
        crew.kill_all()
        assert not crew.program(["program"], {}, (0, 1, 2))  # it would overtake
        assert not poll.poll(0)  # nothing to do until the zygote reads
        told: list[tuple[str, Any]] = []
        theirs.setblocking(False)
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(theirs, 1 << 16, 3)
            except BlockingIOError:
                if not poll.poll(0):
                    break
                crew.hear()
                continue
            told += msgspec.msgpack.decode(data).items()
            assert len(fds) == {"task": 1, "spawn": 2, "kill": 0}[told[-1][0]]
            for fd in fds:
                os.close(fd)
        spawned, killed = [("spawn", n) for n in range(workers)], [("kill", n) for n in range(workers)]
        assert told == [("task", True), *spawned, *killed]
        assert crew.program(["program"], {}, (0, 1, 2))
        crew.spawn(0)
        crew.end()


def test_what_a_dead_zygote_was_to_be_told_is_forgotten() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    poll, failed = select.poll(), []

    class Told(Owner):
        def zygote_failed(self, text: str, exit_code: int) -> None:
            failed.append(text)

    crew = Crew(ours, Slots(300), "", Told(), poll, 2)
    for index in range(300):
        crew.spawn(index)
    theirs.close()
    assert poll.poll(0)
    crew.hear()
    assert failed and not poll.poll(0)
    crew.kill_all()
    crew.end()
    del crew
    assert len(os.listdir("/proc/self/fd")) == before
