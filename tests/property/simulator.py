"""A seeded simulator of whole tasks: the real Dispatcher, Ledger, DroidCore, messages, journal and resume, and around
them simulated workers, network, clocks and faults.

    python tests/property/simulator.py SEED [--verbose]

One seed is one task: several allocations work on it, each with its own Droids, until it is complete. Everything that
can go wrong is drawn from the seed (`Plan`), and the laws are checked while it runs (`Checks`). Time is simulated;
nothing waits.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(__file__))
from simulated_droid import Nature, SimDroid

from eventrange import messages
from eventrange.durable import Files
from eventrange.history import done_records, read_progress
from eventrange.intervals import IntervalSet
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from stageout.winners import winners
from yoda.dispatcher import Dispatcher, Instruction, Note, Send, Settings, Write
from yoda.prepared import ledger_of

TICK = 0.5
COMMIT_SECONDS = 0.125
FINGERPRINT = "f" * 16
STARTING = 120.0  #: as in yoda/master.py
STALL = 45.0  #: seconds a live Droid may be idle while events are pending


class Violation(AssertionError):
    """A law is broken."""


class NoSync(Files):
    """The disk of a simulation: what survives is decided by the world."""

    def fsync(self, fd: int) -> None: ...

    def fsync_folder(self, path: str) -> None: ...


# -- what is drawn from the seed ---------------------------------------------------------------------------------------


@dataclass
class Plan:
    """One task and its misfortunes."""

    seed: int
    total: int
    cuts: list[int]
    scale: float
    seconds: list[float]  #: of each event, undisturbed
    poison: dict[int, str]  #: event -> raise, crash, hang
    misfits: set[int]  #: events that make fields unlike the others'
    flaky: float  #: probability that any attempt kills its worker
    group: bool  #: payload takes whole ranges
    timeout: float | None
    size: int
    range_seconds: float
    max_attempts: int
    grace: float
    rounds: int  #: allocations with faults; the next one has none and must complete
    network: float  #: mean delay of a message, seconds
    losing: bool  #: MPI tells of dead ranks and goes on without them
    schemas: bool
    named: bool = False  #: someone else named the ranges: what lies between two cuts stays together

    @classmethod
    def draw(cls, seed: int) -> Plan:
        rng = random.Random(f"plan {seed}")
        scale = 10 ** rng.uniform(-3.5, 0.8)
        sigma = rng.choice([0.0, 0.3, 1.0, 1.5])
        most = min(2500, 60.0 / scale) if rng.random() < 0.9 else 6000
        total = rng.choice([rng.randint(1, 6), rng.randint(1, 80), max(1, int(most * rng.random()))])
        numbers = np.random.default_rng(seed)
        seconds = np.minimum(scale * np.exp(sigma * numbers.standard_normal(total)), 40.0)
        if rng.random() < 0.3:  # a heavy tail
            for _ in range(rng.randint(1, 3)):
                seconds[rng.randrange(total)] = rng.uniform(5, 50)
        timeout = rng.choice([None, None, 60.0, 100.0])
        poison: dict[int, str] = {}
        if rng.random() < 0.4:
            kinds = ["raise", "crash"] + (["hang"] if timeout else [])
            if rng.random() < 0.25:  # a stretch of a damaged file
                begin = rng.randrange(total)
                poison = {e: "raise" for e in range(begin, min(total, begin + rng.randint(1, 40)))}
            for _ in range(rng.randint(1, 4)):
                poison[rng.randrange(total)] = rng.choice(kinds)
        group = rng.random() < 0.25
        size = rng.choice([0, 0, 0, 1, 7, 50, 400])
        if group and "hang" in poison.values():
            size = min(size or 5, 7)  # a group may take as long as all its events together
        schemas = rng.random() < 0.2
        plan = cls(
            seed=seed,
            total=total,
            cuts=sorted({0, *(rng.randrange(total) for _ in range(rng.choice([0, 0, 1, 5, 30])))}),
            scale=scale,
            seconds=seconds.tolist(),
            poison=poison,
            misfits={rng.randrange(total)} if schemas and rng.random() < 0.5 else set(),
            flaky=rng.choice([0, 0, 0, 0.01, 0.05]) / max(1.0, total / 200),
            group=group,
            timeout=timeout,
            size=size,
            range_seconds=rng.choice([0.1, 1.0, 1.0, 10.0]),
            max_attempts=rng.choice([1, 2, 3, 3, 3]),
            grace=rng.choice([1.0, 5.0, 30.0]),
            rounds=rng.choice([0, 1, 1, 2, 3, 4]),
            network=10 ** rng.uniform(-4, -1),
            losing=rng.random() < 0.6,
            schemas=schemas,
        )
        if rng.random() < 0.25 and not (group and "hang" in poison.values()):
            most = rng.choice([1, 3, 20, 200])
            steps = np.array([0, *(rng.randint(1, most) for _ in range(total))])
            plan.cuts = sorted({*steps.cumsum()[steps.cumsum() < total].tolist(), total})
            plan.named, plan.size = True, -(-total // (len(plan.cuts) - 1))
        return plan


@dataclass
class Fault:
    at: float
    what: str
    who: int = 0
    length: float = 0.0


# -- the world --------------------------------------------------------------------------------------------------------


class World:
    """Time, network, disk and fate of one task."""

    def __init__(self, seed: int, say: Callable[[str], None] | None = None) -> None:
        self.plan = Plan.draw(seed)
        self.rng = random.Random(f"world {seed}")
        self.say = say
        self.now = 1000.0
        self.steps = self.messages = 0
        self.root = tempfile.mkdtemp(prefix="yoda-sim-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.taskdir = TaskDir(self.root)
        os.makedirs(self.taskdir.journals)
        self.allocation = ""
        self.images: dict[tuple[str, int, int], list[Any]] = {}  #: -> [start, stop, schema, durable]
        self.failures: Counter[int] = Counter()  #: true failed attempts of each event
        self.good_failures: Counter[int] = Counter()  #: of these, not on a bad Droid
        self.blames: Counter[int] = Counter()
        self.quarantined: set[int] = set()
        self.grants: Counter[int] = Counter()
        self.allocations = 0
        self._queue: list[tuple[float, int, Any, Callable[[], None]]] = []
        self._number = itertools.count()
        self._arrived: dict[tuple[int, int], float] = {}

    def trace(self, text: str) -> None:
        if self.say is not None:
            self.say(f"{self.now - 1000:10.3f} {text}")

    def after(self, delay: float, node: Any, call: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._number), node, call))

    # -- fate --------------------------------------------------------------------------------------------------------

    def fate(self, event: int, attempt: int, droid: SimDroid) -> tuple[str, float]:
        """What comes of this attempt, and after how many seconds."""
        p, seconds = self.plan, self.plan.seconds[event] * droid.nature.slow
        if droid.nature.bad:
            return self.rng.choice(["raise", "raise", "crash"]), min(0.05, seconds)
        kind = p.poison.get(event)
        if kind:
            return kind, seconds * self.rng.random()
        if event in p.misfits and p.schemas:
            return "raise", seconds
        if p.flaky and self.rng.random() < p.flaky:
            return "crash", seconds * self.rng.random()
        return "ok", seconds

    def misfit(self, event: int, droid: SimDroid) -> bool:
        return False

    def failed_truly(self, event: int, droid: SimDroid) -> None:
        self.failures[event] += 1
        if not droid.nature.bad:
            self.good_failures[event] += 1

    def blamed(self, event: int, droid: SimDroid) -> None:
        """A Droid holds an event to blame for the end of a worker."""
        self.trace(f"droid {droid.rank} blames event {event}")
        self.blames[event] += 1
        if self.blames[event] > self.failures[event]:
            raise Violation(
                f"event {event} is blamed {self.blames[event]} times, it failed {self.failures[event]} times"
            )

    def sync_seconds(self) -> float:
        return 0.002 + (self.rng.random() if self.rng.random() < 0.05 else 0.0)

    # -- network -----------------------------------------------------------------------------------------------------

    def arrival(self, source: int, target: int) -> float:
        """When a message sent now arrives: any order between pairs, the order of sending within one."""
        delay = self.plan.network * self.rng.expovariate(1.0)
        if self.rng.random() < 0.01:
            delay += 2.0 * self.rng.random()
        pair = (source, target)
        at = max(self.now + delay, self._arrived.get(pair, 0.0) + 1e-9)
        self._arrived[pair] = at
        return at

    def to_yoda(self, droid: SimDroid, data: bytes) -> None:
        self.messages += 1
        yoda = self.yoda
        at = self.arrival(droid.rank, 0)
        heapq.heappush(self._queue, (at, next(self._number), yoda, lambda: yoda.receive(droid.rank, data)))

    def to_droid(self, rank: int, data: bytes) -> None:
        self.messages += 1
        droid = self.droids[rank]
        at = self.arrival(0, rank)
        heapq.heappush(self._queue, (at, next(self._number), droid, lambda: droid.receive(data)))

    # -- one task ----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Work until the task is complete; raises Violation."""
        try:
            limit = self.plan.rounds + 2
            while self.allocations < limit:
                if self.one_allocation(faults=self.allocations < self.plan.rounds):
                    self.final_checks()
                    return self.figures()
            raise Violation(f"not complete after {limit} allocations, the last without faults")
        finally:
            shutil.rmtree(self.root, ignore_errors=True)

    def figures(self) -> dict[str, Any]:
        return {
            "seed": self.plan.seed,
            "events": self.plan.total,
            "allocations": self.allocations,
            "simulated": self.now - 1000,
            "steps": self.steps,
            "messages": self.messages,
            "quarantined": len(self.quarantined),
            "wrongly": len(self.quarantined - self.plan.poison.keys() - self.plan.misfits),
            "granted": sum(self.grants.values()),
        }

    def one_allocation(self, faults: bool) -> bool:
        rng, plan = self.rng, self.plan
        self.allocation = f"a{self.allocations:03d}"
        self.allocations += 1
        self._queue, self._arrived = [], {}
        count = rng.choice([1, 1, 2, 3, 4, 8, 12])
        if plan.scale * plan.total > 200:
            count = max(count, 3)
        natures = [
            Nature(rng.choice([1, 1, 2, 4, 8]), rng.choice([0.25, 1.0]), rng.choice([1.0, 1.0, 1.0, 3.0]))
            for _ in range(count)
        ]
        if faults and count > 1:
            for nature in natures[1:]:
                nature.bad = rng.random() < 0.08
                nature.start_fails = rng.choice([0.0, 0.0, 0.0, 0.2, 1.0])
        if plan.schemas:
            for nature in natures:
                nature.schema = rng.choice("AB")
        self.trace(f"=== allocation {self.allocation}, {count} droids, faults: {faults}")
        self.droids: dict[int, SimDroid] = {}
        self.yoda = SimYoda(self, count)
        for rank, nature in enumerate(natures, 1):
            self.droids[rank] = SimDroid(self, rank, nature)
            self.droids[rank].begin(rng.random() * rng.choice([0.1, 1.0, 10.0]))
        self.after(TICK, self.yoda, self.yoda.tick)
        work = sum(self.plan.seconds) / sum(n.workers / n.slow for n in natures)
        for fault in self.draw_faults(work, count) if faults else []:
            self.after(fault.at, None, lambda fault=fault: self.strike(fault))
        begun, self.slept = self.now, 0.0
        # Faults may leave the work to one worker of one slow Droid.
        bound = (
            600
            + max(30 * work, 4 * sum(plan.seconds))
            + 20 * plan.max_attempts * len(plan.poison) * (plan.timeout or 60.0) / count
        )
        bound += 60 * max(plan.seconds)
        if any(n.bad for n in natures):
            bound *= 3
        while not self.yoda.over:
            if not self._queue:
                raise Violation("nothing happens any more")
            at, number, node, call = heapq.heappop(self._queue)
            if node is not None:
                if node.dead:
                    continue
                if node.paused_until > at:
                    heapq.heappush(self._queue, (node.paused_until, number, node, call))
                    continue
            self.now = max(self.now, at)
            self.steps += 1
            if isinstance(node, SimDroid):
                node.last_heard = self.now
            call()
            if self.now - begun - self.slept > bound:
                raise Violation(f"no end after {bound:.0f} simulated seconds")
        self.trace(f"=== ends: {self.yoda.code} {self.yoda.reason}")
        if not faults and self.yoda.code not in (0, 65):
            raise Violation(f"without faults the run ended with {self.yoda.code}: {self.yoda.reason}")
        return self.yoda.code in (0, 65)

    # -- faults ------------------------------------------------------------------------------------------------------

    def draw_faults(self, work: float, count: int) -> list[Fault]:
        rng, out = self.rng, []
        span = 10 + 2 * work

        def some(probability: float, what: str, most: int = 1, length: float = 0.0) -> None:
            if rng.random() < probability:
                for _ in range(rng.randint(1, most)):
                    at = span * rng.random() ** 2
                    out.append(Fault(at, what, rng.randint(1, count), length * rng.random()))

        some(0.35, "crash yoda")
        some(0.25, "droid dies", 3)
        some(0.3, "droid hangs", 3, 150.0)
        some(0.1, "all hang", 2, 1000.0)
        some(0.1, "yoda hangs", 2, 30.0)
        some(0.2, "zygote dies", 3)
        some(0.2, "signal", 2)
        some(0.15, "signal at droid", 2)
        some(0.2, "deadline", 1, 60.0)
        some(0.2, "worker dies", 5)
        some(0.15, "part lost", 3, 30.0)
        return out

    def strike(self, fault: Fault) -> None:
        self.trace(f"!!! {fault}")
        yoda, droid = self.yoda, self.droids[fault.who]
        if fault.what == "crash yoda":
            yoda.crash()
        elif fault.what == "droid dies":
            if droid.dead:
                return
            droid.dead = True
            if self.plan.losing:
                if self.rng.random() < 0.8:  # else only the heartbeat tells
                    self.after(2 * self.rng.random(), yoda, lambda: yoda.failed.append(fault.who))
                keep = self.rng.random()  # of what it had sent, some never arrives
                self._queue = [
                    e
                    for e in self._queue
                    if e[2] is not yoda or e[0] < self.now + keep or not self._from(e[3], fault.who)
                ]
                heapq.heapify(self._queue)
            else:
                yoda.crash()
        elif fault.what == "droid hangs":
            self.pause(droid, fault.length)
        elif fault.what == "all hang":
            for each in self.droids.values():
                self.pause(each, fault.length)
            self.pause(yoda, fault.length)
        elif fault.what == "yoda hangs":
            self.pause(yoda, fault.length)
        elif fault.what == "zygote dies":
            if not droid.dead and droid.paused_until <= self.now:
                droid.zygote_dies()
        elif fault.what == "worker dies":
            w = self.rng.choice(droid.workers)
            if w.alive and not droid.dead and droid.paused_until <= self.now:
                event = int(droid.slots["event"][w.index])
                if event >= 0 and w.current is not None and int(droid.slots["count"][w.index]) == 1:
                    self.failed_truly(event, droid)
                w.die(w.number, "shot")
        elif fault.what == "signal":
            yoda.drain(f"signal {fault.at:.0f}")
            # what sent the signal kills after the grace, or sooner than it said
            self.after(self.plan.grace * self.rng.choice([0.3, 1.5, 2.0]), None, yoda.crash)
        elif fault.what == "signal at droid" and not droid.dead and droid.paused_until <= self.now:
            droid.signal(10)
        elif fault.what == "part lost" and not yoda.dead:
            yoda.lose_part(fault.length)
        elif fault.what == "deadline":
            yoda.dispatcher.deadline = self.now + fault.length
            self.after(fault.length, None, yoda.crash)

    def pause(self, node: Any, length: float) -> None:
        self.slept += length
        node.paused_until = max(node.paused_until, self.now + length)

    @staticmethod
    def _from(call: Any, rank: int) -> bool:
        cells = dict(zip(call.__code__.co_freevars, call.__closure__ or (), strict=False))
        return "droid" in cells and cells["droid"].cell_contents.rank == rank

    # -- the laws at the end -----------------------------------------------------------------------------------------

    def final_checks(self) -> None:
        plan = self.plan
        progress = read_progress(self.taskdir, FINGERPRINT)
        done = {e for a, b in progress.done for e in range(a, b)}
        quarantined = {e for a, b in progress.quarantined for e in range(a, b)}
        if done | quarantined != set(range(plan.total)) or done & quarantined:
            raise Violation(
                f"L5: neither done nor quarantined: {sorted(set(range(plan.total)) - done - quarantined)[:9]}"
            )
        rows, index, _names = done_records(self.taskdir, FINGERPRINT)
        placed = winners(rows, index)
        covered = [e for p in placed for e in range(p["keep_start"], p["keep_stop"])]
        if len(covered) != len(set(covered)) or set(covered) != done:
            raise Violation("L2: the winners do not hold every done event exactly once")
        for event in quarantined:
            if self.failures[event] < plan.max_attempts:
                raise Violation(f"event {event} is quarantined and failed {self.failures[event]} times")
        for event in done:
            if event in plan.poison or event in plan.misfits:
                raise Violation(f"event {event} always fails and is done")


