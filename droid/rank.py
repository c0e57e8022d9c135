"""Shell of a Droid: MPI, clock and signals around core.py, with crew.py for processes and store.py for files.

One loop, one thread (and the store's Syncer). It sleeps in poll() on everything that can wake it; MPI has nothing to
sleep on, so it is probed whenever the loop wakes and with back-off otherwise.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from droid import core, signals, wire
from droid.crew import Crew, Last, signal_name
from droid.slots import Slots
from droid.spent import Spent
from droid.store import MOMENT, Choices, Store, void
from droid.transport import Transport
from eventrange import messages, records
from eventrange.durable import FILES, Files
from eventrange.errors import BAD_CONFIG, CANNOT_WRITE, RUN_AGAIN, YodaError
from eventrange.messages import Evidence
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir

if TYPE_CHECKING:
    from droid.stageout import Uploads  # a Droid without stage-out does not import it

TICK, QUICK = 1.0, 0.1  #: seconds between looks at the clock (limits, grace, heartbeat), and where moments count
#: Seconds for which results of workers that have more to do are not looked at: workers flush no faster; and at most.
SEEN, UNSEEN = 0.02, 1.0
HEARTBEAT = 5.0  #: seconds between reports when there is nothing to report
TAIL_HEARTBEAT = 1.0  #: and at the tail of a task, where Yoda needs to know who is on what
TAIL_HEARTBEATS = 1000.0  #: of these per second are enough for Yoda, from all Droids together
REPORT_GAP = 0.005  #: seconds between reports at least
PROBE_FIRST, PROBE_LAST = 0.0002, 0.05  #: seconds between MPI probes: back-off while nothing comes
EAGER_LAST = 0.005  #: and while an answer is expected


@dataclass
class Options:
    """What the site and the job decide about a Droid. Seconds."""

    workers: int
    timeout: float | None = None  #: of one event; None: measured
    grace: float = 30.0  #: between a signal and the kill
    heartbeat: float = HEARTBEAT  #: between reports when there is nothing to report
    parent: int = 0  #: process id of what started us; without it we end
    store: Choices = field(default_factory=Choices)
    uploads: Uploads | None = None  #: where segments are staged out


class DroidShell:
    """Runs one Droid until Yoda says Stop.

    `control` is the zygote's socket, `begun` when the process started (CLOCK_MONOTONIC).
    """

    def __init__(
        self,
        transport: Transport,
        taskdir: TaskDir,
        options: Options,
        control: socket.socket,
        slots: Slots,
        scratch: str,
        begun: float,
        files: Files = FILES,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.transport, self.taskdir, self.options = transport, taskdir, options
        self.slots, self.begun, self.files = slots, begun, files
        self.log = log or (lambda text: print(text, file=sys.stderr, flush=True))
        self.core = core.DroidCore(options.workers, options.timeout)
        self.poll = select.poll()
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.poll.register(self._wake, select.POLLIN)
        self._bell = transport.bell.fileno() if transport.bell is not None else -1
        if self._bell >= 0:
            self.poll.register(self._bell, select.POLLIN)
        self.crew = Crew(control, slots, scratch, self, self.poll, self._waker)
        self.store: Store | None = None  # made when Yoda has said which allocation this is
        self.welcome: messages.Welcome | None = None
        self.out: list[NDArray[Any]] = []  # rows that may be reported
        self.evidence: list[Evidence] = []
        self.notes: list[dict[str, Any]] = []
        self.sick: tuple[str, int] | None = None
        self.stopping = False
        self.together = True  # whether MPI can be finalized: all ranks will do so
        self.uploads = options.uploads
        if self.uploads is not None:
            self.uploads.spawn = self.crew.program  # from now on there is MPI, and this process may not fork
        self._upload_until = 0.0  # set when draining begins
        self.spent = Spent(time.monotonic())
        self._times_told: dict[int, int] = {}
        self._reported = 0.0
        self._tail_heartbeat = min(max(TAIL_HEARTBEAT, transport.size / TAIL_HEARTBEATS), options.heartbeat)
        self._lacking_since = 0.0  # when we put off asking for more
        self._said_bye = False
        self._started = False
        self._short = False  # of processes, and we have said so
        self._signals = signals.received  # with those that came before MPI had started

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until Yoda says Stop. Returns the exit code of this rank, which is 0: it is Yoda's that counts."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signals.listen()
        self._hello()
        pause, held, expecting = PROBE_FIRST, math.inf, False
        ticked, every, listened = -math.inf, TICK, -math.inf
        while not self.stopping:
            now = time.monotonic()
            due = self.store.due(now, self.core.holding.busy > 0) if self.store else TICK
            unheard = self._unheard(now - listened)
            moved = False
            for fd, _ in self.poll.poll(1000 * max(0.0, min(pause, ticked + every - now, due, held, unheard))):
                if fd == self._wake:
                    os.read(self._wake, 4096)
                elif fd == self._bell:
                    self.transport.hush()
                elif fd == self.crew.control.fileno():
                    self.crew.hear()
            listened = time.monotonic()
            self.crew.collect()
            while self._signals:
                self._signal(self._signals.pop(0))
            while (got := self.transport.receive()) is not None:
                moved = True
                self._message(messages.decode(got[1]))
            now = time.monotonic()
            every = QUICK if self.core.hurried else TICK
            if now >= ticked + 0.5 * every:  # while we are awake: that saves waking up for it
                ticked = now
                self._tick(now)
            self._commit(now)
            held = self._report(now)
            asked, expecting = not expecting, self.core.waiting_for_yoda
            eager = expecting and (moved or asked)
            pause = self.transport.pause(eager, PROBE_FIRST, EAGER_LAST if expecting else PROBE_LAST)
        return self._end()

    def _unheard(self, since: float) -> float:
        """Seconds after which to look for results that no worker rings for, having looked `since` seconds ago."""
        holding = self.core.holding
        silent = holding.far or any(len(w.given) > 1 for w in holding.workers)
        return holding.unseen - since if silent and holding.busy else math.inf

    def _ring(self) -> None:
        try:
            os.write(self._waker, b"s")
        except BlockingIOError:
            pass

    def _tick(self, now: float) -> None:
        if all(w.state != "starting" for w in self.core.workers):
            self.notes += self.spent.note(self.transport.rank, now)
        if self.uploads is not None:
            self.notes += self.uploads.news()
        if 0 in self.transport.failed():
            # Yoda is dead, and with it this allocation; what is not committed is lost whatever we do. The launcher of a
            # fault-tolerant MPI makes light of ranks that were killed and says 0, but passes on an exit code.
            self.log("rank 0 is dead; this Droid ends")
            os._exit(RUN_AGAIN)
        if self.options.parent not in (0, os.getppid()):  # the launcher's process on this node: who would end us now?
            self.log("the launcher is dead; this Droid ends")
            os._exit(RUN_AGAIN)
        if not self.core.stopped:
            near = (i for i, w in enumerate(self.core.workers) if w.seconds > 0.5 * self.core.limit(0))
            stopped = frozenset(i for i in near if self.crew.stopped(i))
            self._do(self.core.tick(now, self.slots.snapshot(), stopped))

    def _commit(self, now: float) -> None:
        if self.store is None:
            return
        self.store.apart = self.core.apart
        self.core.holding.unseen = min(max(self.store.spacing, SEEN), UNSEEN)
        self.store.pump(now, self.core.holding.busy > 0)
        self.out += self.store.ready
        self.notes += self.store.sealed
        if self.uploads is not None:
            for note in self.store.sealed:
                self.uploads.sealed(note)
        self.store.ready, self.store.sealed = [], []
        if self.store.trouble is not None:
            self._fall_sick(str(self.store.trouble), CANNOT_WRITE)

    # -- Yoda --------------------------------------------------------------------------------------------------------

    def _send(self, message: messages.Message) -> None:
        self.transport.send(0, messages.encode(message))

    def _hello(self) -> None:
        versions = {"python": sys.version.split()[0], "numpy": np.__version__}
        startup = time.monotonic() - self.begun
        cores = os.cpu_count() or 1
        self._send(messages.Hello(socket.gethostname(), os.getpid(), self.options.workers, cores, startup, versions))

    def _message(self, message: messages.AnyMessage) -> None:
        now = time.monotonic()
        if isinstance(message, messages.Welcome):
            self.welcome = message
            self.core.schema = message.schema
            task, allocation = message.task["name"], message.allocation
            rank, choices = self.transport.rank, self.options.store
            self.store = Store(self.taskdir, allocation, task, rank, choices, self._ring, self.files)
            if "ranges" in message.task["axis"]:
                from eventrange.axis import Axis  # who names ranges by position needs none

                try:
                    self.store.axis = Axis.from_dict(message.task["axis"])
                except YodaError as error:  # this node does not see the list, others may
                    self._fall_sick(str(error), error.exit_code)
                    return
                self.core.holding.cuts = self.store.axis.cuts
            if self.uploads is not None:
                self.uploads.begin(task, allocation, rank, self.log)
            self._start_workers()
        elif isinstance(message, messages.Grant):
            if self.sick is not None:
                return  # Yoda takes everything back when it hears of it
            self._do(self.core.granted(now, message))
        elif isinstance(message, messages.Drain):
            if message.reason != "complete":
                self.log(f"draining within {message.grace:.1f} s: {message.reason}")
            self._upload_for(message.grace, message.reason == "complete")
            self._do(self.core.drain(now, message.grace, said=True))
        elif isinstance(message, messages.Reclaim):
            self._do(self.core.reclaimed(message.events, self.slots.snapshot()))
        elif isinstance(message, messages.Revoke):
            self._do(
                self.core.revoked(now, messages.unpack_ranges(message.ranges), self.slots.snapshot(), message.begun)
            )
        elif isinstance(message, messages.Kept):
            if self.uploads is not None:
                self.uploads.kept(message.number)
        elif isinstance(message, messages.Stop):
            self.stopping, self.together = True, message.together

    def _report(self, now: float) -> float:
        """Tell Yoda what is durable and what is wanted: rate-limited, and at the latest every HEARTBEAT. Returns after
        how many seconds to try again at the latest."""
        if self._said_bye or self.welcome is None or self.store is None:
            return math.inf
        if self.sick is not None:
            self._send_report(now, 0)
            self._send(messages.Sick(*self.sick))
            self._said_bye = True
            return math.inf
        since = now - self._reported
        if since < REPORT_GAP:
            told = self.out or self.evidence or self.notes or self.core.finished or self.core.lacking()
            return REPORT_GAP - since if told else math.inf
        want, wait = self._want(now)
        tail = self.core.holding.busy and not self.core.holding.remaining  # who is idle then has nothing to tell
        quiet = self._tail_heartbeat if tail else self.options.heartbeat
        if self.out or self.evidence or self.notes or want or since >= quiet:
            self._send_report(now, want)
        if self.core.finished and self.store.settled and not self.out:
            self.store.seal()
            self._commit(now)
            if self.uploads is not None:
                self.uploads.finish(max(0.0, self._upload_until - now))
                if not self.uploads.over:
                    return PROBE_LAST
            self.notes += self.spent.note(self.transport.rank, now, last=True)
            self._send_report(now, 0)
            self._send(messages.Bye("drained"))
            self._said_bye = True
        return wait

    def _want(self, now: float) -> tuple[int, float]:
        """Events to ask for now, and after how many seconds to ask at the latest. What is being made durable is told in
        a moment: unless somebody waits for work, we ask together with that."""
        if not self.core.lacking():
            return 0, math.inf
        if self.store is not None and self.store.soon and self.core.holding.backlog:
            self._lacking_since = self._lacking_since or now
            if (wait := self._lacking_since + MOMENT - now) > 0:
                return 0, wait
        self._lacking_since = 0.0
        return self.core.want(now), math.inf

    def _send_report(self, now: float, want: int) -> None:
        rows = np.concatenate(self.out) if self.out else records.new(0)
        running = self.slots.running()
        slowest = sorted(((event, now - since) for event, since, _ in running), key=lambda pair: -pair[1])[:16]
        commits: dict[int, int] = {}
        if self.store is not None:
            commits, self.store.commits = self.store.commits, commits
        times = {b: n - self._times_told.get(b, 0) for b, n in self.core.times.items()}
        self._times_told = dict(self.core.times)
        self._send(
            messages.Report(
                records=rows.tobytes(),
                evidence=self.evidence,
                want=want,
                backlog=self.core.holding.waiting,
                busy=self.core.holding.busy,
                seconds_per_event=self.core.seconds_per_event,
                running=messages.pack_running(slowest),
                times={b: n for b, n in times.items() if n},
                schema=self.core.schema,
                notes=self.notes,
                commits=commits,
                under_way=sum(now - begun for _, _, begun in running),
            )
        )
        self.out, self.evidence, self.notes, self._reported = [], [], [], now

    # -- zygote and workers (crew.Owner) -----------------------------------------------------------------------------

    def zygote_ready(self, message: dict[str, Any], again: bool) -> None:
        if not again:
            self.notes.append({"note": "payload", "jagged": message["jagged"], "versions": message["versions"]})
            self._start_workers()
            return
        self.log("the zygote died and was replaced")
        if self.welcome is not None:
            self.crew.set_task(self.welcome.task)
            self._do(self.core.zygote_restarted())

    def zygote_failed(self, text: str, exit_code: int) -> None:
        self._fall_sick(text, exit_code)

    def worker_frame(self, index: int, kind: int, payload: memoryview) -> None:
        if kind == wire.READY:
            if self.core.schema:
                self.crew.send(index, wire.frame(wire.SCHEMA, self.core.schema.encode()))
            self.spent.ready(index, time.monotonic())
            self._do(self.core.worker_ready(index))
        elif kind == wire.CANNOT:
            self._fall_sick(bytes(payload).decode(errors="replace"), BAD_CONFIG)
        elif kind == wire.BATCH and self.store is not None:
            rows, extra, images = wire.unbatch(payload)
            rows["worker"] = index
            self.spent.input, self.spent.again = self.spent.input + extra.input, self.spent.again + extra.again
            self.evidence += [msgspec.structs.replace(e, worker=index) for e in extra.evidence]
            keep, todo = self.core.results(index, rows, extra.times, extra.schema)
            if self.core.workers[index].idle:
                self.slots.cut(index, False)
            self.store.add(rows, images, keep, time.monotonic())
            self._do(todo)

    def collected(self) -> None:
        self._do(self.core.assign())
        if self.core.hurried:  # who is idle now gets what others hold
            self._do(self.core.balance(self.slots.snapshot()))

    def worker_exited(self, index: int, how: str, last: Last) -> None:
        if f"signal {int(signal.SIGKILL)} " in how and not self.core.workers[index].killed:
            how += "; not by us: out of memory?"
        todo = self.core.worker_exited(index, how, last.event, last.count, seconds=last.seconds, before=last.before)
        self._do(todo, last.cpu)
        self.spent.again, self.core.again = self.spent.again + self.core.again, 0.0

    def worker_unforked(self, index: int, why: str) -> None:
        if not self._short:
            self._short = True
            self.log(f"worker {index} could not be forked ({why}); it is tried again every {core.FORK_AGAIN:.0f} s")
        self._do(self.core.worker_unforked(time.monotonic(), index, why))

    def _start_workers(self) -> None:
        """Both must be there, in either order: the payload, and what Yoda says of the task."""
        if self.crew.ready and self.welcome is not None and not self._started and self.sick is None:
            self._started = True
            self.crew.set_task(self.welcome.task)
            self._do(self.core.start())

    def _do(self, todo: list[core.Instruction], cpu: float = 0.0) -> None:
        for step in todo:
            if isinstance(step, core.Spawn):
                self.spent.forked(step.worker, time.monotonic())
                self.crew.spawn(step.worker)
            elif isinstance(step, core.Assign):
                kind = wire.NEXT if step.follow else wire.RANGES
                self.crew.send(step.worker, wire.frame(kind, messages.pack_ranges(step.ranges)))
            elif isinstance(step, core.Cut):
                self.slots.cut(step.worker, True)
            elif isinstance(step, core.Kill):
                self.crew.kill(step.worker)
                self.log(f"worker {step.worker} is killed: {step.why}")
            elif isinstance(step, core.SetSchema):
                self.crew.send_all(wire.frame(wire.SCHEMA, step.schema.encode()))
            elif isinstance(step, core.Discard):
                for rows in self.out:
                    void(rows, Code.FIELDS)
                if self.store is not None:
                    self.store.discard()
            elif isinstance(step, core.Rows):
                self.out.append(step.rows)
            elif isinstance(step, core.Failure):
                self._failure(step, cpu)
            elif isinstance(step, core.Sick):
                self._fall_sick(step.reason, step.exit_code)

    def _failure(self, failed: core.Failure, cpu: float) -> None:
        """A worker died of an event, so the report of it is ours to write."""
        event, attempt, worker, wall = failed.event, failed.attempt, failed.worker, failed.wall
        row = records.new(1, kind=Kind.FAILED, code=failed.code, attempt=attempt, worker=worker, wall=wall, cpu=cpu)
        row["start"], row["stop"], row["time"] = event, event + 1, time.time() - wall
        self.out.append(row)
        text = f"it took longer than its limit; {failed.text}" if failed.code == Code.TIMEOUT else failed.text
        output = self.crew.output(worker)
        self.evidence.append(Evidence(event, attempt, int(failed.code), text, output, cpu, wall, worker))

    # -- ends --------------------------------------------------------------------------------------------------------

    def _upload_for(self, grace: float, complete: bool) -> None:
        """Stage-out may go on for as long as the site says when the task is complete, else within the grace."""
        if self.uploads is not None and not (self._upload_until and complete):
            seconds = self.uploads.rules.wait if complete else grace
            until = time.monotonic() + seconds
            self._upload_until = min(until, self._upload_until or until)

    def _signal(self, number: int) -> None:
        again = self.core.draining and number == signal.SIGINT
        self._send(messages.Warned(number))
        self.log(f"received {signal_name(number)}")
        self._upload_for(0.0 if again else 0.8 * self.options.grace, False)
        self._do(self.core.drain(time.monotonic(), 0.0 if again else self.options.grace))

    def _fall_sick(self, reason: str, exit_code: int) -> None:
        if self.sick is None:
            self.log(f"this Droid can do no work: {reason}")
            self.sick = (reason, exit_code)
            self.core.stopped = True
            self.crew.kill_all()

    def _end(self) -> int:
        self.core.stopped = True
        self.crew.kill_all()
        if self.uploads is not None:
            self.uploads.close()  # its process may be a child of the zygote
        self.crew.end()
        if self.store is not None:
            self.store.close()
        until = time.monotonic() + 5.0
        while self.transport.sending and time.monotonic() < until:
            time.sleep(0.001)
        return 0
