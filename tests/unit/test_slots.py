"""What a Droid reads of its workers' slots."""

from __future__ import annotations

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
