"""What a worker makes of what a payload does and returns: every event its own values, whatever shares its range."""

from __future__ import annotations

import sys
import time
from collections import UserDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from droid import wire, worker
from droid.settled import settled
from droid.slots import Slots
from droid.worker import WorkerLoop, tail
from eventrange import image
from eventrange.records import Code, Kind
from eventrange.times import time_bin


class Each:
    """A payload of one function of an event."""

    per_event, needs_events = True, True

    def __init__(self, process: Callable[[Any], Any]) -> None:
        self.process = process

    def each(self, positions: Sequence[int]) -> Callable[[Any], Any]:
        return self.process

    def process_events(self, events: Sequence[Any], positions: Sequence[int]) -> list[Any]:
        return [self.process(event) for event in events]


class Group(Each):
    per_event = False


class Input:
    """Event n is an array with n in it, made anew for each reading."""

    def read(self, start: int, stop: int) -> list[Any]:
        return [np.full(2, float(n)) for n in range(start, stop)]


class Sent:
    """Runs ranges and takes frames apart."""

    def __init__(self, payload: Any) -> None:
        self.frames: list[tuple[Any, Any, memoryview]] = []
        self.slots = Slots(1)
        self.loop = WorkerLoop(payload, Input(), self.slots.worker(0), self._take, {})

    def _take(self, parts: list[Any], _: bool) -> None:
        for _, payload in wire.FrameReader().feed(b"".join(parts)):
            self.frames.append(wire.unbatch(payload))

    def process(self, *work: tuple[int, int]) -> Sent:
        for start, stop in work:
            self.loop.process((start, stop, 0))
        self.loop.flush()
        return self

    @property
    def rows(self) -> list[tuple[Kind, int, int, Code]]:
        named = [rows[["kind", "start", "stop", "code"]].tolist() for rows, *_ in self.frames]
        return [(Kind(k), a, b, Code(c)) for rows in named for k, a, b, c in rows]

    def values(self, field: str = "x") -> dict[int, Any]:
        out: dict[int, Any] = {}
        for rows, _, images in self.frames:
            at = 0
            for size in rows["size"].tolist():
                if size:
                    found = image.read(images[at : at + size])
                    out.update(zip(found.positions.tolist(), found.fields[field].values.tolist(), strict=True))
                    at += size
        return out


EXPECTED = {n: [float(n), float(n)] for n in range(6)}


def _buffer() -> Callable[[Any], Any]:
    kept = np.zeros(2)

    def process(event: Any) -> Any:
        kept[:] = event
        return {"x": kept}

    return process


def _view() -> Callable[[Any], Any]:
    kept = np.zeros(9)

    def process(event: Any) -> Any:
        kept[:2] = event
        return {"x": kept[:2]}

    return process


def _dict() -> Callable[[Any], Any]:
    kept: dict[str, Any] = {}

    def process(event: Any) -> Any:
        kept["x"] = event.copy()
        return kept

    return process


def _dict_of_buffers() -> Callable[[Any], Any]:
    kept = {"x": np.zeros(2)}

    def process(event: Any) -> Any:
        kept["x"][:] = event
        return kept

    return process


def _mapping_of_buffers() -> Callable[[Any], Any]:
    kept = UserDict({"x": np.zeros(2)})

    def process(event: Any) -> Any:
        kept["x"][:] = event
        return kept

    return process


def _list() -> Callable[[Any], Any]:
    kept = [0.0, 0.0]

    def process(event: Any) -> Any:
        kept[:] = event.tolist()
        return {"x": kept}

    return process


def _list_of_buffers() -> Callable[[Any], Any]:
    kept = np.zeros(1)

    def process(event: Any) -> Any:
        kept[0] = event[0]
        return {"x": [kept, kept]}

    return process


@pytest.mark.parametrize(
    "make", [_buffer, _view, _dict, _dict_of_buffers, _mapping_of_buffers, _list, _list_of_buffers]
)
def test_a_payload_may_use_its_memory_again(make: Callable[[], Any]) -> None:
    together = Sent(Each(make())).process((0, 6)).values()
    alone = Sent(Each(make())).process(*[(n, n + 1) for n in range(6)]).values()
    assert {n: np.ravel(x).tolist() for n, x in together.items()} == EXPECTED
    assert together == alone


