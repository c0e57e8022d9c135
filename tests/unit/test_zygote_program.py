"""A Droid that has MPI starts programs by way of its zygote, and never waits for that."""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

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
