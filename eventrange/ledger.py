"""What is known of every event: pending, granted, done, failed, quarantined. Pure.

Done is what is left: the ledger keeps sets only of what is *not* done, so its size follows the holes and the Droids at
work, not the events (L12), and the common operation (a Droid reports what it was granted) touches one small set.

    pending --grant--> granted[droid] --done--> (gone)
       ^                  |  |
       +---- returned ----+  +--failed--> retries --grant--> granted[droid] ... --> quarantined
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from eventrange.interval_arrays import difference
from eventrange.intervals import Array, IntervalSet, Pair


@dataclass
class Retry:
    """An event that failed and will be tried again."""

    attempts: int  #: failed attempts so far
    droids: set[int] = field(default_factory=set)  #: where it failed


class Ledger:
    """Progress of one task as one Yoda sees it. Positions are on the task's axis.

    Every event of the ledger is in exactly one of: `pending`, `retries`, `quarantined`, `elsewhere`, done; or granted
    to one or more Droids.
    """

    def __init__(self, total: int = 0) -> None:
        self.total = total  #: events this ledger answers for, done ones included
        self.pending = IntervalSet()
        self.granted: dict[int, IntervalSet] = {}
        self.in_flight = 0  #: events granted to at least one Droid
        self.retries: dict[int, Retry] = {}  #: event -> failed, not granted
        self.attempts: dict[int, Retry] = {}  #: event -> failed before, granted now
        self.quarantined = IntervalSet()
        self.elsewhere = IntervalSet()  #: left to other allocations, and not known to be done
        # Parts that were granted while another Droid held them. Only these, and reports of Droids that hold something
        # else by now, need a look at all Droids; there are ten thousand of them.
        self._copied = IntervalSet()

    @property
    def done(self) -> int:
        return self.total - self.open - self.quarantined.total

    @property
    def open(self) -> int:
        """Events that still have to be processed."""
        return self.in_flight + self.pending.total + len(self.retries) + self.elsewhere.total

    def grant(self, droid: int, start: int, stop: int) -> None:
        """Move [start, stop), which must be pending, to `droid`."""
        moved = self.pending.remove(start, stop)
        if moved != stop - start:
            raise ValueError(f"[{start}, {stop}) granted to droid {droid}, but only {moved} of its events are pending")
        self.in_flight += moved
        self.granted.setdefault(droid, IntervalSet()).add(start, stop)

    def copy(self, droid: int, start: int, stop: int) -> None:
        """Grant [start, stop), which is in flight elsewhere, to `droid` as well."""
        self._copied.add(start, stop)
        self.granted.setdefault(droid, IntervalSet()).add(start, stop)

    def copied(self, start: int, stop: int) -> bool:
        return bool(self._copied) and bool(self._copied.overlap(start, stop))

    def grant_retry(self, droid: int, event: int) -> int:
        """Grant a failed event again; returns how many attempts it has had."""
        retry = self.attempts[event] = self.retries.pop(event)
        self.in_flight += 1
        self.granted.setdefault(droid, IntervalSet()).add(event, event + 1)
        return retry.attempts

    def finish(self, droid: int, start: int, stop: int) -> list[Pair]:
        """[start, stop) is durable. Returns the parts that are news; the rest was done before.

        Right whoever holds the range by now: it may have been given to others, or be pending again, because `droid` was
        believed lost.
        """
        held = self.granted.get(droid)
        if held is not None and held.covers(start, stop) and not self.copied(start, stop):
            held.remove(start, stop)
            self.in_flight -= stop - start
            news = [(start, stop)]
        else:
            flying = IntervalSet()
            for other in self.granted.values():
                for a, b in other.overlap(start, stop):
                    flying.add(a, b)
                    other.remove(a, b)
            self._copied.remove(start, stop)
            self.in_flight -= flying.total
            for known in (self.pending, self.quarantined, self.elsewhere):
                for a, b in known.overlap(start, stop):
                    known.remove(a, b)
                    flying.add(a, b)
            for event in [event for event in self.retries if start <= event < stop]:
                del self.retries[event]
                flying.add(event, event + 1)
            news = list(flying)
        if self.attempts:
            for event in [event for event in self.attempts if start <= event < stop]:
                del self.attempts[event]
        return news

    def holders(self, start: int, stop: int) -> list[int]:
        """Droids that have been granted any of [start, stop)."""
        return [droid for droid, held in self.granted.items() if held.overlap(start, stop)]

    def fail(self, droid: int, event: int) -> int:
        """An attempt at `event` failed on `droid`; returns how many have failed now. 0: the ledger did not wait for
        it."""
        held = self.granted.get(droid)
        if held is None or not held.remove(event, event + 1):
            return 0
        retry = self.attempts.pop(event, None) or Retry(0)
        retry.attempts += 1
        retry.droids.add(droid)
        if self.copied(event, event + 1) and self.holders(event, event + 1):
            self._held_elsewhere(event, event + 1)
            self.attempts[event] = retry
            return 0
        self._copied.remove(event, event + 1)
        self.in_flight -= 1
        self.retries[event] = retry
        return retry.attempts

    def quarantine(self, event: int) -> None:
        """Give `event` up."""
        del self.retries[event]
        self.quarantined.add(event, event + 1)

    def give_back(self, droid: int, start: int, stop: int) -> list[Pair]:
        """`droid` returns [start, stop) unprocessed; returns the parts that are pending now (no copy elsewhere)."""
        held = self.granted.get(droid)
        freed: list[Pair] = []
        for a, b in held.overlap(start, stop) if held else []:
            assert held is not None
            held.remove(a, b)
            gone = [(a, b)]
            if self.copied(a, b):
                gone = self._held_elsewhere(a, b).gaps(a, b)
            for c, d in gone:
                self.in_flight -= d - c
                self._pend(c, d)
            freed += gone
        return freed

    def lose(self, droid: int) -> list[Pair]:
        """`droid` is gone; everything it held and nobody else holds is pending again. Returns those parts."""
        held = self.granted.get(droid)
        freed = [pair for a, b in list(held or ()) for pair in self.give_back(droid, a, b)]
        self.granted.pop(droid, None)
        return freed

    # -- several allocations -----------------------------------------------------------------------------------------

    def adopt(self, start: int, stop: int, attempts: Mapping[int, int]) -> int:
        """What was left to others of [start, stop) is ours now; returns how many events. `attempts`: failed ones so
        far of some events."""
        found = 0
        for a, b in self.elsewhere.overlap(start, stop):
            self.elsewhere.remove(a, b)
            found += b - a
            for event in sorted(event for event in attempts if a <= event < b):
                self.retries[event] = Retry(attempts[event])
                self.pending.add(a, event)
                a = event + 1
            self.pending.add(a, b)
        return found

    def cede(self, start: int, stop: int) -> int:
        """Leave [start, stop) to others, but for what is granted. Returns how many events."""
        found = 0
        for a, b in self.pending.overlap(start, stop):
            self.pending.remove(a, b)
            self.elsewhere.add(a, b)
            found += b - a
        for event in [event for event in self.retries if start <= event < stop]:
            del self.retries[event]
            self.elsewhere.add(event, event + 1)
            found += 1
        return found

    def withdraw(self, start: int, stop: int) -> dict[int, list[Pair]]:
        """Leave [start, stop) to others, also what is granted. Returns, by Droid, what it held of it."""
        held = {droid: pairs for droid, known in self.granted.items() if (pairs := known.overlap(start, stop))}
        for droid, pairs in held.items():
            for a, b in pairs:
                self.give_back(droid, a, b)
        self.cede(start, stop)
        return held

    def settle(self, starts: Array, stops: Array) -> int:
        """The set (starts, stops) is done, whoever did it. Granted events stay so. Returns how many are news."""
        before = self.done
        for name in ("elsewhere", "pending", "quarantined"):
            old: IntervalSet = getattr(self, name)
            if old and len(starts):
                left = difference(np.array(old.starts, np.int64), np.array(old.stops, np.int64), starts, stops)
                setattr(self, name, IntervalSet.from_arrays(*left))
        if self.retries:
            done = IntervalSet.from_arrays(starts, stops)
            for event in [event for event in self.retries if event in done]:
                del self.retries[event]
        return self.done - before

    def reopen(self, start: int, stop: int) -> None:
        """What is done of [start, stop) was not done as it should: it is pending."""
        known = IntervalSet([*self.pending, *self.elsewhere, *self.quarantined])
        for held in self.granted.values():
            for a, b in held:
                known.add(a, b)
        for event in self.retries:
            known.add(event, event + 1)
        for a, b in known.gaps(start, stop):
            self.pending.add(a, b)

    def give_up(self, start: int, stop: int) -> None:
        """Others have quarantined [start, stop); what of it was left to them is not open any more."""
        for a, b in self.elsewhere.overlap(start, stop):
            self.elsewhere.remove(a, b)
            self.quarantined.add(a, b)

    def _held_elsewhere(self, start: int, stop: int) -> IntervalSet:
        """What of [start, stop) anybody still holds; what only one does is no copy any more, and may be copied
        again."""
        once, twice = IntervalSet(), IntervalSet()
        for held in self.granted.values():
            for a, b in held.overlap(start, stop):
                for c, d in once.overlap(a, b):
                    twice.add(c, d)
                once.add(a, b)
        self._copied.remove(start, stop)
        for a, b in twice:
            self._copied.add(a, b)
        return once

    def _pend(self, start: int, stop: int) -> None:
        for event in sorted(event for event in self.attempts if start <= event < stop) if self.attempts else []:
            self.retries[event] = self.attempts.pop(event)  # lost, not failed: its attempts stay what they were
            self.pending.add(start, event)
            start = event + 1
        self.pending.add(start, stop)
