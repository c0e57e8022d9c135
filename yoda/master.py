"""Shell of Yoda: MPI, journal and signals around dispatcher.py.

One loop, one thread (and the Syncer's). Grants go out at once; what Droids report is gathered and made durable
together, one fsync for all that came within the commit interval (L1). The `end` note is the last thing written, and the
only sign that a run ended as it should.
"""

from __future__ import annotations

import heapq
import math
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from droid import signals
from droid.transport import RUNG, Transport
from eventrange import messages
from eventrange.durable import Syncer
from eventrange.errors import CANNOT_WRITE, CannotWrite
from eventrange.journal import JournalWriter
from yoda.dispatcher import Dispatcher, Instruction, Note, Send, Write
from yoda.telling import Teller

TICK, QUICK, URGENT = 1.0, 0.1, 0.005  #: seconds between looks at the clock; where moments count; where more is to do
SUSPENDED = 3 * max(TICK, RUNG)  #: a loop that did not turn for so long was stopped, and could hear nobody
PULSE = 10.0  #: seconds between signs of life in the journal
TIMES = 60.0  #: seconds between histograms of event times there
LISTED = 8  #: slowest events and silent Droids named in one of them
PROBE_FIRST, PROBE_LAST = 0.0001, 0.02  #: seconds between MPI probes: back-off while nothing comes
PROBE_QUIET = 0.05  #: and once nothing has come for QUIET seconds: each probe costs a tenth of a millisecond
QUIET = 0.1
STARTING = 120.0  #: seconds until a rank that has not said Hello is given up
CLOSING = 60.0  #: seconds Droids have to seal and say Bye when everything is done


@dataclass
class Run:
    """What the master needs to know of this allocation besides the dispatcher."""

    allocation: str
    task: dict[str, Any]  #: for Welcome
    commit_seconds: float = 0.125  #: between group commits at most
    deadline: Callable[[], float | None] = lambda: None  #: unix seconds; asked now and then
    say: Callable[[str], None] = print
    progress: Callable[[Dispatcher, float], None] = lambda dispatcher, lag: None
    every_tick: list[Callable[[float], list[Instruction]]] = field(default_factory=list)
    urgent: Callable[[], bool] = lambda: False  #: whether one of those has something to do at once
    closing: float = CLOSING  #: seconds Droids have to seal and say Bye when everything is done
    gap: float = 5.0  #: seconds without a turn of the loop after which `on_wake` is called before anything else
    on_wake: list[Callable[[float], list[Instruction]]] = field(default_factory=list)


