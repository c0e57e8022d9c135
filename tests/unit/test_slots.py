"""What a Droid reads of its workers' slots."""

from __future__ import annotations

import os
import signal

from droid.slots import Slots


def test_who_is_on_what() -> None:
    slots = Slots(3)
    assert slots.running() == []
    slots.worker(1).begin(7, 2, 10.0, 0.5)
    slots.worker(2).begin(20, 1, 11.0, 0.5)
    slots.worker(2).enter(21, 1, 12.5)
    slots.worker(2).used(3.0)
    slots.cut(2, True)
    assert slots.running() == [(7, 10.0, 10.0), (21, 12.5, 11.0)]
    assert slots.snapshot()["event"].tolist() == [-1, 7, 21]
    slots.worker(1).leave()
    slots.clear(2)
    assert slots.running() == []


def test_what_is_read_while_it_is_written_was_true_a_moment_ago() -> None:
    """No event and no time that the worker was never on: a record that is half new is fine, zeros are not."""
    slots = Slots(1)
    pid = os.fork()
    if not pid:
        slot, now = slots.worker(0), 1000.0
        while True:
            now += 1.0
            slot.begin(5, 1, now, now)
            slot.used(now)
            for event in (6, 7):
                slot.enter(event, 1, now)
            slot.leave()
    try:
        found: list[tuple[int, float, float]] = []
        while len(found) < 20_000:
            found += slots.running()
        tables = [slots.snapshot()[0] for _ in range(2000)]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert {event for event, _, _ in found} <= {5, 6, 7}
    assert min(min(since, begun) for _, since, begun in found) > 1000.0
    assert {int(table["event"]) for table in tables} <= {-1, 5, 6, 7}
    assert min(float(table["since"]) for table in tables) > 1000.0
