"""What ends early is counted, whatever it says of itself, and a node that has no process left ends nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import time
from pathlib import Path
from typing import Any

import pytest

from droid import zygote
from droid.crew import Crew, Last
from droid.slots import Slots
from eventrange.errors import BAD_CONFIG

FAILURES = 3


class Payload:
    jagged: frozenset[str] = frozenset()

    def setup(self) -> None: ...


class Full(Payload):
    """A node that has no process left for the first workers. Says on stdout how many descriptors its zygote has."""

    def setup(self) -> None:
        self.left, self.fork = FAILURES, os.fork
        os.fork = self.forked

    def forked(self) -> int:
        os.write(1, b"%d\n" % len(os.listdir("/proc/self/fd")))
        self.left -= 1
        if self.left >= 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self.fork()


class Leaving(Payload):
    """A C library that says goodbye."""

    def setup(self) -> None:
        os.write(1, b"no licence\n")
        ctypes.CDLL(None).exit(0)


class Slow(Payload):
    """It dies as soon as it is ready, which takes longer than it would have to work."""

    def setup(self) -> None:
        time.sleep(2 * zygote.BRIEF)

    @property
    def jagged(self) -> frozenset[str]:  # type: ignore[override]
        os._exit(3)


class Owner:
    """A Droid that takes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def zygote_ready(self, message: dict[str, Any], again: bool) -> None:
        self.heard.append(("ready", again))

    def zygote_failed(self, text: str, exit_code: int) -> None:
        self.heard.append(("failed", text, exit_code))

    def worker_frame(self, index: int, kind: int, payload: memoryview) -> None: ...
    def collected(self) -> None: ...

    def worker_exited(self, index: int, how: str, last: Last) -> None:
        self.heard.append(("exited", index))

    def worker_unforked(self, index: int, why: str) -> None:
        self.heard.append(("unforked", index, why))


class Watched:
    """A crew with `payload`, and what its Droid hears next."""

    def __init__(self, scratch: Path, payload: type[Payload]) -> None:
        slots, self.poll, self.owner = Slots(1), select.poll(), Owner()
        control = zygote.start(zygote.Blueprint(payload, str(scratch)), slots)
        self.crew = Crew(control, slots, str(scratch), self.owner, self.poll, 2)

    def next(self) -> tuple[Any, ...]:
        while not self.owner.heard:
            assert self.poll.poll(20_000), "the Droid hears nothing"
            self.crew.hear()
        return self.owner.heard.pop(0)

    def end(self) -> None:
        self.crew.end()
        os.waitpid(-1, 0)


def test_a_worker_that_cannot_be_forked_is_told_and_ends_nothing(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Full)
    assert watched.next() == ("ready", False)
    for _ in range(FAILURES):
        watched.crew.spawn(0)
        assert watched.next() == ("unforked", 0, os.strerror(errno.EAGAIN))
        assert watched.crew._peers == {}
    watched.crew.spawn(0)
    assert watched.next() == ("exited", 0), "there is no task, so that one ends at once, but it was forked"
    watched.end()
    counts = (tmp_path / "zygote.out").read_text().split()
    assert len(counts) == FAILURES + 1 and len(set(counts)) == 1, "what a worker was to have is closed"


def test_a_set_up_that_ends_the_process_is_no_end_of_the_droid(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Leaving)
    what, text, code = watched.next()
    assert what == "failed" and code == BAD_CONFIG
    assert "exit status 0" in text and "no licence" in text
    watched.end()


def test_a_zygote_that_dies_when_it_is_ready_dies_early_however_long_that_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote, "BRIEF", 0.2)
    monkeypatch.setattr(zygote, "RESTARTS", 0.15)
    watched = Watched(tmp_path, Slow)
    what, text, code = watched.next()
    assert what == "failed" and code == BAD_CONFIG and "exit status 3" in text
    watched.end()
