"""Yoda with very many Droids: how much of a core rank 0 takes, and how long Droids wait for it.

Droids are simulated in time, not in processes: every message a Droid would send is made while the clock stands; what
rank 0 does with it is real and on the clock: decoding, dispatcher and ledger, encoding of answers, journal (framed and
checksummed, written nowhere). The simulation is closed: an answer leaves when rank 0 has got round to it, so that an
overloaded Yoda is late, and its Droids run dry. MPI itself is not in it; what a message costs there is measured beside
it, with two real ranks, and added.

    python tests/benchmarks/bench_scale.py --table          # from 10 to 20,000 Droids of 64 and 256 workers
    python tests/benchmarks/bench_scale.py --droids 10000 --workers 64 --seconds 60
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import math
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from benchlib import mpiexec

from droid.pace import Pace
from droid.rank import HEARTBEAT, REPORT_GAP, TAIL_HEARTBEAT, TAIL_HEARTBEATS
from eventrange import messages, records
from eventrange.durable import Files
from eventrange.journal import JournalWriter
from eventrange.ledger import Ledger
from eventrange.messages import Range, Report
from eventrange.records import Kind
from eventrange.times import time_bin
from yoda.bench import Figure
from yoda.dispatcher import RANGES_PER_SECOND, Dispatcher, Instruction, Note, Send, Settings, Write
from yoda.master import QUICK, TICK

BUDGET = 50.0  #: per cent of a core
COMMIT = 0.25  #: seconds of group commit at the Droid: ranges that end together are reported together
LATENCY = 50e-6  #: seconds a message travels
LOOP = 100e-6  #: seconds rank 0 sleeps between two looks at MPI while there is traffic
START = 0.0002  #: seconds between the first words of two Droids
MOST = 4096  #: messages taken in one turn of the loop
SIGMA = 0.5  #: of the lognormal events
TABLE = ((10, 64), (100, 64), (1000, 64), (5000, 64), (10_000, 64), (20_000, 64), (1000, 256), (10_000, 256))
LARGEST = (20_000, 256)


class _Nowhere(Files):
    """A journal that is framed and checksummed, and goes nowhere: the disk is another benchmark's."""

    def __init__(self) -> None:
        self.bytes = 0

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        return 0

    def write(self, fd: int, data: Any) -> int:
        self.bytes += len(data)
        return len(data)

    def fsync(self, fd: int) -> None: ...

    def fsync_folder(self, path: str) -> None: ...

    def close(self, fd: int) -> None: ...


