"""Shell of the leases: rounds in a thread of their own, since a file server may take its time; what they bring is
applied to the ledger in Yoda's loop.

    with present(taskdir, fingerprint, allocation, timeout) as here:    before MPI
        keeper = Keeper(leases, here.room, here.heart, ledger)          everything open is left to others
        keeper.first()                                                  the first claims, before any Droid asks
        run.every_tick.append(...keeper.tick)                           from then on, and whenever it is `urgent`
        keeper.start(...)                                               rounds, each of which wakes the loop

An allocation whose own work is done while living ones hold open parts waits for a while: they may give something away,
or die. Then it ends with exit code 75: an allocation is not burnt idle.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eventrange import records
from eventrange.durable import explain
from eventrange.errors import CannotWrite
from eventrange.intervals import IntervalSet
from eventrange.ledger import Ledger
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from slurm.commands import Runner
from slurm.environment import Allocation
from yoda.dispatcher import Dispatcher, Instruction, Note, Write
from yoda.follower import Follower
from yoda.leasedir import Heart, LeaseDir
from yoda.leases import HORIZON, Known, Leases, Need, Room, Update

BEATS = 12  #: beats of the heart in a timeout: one or two may come late on a busy file server
SLOWEST = 5.0  #: seconds between beats, and between looks at the others, at most
EAGER = 1.0  #: seconds between looks while there is nothing to do
PATIENCE = 10.0  #: seconds beyond the timeout that an allocation without work waits for some
UNABLE = 10.0  #: seconds without work in which parts cannot be claimed, because of the file system
LONGEST = 3  #: times that, if by then the others look like being done


def beat_interval(timeout: float) -> float:
    """Seconds between beats."""
    return min(SLOWEST, timeout / BEATS)


@dataclass(frozen=True)
class Presence:
    """An allocation among the others of its task."""

    allocation: Allocation
    heart: Heart
    room: LeaseDir
    follower: Follower


@contextmanager
def present(
    taskdir: TaskDir, fingerprint: str, allocation: Allocation, timeout: float, slurm: Runner | None = None
) -> Iterator[Presence]:
    """Be seen by the other allocations for as long as the context lasts; then what we held is free.

    `slurm` runs commands, so only before MPI starts: it is asked which of the silent are dead.
    """
    heart = Heart(taskdir, allocation.name, allocation.jobid, beat_interval(timeout), timeout)
    try:
        follower = Follower(taskdir, fingerprint, allocation.name)
        room = LeaseDir(taskdir, allocation.name, follower)
        room.tidy()
        if slurm is not None:
            room.ask_slurm(slurm)
        yield Presence(allocation, heart, room, follower)
    finally:
        heart.stop()


class Keeper:
    """Leases of a running allocation. `tick`, `woken` and `first` belong to the thread of the loop."""

    def __init__(
        self,
        leases: Leases,
        room: Room,
        heart: Heart | None,
        ledger: Ledger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.leases, self.room, self.heart, self.ledger, self._clock = leases, room, heart, ledger, clock
        self.held: set[int] = set()  #: parts the ledger has adopted
        self._timeout = leases.watch.timeout
        self._need = Need()
        self._updates: deque[Update | CannotWrite] = deque()
        self._lock = threading.Lock()
        self._go, self._ending = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._round_at, self._rounds = -np.inf, 0
        self._asked = False  # the last round that wanted something got nothing
        self._requested = False  # a round was asked for, and none that wanted something has ended since
        self._wake: Callable[[], None] = lambda: None
        self._others: list[str] = []
        self._idle: tuple[float, int] | None = None  # since when, and how many events were left then
        self._unable: float | None = None  # since when there is no work because nothing can be claimed
        self._settled = 0
        self._done = ledger.done
        ledger.cede(0, ledger.total)
        self._history: deque[tuple[float, int]] = deque()  # (time, events done here)

    # -- the thread --------------------------------------------------------------------------------------------------

    def start(self, wake: Callable[[], None] = lambda: None) -> None:
        """Begin with the rounds. `wake` is called, from the thread, after each."""
        self._wake = wake
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ending = True
        self._go.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            pause = beat_interval(self._timeout)
            self._go.wait(min(EAGER, pause) if self._need.working and self._need.pending == 0 else pause)
            if self._ending:
                return
            self._go.clear()
            self._round()
            self._wake()

    def _round(self) -> None:
        with self._lock:
            # Until the loop has taken in what the last round brought, it is not known what is needed.
            need = replace(self._need, working=False) if self._updates else self._need
            try:
                self._updates.append(self.leases.round(self._clock(), self.room, need))
            except CannotWrite as error:
                self._updates.append(error)
            except OSError as error:  # a file server that does not answer as it should
                self._updates.append(explain(error, error.filename or "the task's leases and journals"))
            self._round_at = self._clock()
            self._rounds += 1
        if self.heart is not None:
            self.heart.set(wants=self.leases.wants)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def first(self) -> list[Note]:
        """The first round, in the caller's thread. Raises CannotWrite if no lease can be made."""
        self._round()
        return [step for step in self._apply(None) if isinstance(step, Note)]

    @property
    def urgent(self) -> bool:
        """Whether `tick` has something to do at once: a round has brought something, or the next is needed."""
        if self._updates:
            return True
        if self._requested or self._asked or not self._need.working or not self.ledger.elsewhere:
            return False
        return self._pending <= self._need.low and self._pending < self._need.enough

    @property
    def _pending(self) -> int:
        """Events that could be handed out."""
        return self.ledger.pending.total + len(self.ledger.retries)

    def woken(self, now: float, dispatcher: Dispatcher) -> list[Instruction]:
        """This process did not run for a while: see what was taken from us before anything is granted."""
        self._round()
        return self._apply(dispatcher)

    def tick(self, now: float, dispatcher: Dispatcher) -> list[Instruction]:
        """Apply what rounds have brought, ask for the next if work runs low, and end if there is none to be had."""
        if self.heart is not None:
            self.heart.vouch()
        out = self._apply(dispatcher)
        ledger = self.ledger
        workers = sum(droid.workers for droid in dispatcher.active)
        working = not dispatcher.draining and dispatcher.exit_code is None
        self._need = Need(self._pending, self._rate(now), workers, working)
        if working and ledger.elsewhere and self._need.pending < self._need.enough:
            pause = EAGER if self._asked or self._need.pending > self._need.low else 0.0
            if now - self._round_at >= min(pause, beat_interval(self._timeout)) and not self._updates:
                self._requested = True
                self._go.set()
        return out + self._wait(now, dispatcher, working)

    def _rate(self, now: float) -> float:
        """Events finished here per second, over about HORIZON."""
        here = self.ledger.done - self._done - self._settled
        history = self._history
        if not history or now - history[-1][0] >= 0.5:
            history.append((now, here))
            while len(history) > 2 and now - history[1][0] >= HORIZON:
                history.popleft()
        begun, before = history[0]
        return max(0.0, (here - before) / (now - begun)) if now - begun >= 0.2 else 0.0

    def _wait(self, now: float, dispatcher: Dispatcher, working: bool) -> list[Instruction]:
        """Nothing to do while others are at work: for how long that is worth it."""
        ledger = self.ledger
        idle = working and bool(ledger.elsewhere) and ledger.open == ledger.elsewhere.total
        if not idle or not dispatcher.active:
            self._idle = None
            return []
        if self._idle is None:
            self._idle = now, ledger.elsewhere.total
        waited, left = now - self._idle[0], ledger.elsewhere.total
        finished = self._idle[1] - left
        patience = self._timeout + PATIENCE
        if waited < patience or (waited < LONGEST * patience and left * waited < finished * patience):
            return []
        names = ", ".join(self._others[:4]) or "others"
        reason = f"{ledger.elsewhere.total} events are left, and are being worked on by {names}"
        return dispatcher.drain(now, reason)

    def _apply(self, dispatcher: Dispatcher | None) -> list[Instruction]:
        out: list[Instruction] = []
        while self._updates:
            update = self._updates.popleft()
            failed: OSError | CannotWrite | None = None
            if isinstance(update, CannotWrite):
                failed = update
            else:
                out += self._take(update, dispatcher)
                failed = update.failed
            if failed is None:
                self._unable = None
            else:
                out += self._failed(failed, dispatcher)
        return out

    def _failed(self, error: OSError | CannotWrite, dispatcher: Dispatcher | None) -> list[Instruction]:
        """Nothing could be claimed. That may pass; where there is nothing else to do the allocation ends after a
        while."""
        if isinstance(error, OSError):
            error = explain(error, error.filename or "the task's leases and journals")
        if dispatcher is None:
            raise error
        self._requested, self._asked = False, True
        if self.ledger.open != self.ledger.elsewhere.total or dispatcher.draining:
            self._unable = None
            return []
        now = self._clock()
        self._unable = now if self._unable is None else self._unable
        if now - self._unable < UNABLE:
            return []
        dispatcher.exit_code, dispatcher.failure = error.exit_code, str(error)
        return dispatcher.drain(now, str(error))

    def _take(self, update: Update, dispatcher: Dispatcher | None) -> list[Instruction]:
        ledger, part = self.ledger, self.leases.part
        out: list[Instruction] = []
        attempts = self.leases.known.attempts
        dropped = [number for number in update.lost if number in self.held]
        if dropped:
            holders = sorted({self.leases.owner[number] for number in dropped})
            out.append(Note("lost_parts", {"parts": dropped, "to": holders}))
            if dispatcher is not None:
                out += dispatcher.withdraw([part(number) for number in dropped])
        if update.known is not None:
            before = ledger.done
            ledger.settle(*update.known.done)
            self._settled += ledger.done - before
            for start, stop in zip(*(array.tolist() for array in update.known.quarantined), strict=True):
                ledger.give_up(start, stop)
            if dispatcher is not None:
                out += self._same_fields(update.known, dispatcher)
        self.held.difference_update(update.lost)
        self.held.update(update.adopt)
        adopted = sum(ledger.adopt(*part(number), attempts) for number in update.adopt)
        self._keep_to_ours()
        if update.wanted:
            self._requested, self._asked = False, not adopted
        self._others = update.others
        taken = sorted(set(update.taken.values())) if adopted else []
        if adopted:
            out.append(Note("claimed", {"parts": update.adopt, "events": adopted, "from": taken}))
        if update.starving and dispatcher is not None:
            given = self._unbegun(update.starving)
            if given:
                self.held.difference_update(given)
                self._keep_to_ours()
                self.leases.give(given)
                self._go.set()
                out.append(Note("gave", {"parts": given}))
        return out

    def _same_fields(self, known: Known, dispatcher: Dispatcher) -> list[Instruction]:
        """The first journal in order says what the fields are; what was done here with others is done again.

        That can only be where several began a new task at the same moment, with a payload whose fields vary.
        """
        if not dispatcher.schema or not known.schema or known.schema == dispatcher.schema:
            dispatcher.schema = dispatcher.schema or known.schema
            return []
        if known.schema_of >= self.leases.name:
            return []  # they will see ours
        dispatcher.schema = known.schema
        before = self.ledger.open
        ours = [self.leases.part(number) for number in sorted(self.held)]
        rows = records.new(len(ours), kind=Kind.PENDING)
        rows["start"], rows["stop"] = [start for start, _ in ours], [stop for _, stop in ours]
        for start, stop in ours:
            self.ledger.reopen(start, stop)
        values = {"as": known.schema_of, "events": self.ledger.open - before}
        return [Write(rows), Note("other_fields", values)]

    def _keep_to_ours(self) -> None:
        """What is pending outside our parts is left to others: also what Droids give back later."""
        ours = IntervalSet(self.leases.part(number) for number in sorted(self.held))
        for start, stop in ours.gaps(0, self.ledger.total):
            self.ledger.cede(start, stop)

    def _unbegun(self, starving: int) -> list[int]:
        """Parts to give away: none of their events is granted or was tried; the share of those that wait."""
        ledger, edges = self.ledger, self.leases.edges
        touched: list[Any] = [pair for held in ledger.granted.values() for pair in held]
        begun: set[int] = set()
        for start, stop in [*touched, *((event, event + 1) for event in ledger.retries)]:
            first = int(np.searchsorted(edges, start, "right")) - 1
            last = int(np.searchsorted(edges, stop, "left"))
            begun.update(range(first, last))
        free = [n for n in sorted(self.held - begun) if ledger.pending.overlap(*self.leases.part(n))]
        count = len(free) * starving // (starving + 1)
        if not count and free and ledger.in_flight:
            count = 1
        return free[len(free) - count :]