class MasterShell:
    """Runs Yoda until the task is complete or the allocation ends."""

    def __init__(self, transport: Transport, dispatcher: Dispatcher, journal: JournalWriter, run: Run) -> None:
        self.transport, self.dispatcher, self.journal, self.info = transport, dispatcher, journal, run
        self.signalled = signals.received  # with those that came before MPI had started
        self.greeted: set[int] = set()
        self.processes: dict[int, tuple[str, int]] = {}  #: host and process id of each Droid
        self.waiting_since: float | None = None  # oldest entry not yet handed to a sync
        self.syncing_since: float | None = None
        self.synced = -math.inf  # when the last sync began
        self._durable_at = 0.0  # when the last one ended
        self.broken: CannotWrite | None = None
        self.unsynced: dict[int, int] = {}  # Droid -> number of its last note in the journal that it wants acknowledged
        self.unkept: dict[int, int] = {}  # the same, of those that are being synced
        self.stop_now = ""
        self.teller = Teller(run.say)
        self._times_at = time.monotonic() + TIMES
        dispatcher.roster.awaited = set(range(1, transport.size))
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.syncer = Syncer(self._journal_synced)
        self._offset = time.time() - time.monotonic()

    def run(self) -> tuple[int, str]:
        """Work until the end; returns (exit code, reason). Afterwards the journal is durable, and the caller's."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signals.listen()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self.transport.bell is not None:
            poll.register(self.transport.bell, select.POLLIN)
        begun = time.monotonic()
        pulse_at, pause, last, heard = begun + PULSE, PROBE_FIRST, begun, begun
        ticked, every = -math.inf, TICK
        while True:
            now = time.monotonic()
            timeout = max(0.0, min(pause, ticked + every - now, self._due(now)))
            for fd, _ in poll.poll(timeout * 1000):
                if fd == self._wake:
                    os.read(self._wake, 4096)
                else:
                    self.transport.hush()
            now = time.monotonic()
            self._collect()
            if now - last > self.info.gap:
                for step in self.info.on_wake:
                    self._do(step(now))
            self._take_signals()
            moved = False
            for _ in range(4096):
                got = self.transport.receive()
                if got is None:
                    break
                moved = True
                self._message(*got)
            now = time.monotonic()
            every = QUICK if self.dispatcher.hurried else TICK
            pressing = self.info.urgent() or (self.dispatcher.complete and not self.dispatcher.draining)
            if pressing or now >= ticked + 0.5 * every:  # while we are awake: that saves waking up for it
                suspended = now - last if now - last > SUSPENDED else 0.0
                self._tick(now, suspended, begun)
                ticked = now
                every = URGENT if self.info.urgent() else every
                if now >= pulse_at:
                    self._pulse()
                    pulse_at = now + PULSE
            last = now
            self._commit(now)
            heard = now if moved else heard
            pause = self.transport.pause(moved, PROBE_FIRST, PROBE_LAST if now - heard < QUIET else PROBE_QUIET)
            if got is not None:  # there are more, and nobody rings for them again
                pause = 0.0
            if self._over(now):
                break
        return self._end()

    # -- what comes in -----------------------------------------------------------------------------------------------

    def ring(self) -> None:
        """Have the loop turn. May be called from any thread."""
        try:
            os.write(self._waker, b"s")
        except BlockingIOError:
            pass

    def _journal_synced(self) -> None:
        """A sync of the journal is over; in the Syncer's thread. The loop turns for it only where something waits for
        that: it sets what says so before it asks the Syncer what is done."""
        self._durable_at = time.monotonic()
        d = self.dispatcher
        ending = d.draining or d.complete or d.exit_code is not None or self.journal.file.broken is not None
        if ending or self.waiting_since is not None or self.unkept:
            self.ring()

    def _message(self, rank: int, data: bytearray) -> None:
        now = time.monotonic()
        message = messages.decode(data)
        known = rank in self.dispatcher.droids
        if isinstance(message, messages.Hello):
            self._note(
                "joined",
                droid=rank,
                host=message.host,
                pid=message.pid,
                workers=message.workers,
                cores=message.cores,
                startup=message.startup,
                versions=message.versions,
            )
            self.greeted.add(rank)
            self.processes[rank] = (message.host, message.pid)
            welcome = messages.Welcome(self.info.task, self.info.allocation, self.dispatcher.schema)
            self.transport.send(rank, messages.encode(welcome))
            self._do(self.dispatcher.hello(now, rank, message.host, message.workers))
        elif not known:
            return
        elif isinstance(message, messages.Report):
            rows = messages.rows(message.records)
            rows["droid"] = rank
            numbers = [int(note["number"]) for note in message.notes if "number" in note]
            if numbers:
                self.unsynced[rank] = max(numbers)
            self._do(self.dispatcher.report(now, rank, message, rows))
        elif isinstance(message, messages.Sick):
            self.info.say(f"Droid {rank} on {self.dispatcher.droids[rank].host} can do no work:\n{message.reason}")
            self._do(self.dispatcher.sick(now, rank, message.reason, message.exit_code))
        elif isinstance(message, messages.Bye):
            self._do(self.dispatcher.bye(now, rank, message.reason))
        elif isinstance(message, messages.Warned):
            self._signal(message.signal, rank)

    def _take_signals(self) -> None:
        while self.signalled:
            self._signal(self.signalled.pop(0), 0)

    def _signal(self, number: int, rank: int) -> None:
        name = signal.Signals(number).name
        self._note("signal", rank=rank, signal=name)
        if number == signal.SIGINT and rank == 0 and self.dispatcher.draining:
            self.stop_now = "interrupted twice"
            return
        if not self.dispatcher.draining:
            self.info.say(f"{name} received; finishing the events at hand")
        self._do(self.dispatcher.signalled(time.monotonic(), name))

    def _tick(self, now: float, suspended: float, begun: float) -> None:
        for rank in sorted(self.transport.failed()):
            self._do(self.dispatcher.lost(now, rank, "its process died"))
            self.greeted.add(rank)
        if now - begun > STARTING:
            for rank in set(range(1, self.transport.size)) - self.greeted:
                self.greeted.add(rank)
                self.dispatcher.roster.awaited.discard(rank)
                self.info.say(f"rank {rank} has not started within {STARTING:.0f} s and is not waited for")
        deadline = self.info.deadline()
        self.dispatcher.deadline = None if deadline is None else deadline - self._offset
        for step in self.info.every_tick:  # first: they may bring something to grant
            self._do(step(now))
        self._do(self.dispatcher.tick(now, suspended))
        if self.dispatcher.complete and not self.dispatcher.draining:
            self._do(self.dispatcher.finish(now, self.info.closing))
        self.info.progress(self.dispatcher, self._lag(now))

    def _lag(self, now: float) -> float:
        """Seconds the oldest entry that is not yet durable has waited."""
        return now - min((t for t in (self.waiting_since, self.syncing_since) if t is not None), default=now)

    def _pulse(self) -> None:
        """A sign of life, and what only Yoda knows of the moment; its size does not grow with the task."""
        d, now = self.dispatcher, time.monotonic()
        # The slowest events are on the Droids whose oldest event is slowest: `running` has the oldest first.
        laden = heapq.nlargest(LISTED, (x for x in d.at_work if x.on), key=lambda x: x.oldest + now - x.heard)
        running = [
            [event, round(seconds + now - x.heard, 1), x.rank]
            for x in laden
            for event, seconds in islice(x.running, LISTED)
        ]
        self._note(
            "pulse",
            workers=sum(x.workers for x in d.at_work),
            busy=sum(x.busy for x in d.at_work),
            pending=d.ledger.pending.total + len(d.ledger.retries),
            in_flight=d.ledger.in_flight,
            done=d.ledger.done,
            droids=len(d.at_work),
            lag=round(self._lag(now), 3),
            slowest=heapq.nlargest(LISTED, running, key=lambda entry: entry[1]),
            silent=[
                [x.rank, round(now - x.heard, 1)] for x in heapq.nsmallest(LISTED, d.at_work, key=lambda x: x.heard)
            ],
        )

        if now >= self._times_at:
            self._times_at = now + TIMES
            self._note_times()

    def _note_times(self) -> None:
        """Times of single events, all of this allocation so far: records only have those of ranges."""
        if self.dispatcher.times:
            self._note("times", times=sorted(self.dispatcher.times.items()))

    # -- what goes out -----------------------------------------------------------------------------------------------

    def _note(self, name: str, **values: Any) -> None:
        if self.waiting_since is None:
            self.waiting_since = time.monotonic()
        self.journal.note(name, time=time.time(), **values)

    def _do(self, todo: list[Instruction]) -> None:
        for step in todo:
            if isinstance(step, Send):
                self.transport.send(step.droid, messages.encode(step.message))
            elif isinstance(step, Write):
                if self.waiting_since is None:
                    self.waiting_since = time.monotonic()
                unset = step.rows["time"] == 0  # the dispatcher knows no calendar
                if unset.any():
                    step.rows["time"][unset] = time.time()
                self.journal.append(step.rows)
            elif isinstance(step, Note):
                values = {k: v for k, v in step.values.items() if k != "time"}
                self._note(step.name, **values)
                self.teller.tell(step)

    def _due(self, now: float) -> float:
        """Seconds until the next group commit; infinite if nothing waits, or not yet."""
        if self.broken is not None or self.syncing_since is not None or self.waiting_since is None:
            return math.inf
        return self.synced + self.syncer.spacing(self.info.commit_seconds) - now

    def _collect(self) -> None:
        """Take in what has become durable."""
        for _, error in self.syncer.done():
            if self.syncing_since is not None:
                self.dispatcher.ending.committed(journal=self._durable_at - self.syncing_since)
            self.syncing_since = None
            if error is not None:
                self.broken = error
                continue
            for rank, number in self.unkept.items():
                self.transport.send(rank, messages.encode(messages.Kept(number)))
            self.unkept = {}

    def _commit(self, now: float) -> None:
        """Group commit: hand what waits to the kernel and have it synced, one sync at a time, so long after the last
        one that they are not too many: what comes seldom is durable at once."""
        self._collect()
        due = self._due(now)
        if due == math.inf or (due > 0 and not self.dispatcher.complete):
            return
        try:
            self.journal.flush()
        except CannotWrite as error:
            self.broken = error
            return
        self.synced, self.syncing_since, self.waiting_since = now, self.waiting_since, None
        self.unkept, self.unsynced = self.unsynced, {}
        self.syncer.request(None, self.journal.file)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _over(self, now: float) -> bool:
        """Whether there is nothing left to wait for: neither a Droid nor the journal."""
        d = self.dispatcher
        if self.broken is not None or self.stop_now:
            return True
        if d.draining and now > d.drain_ends:
            return self.syncing_since is None or now > d.drain_ends + 5.0
        if self.waiting_since is not None or self.syncing_since is not None:
            return False
        if len(self.greeted) < self.transport.size - 1:
            return False  # a rank that is still starting would wait for ever for an answer
        return not d.at_work or (d.exit_code is not None and not d.active)

    def _end(self) -> tuple[int, str]:
        code, reason = self.dispatcher.result()
        if self.broken is not None:
            code, reason = CANNOT_WRITE, str(self.broken)
        elif self.stop_now and not self.dispatcher.complete:
            reason = self.stop_now
        ledger = self.dispatcher.ledger
        if self.broken is None:
            self._note_times()
            self._note(
                "end",
                reason=reason,
                exit_code=code,
                done=ledger.done,
                quarantined=ledger.quarantined.total,
                total=ledger.total,
            )
            try:
                self.journal.flush()
                self.journal.file.sync()
            except CannotWrite as error:
                code, reason = CANNOT_WRITE, str(error)
        self.syncer.close()
        return code, reason

    @property
    def together(self) -> bool:
        """Whether every rank has said that it is done and still listens, so that MPI can be finalized."""
        droids = self.dispatcher.droids
        done = all(rank in droids and droids[rank].state in ("bye", "sick") for rank in range(1, self.transport.size))
        return done and not self.transport.gone

    def stop(self, together: bool) -> None:
        """Tell all Droids to end, with or without finalizing MPI."""
        stop = messages.encode(messages.Stop("", together))
        for rank in self.dispatcher.droids:
            self.transport.send(rank, stop)
        until = time.monotonic() + 5.0
        while self.transport.sending and time.monotonic() < until:
            time.sleep(0.001)


def task_message(frozen: Any, indexes: str, images: bool) -> dict[str, Any]:
    """What every Droid and worker has to know of the task (plain values), from yoda.task.Frozen."""
    return {
        "name": frozen.task,
        "seed": frozen.seed,
        "inputs": msgspec.to_builtins(frozen.inputs),
        "axis": frozen.axis,
        "indexes": indexes,
        "images": images,
        "attributes": {"task": frozen.task, "fingerprint": frozen.fingerprint, "seed": frozen.seed},
    }
