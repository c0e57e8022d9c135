"""What a Droid does about everything that happens. Pure: stimulus and time in, instructions out.

The shell (rank.py) owns processes, sockets, segments, MPI and the clock. The core owns what the Droid holds
(holding.py) and whether it is draining, and knows which worker is to be blamed for what.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from droid.holding import Holding, Worker, without
from droid.instructions import Assign, Cut, Discard, Failure, Instruction, Kill, Rows, SetSchema, Sick, Spawn
from droid.pace import Pace
from eventrange import records
from eventrange.errors import BAD_CONFIG
from eventrange.intervals import Pair
from eventrange.messages import Grant, Range, unpack_ranges
from eventrange.records import Code, Kind
from eventrange.times import add

START_FAILURES = 3  #: workers in a row that die before they are ready: this node cannot do it
FORK_AGAIN = 10.0  #: seconds until one that could not be forked is tried again
BARREN = 8  #: workers per core that die on no event, with nothing done in between: nor can it here
LONG = 1.0  #: seconds on an event that others have done: rather begin again what is queued behind it
GAP = 2.0  #: seconds between two ticks that count at most: a suspended job has not hung
_DONE, _RETURNED = int(Kind.DONE), int(Kind.RETURNED)  # comparing with a member of an enum costs more
DRAIN_KILL, COMMIT_SECONDS = 0.5, 3.0  #: events run on for half the grace at least, and until this long before its end

__all__ = [
    "Assign",
    "Cut",
    "Discard",
    "DroidCore",
    "Failure",
    "Instruction",
    "Kill",
    "Rows",
    "SetSchema",
    "Sick",
    "Spawn",
    "Worker",
    "returned",
]


def returned(ranges: list[Range], code: Code, wall: float = 0.0) -> NDArray[Any]:
    """RETURNED records of `ranges`; `wall` seconds of work are lost with them."""
    rows = records.new(len(ranges), kind=Kind.RETURNED, code=code)
    for row, (start, stop, attempt) in zip(rows, ranges, strict=True):
        row["start"], row["stop"], row["attempt"] = start, stop, attempt
    if len(rows):
        rows["wall"][0] = wall
    return rows


class DroidCore:
    """State machine of one Droid. Methods are stimuli and return the instructions that follow."""

    def __init__(self, workers: int, timeout: float | None = None) -> None:
        self.pace = Pace(workers, timeout)
        self.holding = Holding(workers, self.pace)
        self.schema = ""
        self.draining = False
        self.stopped = False
        self._others_idle = False  # Yoda has asked for work back, and not granted any since
        self._apart = 0.0  # seconds between group commits, as Yoda sees it
        self.again = 0.0  #: seconds of work on ranges that were broken off and begin again
        self._asked: float | None = None  # when we asked Yoda for more, if it has not answered
        self._waiting = False  # Yoda has answered that there is nothing now
        self._start_failures = self._barren = 0
        self._fork_at = math.inf  # when to try again who could not be forked
        self._kill_at = math.inf
        self._last_tick: float | None = None

    # -- what it knows -----------------------------------------------------------------------------------------------

    @property
    def times(self) -> dict[int, int]:
        return self.pace.times

    @property
    def hurried(self) -> bool:
        """Whether moments count: nothing is pending at Yoda and somebody has no work, or all is to end."""
        holding = self.holding
        return self.draining or (holding.remaining == 0 and (holding.reclaim > 0 or any(w.idle for w in self.workers)))

    @property
    def apart(self) -> float:
        """Seconds between group commits that are worth it."""
        return 0.0 if self.hurried else self._apart

    @property
    def seconds_per_event(self) -> float:
        return self.pace.seconds_per_event

    def limit(self, attempt: int) -> float:
        """Seconds one event may be worked on."""
        return self.pace.limit(attempt)

    @property
    def workers(self) -> list[Worker]:
        return self.holding.workers

    @property
    def finished(self) -> bool:
        """Draining, and nothing is left to wait for."""
        return self.draining and not self.holding.backlog and not self.holding.busy

    @property
    def waiting_for_yoda(self) -> bool:
        """Whether an answer is expected now (not: whenever Yoda has something)."""
        return self._asked is not None and not self._waiting

    def lacking(self) -> int:
        """Events to ask Yoda for; 0 if there is enough or the last request is not answered yet."""
        if self._asked is not None or self.draining or self.stopped:
            return 0
        ready = sum(1 for w in self.workers if w.state == "ready")
        if not ready:
            return 0
        backlog = self.holding.waiting
        low, high = self.pace.marks(ready, self.holding.range_seconds, self.holding.size)
        if backlog >= low and backlog:
            return 0
        return max(1, high - backlog)

    def want(self, now: float) -> int:
        """The same, and they are asked for now."""
        events = self.lacking()
        if events:
            self._asked = now
        return events

    # -- stimuli -----------------------------------------------------------------------------------------------------

    def start(self) -> list[Instruction]:
        return [Spawn(i) for i in range(len(self.workers))]

    def granted(self, now: float, grant: Grant) -> list[Instruction]:
        """Yoda answered. An empty grant is an answer too: nothing is pending now."""
        out: list[Instruction] = []
        ranges = unpack_ranges(grant.ranges)
        if self._asked is not None and not self._waiting:
            self.pace.answered(now - self._asked)
        # Yoda knows what we want and will write when there is some.
        self._waiting = self._asked is not None and not ranges
        if not self._waiting:
            self._asked = None
        holding = self.holding
        self._apart = grant.commit_seconds
        holding.size, holding.range_seconds, holding.remaining = grant.size, grant.range_seconds, grant.remaining
        holding.sharing, self._others_idle = grant.workers, False
        self._see_tail()
        if grant.schema and grant.schema != self.schema:
            if self.schema:  # another Droid was first
                out.append(Discard())
            self.schema = grant.schema
            out.append(SetSchema(grant.schema))
        if self.draining or self.stopped:
            if ranges:
                out.append(Rows(returned(ranges, Code.DRAINED)))
            return out
        if ranges:
            holding.reclaim = 0  # who gives does not want back
        holding.backlog.extend(ranges)
        return out + self.assign()

    def worker_ready(self, worker: int) -> list[Instruction]:
        self.workers[worker].state = "ready"
        self._start_failures = 0
        return self.assign()

    def results(
        self, worker: int, rows: NDArray[Any], times: dict[int, int], schema: str
    ) -> tuple[NDArray[np.bool_], list[Instruction]]:
        """A worker answered. Returns which rows are to be kept and reported, and what to do before `assign`."""
        w = self.workers[worker]
        unwanted = list(w.unwanted)
        out: list[Instruction] = []
        keep = np.ones(len(rows), bool)
        if schema and schema != self.schema:
            out.append(self._fields(rows, schema, keep, unwanted))
        # Plain numbers: most batches are a few rows, for which numpy's price per call is more than the work.
        kinds = rows["kind"].tolist()
        self.holding.answered(worker, _events(rows))
        if _RETURNED in kinds:
            back = rows["kind"] == _RETURNED
            if w.cut == "yoda":
                rows["code"][back] = Code.REVOKED
                self.holding.reclaim = max(0, self.holding.reclaim - _events(rows[back]))
            elif not self.draining:  # also from a worker that had finished before it saw that it was to be cut
                self.holding.again(_ranges(rows[back]), unwanted)
                keep &= ~back
            if not w.given or not (self.draining or w.cut == "revoked"):
                w.cut = ""
            else:  # it cut one range short; it is to start no other
                out.append(Cut(worker))
        if not w.given:
            w.cut = ""
        finished = rows
        if out or kinds.count(_DONE) < len(kinds):
            finished = rows[keep & (rows["kind"] == _DONE)]
        if len(finished):
            self._barren = 0
            self.pace.measure(sum(finished["wall"].tolist()), _events(finished))
        add(self.times, times)
        return keep, out

    def assign(self) -> list[Instruction]:
        """Give work to who has none, or nearly none; once for the results of many workers."""
        return [] if self.draining or self.stopped else list(self.holding.assign())

    def worker_exited(
        self,
        worker: int,
        how: str,
        event: int,
        count: int,
        code: Code = Code.EXITED,
        blame: bool = True,
        seconds: float = 0.0,
        before: float = 0.0,
    ) -> list[Instruction]:
        """A worker process ended. `event`, `count` are what its slot says it was on (-1: nothing), for `seconds` and
        for `before` on the range until then.

        The event is to blame unless we killed the worker for other reasons, or it was on a group of events: then each
        is tried alone. Everything else it had is done by others.
        """
        w = self.workers[worker]
        was_ready = w.state == "ready"
        given, killed, victim, unwanted = list(w.given), w.killed, w.victim, list(w.unwanted)
        self.workers[worker] = Worker(state="gone")
        # One that was killed for an event and got on to the next before it died: nothing is known against the next.
        # The end of an allocation, or of a sick Droid, is no failure either (L9).
        blame = blame and not self.draining and not self.stopped
        blame = blame and (not killed or (killed == "timeout" and victim == event))
        rest: list[Range] = []
        out: list[Instruction] = []
        found = False
        for start, stop, attempt in given:
            if found or not (blame and start <= event < stop):  # it may have been given the same event twice
                rest.append((start, stop, attempt))
                continue
            found = True
            if count > 1:
                rest += [(e, e + 1, attempt) for e in range(start, stop)]
            else:
                rest += [r for r in ((start, event, attempt), (event + 1, stop, attempt)) if r[0] < r[1]]
                out.append(Failure(event, attempt, worker, Code.TIMEOUT if killed else code, how, seconds))
                seconds = 0.0  # they are in its record
        rest = without(rest, unwanted)
        if self.draining or self.stopped:
            return [Rows(returned(rest, Code.DRAINED, before + seconds))] if rest else []
        self.again += before + seconds
        self.holding.again(rest)
        sick = self._hopeless(was_ready, bool(killed) or found or not blame, how)
        if sick is not None:
            self.stopped = True
            return [*out, sick]
        self.workers[worker].state = "starting"
        return [*out, Spawn(worker), *self.assign()]

    def worker_unforked(self, now: float, worker: int, why: str) -> list[Instruction]:
        """There was no process for a worker. Others go on without it; it counts as a failure where there are none."""
        self.workers[worker].state = "gone"
        if self.draining or self.stopped:
            return []
        self._fork_at = min(self._fork_at, now + FORK_AGAIN)
        if all(w.state == "gone" for w in self.workers):
            self._start_failures += 1
            if self._start_failures >= START_FAILURES:
                self.stopped = True
                text = f"{self._start_failures} times in a row no worker could be forked: {why}"
                return [Sick(text, BAD_CONFIG)]
        return []

    def zygote_restarted(self) -> list[Instruction]:
        """All workers died with their zygote; a new one is ready. None of their events is to blame."""
        out: list[Instruction] = []
        for index in range(len(self.workers)):
            self.workers[index].state = "ready"  # it is not the workers that failed to start
            out += self.worker_exited(index, "", -1, 0, blame=False)
        return out

    def tick(self, now: float, slots: NDArray[Any], stopped: frozenset[int] = frozenset()) -> list[Instruction]:
        """Time passed. `slots` is the workers' table; `stopped` are workers the kernel does not let run (SIGSTOP)."""
        out: list[Instruction] = []
        step = min(max(0.0, now - self._last_tick), GAP) if self._last_tick is not None else 0.0
        self._last_tick = now
        self._see_tail()
        for index, w in enumerate(self.workers):
            event = int(slots["event"][index])
            # The beginning, too: of a group that failed the first event is next, alone.
            begun = (event, float(slots["since"][index]))
            if not w.given or event < 0 or begun != w.watched:
                w.watched, w.seconds = begun, 0.0
                continue
            w.seconds += 0.0 if index in stopped else step
            if not w.killed and not self.draining:
                attempt = next((a for start, stop, a in w.given if start <= event < stop), 0)
                if w.seconds > self.limit(attempt) * max(1, int(slots["count"][index])):
                    w.killed, w.victim = "timeout", event
                    out.append(Kill(index, f"event {event} exceeded its limit of {self.limit(attempt):.0f} s"))
        if now >= self._fork_at and not self.draining:
            self._fork_at = math.inf
            for index, w in enumerate(self.workers):
                if w.state == "gone":
                    w.state = "starting"
                    out.append(Spawn(index))
        if self.draining and now >= self._kill_at:
            for index, w in enumerate(self.workers):
                if w.given and not w.killed:
                    w.killed = "drain"
                    out.append(Kill(index, "the grace period is over"))
        return out + self.balance(slots)

    def drain(self, now: float, grace: float, said: bool = False) -> list[Instruction]:
        """Start nothing new, finish the events at hand, give back the rest. Kills what is not done in time.

        `said`: by Yoda, who knows more of the end than a signal that reached us.
        """
        kill_at = now + max(DRAIN_KILL * grace, grace - COMMIT_SECONDS)
        self._kill_at = kill_at if said else min(self._kill_at, kill_at)
        if self.draining:
            return []
        self.draining, self.holding.far = True, False
        back = list(self.holding.backlog)
        self.holding.backlog.clear()
        out: list[Instruction] = [Rows(returned(back, Code.DRAINED))] if back else []
        for index, w in enumerate(self.workers):
            if w.given:
                w.cut = "drain"
                out.append(Cut(index))
        return out

    def revoked(self, now: float, ranges: list[Range], slots: NDArray[Any], begun: bool = True) -> list[Instruction]:
        """Others have made `ranges` durable: drop them. A worker with nothing else to do is killed, which frees it, and
        so is one that has been on an event of them for long: what it has besides waits for that.

        Not `begun`: others are at work on them. A worker that has some of them finishes the event at hand.
        """
        out: list[Instruction] = []
        for start, stop, _ in ranges:
            self.holding.drop(start, stop)
            for index, w in enumerate(self.workers):
                if not begun:
                    if not w.killed and any(a < stop and start < b for a, b, _ in w.given):
                        w.cut = "revoked"
                        out.append(Cut(index))
                elif w.given and not w.killed:
                    nothing_else = all(start <= a and b <= stop for a, b, _ in w.given)
                    on_it = start <= slots["event"][index] < stop and now - slots["since"][index] > LONG
                    if nothing_else:
                        w.given.clear()
                        w.events = 0
                    if nothing_else or on_it:
                        w.killed = "revoked"
                        out.append(Kill(index, "another Droid was faster"))
        return out

    def reclaimed(self, events: int, slots: NDArray[Any]) -> list[Instruction]:
        """Yoda has idle Droids: give back `events` from the end of the backlog, else the rest of the longest range."""
        self._others_idle = True
        self._see_tail()
        back = self.holding.tail(events)
        if back:
            return [Rows(returned(back, Code.REVOKED))]
        self.holding.reclaim = events
        return self.balance(slots)

    def balance(self, slots: NDArray[Any]) -> list[Instruction]:
        """At the tail: whom to ask for what it has too much of, for those that have nothing."""
        return [] if self.draining or self.stopped else list(self.holding.balance(slots))

    # -- inner workings ----------------------------------------------------------------------------------------------

    def _fields(self, rows: NDArray[Any], schema: str, keep: NDArray[np.bool_], unwanted: list[Pair]) -> Instruction:
        """Images came with fields other than those we know. Those of `rows` that are of no use are taken out of `keep`,
        or given back while draining."""
        if not self.schema:
            self.schema = schema
            return SetSchema(schema)
        # Two workers began with different fields. The task's are those that were first; this one has to try again, now
        # knowing them, and will pin the difference on an event.
        wrong = (rows["kind"] == _DONE) & (rows["size"] > 0)
        if self.draining:
            rows["kind"][wrong], rows["size"][wrong] = Kind.RETURNED, 0
        else:
            keep &= ~wrong
            self.holding.again(_ranges(rows[wrong]), unwanted)
        return SetSchema(self.schema)

    def _hopeless(self, was_ready: bool, explained: bool, how: str) -> Sick | None:
        """Workers that die and nobody knows why: after some of them, nothing can be done on this node."""
        if not was_ready:
            self._start_failures += 1
            if self._start_failures >= START_FAILURES:
                text = f"{self._start_failures} workers in a row ended before they were ready: {how}"
                return Sick(text, BAD_CONFIG)
        elif not explained:
            self._barren += 1
            if self._barren >= BARREN * len(self.workers):
                return Sick(f"{self._barren} workers ended while on no event, and nothing was done: {how}", BAD_CONFIG)
        return None

    def _see_tail(self) -> None:
        """How near the tail is, as far as we know, at our present pace."""
        holding = self.holding
        if self._others_idle:
            holding.far, holding.near = False, math.inf
        else:
            holding.near = self.pace.near(holding.remaining, holding.sharing, holding.whole)


def _events(rows: NDArray[Any]) -> int:
    return int(sum(rows["stop"].tolist()) - sum(rows["start"].tolist()))


def _ranges(rows: NDArray[Any]) -> list[Range]:
    return list(zip(rows["start"].tolist(), rows["stop"].tolist(), rows["attempt"].tolist(), strict=True))
