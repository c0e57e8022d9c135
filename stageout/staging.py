"""Which segment goes where and when: the pure core of stage-out.

Segments are asked for in the order given, endpoints in the order of the site file: the first is the primary, and after
`tries` failures in a row, or at once where waiting does not help, or while its breaker is open, the next takes over.
When the primary is well again, what had to go elsewhere is re-homed, after everything that has no copy yet.
Time and results go in, instructions come out: nothing here waits, reads a clock or touches a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stageout import protocol
from stageout.breaker import Breaker, Change
from stageout.protocol import Segment
from stageout.site import StageoutRules

NO_USE_WAITING = {"StoragePermanent", "StorageFull", "StorageConflict"}
NOT_ITS_FAULT = {"StorageConflict", "SegmentDamaged", "SegmentUnreadable"}  # the endpoint did what it should


@dataclass(frozen=True)
class Upload:
    """Copy the segment to `endpoint`, from its local path or from another endpoint."""

    segment: Segment
    endpoint: str
    source: str | None = None


@dataclass(frozen=True)
class RemoveLocal:
    """Delete the local copy: a verified one is recorded elsewhere and the site asks for it."""

    segment: Segment


@dataclass(frozen=True)
class RemoveCopy:
    """Delete the copy on `endpoint`: it is recorded as given up."""

    segment: Segment
    endpoint: str


@dataclass(frozen=True)
class Tell:
    """Send this to the parent."""

    report: protocol.Report


Instruction = Upload | RemoveLocal | RemoveCopy | Tell


@dataclass
class _Item:
    segment: Segment
    copies: set[str]  # recorded
    told: set[str] = field(default_factory=set)  # staged, not yet recorded
    running: str | None = None
    local: bool = True
    unreadable: bool = False  # here, at the last try
    tries: dict[str, int] = field(default_factory=dict)  # failures in a row, per endpoint
    not_before: dict[str, float] = field(default_factory=dict)
    conflicts: set[str] = field(default_factory=set)  # endpoints that cannot have it: the key is taken there
    giving_up: set[str] = field(default_factory=set)  # copies to be deleted once that is recorded

    @property
    def somewhere(self) -> bool:
        return bool(self.copies or self.told)


class Staging:
    """The state of one stage-out process. `random` gives numbers in [0, 1) for the jitter of back-offs."""

    def __init__(
        self,
        endpoints: Sequence[str],
        rules: StageoutRules,
        random: Callable[[], float],
        breaker: Mapping[str, Any] | None = None,
    ) -> None:
        self.endpoints, self.rules, self._random = tuple(endpoints), rules, random
        self.breaker = Breaker(rules.breaker, breaker)
        self._items: dict[str, _Item] = {}
        self._running = 0
        self._failed_at: dict[str, float] = {}
        self._ill: set[str] = set()  # endpoints whose last answer was a failure
        self._blocked = False
        self._until: float | None = None  # set while draining
        self._rehome_too = True
        self._ended = False

    # --- what can happen ----------------------------------------------------------------------------------------------

    def submit(self, segment: Segment, copies: Sequence[str], now: float) -> list[Instruction]:
        """A sealed segment. One that is known already is not taken twice."""
        if segment.name not in self._items:
            item = self._items[segment.name] = _Item(segment, set(copies))
            return [*self._tidy(item, now), *self.tick(now)]
        return self.tick(now)

    def uploaded(self, name: str, endpoint: str, url: str, now: float) -> list[Instruction]:
        """The upload that `Upload` asked for is done and verified."""
        item, orders = self._settle(name), self._changes(self.breaker.success(self._key(endpoint), now))
        if item is not None:
            rehomed = item.somewhere
            item.told.add(endpoint)
            item.tries.pop(endpoint, None)
            self._ill.discard(endpoint)
            self._blocked = False
            s = item.segment
            report = protocol.Staged(name, endpoint, s.key, url, s.size, s.adler32, s.sha256, now, rehomed)
            orders.append(Tell(report))
        return orders + self.tick(now)

    def failed(
        self, name: str, endpoint: str, kind: str, detail: str, now: float, source: str | None = None
    ) -> list[Instruction]:
        """An upload to `endpoint` failed, or, with `source`, the fetching of the copy that is there.

        `kind` is the class name of the error.
        """
        item = self._settle(name)
        orders: list[Instruction] = [Tell(protocol.Failed(name, source or endpoint, kind, detail, now))]
        if source is not None:
            self.breaker.forget_probe(self._key(endpoint))
            if item is not None:
                item.not_before[endpoint] = now + self.rules.backoff_max
                if kind != "StorageTransient":
                    item.conflicts.add(endpoint)  # nothing to re-home from; the merge will find out what is lost
                    orders += self._tidy(item, now)
            return orders + self.tick(now)
        if kind in NOT_ITS_FAULT:
            self.breaker.forget_probe(self._key(endpoint))
        else:
            self._failed_at[endpoint] = now
            self._ill.add(endpoint)
            orders += self._changes(self.breaker.failure(self._key(endpoint), now, f"{kind}: {detail}"))
        if item is not None:
            item.unreadable = kind == "SegmentUnreadable"
            if kind == "SegmentDamaged" or (item.unreadable and item.somewhere):
                item.local = False
                if not item.somewhere:
                    del self._items[name]
                    orders.append(Tell(protocol.Damaged(name, detail, now)))
            elif kind == "StorageConflict":
                item.conflicts.add(endpoint)
                orders += self._tidy(item, now)
            else:
                tries = item.tries.get(endpoint, 0) + 1
                wait = min(self.rules.backoff_max, self.rules.backoff * 2.0 ** min(tries - 1, 40))
                item.tries[endpoint] = max(tries, self.rules.tries) if kind in NO_USE_WAITING else tries
                item.not_before[endpoint] = now + wait * (0.5 + 0.5 * self._random())
        return orders + self.tick(now)

    def recorded(self, name: str, endpoint: str, removed: bool, now: float) -> list[Instruction]:
        """The journal has it."""
        item = self._items.get(name)
        if item is None:
            return self.tick(now)
        orders: list[Instruction] = []
        if removed:
            if endpoint in item.copies:
                item.copies.discard(endpoint)
                item.giving_up.discard(endpoint)
                orders.append(RemoveCopy(item.segment, endpoint))
        else:
            item.told.discard(endpoint)
            item.copies.add(endpoint)
        return orders + self._tidy(item, now) + self.tick(now)

    def removed_local(self, name: str, now: float) -> list[Instruction]:
        """The local copy is deleted."""
        return [Tell(protocol.Removed(name, None, now)), *self.tick(now)]

    def reset(self, endpoint: str, now: float) -> list[Instruction]:
        """A person says that the endpoint is well."""
        for item in self._items.values():
            item.tries.pop(endpoint, None)
            item.not_before.pop(endpoint, None)
            item.conflicts.discard(endpoint)
        self._failed_at.pop(endpoint, None)
        return self._changes(self.breaker.reset(self._key(endpoint), now)) + self.tick(now)

    def drain(self, until: float, rehome: bool, now: float) -> list[Instruction]:
        """End when nothing is left that could be done before `until`."""
        self._until, self._rehome_too = until, rehome
        return self.tick(now)

    def tick(self, now: float) -> list[Instruction]:
        """Time has passed: start what can be started."""
        orders: list[Instruction] = []
        if self._ended:
            return orders
        if self._until is None or now < self._until:
            for rehome in (False, True):
                for item in self._items.values():
                    if self._running >= self.rules.parallel:
                        break
                    if self._wanted(item, rehome):
                        orders += self._start(item, rehome, now)
        return orders + self._say_blocked(now) + self._maybe_end(now)

    # --- what can be asked --------------------------------------------------------------------------------------------

    def wake(self, now: float) -> float | None:
        """When `tick` should be called if nothing else happens; None: no need."""
        times = [] if self._until is None or self._ended else [self._until]
        if self._running < self.rules.parallel:
            for rehome in (False, True):
                items = [item for item in self._items.values() if self._wanted(item, rehome)]
                times += [t for item in items if (t := self._next(item, rehome, now)[1]) is not None]
        return max(now, min(times)) if times else None

    @property
    def ended(self) -> bool:
        """Whether the drain is over."""
        return self._ended

    def left(self) -> tuple[str, ...]:
        """Names of the segments without a recorded copy."""
        return tuple(name for name, item in self._items.items() if not item.copies)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _wanted(self, item: _Item, rehome: bool) -> bool:
        if item.running is not None:
            return False
        if not rehome:
            return not item.somewhere
        primary = self.endpoints[0]
        away = bool(item.copies) and primary not in item.copies | item.told | item.conflicts
        return away and self.rules.rehome and self._rehome_too

    def _next(self, item: _Item, rehome: bool, now: float) -> tuple[str | None, float | None]:
        """The endpoint whose turn it is for this item, and from when on; (None, None) when there is none any more."""
        best: tuple[str | None, float | None] = None, None
        for name in self.endpoints[:1] if rehome else self.endpoints:
            retry = self.breaker.retry_at(self._key(name))
            if name in item.conflicts or retry is None:
                continue
            at = max(item.not_before.get(name, now), retry, now)
            if rehome and name in self._failed_at:
                at = max(at, self._failed_at[name] + self.rules.rehome_after)
            patient = item.tries.get(name, 0) < self.rules.tries and self.breaker.state(self._key(name)) == "closed"
            if best[1] is None or at < best[1]:
                best = name, at
            if patient:
                break  # a short wait for this endpoint is better than the next one
        return best

    def _start(self, item: _Item, rehome: bool, now: float) -> list[Instruction]:
        for _ in self.endpoints:
            name, at = self._next(item, rehome, now)
            if name is None or at is None or at > now:
                return []
            allowed, changes = self.breaker.allow(self._key(name), now)
            orders = self._changes(changes)
            if allowed:
                item.running = name
                self._running += 1
                source = None if item.local else next((e for e in self.endpoints if e in item.copies), None)
                return [*orders, Upload(item.segment, name, source)]
        return []

    def _settle(self, name: str) -> _Item | None:
        self._running -= 1
        item = self._items.get(name)
        if item is not None:
            item.running = None
        return item

    def _tidy(self, item: _Item, now: float) -> list[Instruction]:
        """After something was recorded: delete what the site wants deleted, forget what is finished."""
        orders: list[Instruction] = []
        if item.copies and item.local and self.rules.delete_local and item.running is None:
            item.local = False
            orders.append(RemoveLocal(item.segment))
        primary = self.endpoints[0]
        surplus = self.rules.delete_failover and primary in item.copies and len(item.copies) > 1
        for other in sorted(item.copies - item.giving_up - {primary}) if surplus else ():
            item.giving_up.add(other)
            orders.append(Tell(protocol.Removed(item.segment.name, other, now, item.segment.key)))
        home = primary in item.copies or not self.rules.rehome or primary in item.conflicts
        if item.copies and not item.told and item.running is None and home and not surplus:
            del self._items[item.segment.name]
        return orders

    def _say_blocked(self, now: float) -> list[Instruction]:
        if self._running or self._blocked:
            return []
        waiting = [item for item in self._items.values() if self._wanted(item, False)]
        turns = [(item, t) for item in waiting if (t := self._next(item, False, now)[1]) is not None]
        well = {e for e in self.endpoints if e not in self._ill and self.breaker.state(self._key(e)) == "closed"}
        # A well endpoint is of no use to what cannot go there, or cannot be read here.
        if not waiting or any(well - item.conflicts and not item.unreadable for item, _ in turns):
            return []
        self._blocked = True
        return [Tell(protocol.Blocked(len(waiting), min((t for _, t in turns), default=None), now))]

    def _maybe_end(self, now: float) -> list[Instruction]:
        if self._until is None or self._running:
            return []
        if now < self._until:
            if any(item.told for item in self._items.values()):
                return []  # the parent is about to answer Recorded
            wanted = [(item, r) for item in self._items.values() for r in (False, True) if self._wanted(item, r)]
            times = [t for item, rehome in wanted if (t := self._next(item, rehome, now)[1]) is not None]
            if times and min(times) < self._until:
                return []
        self._ended = True
        return [Tell(protocol.Ended(self.left(), self.breaker.to_dict()))]

    def _changes(self, changes: list[Change]) -> list[Instruction]:
        return [
            Tell(protocol.Breaker(c.key, c.before, c.after, c.reason, c.time, c.alert, self.breaker.to_dict()))
            for c in changes
        ]

    @staticmethod
    def _key(endpoint: str) -> str:
        return f"endpoint:{endpoint}"
