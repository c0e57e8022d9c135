"""Whom to give what, when to stop, whom to doubt. Pure: stimulus and time in, instructions out.

The policy in one paragraph. Each Droid has a cursor on the axis and is granted contiguous pieces from there, as much as
it asks for but never more than its fair share of half of what is left. Events that failed are granted alone, to another
Droid where there is one. A Droid whose failures others cannot repeat is doubted: it drains, and its failures are
forgiven. When nothing is pending, what is left moves from the loaded to the idle (tail.py). A Droid that was believed
lost and comes back keeps what nobody else has taken up.

A report costs what is in it and who can be served because of it, not the number of Droids: Droids that have been told
that there is nothing are not looked at until there is something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from eventrange import messages, records
from eventrange.errors import BAD_DATA, OK, RUN_AGAIN
from eventrange.intervals import IntervalSet, Pair, joined
from eventrange.ledger import Ledger
from eventrange.messages import Range
from eventrange.records import Code, Kind
from eventrange.times import add
from yoda import tail
from yoda.allot import Allotment
from yoda.doubt import Doubt
from yoda.droids import RECENT, Droid, Roster
from yoda.ending import Ending
from yoda.instructions import Instruction, Note, Send, Write, granted, returned
from yoda.nodes import Nodes
from yoda.rangelength import Past, commit_seconds, range_seconds

SILENT = 60.0  #: seconds without a word after which a Droid is believed lost
LISTEN = 1.0  #: seconds between looks at who is silent
RANGES_PER_SECOND = 8000.0  #: this Yoda wants to see at most; with more workers ranges get longer
_DONE = int(Kind.DONE)  # comparing with a member of an enum costs more
DRAIN_SHARE = 0.8  #: of the grace is for the Droids, the rest for our journal


__all__ = ["Dispatcher", "Instruction", "Note", "Send", "Settings", "Write"]


@dataclass
class Settings:
    """What the job and the site decide."""

    size: int = 0  #: events per range, 0 automatic
    whole: bool = False  #: ranges are what lies between two cuts; `size` is how many events they have on average
    range_seconds: float | None = None  #: of work per range; None: as the task's past has it
    past: Past = field(default_factory=Past)
    max_attempts: int = 3
    grace: float = 30.0  #: seconds there are between a warning and the kill
    margin: float | None = None  #: seconds before the deadline at which draining begins; None: measured
    lead: float = 0.0  #: seconds before the end of the job at which Slurm warns; 0 if it does not
    patience: float = 0.0  #: seconds after that our batch script waits for us
    silent: float = SILENT


class Dispatcher:
    """State machine of Yoda. `cuts` are the first positions of all files, or the edges of all named ranges; sorted,
    beginning with 0."""

    def __init__(
        self, ledger: Ledger, cuts: Sequence[int], settings: Settings, total: int, nodes: Nodes | None = None
    ) -> None:
        self.ledger, self.settings, self.total = ledger, settings, total
        self.allotment = Allotment(ledger, cuts, settings.size, total, settings.whole)
        self.roster = Roster()
        self.droids = self.roster.droids
        self.doubt = Doubt(ledger, self.roster)
        self.nodes = nodes or Nodes()
        self.ending = Ending(settings.grace, settings.margin, settings.lead, settings.patience)
        self.schema = ""
        self.times: dict[int, int] = {}
        self.draining = ""  #: why, once we are
        self.drain_ends = math.inf
        self.deadline: float | None = None
        self.exit_code: int | None = None  #: set when no Droid can work any more
        self.failure = ""  #: and why
        self._begun = math.inf  # when the first Droid was there
        self._tail_at = self._listen_at = -math.inf

    # -- what it knows -----------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        return self.ledger.open == 0

    @property
    def active(self) -> list[Droid]:
        return self.roster.in_state("active")

    @property
    def at_work(self) -> list[Droid]:
        """Droids that may still report something."""
        return self.roster.in_state("active", "doubted", "spare")

    @property
    def hurried(self) -> bool:
        """Whether moments count: Droids are starting, nothing is pending, or all is to end."""
        return bool(self.draining or self.roster.awaited) or not self.ledger.pending

    @property
    def drained(self) -> bool:
        """Draining, and every Droid that could has said Bye."""
        return bool(self.draining) and not self.at_work

    def result(self) -> tuple[int, str]:
        """(exit code, reason) if the run ended now."""
        if self.complete and not self.ledger.quarantined:
            return OK, "complete"
        if self.complete:
            return BAD_DATA, f"complete but {self.ledger.quarantined.total} events are quarantined"
        if self.exit_code is not None:
            return self.exit_code, self.failure
        return RUN_AGAIN, self.draining or "stopped"

    # -- stimuli -----------------------------------------------------------------------------------------------------

    def hello(self, now: float, rank: int, host: str, workers: int) -> list[Instruction]:
        """A Droid is there. Cursors are spread so that each works its own part of the axis."""
        droid = self.droids[rank] = Droid(
            rank, host, workers, self.allotment.cursor(len(self.droids)), state="new", heard=now
        )
        self._begun = min(self._begun, now)
        self.roster.awaited.discard(rank)
        if not self.roster.active:
            self.exit_code, self.failure = None, ""  # those before it could do nothing; perhaps it can
        allowed, out = self.nodes.allow(now, host)
        self.roster.move(droid, "active" if allowed else "spare")
        if not allowed:
            out.append(Note("spare", {"droid": rank, "host": host, "reason": self.nodes.why(host)}))
        self.roster.stand_in()
        return [*out, *self._drain_late(now, droid)]

    def report(self, now: float, rank: int, report: messages.Report, rows: NDArray[Any]) -> list[Instruction]:
        """A Droid reports. `rows` are its records, already stamped with its rank."""
        droid = self.droids[rank]
        out: list[Instruction] = []
        droid.heard = now
        droid.backlog, droid.busy = report.backlog, report.busy
        droid.seconds_per_event, droid.on = report.seconds_per_event, report.running
        droid.under_way = report.under_way
        add(self.times, report.times)
        self.ending.committed(droids=report.commits)
        out += [Note(note["note"], {k: v for k, v in note.items() if k != "note"}) for note in report.notes]
        if report.schema and report.schema != self.schema:
            if self.schema:  # another Droid was first; this one has to do these again, knowing the fields
                rows = rows.copy()
                bad = (rows["kind"] == Kind.DONE) & (rows["size"] > 0)
                rows["kind"][bad], rows["code"][bad] = Kind.RETURNED, Code.FIELDS
                rows["size"][bad] = 0
                out.append(Send(rank, self._grant(now, droid, [])))  # tells it the fields
            else:
                self.schema = report.schema
                out.append(Note("schema", {"schema": report.schema}))
        if len(rows):
            out += self._rows(now, droid, rows)
            if self.nodes.on_trial(droid.host) and len(droid.recent) == RECENT and not droid.suspect:
                out += self.nodes.proved(now, droid.host)
        for evidence in report.evidence:
            values = {name: getattr(evidence, name) for name in evidence.__struct_fields__}
            out.append(Note("evidence", {**values, "droid": rank, "host": droid.host}))
        if droid.state == "lost":
            out += self._back(now, droid, rows)
        if report.want:
            droid.want, droid.told_empty = report.want, False
            self.roster.wait(droid)
        return out + self._serve(now)

    def sick(self, now: float, rank: int, reason: str, exit_code: int) -> list[Instruction]:
        """A Droid can do nothing where it is, and will not say another word. Its grants go to the others."""
        droid = self.droids[rank]
        out: list[Instruction] = [Note("left", {"droid": rank, "host": droid.host, "reason": f"sick: {reason}"})]
        self.roster.move(droid, "sick")
        out += self._take_back(droid, Code.DROID_LOST)
        self.roster.stand_in()
        if not self.roster.active:
            self.exit_code, self.failure = exit_code, reason
        return out + self._serve(now)

    def bye(self, now: float, rank: int, reason: str) -> list[Instruction]:
        droid = self.droids[rank]
        self.roster.move(droid, "bye")
        out: list[Instruction] = [Note("left", {"droid": rank, "host": droid.host, "reason": reason})]
        return out + self._take_back(droid, Code.DRAINED) + self._serve(now)

    def lost(self, now: float, rank: int, reason: str) -> list[Instruction]:
        """A Droid is dead, or silent for so long that others should do its work."""
        self.roster.awaited.discard(rank)
        droid = self.droids.get(rank)
        if droid is None or droid.state in ("lost", "bye", "sick"):
            return []
        droid.before = droid.state
        self.roster.move(droid, "lost")
        held = self.ledger.granted.get(rank)
        for start, stop in held or ():
            droid.had.add(start, stop)
        out: list[Instruction] = [Note("left", {"droid": rank, "host": droid.host, "reason": f"lost: {reason}"})]
        out += self._take_back(droid, Code.DROID_LOST, droid.under_way + droid.busy * max(0.0, now - droid.heard))
        self.roster.stand_in()
        if not self.roster.active and not self.draining:
            self.exit_code, self.failure = RUN_AGAIN, f"no Droid is left; the last one was lost: {reason}"
        return out + self._serve(now)

    def withdraw(self, parts: list[Pair]) -> list[Instruction]:
        """Another allocation works on `parts` now: have the Droids drop what they have not begun of them."""
        out: list[Instruction] = []
        for start, stop in parts:
            for rank, pairs in self.ledger.withdraw(start, stop).items():
                ranges = [(a, b, 0) for a, b in pairs]
                out.append(returned(rank, pairs, Code.REVOKED))
                out.append(Send(rank, messages.Revoke(messages.pack_ranges(ranges), begun=False)))
        return out

    def signalled(self, now: float, signal: str) -> list[Instruction]:
        """A signal reached a rank: stop in good order."""
        return self.drain(now, signal, self.ending.warned(now, self.deadline, signal))

    def drain(self, now: float, reason: str, grace: float | None = None) -> list[Instruction]:
        """Stop in good order within `grace` seconds. A second call can only shorten it."""
        grace = max(0.0, self.ending.warned(now, self.deadline) if grace is None else grace)
        if self.draining and now + grace >= self.drain_ends:
            return []
        self.draining = self.draining or reason
        self.drain_ends = now + grace
        out: list[Instruction] = [Note("drain", {"reason": reason, "grace": grace, "deadline": self.deadline})]
        return out + [Send(d.rank, messages.Drain(DRAIN_SHARE * grace, reason)) for d in self.at_work]

    def finish(self, now: float, grace: float) -> list[Instruction]:
        """Everything is done: have the Droids drop what they repeat, seal and say Bye."""
        self.draining, self.drain_ends = "complete", now + grace
        everything = messages.Revoke(messages.pack_ranges([(0, self.total, 0)]))
        out: list[Instruction] = []
        for droid in self.at_work:
            out += [Send(droid.rank, everything), Send(droid.rank, messages.Drain(DRAIN_SHARE * grace, "complete"))]
        return out

    def tick(self, now: float, suspended: float = 0.0) -> list[Instruction]:
        """Time passed; for `suspended` seconds of it this process itself did not run, so silence then means nothing."""
        out: list[Instruction] = []
        if suspended > 0:
            for droid in self.droids.values():
                droid.heard = min(now, droid.heard + suspended)
        if now >= self._listen_at or suspended > 0:
            self._listen_at = now + LISTEN
            for droid in self.at_work:
                if now - droid.heard > self.settings.silent:
                    out += self.lost(now, droid.rank, f"no word for {now - droid.heard:.0f} s")
        if self.deadline is not None and not self.draining and now >= self.deadline - self.ending.margin(self.times):
            left = max(0.0, self.deadline - now)
            out += self.drain(now, f"deadline in {left:.0f} s", self.ending.left(now, self.deadline))
        return out + self._serve(now)

    # -- Droids that come and go -------------------------------------------------------------------------------------

    def _drain_late(self, now: float, droid: Droid) -> list[Instruction]:
        """Have a Droid that was not there when we began to drain do so too, in the time that is left."""
        if not self.draining:
            return []
        return [Send(droid.rank, messages.Drain(DRAIN_SHARE * max(0.0, self.drain_ends - now), self.draining))]

    def _back(self, now: float, droid: Droid, rows: NDArray[Any]) -> list[Instruction]:
        """One that was believed lost speaks. It keeps what is still free and drops the rest; what it asked for then it
        still waits for."""
        for start, stop in rows[["start", "stop"]].tolist():
            droid.had.remove(start, stop)
        out: list[Instruction] = [Note("back", {"droid": droid.rank, "host": droid.host})]
        self.roster.move(droid, droid.before)
        if droid.state == "active":
            self.exit_code, self.failure = None, ""
        kept: list[Range] = []
        for start, stop in droid.had:
            for a, b in self.ledger.pending.overlap(start, stop):
                self.ledger.grant(droid.rank, a, b)
                kept.append((a, b, 0))
            for event in [e for e in self.ledger.retries if start <= e < stop]:
                kept.append((event, event + 1, self.ledger.grant_retry(droid.rank, event)))
        for start, stop, _ in kept:
            droid.had.remove(start, stop)
        if kept:
            out.append(granted(droid.rank, kept))
        if droid.had:
            out.append(Send(droid.rank, messages.Revoke(messages.pack_ranges([(a, b, 0) for a, b in droid.had]))))
            droid.had = IntervalSet()
        if droid.state == "doubted":
            out.append(Send(droid.rank, messages.Drain(self.settings.grace, "doubted")))
        self.roster.wait(droid)
        return out + self._drain_late(now, droid)

    def _take_back(self, droid: Droid, code: Code, wall: float = 0.0) -> list[Instruction]:
        held = list(self.ledger.granted.get(droid.rank) or ())
        self.ledger.lose(droid.rank)
        return [returned(droid.rank, held, code, wall)] if held else []

    # -- what they report --------------------------------------------------------------------------------------------

    def _rows(self, now: float, droid: Droid, rows: NDArray[Any]) -> list[Instruction]:
        """Take a Droid's records into the ledger, and have them written."""
        out: list[Instruction] = []
        kept: list[Pair] = []
        done: list[Pair] = []
        others: list[tuple[int, int, int]] = []
        # Plain numbers: most reports are a few rows, for which numpy's price per call is more than the work.
        for kind, start, stop in zip(rows["kind"].tolist(), rows["start"].tolist(), rows["stop"].tolist(), strict=True):
            if kind == _DONE:
                done.append((start, stop))
            else:
                others.append((kind, start, stop))
        for start, stop in joined(done):
            foreign = self._not_its_own(droid, start, stop)
            out += self._done(now, droid, start, stop, bool(foreign))
            kept += foreign
        droid.recent.extend([False] * min(len(done), RECENT))
        for kind, start, stop in others:
            if kind == Kind.RETURNED:
                droid.patience = 0.0
                kept += self._not_its_own(droid, start, stop)
                self.ledger.give_back(droid.rank, start, stop)
        for kind, start, stop in others:
            if kind == Kind.FAILED:
                kept += self._not_its_own(droid, start, stop)
                out += self._failed(now, droid, start)
        # In the journal, too, a Droid has what it was granted less what it gave back, to the event.
        before = [granted(droid.rank, [(a, b, 0) for a, b in kept], Code.REVOKED)] if kept else []
        return [*before, Write(rows), *out]

    def _not_its_own(self, droid: Droid, start: int, stop: int) -> list[Pair]:
        """The parts of [start, stop) that were taken from a Droid, which had them all the same."""
        held = self.ledger.granted.get(droid.rank)
        if held is None:
            return [(start, stop)]
        return [] if held.covers(start, stop) else held.gaps(start, stop)

    def _done(self, now: float, droid: Droid, start: int, stop: int, foreign: bool) -> list[Instruction]:
        """`foreign`: some of it was taken from the Droid, so others may have it."""
        out: list[Instruction] = []
        ledger = self.ledger
        others: list[int] = []
        if foreign or ledger.copied(start, stop):
            others = [rank for rank in ledger.holders(start, stop) if rank != droid.rank]
            out += [returned(rank, ledger.granted[rank].overlap(start, stop), Code.REVOKED) for rank in others]
        if ledger.attempts:
            for event in [e for e in ledger.attempts if start <= e < stop]:
                for rank in ledger.attempts[event].droids - {droid.rank}:
                    out += self._verdict(now, rank, True)
        ledger.finish(droid.rank, start, stop)
        if others:
            revoke = messages.Revoke(messages.pack_ranges([(start, stop, 0)]))
            out += [Send(other, revoke) for other in others]
        return out

    def _failed(self, now: float, droid: Droid, event: int) -> list[Instruction]:
        out: list[Instruction] = []
        droid.recent.append(True)
        attempts = self.ledger.fail(droid.rank, event)
        retry = self.ledger.retries.get(event) or self.ledger.attempts.get(event)
        if droid.state == "doubted":
            self.doubt.forgive(droid.rank)
            return out
        if retry is not None and len(retry.droids) > 1:
            for rank in list(retry.droids):
                out += self._verdict(now, rank, False)
        if attempts >= self.settings.max_attempts and not self.doubt.only_word(droid, event):
            row = records.new(1, kind=Kind.QUARANTINED, start=event, stop=event + 1, attempt=attempts)
            self.ledger.quarantine(event)
            out.append(Write(row))
            out.append(Note("quarantined", {"event": event, "attempts": attempts}))
        return out

    def _verdict(self, now: float, rank: int, innocent: bool) -> list[Instruction]:
        """An event that failed on Droid `rank` was tried elsewhere, too; `innocent`: it went well there."""
        droid = self.doubt.verdict(rank, innocent)
        if droid is None:
            return []
        self.roster.move(droid, "doubted")
        self.doubt.forgive(rank)
        reason = f"{sum(droid.recent)} of its last {RECENT} events failed, and others could do them"
        return [
            Note("doubted", {"droid": rank, "host": droid.host, "reason": reason}),
            Send(rank, messages.Drain(self.settings.grace, reason)),
            *self.nodes.doubted(now, droid.host, reason),
        ]

    # -- what they get -----------------------------------------------------------------------------------------------

    def _serve(self, now: float) -> list[Instruction]:
        """Grant to every Droid that waits, as long as there is something."""
        roster, ledger = self.roster, self.ledger
        self.roster.stand_in()
        if self.draining or self.exit_code is not None or not (roster.asking or roster.idle):
            return []
        out: list[Instruction] = []
        grants: dict[int, list[Range]] = {}
        if ledger.retries:
            grants = self.allotment.retries({**roster.asking, **roster.idle}, roster.all_among)
        if ledger.pending:
            for droid in roster.in_need():
                if not ledger.pending:
                    break
                if not self.doubt.held_back(now, droid):
                    mine = grants.setdefault(droid.rank, [])
                    mine += self.allotment.take(droid, len(mine), roster.workers)
        for rank, ranges in grants.items():
            out += [granted(rank, ranges), Send(rank, self._grant(now, self.droids[rank], ranges))]
            roster.served(self.droids[rank])
        out += [Send(droid.rank, self._grant(now, droid, [])) for droid in roster.told()]
        if roster.idle and not ledger.pending and now >= self._tail_at:
            self._tail_at = now + tail.pause(len(self.droids))
            out += self._tail(now)
        return out

    def _grant(self, now: float, droid: Droid, ranges: list[Range]) -> messages.Grant:
        settings, workers = self.settings, self.roster.workers
        between = settings.past.between_kills(now - self._begun)
        seconds = settings.range_seconds or range_seconds(between)
        return messages.Grant(
            ranges=messages.pack_ranges(ranges),
            size=settings.size,
            range_seconds=max(seconds, workers / RANGES_PER_SECOND),
            commit_seconds=commit_seconds(between, droid.workers),
            remaining=self.ledger.pending.total,
            workers=workers,
            schema=self.schema,
        )

    def _tail(self, now: float) -> list[Instruction]:
        """Nothing is pending: move work from the loaded to the idle, or copy the slowest events."""
        waiting, working = list(self.roster.idle.values()), self.at_work
        asked = tail.reclaim(now, self.ledger, waiting, working, self.settings.size > 0)
        if asked:
            return [Send(droid.rank, messages.Reclaim(events)) for droid, events in asked]
        out: list[Instruction] = []
        for droid, ranges in tail.copies(now, self.ledger, waiting, working, self.times):
            out += [granted(droid.rank, ranges), Send(droid.rank, self._grant(now, droid, ranges))]
            droid.busy += len(ranges)
            self.roster.served(droid)
        return out