class _Droid:
    """A Droid that asks when its backlog is low and reports what its workers have done since its last report.

    Ranges, requests and heartbeats are as those of a real one: by the real `Pace`, for events of known mean.
    """

    def __init__(self, rank: int, droids: int, workers: int, seconds: float, sigma: float, rng: random.Random) -> None:
        self.rank, self.workers, self.seconds, self.sigma, self.rng = rank, workers, seconds, sigma, rng
        self.backlog: deque[Range] = deque()
        self.held = 0  # events in the backlog
        self.ends: list[tuple[float, int, int, float]] = []  # end, start, stop, begin of each worker at work
        self.begun: deque[tuple[float, int]] = deque()  # begin, start of what is or was at work, oldest first
        self.working: set[int] = set()
        self.pace = Pace(workers)
        self.tail_heartbeat = min(max(TAIL_HEARTBEAT, droids / TAIL_HEARTBEATS), HEARTBEAT)
        self.range_seconds = 0.25
        self.remaining = 1
        self.partly = 0
        self.asked = -1.0
        self.reported = 0.0
        self.give_back = 0
        self.unsynced: list[tuple[int, int, int, float, float]] = []  # records of what has ended
        self.durable_at = math.inf
        self.free = [START * rank] * workers  # since when, of each worker without work
        self.idle = 0.0  # core-seconds without work while there was some to be had

    def grant(self, now: float, message: messages.Grant) -> None:
        self.range_seconds, self.remaining = message.range_seconds, message.remaining
        for start, stop, attempt in messages.unpack_ranges(message.ranges):
            self.backlog.append((start, stop, attempt))
            self.held += stop - start
        self.fill(now)

    def fill(self, now: float) -> None:
        """Give work to workers that have none."""
        while self.free and self.backlog:
            since = self.free.pop()
            self.idle += now - since if self.remaining else 0.0
            self.begin(now)

    def begin(self, now: float) -> None:
        """A worker takes the next range."""
        start, stop, attempt = self.backlog.popleft()
        cut = min(stop, start + (self.pace.range_events(self.range_seconds) if self.remaining else 1))
        if cut < stop:
            self.backlog.appendleft((cut, stop, attempt))
        self.held -= cut - start
        heapq.heappush(self.ends, (now + self.took(cut - start), start, cut, now))
        self.begun.append((now, start))
        self.working.add(start)

    def settle(self) -> None:
        """As if it had been at work for long: it knows its pace, and what comes first is partly done."""
        self.pace.measure(64.0 * self.workers * self.seconds, 64 * self.workers)
        self.partly = self.workers

    def took(self, events: int) -> float:
        """Seconds of a range of so many events: lognormal, and of many of them a normal sum."""
        if self.partly:
            self.partly -= 1
            return self.rng.random() * self.seconds * events
        if events < 5:
            draw = self.rng.lognormvariate
            return self.seconds * sum(draw(-(self.sigma**2) / 2, self.sigma) for _ in range(events))
        spread = math.sqrt(math.expm1(self.sigma**2) * events)
        return self.seconds * max(0.2 * events, self.rng.gauss(events, spread))

    def drop(self, now: float, ranges: list[Range]) -> None:
        for start, stop, _ in ranges:
            gone = {entry[1] for entry in self.ends if start <= entry[1] < stop}
            self.ends = [entry for entry in self.ends if entry[1] not in gone]
            self.working -= gone
            self.free += [now] * len(gone)
            kept = [r for r in self.backlog if not start <= r[0] < stop]
            self.backlog, self.held = deque(kept), sum(b - a for a, b, _ in kept)
        heapq.heapify(self.ends)

    def advance(self, now: float) -> None:
        """Workers end, and begin what is next."""
        while self.ends and self.ends[0][0] <= now:
            end, start, stop, begin = heapq.heappop(self.ends)
            if not self.unsynced:
                self.durable_at = end + COMMIT
            self.unsynced.append((Kind.DONE, start, stop, begin, end - begin))
            self.working.discard(start)
            self.pace.measure(end - begin, stop - start)
            if self.backlog:
                self.begin(end)
            else:
                self.free.append(end)

    def report(self, now: float) -> bytes:
        """What it says now: what has ended, what it gives back, what runs, what it wants."""
        self.advance(now)
        rows: list[tuple[int, int, int, float, float]] = []
        times: dict[int, int] = {}
        if now >= self.durable_at:
            rows, self.unsynced, self.durable_at = self.unsynced, [], math.inf
            for _, start, stop, _, wall in rows:
                each = time_bin(wall / (stop - start))
                times[each] = times.get(each, 0) + stop - start
        while self.give_back > 0 and self.backlog:
            start, stop, attempt = self.backlog.pop()
            cut = max(start, stop - self.give_back)
            if cut > start:
                self.backlog.append((start, cut, attempt))
            rows.append((Kind.RETURNED, cut, stop, now, 0.0))
            self.give_back -= stop - cut
            self.held -= stop - cut
        self.give_back = 0
        done = records.new(len(rows), size=1000)
        if rows:
            done["kind"], done["start"], done["stop"], done["time"], done["wall"] = zip(*rows, strict=True)
        want = self.want()
        if want:
            self.asked = now
        while self.begun and self.begun[0][1] not in self.working:
            self.begun.popleft()
        running: list[tuple[int, float]] = []
        for begin, start in self.begun:
            if start in self.working:
                running.append((start, now - begin))
                if len(running) == 16:
                    break
        self.reported = now
        busy = len(self.ends)
        return messages.encode(
            Report(
                done.tobytes(), [], want, self.held, busy, self.seconds, messages.pack_running(running), times, "fields"
            )
        )

    def want(self) -> int:
        """Events to ask for."""
        if self.asked >= 0:
            return 0
        low, high = self.pace.marks(self.workers, self.range_seconds, 0)
        return max(1, high - self.held) + self.partly if self.held < low or not self.held else 0

    def next(self) -> float:
        """When it reports next: what is durable, and a request as soon as there is one."""
        quiet = HEARTBEAT if self.remaining or not self.ends else self.tail_heartbeat
        at = min(self.durable_at, self.reported + quiet)
        if self.ends:
            low, _ = self.pace.marks(self.workers, self.range_seconds, 0)
            soon = self.asked < 0 and self.held <= low  # the next worker that ends makes it ask
            at = min(at, self.ends[0][0] + (0.0 if soon else COMMIT))
        if self.want():
            at = self.reported
        return max(at, self.reported + REPORT_GAP)


