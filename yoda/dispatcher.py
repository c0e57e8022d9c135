"""Whom to give what, when to stop, whom to doubt. Pure: stimulus and time in, instructions out.

The policy in one paragraph. Each Droid has a cursor on the axis and is granted contiguous pieces from there, as much as it asks for
but never more than its fair share of half of what is left. Events that failed are granted alone, to another Droid where there
is one. When nothing is pending, Droids with a backlog are asked to give some back to those that are idle; when there is no
backlog either, idle Droids get copies of the events that have been running longest, and the first to finish wins (L2).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange import messages, records
from eventrange.errors import BAD_DATA, OK, RUN_AGAIN
from eventrange.ledger import Ledger
from eventrange.messages import Message, Range
from eventrange.records import Code, Kind
from eventrange.times import add, quantile

SILENT = 60.0  #: seconds without a word after which a Droid is believed lost
WORKERS_PER_SECOND = 4000.0  #: ranges a second this Yoda wants to see at most; ranges get longer beyond
COPY_FACTOR = 2.0  #: an event is copied when it has run this many times the 90 % quantile
DOUBT_EVENTS = 8  #: failed events on one Droid, most of its last ones, while others do well: doubt it
MARGIN_FLOOR = 5.0  #: seconds before a deadline in which nothing new is started, at least


@dataclass(frozen=True)
class Send:
    droid: int
    message: Message


@dataclass(frozen=True)
class Write:
    """Records for the journal."""

    rows: NDArray[Any]


@dataclass(frozen=True)
class Note:
    """A note for the journal and, as a sentence, for the log."""

    name: str
    values: dict[str, Any]


Instruction = Send | Write | Note


@dataclass
class Settings:
    """What the job and the site decide."""

    size: int = 0  #: events per range, 0 automatic
    range_seconds: float = 1.0
    max_attempts: int = 3
    grace: float = 30.0  #: seconds there are between a warning and the kill
    margin: float | None = None  #: seconds before the deadline at which draining begins; None: measured
    silent: float = SILENT


@dataclass
class Droid:
    """One Droid as Yoda knows it."""

    rank: int
    host: str
    workers: int
    cursor: int
    state: str = "active"  #: active, doubted, sick, bye, lost
    want: int = 0
    told_empty: bool = False
    backlog: int = 0
    busy: int = 0
    seconds_per_event: float = 0.0
    running: list[tuple[int, float]] = field(default_factory=list)
    heard: float = 0.0
    asked_back: float = -math.inf
    recent: list[bool] = field(default_factory=list)  #: outcome of its last events, True is failed


class Dispatcher:
    """State machine of Yoda. `cuts` are the first positions of all files, sorted, beginning with 0."""

    def __init__(self, ledger: Ledger, cuts: Sequence[int], settings: Settings, total: int) -> None:
        self.ledger, self.settings, self.total = ledger, settings, total
        self.cuts = list(cuts)
        self.droids: dict[int, Droid] = {}
        self.schema = ""
        self.times: dict[int, int] = {}
        self.draining = ""  #: why, once we are
        self.drain_ends = math.inf
        self.deadline: float | None = None
        self.exit_code: int | None = None  #: set when no Droid can work any more
        self.failure = ""  #: and why

    # -- what it knows -----------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        return self.ledger.open == 0

    @property
    def active(self) -> list[Droid]:
        return [d for d in self.droids.values() if d.state == "active"]

    @property
    def at_work(self) -> list[Droid]:
        """Droids that may still report something."""
        return [d for d in self.droids.values() if d.state in ("active", "doubted", "sick")]

    def result(self) -> tuple[int, str]:
        """(exit code, reason) if the run ended now."""
        if self.complete and not self.ledger.quarantined:
            return OK, "complete"
        if self.complete:
            return BAD_DATA, f"complete but {self.ledger.quarantined.total} events are quarantined"
        if self.exit_code is not None:
            return self.exit_code, self.failure
        return RUN_AGAIN, self.draining or "stopped"

    def margin(self) -> float:
        """Seconds before the deadline at which to start nothing new: the measured tail of an event, plus the commit."""
        if self.settings.margin is not None:
            return self.settings.margin
        return max(MARGIN_FLOOR, 1.2 * quantile(self.times, 0.995) + 0.2 * MARGIN_FLOOR + 2.0)

    # -- stimuli -----------------------------------------------------------------------------------------------------

    def hello(self, now: float, rank: int, host: str, workers: int) -> list[Instruction]:
        """A Droid is there. Cursors are spread so that each works its own part of the axis."""
        order = _spread(len(self.droids))
        position = int(order * self.total)
        cursor = self.cuts[bisect_right(self.cuts, position) - 1] if len(self.cuts) > len(self.droids) else position
        if self.settings.size:  # keep to the grid of ranges, so that they have the same names everywhere
            base = self.cuts[bisect_right(self.cuts, cursor) - 1]
            cursor = base + (cursor - base) // self.settings.size * self.settings.size
        self.droids[rank] = Droid(rank, host, workers, cursor, heard=now)
        if self.draining:
            return [Send(rank, messages.Drain(self.settings.grace, self.draining))]
        return []

    def report(self, now: float, rank: int, report: messages.Report, rows: NDArray[Any]) -> list[Instruction]:
        """A Droid reports. `rows` are its records, already stamped with its rank."""
        droid = self.droids[rank]
        out: list[Instruction] = []
        droid.heard = now
        if droid.state == "lost":
            droid.state = "active"
            out.append(Note("back", {"droid": rank, "host": droid.host}))
            if self.draining:
                out.append(Send(rank, messages.Drain(self.settings.grace, self.draining)))
        droid.backlog, droid.busy = report.backlog, report.busy
        droid.seconds_per_event, droid.running = report.seconds_per_event, report.running
        add(self.times, report.times)
        out += [Note(note["note"], {k: v for k, v in note.items() if k != "note"}) for note in report.notes]
        if report.schema and report.schema != self.schema:
            if self.schema:  # another Droid was first; this one has to do these again, knowing the fields
                rows = rows.copy()
                bad = (rows["kind"] == Kind.DONE) & (rows["size"] > 0)
                rows["kind"][bad], rows["code"][bad] = Kind.RETURNED, Code.FIELDS
                rows["size"][bad] = 0
            else:
                self.schema = report.schema
                out.append(Note("schema", {"schema": report.schema}))
        if len(rows):
            out.append(Write(rows))
            out += self._rows(now, droid, rows)
        for evidence in report.evidence:
            values = {name: getattr(evidence, name) for name in evidence.__struct_fields__}
            out.append(Note("evidence", {**values, "droid": rank, "host": droid.host}))
        if report.want:
            droid.want, droid.told_empty = report.want, False
        return out + self._serve(now)

    def sick(self, now: float, rank: int, reason: str, exit_code: int) -> list[Instruction]:
        """A Droid can do nothing where it is. Its grants go to the others."""
        droid = self.droids[rank]
        droid.state = "sick"
        self.failure = reason
        out: list[Instruction] = [Note("left", {"droid": rank, "host": droid.host, "reason": f"sick: {reason}"})]
        out += self._take_back(droid, Code.DROID_LOST)
        if not self.active:
            self.exit_code = exit_code
        return out + self._serve(now)

    def bye(self, now: float, rank: int, reason: str) -> list[Instruction]:
        droid = self.droids[rank]
        droid.state = "bye"
        out: list[Instruction] = [Note("left", {"droid": rank, "host": droid.host, "reason": reason})]
        return out + self._take_back(droid, Code.DRAINED)

    def lost(self, now: float, rank: int, reason: str) -> list[Instruction]:
        """A Droid is dead, or silent for so long that others should do its work."""
        droid = self.droids.get(rank)
        if droid is None or droid.state in ("lost", "bye"):
            return []
        droid.state = "lost"
        out: list[Instruction] = [Note("left", {"droid": rank, "host": droid.host, "reason": f"lost: {reason}"})]
        out += self._take_back(droid, Code.DROID_LOST, sum(seconds for _, seconds in droid.running))
        if not self.active and not self.draining:
            self.exit_code, self.failure = RUN_AGAIN, f"no Droid is left; the last one was lost: {reason}"
        return out + self._serve(now)

    def drain(self, now: float, reason: str, grace: float | None = None) -> list[Instruction]:
        """Stop in good order within `grace` seconds. A second call can only shorten it."""
        grace = self.settings.grace if grace is None else grace
        if self.draining and now + grace >= self.drain_ends:
            return []
        self.draining = self.draining or reason
        self.drain_ends = now + grace
        out: list[Instruction] = [Note("drain", {"reason": reason, "grace": grace, "deadline": self.deadline})]
        for droid in self.droids.values():
            if droid.state in ("active", "doubted"):
                out.append(Send(droid.rank, messages.Drain(0.8 * grace, reason)))
        return out

    def finish(self, now: float, grace: float) -> list[Instruction]:
        """Everything is done: have the Droids seal and say Bye."""
        self.draining, self.drain_ends = "complete", now + grace
        return [Send(d.rank, messages.Drain(grace, "complete")) for d in self.at_work if d.state != "sick"]

    def tick(self, now: float, suspended: float = 0.0) -> list[Instruction]:
        """Time passed; for `suspended` seconds of it this process itself did not run, so silence then means nothing."""
        out: list[Instruction] = []
        for droid in self.at_work:
            droid.heard += suspended
            if now - droid.heard > self.settings.silent:
                out += self.lost(now, droid.rank, f"no word for {now - droid.heard:.0f} s")
        if self.deadline is not None and not self.draining and now >= self.deadline - self.margin():
            left = max(0.0, self.deadline - now)
            out += self.drain(now, f"deadline in {left:.0f} s", 0.9 * left)
        return out + self._serve(now)

    @property
    def drained(self) -> bool:
        """Draining, and every Droid that could has said Bye."""
        return bool(self.draining) and not self.at_work

    # -- inner workings ----------------------------------------------------------------------------------------------

    def _rows(self, now: float, droid: Droid, rows: NDArray[Any]) -> list[Instruction]:
        """Take a Droid's records into the ledger."""
        out: list[Instruction] = []
        kinds = rows["kind"]
        done = rows[kinds == Kind.DONE]
        for start, stop in _joined(done):
            others = (
                [r for r in self.ledger.holders(start, stop) if r != droid.rank]
                if self.ledger.copied(start, stop)
                else []
            )
            tried = [e for e in self.ledger.attempts if start <= e < stop] if self.ledger.attempts else []
            for event in tried:
                self._doubt(droid, self.ledger.attempts[event].droids)
            self.ledger.finish(droid.rank, start, stop)
            out += [Send(other, messages.Revoke(messages.pack_ranges([(start, stop, 0)]))) for other in others]
        droid.recent = (droid.recent + [False] * min(len(done), DOUBT_EVENTS))[-DOUBT_EVENTS:]
        for row in rows[kinds == Kind.RETURNED]:
            self.ledger.give_back(droid.rank, int(row["start"]), int(row["stop"]))
        for row in rows[kinds == Kind.FAILED]:
            out += self._failed(now, droid, int(row["start"]))
        return out

    def _failed(self, now: float, droid: Droid, event: int) -> list[Instruction]:
        out: list[Instruction] = []
        attempts = self.ledger.fail(droid.rank, event)
        droid.recent = [*droid.recent, True][-DOUBT_EVENTS:]
        if attempts >= self.settings.max_attempts:
            row = records.new(1, kind=Kind.QUARANTINED, start=event, stop=event + 1, attempt=attempts, time=now)
            self.ledger.quarantine(event)
            out.append(Write(row))
            out.append(Note("quarantined", {"event": event, "attempts": attempts}))
        return out + self._doubt_if_bad(droid)

    def _doubt(self, success: Droid, failed_on: set[int]) -> None:
        """An event that failed elsewhere went well on `success`: that counts against the others once more."""
        for rank in failed_on - {success.rank}:
            if rank in self.droids:
                self.droids[rank].recent = [*self.droids[rank].recent, True][-DOUBT_EVENTS:]

    def _doubt_if_bad(self, droid: Droid) -> list[Instruction]:
        if droid.state != "active" or len(droid.recent) < DOUBT_EVENTS or sum(droid.recent) < 0.75 * DOUBT_EVENTS:
            return []
        others = [d for d in self.active if d is not droid]
        if not any(d.recent and sum(d.recent) <= 0.1 * len(d.recent) for d in others):
            return []
        droid.state = "doubted"
        reason = f"{sum(droid.recent)} of its last {len(droid.recent)} events failed while other Droids do well"
        out: list[Instruction] = [Note("doubted", {"droid": droid.rank, "host": droid.host, "reason": reason})]
        out.append(Send(droid.rank, messages.Drain(self.settings.grace, reason)))
        for retry in (*self.ledger.retries.values(), *self.ledger.attempts.values()):
            if droid.rank in retry.droids:  # what a bad node did is not the event's fault
                retry.droids.discard(droid.rank)
                retry.attempts = max(0, retry.attempts - 1)
        return out

    def _take_back(self, droid: Droid, code: Code, wall: float = 0.0) -> list[Instruction]:
        freed = self.ledger.lose(droid.rank)
        droid.want = 0
        if not freed:
            return []
        rows = records.new(len(freed), kind=Kind.RETURNED, code=code, droid=droid.rank)
        rows["start"], rows["stop"] = [a for a, _ in freed], [b for _, b in freed]
        rows["wall"][0] = wall
        return [Write(rows)]

    def _serve(self, now: float) -> list[Instruction]:
        """Grant to every Droid that waits, as long as there is something."""
        if self.draining or self.exit_code is not None:
            return []
        out: list[Instruction] = []
        waiting = [d for d in self.droids.values() if d.state == "active" and d.want]
        if not waiting:
            return out
        total_workers = sum(d.workers for d in self.active)
        for droid in waiting:
            ranges = self._retries(droid) + self._take(droid, total_workers)
            if not ranges:
                continue
            rows = records.new(len(ranges), kind=Kind.GRANTED, droid=droid.rank, time=now)
            rows["start"], rows["stop"] = [r[0] for r in ranges], [r[1] for r in ranges]
            rows["attempt"] = [r[2] for r in ranges]
            out.append(Write(rows))
            out.append(Send(droid.rank, self._grant(ranges, total_workers)))
            droid.want, droid.told_empty = 0, False
        if self.ledger.pending or self.ledger.retries:
            return out
        for droid in waiting:
            if droid.want and not droid.told_empty:
                droid.told_empty = True
                out.append(Send(droid.rank, self._grant([], total_workers)))
        return out + self._tail(now, [d for d in waiting if d.want], total_workers)

    def _grant(self, ranges: list[Range], total_workers: int) -> messages.Grant:
        remaining = self.ledger.pending.total + len(self.ledger.retries)
        seconds = self.settings.range_seconds * max(1.0, total_workers / WORKERS_PER_SECOND)
        return messages.Grant(messages.pack_ranges(ranges), self.settings.size, seconds, remaining, self.schema)

    def _retries(self, droid: Droid) -> list[Range]:
        """Failed events for this Droid: those that failed elsewhere, or that failed on every Droid there is."""
        if not self.ledger.retries:
            return []
        ranks = {d.rank for d in self.active}
        fit = [
            event
            for event, retry in self.ledger.retries.items()
            if droid.rank not in retry.droids or ranks <= retry.droids
        ]
        return [(e, e + 1, self.ledger.grant_retry(droid.rank, e)) for e in sorted(fit)[: max(1, droid.want)]]

    def _take(self, droid: Droid, total_workers: int) -> list[Range]:
        """Contiguous pieces from the Droid's cursor on; at most its fair share of half of what is pending."""
        pending = self.ledger.pending
        fair = math.ceil(pending.total * droid.workers / (2 * max(1, total_workers)))
        count = min(droid.want, max(1, fair))
        ranges: list[Range] = []
        while count > 0 and pending and len(ranges) < 1024:
            found = pending.next_from(droid.cursor)
            assert found is not None
            start, stop = found
            file = bisect_right(self.cuts, start)
            stop = min(stop, self.cuts[file]) if file < len(self.cuts) else stop
            cut = min(stop, start + count)
            if self.settings.size:  # whole ranges only
                cut = min(stop, start + math.ceil((cut - start) / self.settings.size) * self.settings.size)
            self.ledger.grant(droid.rank, start, cut)
            ranges.append((start, cut, 0))
            count -= cut - start
            droid.cursor = cut
        return ranges

    def _tail(self, now: float, waiting: list[Droid], total_workers: int) -> list[Instruction]:
        """Nothing is pending: move backlog from the loaded to the idle, then copy the slowest events."""
        out: list[Instruction] = []
        idle = sum(max(0, d.workers - d.busy) for d in waiting)
        if not idle:
            return out
        loaded = max(self.at_work, key=lambda d: d.backlog * d.seconds_per_event / d.workers, default=None)
        if loaded is not None and loaded.backlog > 1 and now - loaded.asked_back > 0.5:
            loaded.asked_back = now
            share = loaded.backlog * idle // (idle + loaded.workers) or 1
            return [Send(loaded.rank, messages.Reclaim(share))]
        slow = COPY_FACTOR * quantile(self.times, 0.9)
        for droid in waiting:
            room = droid.workers - droid.busy
            chosen: list[Range] = []
            for other in self.droids.values():
                for event, seconds in other.running if other is not droid else ():
                    free = self.ledger.granted.get(other.rank)
                    if len(chosen) < room and seconds > max(slow, 0.5) and free and event in free:
                        if self.ledger.copied(event, event + 1):
                            continue
                        self.ledger.copy(droid.rank, event, event + 1)
                        retry = self.ledger.attempts.get(event)
                        chosen.append((event, event + 1, retry.attempts if retry else 0))
            if chosen:
                rows = records.new(len(chosen), kind=Kind.GRANTED, droid=droid.rank, time=now)
                rows["start"], rows["stop"] = [r[0] for r in chosen], [r[1] for r in chosen]
                out.append(Write(rows))
                out.append(Send(droid.rank, self._grant(chosen, total_workers)))
                droid.want, droid.told_empty, droid.busy = 0, False, droid.busy + len(chosen)
        return out


def _spread(index: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: where to begin so that late comers fall into the widest gap (van der Corput)."""
    result, part = 0.0, 0.5
    while index:
        result += part * (index & 1)
        index >>= 1
        part /= 2
    return result


def _joined(done: NDArray[Any]) -> list[tuple[int, int]]:
    """Intervals of DONE rows, touching ones joined: a batch of a thousand tiny ranges is one step for the ledger."""
    if not len(done):
        return []
    order = np.argsort(done["start"], kind="stable")
    starts, stops = done["start"][order], done["stop"][order]
    first = np.append(True, starts[1:] != stops[:-1])
    at = np.flatnonzero(first)
    return list(zip(starts[at].tolist(), stops[np.append(at[1:], len(starts)) - 1].tolist(), strict=True))
