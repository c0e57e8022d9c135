"""Yoda with very many Droids: how much of a core the dispatcher takes, and decoding, encoding and journal with it.

10,000 Droids of 64 workers and 60-s events are simulated in time, not in processes: every message a Droid would send
is made before the clock runs; decoded, dispatched and its answers encoded while it runs. What is measured is CPU
seconds per simulated second, in the middle of the task and at its tail, when everybody is idle but a few. MPI itself is
not in it.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from eventrange import messages, records
from eventrange.durable import Files
from eventrange.journal import JournalWriter
from eventrange.ledger import Ledger
from eventrange.messages import Range, Report
from eventrange.records import Kind
from eventrange.times import time_bin
from yoda.bench import Figure
from yoda.dispatcher import Dispatcher, Instruction, Note, Send, Settings, Write

BUDGET = 50.0  #: per cent of a core
HEARTBEAT, TAIL_HEARTBEAT, TICK = 5.0, 1.0, 0.1
COMMIT = 0.25  #: seconds of group commit at the Droid: ranges that end together are reported together


class _Nowhere(Files):
    """A journal that is framed and checksummed, and goes nowhere: the disk is another benchmark's."""

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        return 0

    def write(self, fd: int, data: Any) -> int:
        return len(data)

    def fsync(self, fd: int) -> None: ...

    def fsync_folder(self, path: str) -> None: ...

    def close(self, fd: int) -> None: ...


class _Droid:
    """A Droid that asks when its backlog is low and reports what its workers have done since its last report."""

    def __init__(self, rank: int, workers: int, seconds: float, rng: random.Random) -> None:
        self.rank, self.workers, self.seconds, self.rng = rank, workers, seconds, rng
        self.backlog: deque[Range] = deque()
        self.ends: list[tuple[float, Range, float]] = []  # end, what, begin of each worker at work
        self.asked = False
        self.heartbeat = HEARTBEAT

    def grant(self, now: float, ranges: list[Range], remaining: int) -> None:
        self.heartbeat = HEARTBEAT if remaining else TAIL_HEARTBEAT
        if ranges:
            self.asked = False
        for start, stop, attempt in ranges:
            self.backlog.extend((event, event + 1, attempt) for event in range(start, stop))
        self.fill(now)

    def fill(self, now: float) -> None:
        while self.backlog and len(self.ends) < self.workers:
            took = self.seconds * self.rng.lognormvariate(-0.125, 0.5)
            heapq.heappush(self.ends, (now + took, self.backlog.popleft(), now))

    def drop(self, ranges: list[Range]) -> None:
        gone = {start for start, _, _ in ranges}
        self.ends = [entry for entry in self.ends if entry[1][0] not in gone]
        heapq.heapify(self.ends)

    def report(self, now: float) -> bytes:
        """What it says now: what has ended, what runs, what it wants."""
        rows, times = [], {}
        while self.ends and self.ends[0][0] <= now:
            end, (start, stop, _), begin = heapq.heappop(self.ends)
            rows.append((start, stop, end - begin))
            times[time_bin(end - begin)] = times.get(time_bin(end - begin), 0) + 1
        done = records.new(len(rows), kind=Kind.DONE, size=1000)
        if rows:
            done["start"], done["stop"], done["wall"] = zip(*rows, strict=True)
        self.fill(now)
        want = 0
        if not self.asked and len(self.backlog) < self.workers // 4:
            want, self.asked = 2 * self.workers - len(self.backlog), True
        running = sorted(((event, now - begin) for _, (event, _, _), begin in self.ends), key=lambda p: -p[1])[:16]
        report = Report(
            done.tobytes(), [], want, len(self.backlog), len(self.ends), self.seconds, running, times, "fields"
        )
        return messages.encode(report)

    def next(self, now: float) -> float:
        """When it reports next."""
        first = self.ends[0][0] + COMMIT if self.ends else now + self.heartbeat
        return min(max(first, now + COMMIT), now + self.heartbeat)