class Scale:
    """Rank 0 and its Droids; CPU time, waits and messages by phase of the task."""

    def __init__(
        self, droids: int, workers: int, seconds: float, events: int, message: float = 0.0, settled: bool = False
    ) -> None:
        rng = random.Random(1)
        ledger = Ledger(events)
        ledger.pending.add(0, events)
        self.d = Dispatcher(ledger, [0], Settings(range_seconds=0.25), events)
        self.files = _Nowhere()
        self.journal = JournalWriter("nowhere", "f", "a", self.files)
        self.droids = {rank: _Droid(rank, droids, workers, seconds, SIGMA, rng) for rank in range(1, droids + 1)}
        self.message = message  # seconds MPI takes for one
        self.cpu: dict[str, float] = {}
        self.span: dict[str, float] = {}
        self.heard: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.waits: dict[str, list[float]] = {}
        self.queue: list[tuple[float, int]] = []
        self.queued: dict[int, float] = {}
        self.written = 0
        self.memory = 0
        self.idle = 0.0  # core-seconds without work in the middle of the task
        self.now = self.flushed = 0.0
        self.warm = 2 * seconds  # what the first requests brought is done by then
        if settled:
            self.warm = START * droids + 2.0
            for droid in self.droids.values():
                droid.settle()

    def phase(self) -> str:
        """start: the first requests, and what they brought; middle: until nothing is pending; tail."""
        if not self.d.ledger.pending:
            return "tail"
        return "middle" if self.now > self.warm else "start"

    def _metered(self, work: Callable[[], list[tuple[int, bytes]]], count: int) -> None:
        """One turn of rank 0's loop that begins now; its answers arrive when it is over."""
        phase = self.phase()
        begin = time.thread_time()
        answers = work()
        if self.now - self.flushed > 0.25:
            self.journal.flush()
            self.flushed = self.now
        took = time.thread_time() - begin + self.message * (count + len(answers))
        self.cpu[phase] = self.cpu.get(phase, 0.0) + took
        self.heard[phase] = self.heard.get(phase, 0) + count
        self.sent[phase] = self.sent.get(phase, 0) + len(answers)
        self.span[phase] = self.span.get(phase, 0.0) + took
        self.now += took
        for rank, data in answers:
            self._answered(rank, messages.decode(data), self.now + LATENCY, phase)

    def _answered(self, rank: int, message: messages.AnyMessage, at: float, phase: str) -> None:
        droid = self.droids[rank]
        if isinstance(message, messages.Grant):
            if droid.asked >= 0 and message.ranges:
                self.waits.setdefault(phase, []).append(at - droid.asked)
                droid.asked = -1.0
            droid.grant(at, message)
        elif isinstance(message, messages.Revoke):
            droid.drop(at, messages.unpack_ranges(message.ranges))
            droid.fill(at)
        elif isinstance(message, messages.Reclaim):
            droid.give_back = message.events
            droid.reported = min(droid.reported, at - HEARTBEAT)  # it answers at once
        self._plan(rank, at)

    def _plan(self, rank: int, now: float) -> None:
        """`rank` reports next when it has something to say."""
        at = max(now, self.droids[rank].next())
        if at != self.queued.get(rank):
            self.queued[rank] = at
            heapq.heappush(self.queue, (at, rank))

    def _do(self, steps: list[Instruction], answers: list[tuple[int, bytes]]) -> None:
        for step in steps:
            if isinstance(step, Send):
                answers.append((step.droid, messages.encode(step.message)))
            elif isinstance(step, Write):
                self.journal.append(step.rows)
                self.written += len(step.rows)
            elif isinstance(step, Note):
                self.journal.note(step.name, **step.values)

    def _hear(self, batch: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        answers: list[tuple[int, bytes]] = []
        for rank, data in batch:
            message = messages.decode(data)
            assert isinstance(message, Report)
            rows = messages.rows(message.records)
            rows["droid"] = rank
            self._do(self.d.report(self.now, rank, message, rows), answers)
        return answers

    def _tick(self) -> list[tuple[int, bytes]]:
        answers: list[tuple[int, bytes]] = []
        self._do(self.d.tick(self.now), answers)
        return answers

    def _arrivals(self) -> list[tuple[int, bytes]]:
        """Reports that are there by now."""
        batch: list[tuple[int, bytes]] = []
        while self.queue and self.queue[0][0] <= self.now and len(batch) < MOST:
            at, rank = heapq.heappop(self.queue)
            if self.queued.get(rank) == at:
                batch.append((rank, self.droids[rank].report(at)))
                self._plan(rank, at)
        return batch

    def run(self, tail: float = math.inf) -> None:
        """Until the task is complete, or for `tail` seconds of its tail."""
        for rank, droid in self.droids.items():
            self.d.hello(0.0, rank, f"node{rank}", droid.workers)
            self.queued[rank] = START * rank
            heapq.heappush(self.queue, (START * rank, rank))
        tick_at, measured, warm = TICK, False, False
        while not self.d.complete and self.span.get("tail", 0.0) < tail:
            batch = self._arrivals()
            if batch:
                self._metered(lambda: self._hear(batch), len(batch))  # noqa: B023
            if self.now >= tick_at:
                self._metered(self._tick, 0)
                tick_at = self.now + (QUICK if self.d.hurried else TICK)
            if not warm and self.phase() != "start":
                warm, self.idle = True, -sum(droid.idle for droid in self.droids.values())
            if not measured and self.phase() == "tail":
                measured, self.memory = True, deep_size(self.d)
                self.idle += sum(droid.idle for droid in self.droids.values())
            ahead = min(tick_at, self.queue[0][0] if self.queue else math.inf)
            step = max(LOOP, ahead - self.now)
            self.span[self.phase()] = self.span.get(self.phase(), 0.0) + step
            self.now += step


def deep_size(root: Any) -> int:
    """Bytes of everything that is reachable from `root` and is not code."""
    seen: set[int] = set()
    todo, total = [root], 0
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | type(gc) | type(deep_size)):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        todo += gc.get_referents(thing)
    return total


