"""Droids as Yoda knows them, and the evidence against them. Pure.

An event that fails says nothing about the Droid yet: a damaged stretch of a file fails everywhere, and to doubt whoever
meets it would take one Droid after the other. What counts is the verdict of another Droid on the same event: it went
well there (then this Droid is to blame), or failed there too (then the event is).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import chain

from msgspec import Struct, field

from eventrange.intervals import IntervalSet
from eventrange.messages import unpack_running

RECENT = 8  #: outcomes and verdicts remembered per Droid
MOSTLY = 0.75  #: this part of them makes a Droid bad
VERDICTS = 4  #: verdicts of others that are needed to doubt a Droid


class Droid(Struct, eq=False):  # a dataclass as large takes 5 ms to define
    """One Droid as Yoda knows it."""

    rank: int
    host: str
    workers: int
    cursor: int
    state: str = "active"  #: active, spare, doubted, sick, bye, lost
    before: str = "active"  #: state before it was lost
    want: int = 0  #: events it has asked for and not got
    told_empty: bool = False
    backlog: int = 0
    busy: int = 0
    seconds_per_event: float = 0.0
    on: bytes = b""  #: what its workers are on, as it was reported: unpacked where that is needed, which is rarely
    under_way: float = 0.0  #: seconds its workers had spent on what they are on, then
    heard: float = 0.0
    ask_at: float = -math.inf  #: when it may be asked again to give something back
    patience: float = 0.0  #: seconds to wait after that: longer each time it could not
    held_since: float = math.inf  #: when it began to wait for the verdict of others
    had: IntervalSet = field(default_factory=IntervalSet)  #: what it held when it was lost and has not answered since
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))  #: its last outcomes, True is failed
    verdicts: deque[bool] = field(
        default_factory=lambda: deque(maxlen=RECENT)
    )  #: True: what failed here went well elsewhere

    @property
    def running(self) -> Iterator[tuple[int, float]]:
        """Events that its workers are on, and the seconds each had taken when it reported last; the oldest first."""
        return unpack_running(self.on)

    @property
    def oldest(self) -> float:
        """Seconds of the first of them; 0 if there is none."""
        return next(self.running, (0, 0.0))[1]

    @property
    def suspect(self) -> bool:
        """As `failing`, from the first event on: its word alone does not condemn an event."""
        return sum(self.recent) >= MOSTLY * len(self.recent)

    @property
    def failing(self) -> bool:
        """Most of what it did lately failed, whoever is to blame."""
        return len(self.recent) == RECENT and sum(self.recent) >= MOSTLY * RECENT

    @property
    def to_blame(self) -> bool:
        """Most of what it did lately failed, and most of what failed here went well elsewhere."""
        return self.failing and len(self.verdicts) >= VERDICTS and sum(self.verdicts) >= MOSTLY * len(self.verdicts)


class Roster:
    """The Droids there are, and which of them wait for work: kept as counts and short lists, since it is asked at every
    report, however many Droids there are."""

    def __init__(self) -> None:
        self.droids: dict[int, Droid] = {}
        self.awaited: set[int] = set()  #: ranks that have not said hello and may yet
        self.active = self.workers = 0  #: active Droids, and their workers
        # Active Droids that want something: not answered yet, and those that know that there is nothing.
        self.asking: dict[int, Droid] = {}
        self.idle: dict[int, Droid] = {}

    @property
    def others(self) -> bool:
        """Whether there is more than one active Droid, or will be."""
        return self.active > 1 or bool(self.awaited)

    def in_state(self, *states: str) -> list[Droid]:
        return [droid for droid in self.droids.values() if droid.state in states]

    def move(self, droid: Droid, state: str) -> None:
        """`droid` is in `state` from now on."""
        for value, sign in ((droid.state, -1), (state, 1)):
            if value == "active":
                self.active += sign
                self.workers += sign * droid.workers
        droid.state = state
        self.asking.pop(droid.rank, None)
        self.idle.pop(droid.rank, None)

    def stand_in(self) -> None:
        """Where nobody else is left, and nobody will come, Droids on nodes that are off work after all."""
        if not self.active and not self.awaited:
            for droid in self.in_state("spare"):
                self.move(droid, "active")
                self.wait(droid)

    def wait(self, droid: Droid) -> None:
        """`droid` wants something and has not got it."""
        if droid.state == "active" and droid.want:
            (self.idle if droid.told_empty else self.asking)[droid.rank] = droid

    def served(self, droid: Droid) -> None:
        """`droid` has got something."""
        droid.want, droid.told_empty = 0, False
        self.asking.pop(droid.rank, None)
        self.idle.pop(droid.rank, None)

    def told(self) -> list[Droid]:
        """Those that ask have to be told that there is nothing; returns them."""
        told = list(self.asking.values())
        for droid in told:
            droid.told_empty = True
            self.idle[droid.rank] = droid
        self.asking.clear()
        return told

    def in_need(self) -> Iterator[Droid]:
        """Droids that wait, those with idle workers first. At the tail there may be thousands, and one event for the
        first of them: the others are not looked at."""
        for droid in chain(self.asking.values(), self.idle.values()):
            if droid.busy < droid.workers:
                yield droid
        for droid in chain(self.asking.values(), self.idle.values()):
            if droid.busy >= droid.workers:
                yield droid

    def all_among(self, ranks: set[int]) -> bool:
        """Whether all that can work, or will, are among `ranks`."""
        if len(ranks) < self.active or self.awaited:
            return False
        return {d.rank for d in self.in_state("active")} <= ranks


def spread(index: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: where to begin so that late comers fall into the widest gap (van der Corput)."""
    result, part = 0.0, 0.5
    while index:
        result += part * (index & 1)
        index >>= 1
        part /= 2
    return result
