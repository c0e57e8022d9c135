"""What a worker tells its Droid, when it wakes it for that, and what it does when it is called back."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from droid import crew as crew_module
from droid import wire
from droid.crew import Crew
from droid.line import Line, Orders
from droid.slots import Slots
from droid.worker import FLUSH_SECONDS, WorkerLoop, serve
from eventrange.messages import pack_ranges
from eventrange.records import Kind

SOON = 30.0  #: seconds anything may take on a busy machine


class Gated:
    """Events that take until they are let go, and longer than results may wait."""

    per_event, needs_events = True, False

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def each(self, positions: Any) -> Callable[[Any], dict[str, Any]]:
        def process(event: int) -> dict[str, Any]:
            self.begun.release()
            assert self.go.acquire(timeout=SOON)
            time.sleep(1.5 * FLUSH_SECONDS)
            return {}

        return process

    def process_events(self, events: Any, positions: Any) -> list[dict[str, Any]]:
        raise AssertionError("these are done one by one")


class Worker:
    """A worker's loop in a thread, and the Droid's side of it."""

    def __init__(self, sock: socket.socket, theirs: socket.socket) -> None:
        self.sock, self.payload, self.slots = sock, Gated(), Slots(1)
        self.heard, bell = os.pipe2(os.O_NONBLOCK)
        loop = WorkerLoop(self.payload, None, self.slots.worker(0), Line(theirs, bell).send, {})  # type: ignore[arg-type]
        self.thread = threading.Thread(target=serve, args=(theirs, loop))
        self.reader = wire.FrameReader()
        self.frames: list[tuple[int, memoryview]] = []
        self.rows: list[tuple[int, int, int]] = []

    def give(self, kind: int, *ranges: tuple[int, int]) -> None:
        self.sock.sendall(b"".join(wire.frame(kind, pack_ranges([(a, b, 0) for a, b in ranges]))))

    def events(self, count: int) -> None:
        """Let it do so many."""
        for _ in range(count):
            assert self.payload.begun.acquire(timeout=SOON)
            self.payload.go.release()

    def rung(self) -> bool:
        """Whether it has rung since."""
        poll = select.poll()
        poll.register(self.heard, select.POLLIN)
        return bool(poll.poll(0)) and bool(os.read(self.heard, 4096))

    def answer(self) -> list[tuple[Kind, int, int]]:
        """The rows of its next frame."""
        while not self.frames:
            self.frames += self.reader.feed(self.sock.recv(1 << 16))
        kind, payload = self.frames.pop(0)
        assert kind == wire.BATCH
        rows, _, _ = wire.unbatch(payload)
        return [(Kind(k), a, b) for k, a, b in rows[["kind", "start", "stop"]].tolist()]


@contextmanager
def worker() -> Iterator[Worker]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(SOON)
        made = Worker(ours, theirs)
        made.thread.start()
        try:
            yield made
        finally:
            for _ in range(100):
                made.payload.go.release()
            ours.shutdown(socket.SHUT_WR)
            made.thread.join(SOON)
            assert not made.thread.is_alive()


def test_a_worker_rings_when_it_runs_dry_but_not_with_ranges_to_follow() -> None:
    with worker() as w:
        w.give(wire.RANGES, (0, 1))
        assert w.payload.begun.acquire(timeout=SOON)
        w.give(wire.NEXT, (1, 2))
        w.payload.go.release()
        assert w.answer() == [(Kind.DONE, 0, 1)]
        assert w.payload.begun.acquire(timeout=SOON) and not w.rung()
        w.payload.go.release()
        assert w.answer() == [(Kind.DONE, 1, 2)]
        deadline = time.monotonic() + SOON
        while not w.rung():
            assert time.monotonic() < deadline


def test_a_worker_rings_where_what_it_has_was_given_together() -> None:
    with worker() as w:
        w.give(wire.RANGES, (0, 1), (1, 2))
        w.events(1)
        assert w.answer() == [(Kind.DONE, 0, 1)]
        assert w.payload.begun.acquire(timeout=SOON) and w.rung()


def test_who_is_called_back_returns_all_it_was_given_also_what_it_has_not_read() -> None:
    with worker() as w:
        w.give(wire.RANGES, (0, 5))
        w.events(1)
        assert w.payload.begun.acquire(timeout=SOON)
        w.give(wire.NEXT, (5, 8))
        w.give(wire.NEXT, (8, 9))
        w.slots.cut(0, True)
        w.payload.go.release()
        back = [(Kind.DONE, 0, 2), (Kind.RETURNED, 2, 5), (Kind.RETURNED, 5, 8), (Kind.RETURNED, 8, 9)]
        assert w.answer() == back and w.rung()
        w.give(wire.RANGES, (2, 3))  # and goes on with what it gets then
        w.events(1)
        assert w.answer() == [(Kind.DONE, 2, 3)]


def test_what_comes_with_a_call_back_just_after_the_worker_has_looked_goes_back_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = Orders.waiting.fget
    assert looks is not None
    late: list[Worker] = []

    def waiting(self: Orders) -> bool:
        found = bool(looks(self))
        while late:
            w = late.pop()
            w.give(wire.NEXT, (5, 9))
            w.slots.cut(0, True)
        return found

    monkeypatch.setattr(Orders, "waiting", property(waiting))
    with worker() as w:
        w.give(wire.RANGES, (0, 1))
        assert w.payload.begun.acquire(timeout=SOON)
        late.append(w)
        w.payload.go.release()
        assert w.answer() == [(Kind.DONE, 0, 1)]
        assert w.answer() == [(Kind.RETURNED, 5, 9)]


def test_who_is_called_back_at_its_last_event_starts_nothing_else() -> None:
    with worker() as w:
        w.give(wire.RANGES, (0, 1), (1, 3))
        assert w.payload.begun.acquire(timeout=SOON)
        w.slots.cut(0, True)
        w.payload.go.release()
        assert w.answer() == [(Kind.DONE, 0, 1), (Kind.RETURNED, 1, 3)]


def test_a_frame_that_does_not_fit_wakes_the_droid() -> None:
    """Else the worker would wait until it looks by itself."""
    ours, theirs = socket.socketpair()
    heard, bell = os.pipe2(os.O_NONBLOCK)
    with ours, theirs:
        ours.settimeout(SOON)
        data = [bytes([number]) * 300_000 for number in range(7)]
        thread = threading.Thread(target=Line(theirs, bell).send, args=(data, False))
        thread.start()
        poll = select.poll()
        poll.register(heard, select.POLLIN)
        assert poll.poll(1000 * SOON)
        got = b""
        while len(got) < 7 * 300_000:
            got += ours.recv(1 << 20)
        thread.join(SOON)
        assert got == b"".join(data)
        Line(theirs, bell).send([b"small"], False)
        while poll.poll(0):
            os.read(heard, 4096)
        Line(theirs, bell).send([b"small"], False)
        assert not poll.poll(0)
        Line(theirs, bell).send([b"small"], True)
        assert poll.poll(0)


def test_a_bell_that_is_full_or_gone_stops_nobody() -> None:
    ours, theirs = socket.socketpair()
    heard, bell = os.pipe2(os.O_NONBLOCK)
    with ours, theirs:
        line = Line(theirs, bell)
        for _ in range(1 << 17):
            line.wake()
        os.close(heard)
        line.send([b"x"])
        os.close(bell)
        line.send([b"y"])
        assert ours.recv(10) == b"xy"


def test_a_frame_in_many_pieces_is_heard_piece_by_piece() -> None:
    """A worker rings once for it; each time the Droid has made room it must hear of what follows."""
    control, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard, bell = os.pipe2(os.O_NONBLOCK)
    poll, got = select.poll(), bytearray()

    class Owner:
        def worker_frame(self, index: int, kind: int, payload: memoryview) -> None:
            got.extend(payload)

        def collected(self) -> None: ...

    with control, zygote:
        crew = Crew(control, Slots(1), "", Owner(), poll, bell)  # type: ignore[arg-type]
        poll.register(heard, select.POLLIN)
        crew.spawn(0)
        _, fds, _, _ = socket.recv_fds(zygote, 1 << 16, 2)
        with socket.socket(fileno=fds[0]) as theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
            data = bytes(range(256)) * (8 << 12)
            thread = threading.Thread(target=Line(theirs, fds[1]).send, args=(wire.frame(wire.BATCH, data), False))
            thread.start()
            while len(got) < len(data):
                ready = poll.poll(1000 * SOON)
                assert ready, "the worker waits, and nobody knows"
                if heard in dict(ready):
                    os.read(heard, 4096)
                crew.collect()
            thread.join(SOON)
            assert bytes(got) == data
            assert not poll.poll(0), "it is left alone when all is there"
            os.close(fds[1])


@pytest.mark.parametrize(("together", "times"), [(1e9, 1), (-1.0, 3)])
def test_work_is_given_out_once_for_many_results_unless_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, together: float, times: int
) -> None:
    monkeypatch.setattr(crew_module, "TOGETHER", together)
    control, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard, bell = os.pipe2(os.O_NONBLOCK)
    told: list[str] = []

    class Owner:
        def worker_frame(self, index: int, kind: int, payload: memoryview) -> None:
            told.append("results")

        def collected(self) -> None:
            told.append("collected")

    with control, zygote:
        crew = Crew(control, Slots(3), "", Owner(), select.poll(), bell)  # type: ignore[arg-type]
        for index in range(3):
            crew.spawn(index)
            _, fds, _, _ = socket.recv_fds(zygote, 1 << 16, 2)
            with socket.socket(fileno=fds[0]) as theirs:
                Line(theirs, fds[1]).send(wire.frame(wire.BATCH, b"x"), False)
            os.close(fds[1])
        crew.collect()
        assert told.count("results") == 3 and told.count("collected") == times and told[-1] == "collected"
        told.clear()
        crew.collect()
        assert told == ["collected"] * times, "only the ends of files were left"
    os.close(bell)
    os.close(heard)


class Failing:
    """Events that take long, of which the one at 2 raises; what it says cannot be encoded."""

    per_event, needs_events = True, False

    def each(self, positions: Any) -> Callable[[Any], dict[str, Any]]:
        def process(event: int) -> dict[str, Any]:
            until = time.process_time() + 0.2
            while time.process_time() < until:
                pass
            if event == 2:
                raise ValueError("read \udcff in a damaged file")
            return {"x": event}

        return process

    def process_events(self, events: Any, positions: Any) -> list[dict[str, Any]]:
        raise AssertionError("these are done one by one")


def test_an_exception_is_one_failed_event_with_its_own_time_whatever_it_says() -> None:
    sent: list[bytes] = []
    loop = WorkerLoop(Failing(), None, Slots(1).worker(0), lambda parts, _: sent.append(b"".join(parts)), {})  # type: ignore[arg-type]
    begun = time.time()
    loop.process((0, 4, 0))
    ended = time.time()
    loop.flush()
    ((_, payload),) = wire.FrameReader().feed(memoryview(sent[0]))
    rows, extra, _ = wire.unbatch(payload)
    spans = [(Kind.DONE, 0, 2), (Kind.FAILED, 2, 3), (Kind.DONE, 3, 4)]
    assert [(Kind(k), a, b) for k, a, b in rows[["kind", "start", "stop"]].tolist()] == spans
    (evidence,) = extra.evidence
    assert "damaged file" in evidence.text and "\\udcff" in evidence.text
    # They lie one behind the other, and none is counted twice.
    ends = rows["time"] + rows["wall"]
    assert begun <= rows["time"][0] and ends[-1] <= ended + 0.01
    assert (rows["time"][1:] > ends[:-1] - 0.1).all() and rows["wall"].sum() < ended - begun + 0.01
    assert (rows["cpu"] > [0.35, 0.15, 0.15]).all() and 0.15 < evidence.cpu < 0.35