class SimYoda:
    """What yoda/master.py does around the Dispatcher, with simulated time; checks the laws on the way."""

    def __init__(self, world: World, count: int) -> None:
        self.world, self.count = world, count
        plan = world.plan
        self.dead = False
        self.paused_until = -1.0
        self.known = read_progress(world.taskdir, FINGERPRINT)
        ledger = ledger_of(plan.total, self.known)
        settings = Settings(
            size=plan.size,
            whole=plan.named,
            range_seconds=plan.range_seconds,
            max_attempts=plan.max_attempts,
            grace=plan.grace,
        )
        self.done = IntervalSet(self.known.done)  # by our own book
        self.dispatcher = Dispatcher(ledger, plan.cuts, settings, plan.total)
        self.dispatcher.schema = self.known.schema
        self.dispatcher.roster.awaited = set(range(1, count + 1))
        self.path = world.taskdir.journal(world.allocation)
        self.journal = JournalWriter(self.path, FINGERPRINT, world.allocation, NoSync())
        self.greeted: set[int] = set()
        self.failed: deque[int] = deque()
        self.waiting_since: float | None = world.now
        self.syncing = False
        self.synced = 0
        self.begun = self.last = world.now
        self.over = False
        self.code, self.reason = 75, "killed"
        self.checked = 0
        self.drains = 0
        self.open: Counter[int] = Counter()  # events granted and not closed again, by Droid, as the journal has it
        self.check()

    # -- the shell ---------------------------------------------------------------------------------------------------

    def receive(self, rank: int, data: bytes) -> None:
        now, message, d = self.world.now, messages.decode(data), self.dispatcher
        if isinstance(message, messages.Hello):
            self.note("joined", droid=rank, host=message.host, workers=message.workers, startup=message.startup)
            self.greeted.add(rank)
            self.send(rank, messages.Welcome({"name": "t"}, self.world.allocation, d.schema))
            self.do(d.hello(now, rank, message.host, message.workers))
        elif rank not in d.droids:
            return
        elif isinstance(message, messages.Report):
            rows = messages.rows(message.records)
            rows["droid"] = rank
            self.do(d.report(now, rank, message, rows))
        elif isinstance(message, messages.Sick):
            self.do(d.sick(now, rank, message.reason, message.exit_code))
        elif isinstance(message, messages.Bye):
            self.do(d.bye(now, rank, message.reason))
        elif isinstance(message, messages.Warned):
            self.drain("signal at a droid")
        self.turn()

    def drain(self, reason: str) -> None:
        if not self.dead:
            self.do(self.dispatcher.signalled(self.world.now, reason))

    def lose_part(self, seconds: float) -> None:
        """Another allocation takes a part of the axis over, does nothing, and is dead `seconds` later."""
        rng, total = self.world.rng, self.world.plan.total
        start = rng.randrange(total)
        stop = rng.randint(start + 1, total)
        self.world.trace(f"!!! [{start}, {stop}) is lost")
        self.do(self.dispatcher.withdraw([(start, stop)]))
        self.check()
        for held in self.dispatcher.ledger.granted.values():
            if held.overlap(start, stop):
                raise Violation(f"[{start}, {stop}) is another's, and still granted")
        self.world.after(seconds, self, lambda: self.dispatcher.ledger.adopt(start, stop, {}) and None)

    def tick(self) -> None:
        now, d = self.world.now, self.dispatcher
        self.world.after(TICK, self, self.tick)
        while self.failed:
            rank = self.failed.popleft()
            self.do(d.lost(now, rank, "its process died"))
            self.greeted.add(rank)
        if now - self.begun > STARTING:
            self.greeted.update(range(1, self.count + 1))
            d.roster.awaited.clear()
        self.do(d.tick(now, max(0.0, now - self.last - 5.0)))
        if d.complete and not d.draining:
            self.do(d.finish(now, 60.0))
        self.check()
        self.check_idle()
        self.turn()

    def turn(self) -> None:
        """The end of one turn of the loop."""
        now = self.world.now
        self.last = now
        self.commit()
        if self.is_over(now) and not self.over:
            self.end()

    def is_over(self, now: float) -> bool:
        d = self.dispatcher
        if d.draining and now > d.drain_ends:
            return not self.syncing or now > d.drain_ends + 5.0
        if self.waiting_since is not None or self.syncing:
            return False
        if len(self.greeted) < self.count:
            return False
        return not d.at_work or (d.exit_code is not None and not d.active)

    def end(self) -> None:
        self.code, self.reason = self.dispatcher.result()
        self.note("end", reason=self.reason, exit_code=self.code)
        self.journal.flush()
        self.journal.file.close()
        self.check()
        self.dead = self.over = True

    def crash(self) -> None:
        """SIGKILL of everything: of the journal stays what was synced, and perhaps some of what was not."""
        if self.over:
            return
        self.world.trace("!!! everything is killed")
        rng = self.world.rng
        if rng.random() < 0.3:
            self.journal.flush()
        size = self.journal.file.size
        self.journal.file.close()
        keep = rng.choice([self.synced, size, rng.randint(self.synced, size)])
        os.truncate(self.path, keep)
        if keep > self.synced and rng.random() < 0.2:  # a block that was never written
            with open(self.path, "r+b") as file:
                file.seek(rng.randint(self.synced, keep))
                file.write(bytes(min(64, keep - file.tell())))
        self.dead = self.over = True

    def send(self, rank: int, message: messages.Message) -> None:
        self.world.to_droid(rank, messages.encode(message))

    def note(self, name: str, **values: Any) -> None:
        if self.waiting_since is None:
            self.waiting_since = self.world.now
        self.journal.note(name, time=self.world.now, **values)

    def do(self, todo: list[Instruction]) -> None:
        for step in todo:
            if isinstance(step, Send):
                if isinstance(step.message, messages.Grant):
                    self.check_grant(step.droid, step.message)
                if self.world.say is not None:
                    self.world.trace(f"yoda -> {step.droid}: {_short(step.message)}")
                self.send(step.droid, step.message)
            elif isinstance(step, Write):
                if self.waiting_since is None:
                    self.waiting_since = self.world.now
                self.check_rows(step.rows)
                step.rows["time"][step.rows["time"] == 0] = self.world.now
                self.journal.append(step.rows)
            elif isinstance(step, Note):
                self.world.trace(f"note {step.name} {step.values}")
                self.note(step.name, **{k: v for k, v in step.values.items() if k != "time"})

    def commit(self) -> None:
        now = self.world.now
        if self.syncing or self.waiting_since is None:
            return
        wait = self.waiting_since + COMMIT_SECONDS - now
        if wait > 1e-9 and not self.dispatcher.complete:
            self.world.after(wait, self, self.turn)
            return
        size = self.journal.flush()
        since, self.syncing, self.waiting_since = self.waiting_since, True, None
        self.world.after(self.world.sync_seconds(), self, lambda: self.is_synced(size, since))

    def is_synced(self, size: int, since: float) -> None:
        self.syncing, self.synced = False, size
        self.dispatcher.ending.committed(journal=self.world.now - since)
        self.turn()

    # -- the laws on the way -----------------------------------------------------------------------------------------

    def check_rows(self, rows: Any) -> None:
        world = self.world
        for row in rows:
            start, stop = int(row["start"]), int(row["stop"])
            if row["kind"] in (Kind.GRANTED, Kind.DONE, Kind.FAILED, Kind.RETURNED):
                self.open[int(row["droid"])] += (stop - start) * (1 if row["kind"] == Kind.GRANTED else -1)
            if not 0 <= start < stop <= world.plan.total:
                raise Violation(f"a record of no range: {row}")
            if row["kind"] == Kind.DONE:
                image = world.images[(world.allocation, int(row["droid"]), int(row["offset"]))]
                if image[:2] != [start, stop] or not image[3]:
                    raise Violation(f"L1: [{start}, {stop}) is recorded done, its image is {image}")
                if self.dispatcher.schema and image[2] != self.dispatcher.schema:
                    raise Violation(f"[{start}, {stop}) has fields {image[2]}, the task {self.dispatcher.schema}")
                self.done.add(start, stop)
                self.check_cuts(start, stop)
            elif row["kind"] == Kind.QUARANTINED:
                self.check_quarantine(start)

    def check_quarantine(self, event: int) -> None:
        world = self.world
        world.quarantined.add(event)
        if world.failures[event] < world.plan.max_attempts:
            raise Violation(f"event {event} is quarantined after {world.failures[event]} true failures")

    def check_grant(self, droid: int, grant: messages.Grant) -> None:
        for start, stop, _ in messages.unpack_ranges(grant.ranges):
            if not 0 <= start < stop <= self.world.plan.total:
                raise Violation(f"granted [{start}, {stop})")
            if self.known.done.overlap(start, stop):
                raise Violation(f"L4: [{start}, {stop}) granted to {droid} was acknowledged by an earlier allocation")
            if self.done.overlap(start, stop):
                raise Violation(f"[{start}, {stop}) granted to {droid} is done")
            if not self.world.plan.named:  # else the Droid keeps to them
                self.check_cuts(start, stop)
            self.world.grants.update(range(start, stop))

    def check_cuts(self, start: int, stop: int) -> None:
        cuts = self.world.plan.cuts
        if bisect_left(cuts, stop) > bisect_right(cuts, start):
            raise Violation(f"[{start}, {stop}) crosses a cut")

    def check(self) -> None:
        """Every event is exactly one of pending, retry, in flight, quarantined, done; and done means recorded."""
        ledger, total = self.dispatcher.ledger, self.world.plan.total
        flying, open_ = IntervalSet(), IntervalSet()
        for held in ledger.granted.values():
            for start, stop in held:
                flying.add(start, stop)
        parts = (
            list(ledger.pending),
            [(e, e + 1) for e in ledger.retries],
            list(ledger.quarantined),
            list(ledger.elsewhere),
            list(flying),
        )
        for part in parts:
            for start, stop in part:
                if open_.add(start, stop) != stop - start:
                    raise Violation(f"[{start}, {stop}) has two states: {parts}")
        if flying.total != ledger.in_flight:
            raise Violation(f"{flying.total} events are in flight, the ledger counts {ledger.in_flight}")
        if set(ledger.attempts) - {e for a, b in flying for e in range(a, b)}:
            raise Violation("attempts of events that are not in flight")
        if self.open != Counter({rank: held.total for rank, held in ledger.granted.items()}):
            raise Violation(f"{self.open} events are open in the journal, {ledger.granted} are granted")
        done = IntervalSet(open_.gaps(0, total))
        if done.total != ledger.done or (open_.starts and not 0 <= open_.starts[0] <= open_.stops[-1] <= total):
            raise Violation("the ledger's sum is wrong")
        for start, stop in done:
            if not self.done.covers(start, stop):
                raise Violation(f"L1: [{start}, {stop}) is done without a record")
        for start, stop in self.done:
            if not done.covers(start, stop):
                raise Violation(f"[{start}, {stop}) is recorded done and will be done again")

    def check_idle(self) -> None:
        """Nobody who could work is idle for long while there is something to do."""
        d, world, now = self.dispatcher, self.world, self.world.now
        for rank, droid in world.droids.items():
            idle = (
                not d.draining
                and d.exit_code is None
                and rank in d.droids
                and d.droids[rank].state == "active"
                and d.droids[rank].held_since > now  # waits, for a while, for the verdict of others
                and not droid.dead
                and droid.paused_until < now
                and self.paused_until < now
                and droid.started
                and droid.sick is None
                and not droid.core.draining
                and not droid.core.holding.events
                and any(w.state == "ready" for w in droid.core.workers)
                and d.ledger.pending.total > 0
            )
            if not idle:
                droid.idle_since = None
            elif droid.idle_since is None:
                droid.idle_since = now
            elif now - droid.idle_since > STALL:
                raise Violation(f"droid {rank} is idle for {STALL} s while {d.ledger.pending.total} events are pending")


def _short(message: messages.Message) -> str:
    if isinstance(message, messages.Grant | messages.Revoke):
        return f"{type(message).__name__} {messages.unpack_ranges(message.ranges)[:6]}"
    return str(message)[:120]


def run(seed: int, verbose: bool = False) -> dict[str, Any]:
    """Simulate `seed`; returns figures, raises with the seed in the message if a law is broken."""
    world = World(seed, print if verbose else None)
    try:
        return world.run()
    except BaseException as error:
        error.args = (f"seed {seed}: {error}", *error.args[1:])
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if options.verbose:
        plan = Plan.draw(options.seed)
        print({k: v for k, v in vars(plan).items() if k != "seconds"}, f"max {max(plan.seconds):.3f} s")
    begun = time.perf_counter()
    print(run(options.seed, options.verbose), f"{time.perf_counter() - begun:.3f} s")


if __name__ == "__main__":
    main()
