"""How fast a Droid's workers are, and what follows from it. Pure.

How much to ask Yoda for, how long a range should be, and how long one event may take.
"""

from __future__ import annotations

import math
from collections import deque

from eventrange.times import quantile

AHEAD_SECONDS = 0.1  #: a worker with less work than this is given more before it is done
GROWTH = 8  #: a range is at most this much longer than the measured time per event has earned so far
FIRST_LIMIT = 12 * 3600.0  #: seconds an event may take while nothing is measured yet
LIMIT_FLOOR = 60.0  #: seconds any event may take under `timeout: auto`
LIMIT_FACTOR = 10.0  #: and this many times the 99 % quantile
LIMIT_EVENTS = 50  #: events measured before the quantile is believed
RETRY_LIMIT_FACTOR = 4.0  #: an event that was too slow gets this much more at its next attempt: slow is not wrong (L5)
RANGE_SECONDS_AHEAD = 2.0  #: seconds of work to hold beyond the low-water mark at most, for a longer range
ASK_SECONDS = 2.0  #: and at least: a question and its answer wake two processes
QUEUED_MOST = 1.0  #: seconds a range may take for a worker to have its next one queued
FAR = 2.0  #: seconds of work that are not queued there are for every worker at least while the tail is far
MOST = 1 << 20  #: events to hold at most
FIRST_ANSWER, ANSWERS = 0.005, 7  #: seconds Yoda is expected to take; answers that are remembered


class Pace:
    """Measured times of one Droid. `timeout` fixes the limit of an event, in seconds."""

    def __init__(self, workers: int, timeout: float | None = None) -> None:
        self.workers, self.timeout = workers, timeout
        self.times: dict[int, int] = {}  #: event times, bin -> events
        self._answers = deque([FIRST_ANSWER], maxlen=ANSWERS)
        self._wall = self._events = 0.0  # measured lately: seconds, events
        self._earned = 1.0  # events per range that measuring allows so far

    @property
    def seconds_per_event(self) -> float:
        """Measured wall seconds of one worker per event, recent ones weighing more; 0 while unknown."""
        return self._wall / self._events if self._events else 0.0

    def measure(self, wall: float, events: int) -> None:
        """`events` were done in `wall` seconds of one worker."""
        decay = 0.5 ** (events / (64.0 * max(1, self.workers) + self._events))
        self._wall = self._wall * decay + wall
        self._events = self._events * decay + events
        self._earned = max(self._earned, min(GROWTH * events, 1 << 24))

    @property
    def round_trip(self) -> float:
        """Seconds from asking Yoda to its answer. The median: a time in which either of us was suspended says nothing
        of the next one, and believing it would make this Droid hoard."""
        known, count = sorted(self._answers), len(self._answers)
        return (known[(count - 1) // 2] + known[count // 2]) / 2

    def answered(self, seconds: float) -> None:
        """Yoda took so long to answer."""
        self._answers.append(min(max(0.0, seconds), 10.0))

    def limit(self, attempt: int) -> float:
        """Seconds one event may be worked on."""
        if self.timeout is not None:
            return self.timeout
        base = FIRST_LIMIT
        if sum(self.times.values()) >= LIMIT_EVENTS:
            base = max(LIMIT_FLOOR, LIMIT_FACTOR * quantile(self.times, 0.99))
        return base * RETRY_LIMIT_FACTOR ** min(attempt, 8)

    def marks(self, ready: int, range_seconds: float, size: int) -> tuple[int, int]:
        """(low, high) events of backlog for `ready` workers: ask when below low, for enough to reach high.

        There must be work for a round trip (several, to be safe) beyond what the workers hold, so that who comes next
        gets a whole range, and a range for each.
        """
        spe = self.seconds_per_event
        if not spe:
            return ready * max(1, size), 2 * ready * max(1, size)
        low = math.ceil(ready * max(4 * self.round_trip, AHEAD_SECONDS) / spe)
        ahead = min(range_seconds, RANGE_SECONDS_AHEAD)
        low = max(low, math.ceil(ahead / spe))
        high = low + max(1, math.ceil(ready * max(ahead, ASK_SECONDS) / spe))
        grown = max(2 * ready, int(4 * self._events))  # what has been measured earns the right to ask for more
        low, high = min(low, MOST, grown), min(high, 2 * MOST, grown)
        if size:
            low, high = max(low, size), max(high, 2 * size)
        return low, high

    def near(self, remaining: int, workers: int, whole: int) -> float:
        """With less than so many events in the backlog the tail is near, if `remaining` are pending for all `workers`.

        While it is far each worker may have its next range queued behind the one at hand: nobody waits for us then
        between two ranges. What is queued behind an event cannot be called back before that ends; so it must have begun
        long before others run out of work, and where a range (`whole` events) takes seconds a moment's wait is
        nothing."""
        spe = self.seconds_per_event
        if not 0 < whole * spe <= QUEUED_MOST or not workers:
            return math.inf
        return self.workers * (max(FAR, quantile(self.times, 0.99)) / spe - remaining / workers)

    def range_events(self, range_seconds: float) -> int:
        """Events in a range of about `range_seconds`."""
        spe = self.seconds_per_event
        return max(1, int(min(range_seconds / spe, self._earned))) if spe else 1
