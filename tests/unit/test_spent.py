"""What a Droid tells of its workers' time beside the records."""

from __future__ import annotations

import time
from typing import Any

from droid import wire
from droid.slots import Slots
from droid.spent import EVERY, Spent
from droid.worker import WorkerLoop


def test_starting_counts_from_the_droid_then_from_the_fork() -> None:
    spent = Spent(100.0)
    spent.forked(0, 103.0)
    spent.forked(1, 103.0)
    spent.ready(0, 104.0)
    spent.ready(1, 105.0)
    assert spent.note(7, 105.0) == [{"note": "spent", "droid": 7, "starting": 9.0, "input": 0.0, "again": 0.0}]
    spent.forked(1, 120.0)
    spent.ready(1, 121.5)
    assert spent.note(7, 122.0) == [], "once a minute is enough"
    assert spent.note(7, 122.0, last=True)[0]["starting"] == 1.5
    assert spent.note(7, 999.0) == [] and spent.note(7, 999.0, last=True) == []


def test_nothing_is_told_twice() -> None:
    spent = Spent(0.0)
    told = 0.0
    for second in range(300):
        spent.input += 0.5
        told += sum(note["input"] for note in spent.note(1, float(second)))
    told += sum(note["input"] for note in spent.note(1, 300.0, last=True))
    assert told == 150.0 and EVERY == 60.0


class SlowInput:
    def read(self, start: int, stop: int) -> list[int]:
        time.sleep(0.05)
        return list(range(start, stop))


class Echo:
    per_event = needs_events = True

    def each(self, positions: Any) -> Any:
        def process(event: Any) -> dict[str, Any]:
            until = time.process_time() + 0.02
            while time.process_time() < until:
                pass
            return {"x": event}

        return process


def test_a_worker_tells_how_long_it_waited_for_input() -> None:
    sent: list[bytes] = []
    slots = Slots(1)
    loop = WorkerLoop(
        Echo(), SlowInput(), slots.worker(0), lambda parts, ring: sent.append(b"".join(map(bytes, parts))), {}
    )  # fmt: skip
    before = time.process_time()
    loop.process((0, 3, 0))
    loop.flush()
    ((_, payload),) = wire.FrameReader().feed(sent[0])
    rows, extra, _ = wire.unbatch(payload)
    assert 0.049 < extra.input < rows["wall"][0] - 0.055 and loop.waited == 0.0
    assert slots.table["cpu"][0] > before + 0.02, "CPU is noted in the slot as events go by"


class Groups(Echo):
    per_event = False

    def process_events(self, events: Any, positions: Any) -> list[dict[str, Any]]:
        time.sleep(0.02 * len(events))
        if 2 in events:
            raise ValueError("this one")
        return [{"x": event} for event in events]


def test_a_worker_tells_what_a_group_that_failed_had_cost() -> None:
    sent: list[bytes] = []
    send = lambda parts, ring: sent.append(b"".join(map(bytes, parts)))  # noqa: E731
    loop = WorkerLoop(Groups(), SlowInput(), Slots(1).worker(0), send, {})
    loop.process((0, 4, 0))
    loop.flush()
    ((_, payload),) = wire.FrameReader().feed(sent[0])
    rows, extra, _ = wire.unbatch(payload)
    assert len(rows) == 4 and 0.13 < extra.again < 0.13 + sum(rows["wall"]), "the reading, and four events in vain"
