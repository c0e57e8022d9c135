"""A node that has no process left ends nothing."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path
from typing import Any

from droid import zygote
from droid.crew import Crew, Last
from droid.slots import Slots

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
