"""The shell of a Droid and its workers, simulated around the real DroidCore. See simulator.py.

`SimDroid` does what droid/rank.py does, in the same order, with the world's clock; `SimWorker` does what
droid/worker.py and the zygote do. Keep them as near to those as their size allows: what differs here is not tested.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from droid import core
from droid.slots import SLOT
from droid.store import void
from eventrange import messages, records
from eventrange.messages import Evidence, Range
from eventrange.records import Code, Kind
from eventrange.times import add, time_bin

if TYPE_CHECKING:
    from simulator import World

TICK = 1.0  #: the real one is shorter; a core does not mind, and the simulation is faster
HEARTBEAT = 5.0
REPORT_GAP = 0.005
FLUSH_SECONDS = 0.02
COMMIT_SECONDS = 0.25


@dataclass
class Nature:
    """What is peculiar about one simulated Droid."""

    workers: int = 1
    commit: float = COMMIT_SECONDS  #: seconds between commits
    slow: float = 1.0  #: times everything takes longer
    bad: bool = False  #: every event fails here
    start_fails: float = 0.0  #: probability that a worker dies before it is ready
    schema: str = "A"  #: fields its workers make while nobody told them others


@dataclass
class SimWorker:
    """One worker process: `todo` and what it is on, results not yet sent, results on the way to the Droid."""

    droid: SimDroid
    index: int
    number: int = 0  #: incarnation; timers of earlier ones are void
    alive: bool = False
    todo: deque[tuple[Range, bool]] = field(default_factory=deque)
    current: Range | None = None
    first: int = 0  #: first event of `current` without a row
    began: float = 0.0  #: when it was begun
    at: int = 0  #: next event of `current`
    run: int = 0  #: events being done from `at` on
    alone: bool = False  #: a group failed: its events one by one
    expected: str = ""
    rows: list[tuple[int, int, int, int, int, float, float]] = field(default_factory=list)
    """kind, code, attempt, start, stop, when begun, seconds since then"""
    times: dict[int, int] = field(default_factory=dict)
    flushed: float = 0.0
    schema: str = ""
    way: deque[tuple[float, Any]] = field(default_factory=deque)

    @property
    def slot(self) -> Any:
        return self.droid.slots[self.index]

    # -- life --------------------------------------------------------------------------------------------------------

    def spawn(self) -> None:
        w = self.droid.world
        self.number += 1
        self.alive, self.todo, self.current, self.rows, self.times = True, deque(), None, [], {}
        self.expected, self.schema, self.alone = self.droid.core.schema, "", False
        number = self.number
        if w.rng.random() < self.droid.nature.start_fails:
            self.later(w.rng.random(), lambda: self.die(number, "at start"))
        else:
            self.later(0.005 + 0.05 * w.rng.random(), lambda: self.ready(number))

    def later(self, delay: float, call: Any) -> None:
        self.droid.world.after(delay, self.droid, call)

    def ready(self, number: int) -> None:
        if number == self.number and self.alive:
            self.droid.do(self.droid.core.worker_ready(self.index))

    def die(self, number: int, how: str) -> None:
        """The process ends now; the Droid hears of it a little later, after the results that were sent."""
        if number != self.number or not self.alive:
            return
        self.droid.world.trace(f"worker {self.droid.rank}.{self.index} ends: {how}, slot {self.slot}, {self.current}")
        self.alive = False
        self.later(0.002, lambda: self.droid.exited(self.index, number, how))

    def assign(self, step: core.Assign, number: int) -> None:
        if number == self.number and self.alive:
            self.todo.extend((work, step.follow) for work in step.ranges)
            if self.current is None:
                self.flushed = self.droid.world.now
                self.next()

    def kill(self, number: int, event: int) -> None:
        """SIGKILL. `event` >= 0: for a timeout of this event, which is a true failure if the worker is on it still."""
        if number != self.number or not self.alive:
            return
        still = self.current is not None and int(self.slot["event"]) == event >= 0
        if still and int(self.slot["count"]) == 1:
            self.droid.world.failed_truly(event, self.droid)
        self.die(number, "killed")

    # -- work --------------------------------------------------------------------------------------------------------

    def next(self) -> None:
        """Go on with the range at hand or the next one."""
        w, droid = self.droid.world, self.droid
        number = self.number
        while self.current is None:
            if self.slot["cut"]:
                self.slot["cut"] = 0
                while self.todo:
                    (start, stop, attempt), _ = self.todo.popleft()
                    self.rows.append((Kind.RETURNED, Code.DRAINED, attempt, start, stop, w.now, 0.0))
            if not self.todo:
                self.flush()
                return
            (self.current, follows) = self.todo.popleft()
            self.first = self.at = self.current[0]
            self.began = w.now
            self.alone = False
            if w.now - self.flushed > FLUSH_SECONDS:
                self.flush(ring=not follows)
        start, stop, attempt = self.current
        group = w.plan.group and not self.alone
        if self.slot["cut"] and (not group or self.at == start):
            self.done_until(self.at)
            self.rows.append((Kind.RETURNED, Code.DRAINED, attempt, self.at, stop, w.now, 0.0))
            self.current = None
            self.slot["event"] = -1
            return self.next()
        total, count = 0.0, 0
        fate, bad = "ok", False
        while self.at + count < stop:
            fate, seconds = w.fate(self.at + count, attempt, droid)
            bad = bad or fate != "ok"
            if fate != "ok" and count and not group:
                fate = "ok"
                break
            total, count = total + seconds, count + 1
            if fate in ("crash", "hang") or (fate != "ok" and not group) or (total >= FLUSH_SECONDS and not group):
                break
        self.run = count
        self.slot["event"], self.slot["count"] = self.at, (stop - start if group else 1)
        self.slot["since"] = w.now
        if fate == "hang":
            return
        if fate == "crash":
            event = self.at + count - 1
            self.later(total, lambda: self.crash(number, event))
        else:
            fate = "group" if group and bad else fate
            self.later(total, lambda: self.step(number, fate, total))

    def crash(self, number: int, event: int) -> None:
        if number == self.number and self.alive:
            if int(self.slot["count"]) == 1:
                self.droid.world.failed_truly(event, self.droid)
            self.die(number, f"died on {event}")

    def step(self, number: int, fate: str, seconds: float) -> None:
        """The run of events at hand is over."""
        if number != self.number or not self.alive or self.current is None:
            return
        _start, stop, attempt = self.current
        world = self.droid.world
        if fate == "group":
            self.alone = True
            return self.next()
        mismatch = self.expected and world.misfit(self.at, self.droid)
        if fate == "ok" and not mismatch:
            add(self.times, {time_bin(seconds / max(1, self.run)): self.run})
            self.at += self.run
        else:
            self.done_until(self.at)
            world.failed_truly(self.at, self.droid)
            self.rows.append((Kind.FAILED, Code.EXCEPTION, attempt, self.at, self.at + 1, self.began, 0.0))
            self.at += 1
            self.first, self.began = self.at, world.now
        if self.at >= stop:
            self.done_until(stop)
            self.current = None
            self.slot["event"] = -1
        self.next()

    def done_until(self, stop: int) -> None:
        assert self.current is not None
        if stop > self.first:
            self.expected = self.expected or self.droid.nature.schema
            self.schema = self.expected
            now = self.droid.world.now
            row = (Kind.DONE, Code.NONE, self.current[2], self.first, stop, self.began, now - self.began)
            self.rows.append(row)
            self.began = now
        self.first = stop

    def flush(self, ring: bool = True) -> None:
        """Send what is finished; it arrives a little later, in order, or when the Droid looks for it."""
        self.flushed = self.droid.world.now
        if not self.rows:
            return
        rows = records.new(len(self.rows))
        for row, values in zip(rows, self.rows, strict=True):
            row["kind"], row["code"], row["attempt"], row["start"], row["stop"], row["time"], row["wall"] = values
        rows["size"][rows["kind"] == Kind.DONE] = 100
        payload = (rows, self.times, self.schema)
        self.rows, self.times = [], {}
        self.way.append((self.number, payload))
        self.later(0.0005 if ring else self.droid.world.rng.random() * self.droid.core.holding.unseen, self.deliver)

    def deliver(self) -> None:
        while self.way:
            number, payload = self.way.popleft()
            self.droid.results(self.index, number, *payload)


class SimDroid:
    """One Droid of one allocation."""

    def __init__(self, world: World, rank: int, nature: Nature) -> None:
        self.world, self.rank, self.nature = world, rank, nature
        self.core = core.DroidCore(nature.workers, world.plan.timeout)
        self.core.holding.cuts = world.plan.cuts if world.plan.named else None
        self.slots: NDArray[Any] = np.zeros(nature.workers, SLOT)
        self.slots["event"] = -1
        self.workers = [SimWorker(self, i) for i in range(nature.workers)]
        self.dead = False
        self.paused_until = -1.0
        self.welcome: messages.Welcome | None = None
        self.started = self.zygote = False
        self.out: list[NDArray[Any]] = []
        self.evidence: list[Evidence] = []
        self.unsynced: list[NDArray[Any]] = []
        self.unsynced_since = 0.0
        self.syncing: NDArray[Any] | None = None
        self.syncing_since = 0.0
        self.commits: dict[int, int] = {}
        self.times_sent: dict[int, int] = {}
        self.reported = -1e9
        self.offset = 0
        self.sick: tuple[str, int] | None = None
        self.bye_said = False
        self.drained_at = self.drain_ends = -1.0
        self.last_heard = world.now
        self.idle_since: float | None = None

    def begin(self, startup: float) -> None:
        """The process starts."""
        versions = {"python": "3"}
        self.world.after(
            startup,
            self,
            lambda: self.send(messages.Hello(f"node{self.rank}", self.rank, self.nature.workers, 8, startup, versions)),
        )
        self.world.after(startup * (0.5 + self.world.rng.random()), self, self.zygote_ready)
        self.world.after(startup + self.world.rng.random(), self, self.tick)

    # -- stimuli -----------------------------------------------------------------------------------------------------

    def zygote_ready(self) -> None:
        self.zygote = True
        self.start_workers()

    def start_workers(self) -> None:
        if self.zygote and self.welcome is not None and not self.started:
            self.started = True
            self.do(self.core.start())

    def zygote_dies(self) -> None:
        """The zygote and all workers die; a new one is ready soon."""
        if not self.started or self.sick or self.core.stopped:
            return
        for w in self.workers:
            w.alive, w.number = False, w.number + 1
            w.way.clear()
        self.slots["event"] = -1
        self.slots["cut"] = 0
        self.world.after(0.1, self, lambda: self.do(self.core.zygote_restarted()))

    def tick(self) -> None:
        self.world.after(TICK, self, self.tick)
        self.do(self.core.tick(self.world.now, self.slots.copy()))

    def receive(self, data: bytes) -> None:
        now, message = self.world.now, messages.decode(data)
        if isinstance(message, messages.Welcome):
            self.welcome = message
            self.core.schema = message.schema
            self.start_workers()
        elif isinstance(message, messages.Grant):
            if self.sick is not None:
                self.out.append(core.returned(messages.unpack_ranges(message.ranges), Code.DROID_LOST))
                return
            self.do(self.core.granted(now, message))
            self.core.holding.unseen = self.nature.commit
        elif isinstance(message, messages.Drain):
            if self.drained_at < 0:
                self.drained_at = now
            self.drain_ends = now + message.grace
            self.do(self.core.drain(now, message.grace, said=True))
        elif isinstance(message, messages.Reclaim):
            self.do(self.core.reclaimed(message.events, self.slots.copy()))
        elif isinstance(message, messages.Revoke):
            self.do(self.core.revoked(now, messages.unpack_ranges(message.ranges), self.slots.copy(), message.begun))
        elif isinstance(message, messages.Stop):
            self.dead = True
        self.poke()

    def signal(self, number: int) -> None:
        if self.core.stopped or self.bye_said:
            return
        self.send(messages.Warned(number))
        self.do(self.core.drain(self.world.now, self.world.plan.grace))

    def results(self, index: int, number: int, rows: NDArray[Any], times: dict[int, int], schema: str) -> None:
        if number != self.workers[index].number:
            return
        rows["worker"] = index
        keep, todo = self.core.results(index, rows, times, schema)
        if self.core.workers[index].idle:
            self.slots["cut"][index] = 0
        done = keep & (rows["kind"] == Kind.DONE)
        for row in rows[done]:
            assert row["start"] < row["stop"]
        for at in np.flatnonzero(done):
            rows["offset"][at] = self.offset
            self.world.images[(self.world.allocation, self.rank, self.offset)] = [
                int(rows["start"][at]),
                int(rows["stop"][at]),
                schema,
                False,
            ]
            self.offset += 1
        if done.any():
            if not self.unsynced:
                self.unsynced_since = self.world.now
            self.unsynced.append(rows[done])
            self.world.after(self.nature.commit, self, self.poke)
        ready = rows[keep & ~done]
        if len(ready):
            self.out.append(ready)
        self.do(todo)
        self.do(self.core.assign())

    def exited(self, index: int, number: int, how: str) -> None:
        w = self.workers[index]
        if number != w.number:
            return
        w.deliver()
        event, count = int(self.slots["event"][index]), int(self.slots["count"][index])
        self.slots["event"][index], self.slots["cut"][index] = -1, 0
        since = float(self.slots["since"][index])
        seconds, before = (self.world.now - since, since - w.began) if event >= 0 else (0.0, 0.0)
        self.do(self.core.worker_exited(index, how, event, count, seconds=seconds, before=before))

    # -- instructions ------------------------------------------------------------------------------------------------

    def do(self, todo: list[core.Instruction]) -> None:
        for step in todo:
            if isinstance(step, core.Spawn):
                self.workers[step.worker].spawn()
            elif isinstance(step, core.Assign):
                self.check_assign(step)
                w = self.workers[step.worker]
                number = w.number
                self.world.after(0.0003, self, lambda w=w, s=step, n=number: w.assign(s, n))
            elif isinstance(step, core.Cut):
                self.slots["cut"][step.worker] = 1
            elif isinstance(step, core.Kill):
                w = self.workers[step.worker]
                event = int(self.slots["event"][step.worker]) if "limit" in step.why else -1
                number = w.number
                self.world.after(0.01 * self.world.rng.random(), self, lambda w=w, e=event, n=number: w.kill(n, e))
            elif isinstance(step, core.SetSchema):
                for w in self.workers:
                    if w.alive:
                        w.expected = step.schema
            elif isinstance(step, core.Discard):
                for rows in (*self.unsynced, *self.out, *([] if self.syncing is None else [self.syncing])):
                    void(rows, Code.FIELDS)
            elif isinstance(step, core.Rows):
                self.out.append(step.rows)
            elif isinstance(step, core.Failure):
                self.failure(step)
            elif isinstance(step, core.Sick):
                self.sick = (step.reason, step.exit_code)
                self.core.stopped = True
                for w in self.workers:
                    w.kill(w.number, -1)
        self.poke()

    def check_assign(self, step: core.Assign) -> None:
        """A worker is never given what it or another worker of this Droid has in hand."""
        assert step.ranges
        for start, stop, _ in step.ranges:
            assert start < stop
            if self.core.holding.cuts is not None:
                self.world.yoda.check_cuts(start, stop)
            elif self.core.holding.size:
                assert stop - start <= self.core.holding.size, "a range longer than the fixed size"

    def failure(self, step: core.Failure) -> None:
        self.world.blamed(step.event, self)
        row = records.new(1, kind=Kind.FAILED, code=step.code, attempt=step.attempt, worker=step.worker)
        row["start"], row["stop"], row["wall"] = step.event, step.event + 1, step.wall
        row["time"] = self.world.now
        self.out.append(row)
        self.evidence.append(
            Evidence(step.event, step.attempt, int(step.code), step.text, "", 0.0, step.wall, step.worker)
        )

    # -- commit and report -------------------------------------------------------------------------------------------

    def poke(self) -> None:
        now = self.world.now
        due = not self.core.holding.busy or now >= self.unsynced_since + self.nature.commit
        if self.unsynced and self.syncing is None and due:
            self.syncing, self.unsynced = np.concatenate(self.unsynced), []
            self.syncing_since = self.unsynced_since
            self.world.after(self.world.sync_seconds(), self, self.synced)
        self.report()

    def synced(self) -> None:
        rows = self.syncing
        assert rows is not None
        self.syncing = None
        add(self.commits, {time_bin(self.world.now - self.syncing_since): 1})
        for row in rows[rows["kind"] == Kind.DONE]:
            self.world.images[(self.world.allocation, self.rank, int(row["offset"]))][3] = True
        self.out.append(rows)
        self.poke()

    def report(self) -> None:
        now = self.world.now
        if self.bye_said or self.welcome is None or self.dead:
            return
        if self.sick is not None:
            self.report_rows(now, 0)
            self.send(messages.Sick(*self.sick))
            self.bye_said = True
            return
        since = now - self.reported
        if since < REPORT_GAP:
            if self.out or self.evidence:
                self.world.after(REPORT_GAP - since + 1e-6, self, self.poke)
            return
        want = self.core.want(now)
        quiet = HEARTBEAT if self.core.holding.remaining or not self.core.holding.busy else 1.0
        if self.out or self.evidence or want or since >= quiet:
            self.report_rows(now, want)
        if self.core.finished and not self.unsynced and self.syncing is None and not self.out:
            self.report_rows(now, 0)
            self.send(messages.Bye("drained"))
            self.bye_said = True

    def report_rows(self, now: float, want: int) -> None:
        rows = np.concatenate(self.out) if self.out else records.new(0)
        on = self.slots["event"] >= 0
        running = sorted(
            zip(self.slots["event"][on].tolist(), (now - self.slots["since"][on]).tolist(), strict=True),
            key=lambda p: -p[1],
        )
        times = {b: n - self.times_sent.get(b, 0) for b, n in self.core.times.items() if n != self.times_sent.get(b, 0)}
        self.times_sent = dict(self.core.times)
        backlog = self.core.holding.waiting
        self.send(
            messages.Report(
                rows.tobytes(),
                self.evidence,
                want,
                backlog,
                self.core.holding.busy,
                self.core.seconds_per_event,
                messages.pack_running(running[:16]),
                times,
                self.core.schema,
                [],
                self.commits,
            )
        )
        self.out, self.evidence, self.commits, self.reported = [], [], {}, now

    def send(self, message: messages.Message) -> None:
        self.world.to_yoda(self, messages.encode(message))