# -- what MPI takes ----------------------------------------------------------------------------------------------------

FLOOD = 20_000


def message_seconds() -> float:
    """CPU seconds of rank 0 for one message in or out, by the real Transport between two real ranks."""
    parts, environment = mpiexec(2)
    words = [*parts, sys.executable, __file__, "--flood"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring MPI ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def flood() -> None:
    """Rank 1 reports, rank 0 answers each; rank 0 prints what a message costs it."""
    from mpi4py import MPI

    from droid.transport import Transport

    transport = Transport(MPI, MPI.COMM_WORLD)
    report, grant, left, answered = bytes(450), bytes(120), FLOOD, 0
    if transport.rank:
        for _ in range(FLOOD // 64):  # no more on the way at once than a Droid or two hundred would have
            for _ in range(64):
                transport.send(0, report)
            answered = 0
            while answered < 64:
                answered += transport.receive() is not None
            while transport.sending:
                pass
    else:
        left, begin = FLOOD // 64 * 64, time.thread_time()
        waited = 0.0
        while left:
            before = time.thread_time()
            if transport.receive() is None:
                waited += time.thread_time() - before
                continue
            transport.send(1, grant)
            left -= 1
            if not left % 64:
                assert transport.sending in (True, False)
        print(json.dumps((time.thread_time() - begin - waited) / (2 * FLOOD)), flush=True)
    transport.meet(10.0)


# -- as a benchmark ----------------------------------------------------------------------------------------------------


def measure(
    droids: int, workers: int, seconds: float, message: float, settled: bool = False, tail: float = math.inf
) -> dict[str, Any]:
    """One task, to its end or for `tail` seconds of its tail; `settled`: from the middle on, which is sooner done."""
    longer = max(1.0, droids * workers / RANGES_PER_SECOND / seconds)  # events of a range, with very many workers
    waves = 1.3 * longer if settled else 3.6
    scale = Scale(droids, workers, seconds, int(droids * workers * waves), message, settled)
    begin = time.perf_counter()
    gc.collect()
    gc.disable()  # it would look at all simulated Droids, and that is not rank 0's to pay
    try:
        scale.run(tail)
    finally:
        gc.enable()
    phases = [name for name in ("start", "middle", "tail") if scale.span.get(name)]
    waits = np.array(scale.waits.get("middle", scale.waits.get("start", [0.0])))
    cores = droids * workers
    return {
        "droids": droids,
        "workers": workers,
        "seconds_per_event": seconds,
        "events": scale.d.total,
        "simulated": scale.now,
        "took": time.perf_counter() - begin,
        "percent": {name: 100 * scale.cpu.get(name, 0.0) / scale.span[name] for name in phases},
        "span": {name: scale.span[name] for name in phases},
        "messages_per_second": {
            name: (scale.heard.get(name, 0) + scale.sent.get(name, 0)) / scale.span[name] for name in phases
        },
        "microseconds_per_message": {
            name: 1e6 * scale.cpu.get(name, 0.0) / max(1, scale.heard.get(name, 0) + scale.sent.get(name, 0))
            for name in phases
        },
        "wait_ms": {name: 1e3 * float(np.quantile(waits, q)) for name, q in (("p50", 0.5), ("p99", 0.99))},
        "complete": scale.d.complete,
        "idle_percent": 100 * scale.idle / (cores * max(1e-9, scale.span.get("middle", 0.0))),
        "memory_mb": scale.memory / 1e6,
        "journal_bytes_per_event": scale.files.bytes / scale.d.total,
        "journal_mb_per_hour": scale.files.bytes / scale.d.total * cores / seconds * 3600 / 1e6,
        "message_seconds": message,
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Per cent of a core and messages a second in each phase of the task."""
    message = message_seconds()
    return measure(100, 8, 20.0, message) if quick else measure(10_000, 64, 60.0, message, True, 15.0)


def figures(result: dict[str, Any]) -> list[Figure]:
    """The worst phase has to keep the budget; the start is a burst, and given beside it."""
    out = []
    for name, value in result["percent"].items():
        met = value <= BUDGET if name != "start" else None
        what = f"rank 0 with {result['droids']} Droids of {result['workers']}, {name} of the task"
        out.append(Figure(what, value, "% of a core", budget=f"<= {BUDGET:g} %" if met is not None else "", met=met))
    return [*out, Figure("wait for a grant there, 99 %", result["wait_ms"]["p99"], "ms")]


def row(found: dict[str, Any]) -> str:
    """One line of the table in docs/scale.md."""
    share, rate = found["percent"], found["messages_per_second"]
    waits = found["wait_ms"]
    return (
        f"| {found['droids']:,} x {found['workers']} | {found['droids'] * found['workers']:,} | "
        f"{share.get('start', 0):.1f} | {share.get('middle', 0):.1f} | {share.get('tail', 0):.1f} | "
        f"{rate.get('middle', 0):,.0f} | {waits['p50']:.1f} / {waits['p99']:.1f} | {found['idle_percent']:.2f} | "
        f"{found['memory_mb']:.0f} | {found['journal_mb_per_hour']:,.0f} | "
        f"{'' if found['complete'] else '> '}{found['span'].get('tail', 0):.0f} |"
    )


HEAD = """\
| Droids x workers | cores | start % | middle % | tail % | messages/s | wait ms p50 / p99 | idle % | memory MB | \
journal MB/h | tail s |
|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true", help="from 10 to 20,000 Droids")
    parser.add_argument("--droids", type=int)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="mean length of an event")
    parser.add_argument("--flood", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.flood:
        flood()
    elif args.table:
        message = message_seconds()
        print(f"a message costs {1e6 * message:.1f} us in MPI\n{HEAD}", flush=True)
        for droids, workers in (*TABLE, LARGEST):
            large = droids * workers > 100_000  # its tail is as long as its longest event, and the same all along
            print(row(measure(droids, workers, args.seconds, message, large, 15.0 if large else math.inf)), flush=True)
    elif args.droids:
        print(json.dumps(measure(args.droids, args.workers, args.seconds, message_seconds()), indent=1))
    else:
        print(json.dumps(run(args.quick), indent=1))


if __name__ == "__main__":
    main()