class _Scale:
    """Dispatcher and journal, and their CPU time by phase of the task."""

    def __init__(self, droids: int, workers: int, seconds: float, events: int) -> None:
        rng = random.Random(1)
        ledger = Ledger(events)
        ledger.pending.add(0, events)
        self.d = Dispatcher(ledger, [0], Settings(), events)
        self.journal = JournalWriter("nowhere", "f", "a", _Nowhere())
        self.droids = {rank: _Droid(rank, workers, seconds, rng) for rank in range(1, droids + 1)}
        self.cpu: dict[str, float] = {}
        self.span: dict[str, float] = {}
        self.reports: dict[str, int] = {}
        self.flushed = 0.0
        self.now = 0.0

    def phase(self) -> str:
        ledger = self.d.ledger
        if ledger.pending:
            return "start" if self.now < 60 else "middle"
        return "tail" if ledger.in_flight else "end"

    def turn(self, call: Any, *values: Any) -> None:
        """One stimulus at the dispatcher, its instructions done, on the meter."""
        phase, begin = self.phase(), time.process_time()
        answers: list[tuple[int, bytes]] = []
        for step in call(*values):
            self._do(step, answers)
        if self.now - self.flushed > 0.125:
            self.journal.flush()
            self.flushed = self.now
        self.cpu[phase] = self.cpu.get(phase, 0.0) + time.process_time() - begin
        for rank, data in answers:
            message = messages.decode(data)
            if isinstance(message, messages.Grant):
                self.droids[rank].grant(self.now, messages.unpack_ranges(message.ranges), message.remaining)
            elif isinstance(message, messages.Revoke):
                self.droids[rank].drop(messages.unpack_ranges(message.ranges))

    def _do(self, step: Instruction, answers: list[tuple[int, bytes]]) -> None:
        if isinstance(step, Send):
            answers.append((step.droid, messages.encode(step.message)))
        elif isinstance(step, Write):
            self.journal.append(step.rows)
        elif isinstance(step, Note):
            self.journal.note(step.name, **step.values)

    def hear(self, rank: int, data: bytes) -> list[Instruction]:
        message = messages.decode(data)
        assert isinstance(message, Report)
        rows = messages.rows(message.records)
        rows["droid"] = rank
        return self.d.report(self.now, rank, message, rows)

    def stimuli(self) -> Iterator[tuple[float, int]]:
        """(time, rank), rank 0 for ticks, until the task is complete."""
        queue = [(0.001 * rank, rank) for rank in self.droids]
        queue.append((TICK, 0))
        heapq.heapify(queue)
        while not self.d.complete:
            at, rank = heapq.heappop(queue)
            yield at, rank
            heapq.heappush(queue, (at + TICK if rank == 0 else self.droids[rank].next(at), rank))

    def run(self) -> None:
        for rank, droid in self.droids.items():
            self.d.hello(0.0, rank, f"node{rank}", droid.workers)
        for at, rank in self.stimuli():
            phase = self.phase()
            self.span[phase] = self.span.get(phase, 0.0) + at - self.now
            self.now = at
            if rank == 0:
                self.turn(self.d.tick, at)
            else:
                data = self.droids[rank].report(at)
                self.reports[phase] = self.reports.get(phase, 0) + 1
                self.turn(self.hear, rank, data)


def run(quick: bool = False) -> dict[str, Any]:
    """Per cent of a core and reports a second in each phase of the task."""
    droids, workers, seconds = (100, 8, 20.0) if quick else (10_000, 64, 60.0)
    scale = _Scale(droids, workers, seconds, int(droids * workers * (4 if quick else 2.5)))
    begin = time.perf_counter()
    scale.run()
    phases = [name for name in ("start", "middle", "tail") if scale.span.get(name)]
    return {
        "droids": droids,
        "workers": workers,
        "seconds_per_event": seconds,
        "events": scale.d.total,
        "simulated": scale.now,
        "wall": time.perf_counter() - begin,
        "percent": {name: 100 * scale.cpu[name] / scale.span[name] for name in phases},
        "reports_per_second": {name: scale.reports.get(name, 0) / scale.span[name] for name in phases},
        "numpy": np.__version__,
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """The worst phase has to keep the budget; the start is a burst, and given beside it."""
    out = []
    for name, value in result["percent"].items():
        met = value <= BUDGET if name != "start" else None
        what = f"rank 0 with {result['droids']} Droids of {result['workers']}, {name} of the task"
        out.append(Figure(what, value, "% of a core", budget=f"<= {BUDGET:g} %" if met is not None else "", met=met))
    return out


if __name__ == "__main__":
    print(json.dumps(run("--quick" in sys.argv), indent=1))
