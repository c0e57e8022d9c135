"""What makes Yoda's loop turn: neither too late nor for nothing."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventrange.errors import CannotWrite
from eventrange.journal import JournalWriter
from eventrange.ledger import Ledger
from yoda import master
from yoda.dispatcher import Dispatcher, Settings
from yoda.instructions import Instruction
from yoda.master import MasterShell, Run

TURNS = 200


class Silence:
    """A transport from which nothing ever comes. Fails when it is asked too often: then nothing has ended the loop."""

    rank, size, bell, sending = 0, 2, None, False

    def __init__(self) -> None:
        self.turns, self.sent = 0, 0

    def receive(self) -> None:
        return None

    def failed(self) -> set[int]:
        return set()

    def pause(self, moved: bool, first: float, last: float) -> float:
        self.turns += 1
        assert self.turns < TURNS
        return 0.01

    def send(self, rank: int, data: bytes) -> None:
        self.sent += 1


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[Run], MasterShell]]:
    before: dict[Any, Any] = {number: signal.getsignal(number) for number in signal.valid_signals()}
    made: list[MasterShell] = []

    def make(run: Run) -> MasterShell:
        ledger = Ledger(10)
        ledger.pending.add(0, 10)
        transport: Any = Silence()
        dispatcher = Dispatcher(ledger, [0], Settings(), 10)
        journal = JournalWriter(str(tmp_path / "a"), "f", "a")
        made.append(MasterShell(transport, dispatcher, journal, run))
        return made[-1]

    yield make
    for shell in made:
        shell.syncer.close()
        shell.journal.file.close()
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def rung(shell: MasterShell) -> bool:
    """Whether the loop would turn now; forgets why."""
    poll = select.poll()
    poll.register(shell._wake, select.POLLIN)
    if not poll.poll(0):
        return False
    os.read(shell._wake, 4096)
    return True


def test_what_is_urgent_is_not_left_to_the_next_look_at_the_clock(
    make: Callable[[Run], MasterShell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master, "TICK", 1e9)
    monkeypatch.setattr(master, "QUICK", 1e9)
    ticks = []

    def step(now: float) -> list[Instruction]:
        ticks.append(now)
        if len(ticks) == 5:
            shell.stop_now = "enough"
        return []

    shell = make(Run("a", {}, every_tick=[step], urgent=lambda: 1 < len(ticks) < 5 or shell.transport.turns == 20))
    shell.run()
    assert len(ticks) == 5 and shell.transport.turns >= 20


def test_steps_come_before_what_the_dispatcher_gives(make: Callable[[Run], MasterShell]) -> None:
    """What a step brings is granted in the same turn."""
    shell = make(Run("a", {}))
    ledger, seen = shell.dispatcher.ledger, []
    ledger.cede(0, 10)
    shell.dispatcher.hello(0.0, 1, "here", 1)
    shell.dispatcher.droids[1].want = 4
    shell.dispatcher.roster.wait(shell.dispatcher.droids[1])

    def step(now: float) -> list[Instruction]:
        ledger.adopt(0, 10, {})
        seen.append(ledger.in_flight)
        return []

    shell.info.every_tick.append(step)
    shell._tick(1.0, 0.0, 0.0)
    assert seen == [0] and ledger.in_flight > 0


def test_a_sync_wakes_the_loop_only_if_something_waits_for_it(make: Callable[[Run], MasterShell]) -> None:
    shell = make(Run("a", {}))
    shell._journal_synced()
    assert not rung(shell)
    shell.waiting_since = 1.0
    shell._journal_synced()
    assert rung(shell)
    shell.waiting_since = None
    shell.unkept = {1: 7}
    shell._journal_synced()
    assert rung(shell)
    shell.unkept = {}
    shell.dispatcher.exit_code = 4
    shell._journal_synced()
    assert rung(shell)
    shell.dispatcher.exit_code = None
    shell.dispatcher.draining = "deadline"
    shell._journal_synced()
    assert rung(shell)
    shell.dispatcher.draining = ""
    shell.journal.file.broken = CannotWrite(path="a", detail="no")
    shell._journal_synced()
    assert rung(shell)


def test_how_long_a_commit_took_is_not_how_long_the_loop_slept(make: Callable[[Run], MasterShell]) -> None:
    shell = make(Run("a", {}))
    took: list[float] = []
    shell.dispatcher.ending.committed = lambda **values: took.append(values["journal"])  # type: ignore[method-assign]
    since = shell.syncing_since = time.monotonic()
    shell.syncer.request(None, shell.journal.file)
    while not shell._durable_at:
        time.sleep(0.001)
    synced = shell._durable_at
    time.sleep(0.05)
    shell._collect()
    assert took == [synced - since] and shell.syncing_since is None