def test_what_nobody_else_holds_is_not_copied() -> None:
    def made() -> dict[str, Any]:
        return {"a": np.ones(3), "b": 1.5, "c": np.float32(2), "d": "text", "e": b"bytes"}

    fields = made()
    places = {name: id(value) for name, value in fields.items()}
    out = settled(fields)
    assert {name: id(value) for name, value in out.items()} == places
    held = fields["a"]
    assert settled(fields)["a"] is not held
    assert settled(5) == 5


def test_a_group_that_failed_is_read_again_event_by_event() -> None:
    def process(event: Any) -> Any:
        event *= 2
        if event[0] == 4.0:  # event 2, and what was already doubled
            raise RuntimeError
        return {"x": event}

    sent = Sent(Group(process)).process((0, 6))
    assert sent.values() == {n: [2.0 * n, 2.0 * n] for n in range(6) if n != 2}
    assert [row for row in sent.rows if row[0] == Kind.FAILED] == [(Kind.FAILED, 2, 3, Code.EXCEPTION)]


def test_who_dies_while_a_range_is_read_dies_of_all_of_it() -> None:
    seen: list[tuple[int, int]] = []

    class Reads(Input):
        def read(self, start: int, stop: int) -> list[Any]:
            row = sent.slots.snapshot()[0]
            seen.append((int(row["event"]), int(row["count"])))
            return super().read(start, stop)

    def process(event: Any) -> Any:
        row = sent.slots.snapshot()[0]
        seen.append((int(row["event"]), int(row["count"])))
        return {}

    sent = Sent(Each(process))
    sent.loop.events = Reads()
    sent.process((3, 6))
    assert seen == [(3, 3), (3, 1), (4, 1), (5, 1)]


def test_the_clock_of_the_first_event_begins_when_all_are_read() -> None:
    class Slow(Input):
        def read(self, start: int, stop: int) -> list[Any]:
            time.sleep(0.2)
            return super().read(start, stop)

    def process(event: Any) -> Any:
        row = sent.slots.snapshot()[0]
        since.append(float(row["since"] - row["begun"]))
        return {}

    since: list[float] = []
    sent = Sent(Each(process))
    sent.loop.events = Slow()
    sent.process((0, 3))
    assert min(since) >= 0.2 and max(sent.frames[0][1].times) < time_bin(0.2)


def test_large_images_go_out_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "FLUSH_BYTES", 10_000)
    payload = Each(lambda event: {"x": np.repeat(event, 500)})  # one image of 8 kB each
    sent = Sent(payload).process(*[(n, n + 1) for n in range(3)])
    assert [len(images) > 8000 for _, _, images in sent.frames] == [True] * 3
    assert [row[1:3] for row in sent.rows] == [(0, 1), (1, 2), (2, 3)]


def test_too_little_memory_for_the_image_of_a_range_is_the_fault_of_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    build = image.build

    def poor(start: int, positions: Any, events: Any, *rest: Any) -> bytes:
        if len(events) > 2 or start <= 5 < start + len(events):
            raise MemoryError
        return build(start, positions, events, *rest)

    monkeypatch.setattr(image, "build", poor)
    sent = Sent(Each(lambda event: {"x": event})).process((0, 4), (4, 6))
    assert sent.values() == {n: x for n, x in EXPECTED.items() if n != 5}
    assert [row for row in sent.rows if row[0] == Kind.FAILED] == [(Kind.FAILED, 5, 6, Code.MEMORY)]


@pytest.mark.parametrize("odd", [np.ones(3), (1, 2), 5, "text"], ids=["array", "tuple", "number", "string"])
@pytest.mark.parametrize("where", [0, 2])
def test_an_event_that_returns_no_fields_costs_itself(odd: Any, where: int) -> None:
    sent = Sent(Each(lambda event: odd if event[0] == where else {"x": event})).process((0, 4))
    assert sorted(sent.values()) == [n for n in range(4) if n != where]
    assert [row for row in sent.rows if row[0] == Kind.FAILED] == [(Kind.FAILED, where, where + 1, Code.FIELDS)]
    assert "not a dict of fields" in sent.frames[-1][1].evidence[0].text


def test_an_array_after_an_event_without_fields_costs_itself() -> None:
    sent = Sent(Each(lambda event: np.ones(3) if event[0] == 1 else {})).process((0, 3))
    assert [row[0] for row in sent.rows] == [Kind.DONE, Kind.FAILED, Kind.DONE]


def test_the_end_of_the_output_of_a_payload_that_closed_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "out", "w+") as file, open(tmp_path / "closed", "w") as closed:
        file.write("last words")
        file.flush()
        closed.close()
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", None)
        assert tail(file.fileno()) == "last words"
