"""What a Droid holds: the backlog, and what each worker has been given and not yet answered. Pure.

Every granted event is in exactly one of the backlog, a worker's `given`, or reported. Here it is decided who gets what
next: the fairest first, a little before it runs dry, and at the tail of a task what one has too much of goes to others.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from droid.instructions import Assign, Cut
from droid.pace import AHEAD_SECONDS, Pace
from eventrange.intervals import Pair
from eventrange.messages import Range

BATCH_RANGES = 512  #: ranges in one message to a worker at most


@dataclass
class Worker:
    """One worker as the Droid knows it."""

    state: str = "starting"  #: starting, ready, gone
    given: deque[Range] = field(default_factory=deque)  #: assigned and not answered, in order of work
    events: int = 0  #: in `given`
    unwanted: list[Pair] = field(default_factory=list)  #: what of `given` is not ours any more
    cut: str = ""  #: "" | "local" | "yoda" | "revoked" | "drain": why we asked it to come back
    killed: str = ""  #: "" | "timeout" | "revoked" | "drain": why we killed it
    victim: int = -1  #: the event it was killed for
    watched: tuple[int, float] = (-1, 0.0)  #: the event it is on, and when it began it
    seconds: float = 0.0  #: that it was seen on it

    @property
    def idle(self) -> bool:
        return self.state == "ready" and not self.given


def without(ranges: Iterable[Range], gone: Iterable[Pair]) -> list[Range]:
    """`ranges` less what lies in `gone`."""
    left = list(ranges)
    for start, stop in gone:
        cut = [r for a, b, n in left for r in ((a, min(b, start), n), (max(a, stop), b, n))]
        left = [r for r in cut if r[0] < r[1]]
    return left


class Holding:
    """Backlog and workers of one Droid."""

    def __init__(self, workers: int, pace: Pace) -> None:
        self.workers = [Worker() for _ in range(workers)]
        self.backlog: deque[Range] = deque()
        self.pace = pace
        self.size = 0  #: > 0: fixed events per range
        self.cuts: Sequence[int] | None = None  #: edges of ranges that someone else named; these have `size` on average
        self.range_seconds = 1.0
        self.remaining = 1  #: events pending at Yoda when it last wrote; 0 means this is the tail
        self.sharing = 0  #: workers of the allocation that are served from there
        self.near = math.inf  #: the tail is near with a smaller backlog than that
        self.far = False  #: whether it is not: workers have their next range queued
        self.unseen = 0.0  #: seconds for which results are not looked at then, nor made durable
        self.reclaim = 0  #: events Yoda wants back and has not got yet

    # -- what it knows -----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Events in the backlog."""
        return sum(stop - start for start, stop, _ in self.backlog)

    @property
    def events(self) -> int:
        """Events in backlog and workers."""
        return self.waiting + sum(w.events for w in self.workers)

    @property
    def busy(self) -> int:
        return sum(1 for w in self.workers if w.given)

    @property
    def whole(self) -> int:
        """Events in a range."""
        return self.size or self.pace.range_events(self.range_seconds)

    # -- what comes and goes -----------------------------------------------------------------------------------------

    def again(self, ranges: list[Range], unwanted: Sequence[Pair] = ()) -> None:
        """Put `ranges`, which a worker had, at the head of the backlog, but for what is not ours any more."""
        self.backlog.extendleft(reversed(without(ranges, unwanted)))

    def drop(self, start: int, stop: int) -> None:
        """[start, stop) is not ours any more: take it out of the backlog, and forget what comes back of it."""
        self.backlog = deque(without(self.backlog, [(start, stop)]))
        for worker in self.workers:
            if any(a < stop and start < b for a, b, _ in worker.given):
                worker.unwanted.append((start, stop))

    def tail(self, events: int) -> list[Range]:
        """Take up to `events` off the end of the backlog."""
        back: list[Range] = []
        while self.backlog and events > 0:
            start, stop, attempt = self.backlog.pop()
            cut = max(start, stop - events)
            if self.cuts is not None:  # whole ranges only: rather one too many
                cut = max(start, self.cuts[bisect_right(self.cuts, cut) - 1])
            elif self.size:
                cut = start + (cut - start) // self.size * self.size
            if cut > start:
                self.backlog.append((start, cut, attempt))
            back.append((cut, stop, attempt))
            events -= stop - cut
        return back

    def answered(self, worker: int, covered: int) -> None:
        """The first `covered` events of what `worker` was given are answered."""
        w = self.workers[worker]
        while covered > 0 and w.given:
            start, stop, attempt = w.given[0]
            if stop - start <= covered:
                covered -= stop - start
                w.given.popleft()
            else:
                w.given[0] = (start + covered, stop, attempt)
                covered = 0
        w.events = sum(stop - start for start, stop, _ in w.given)
        if not w.given:
            w.unwanted.clear()

    def assign(self) -> list[Assign]:
        """Give work to workers that have none, or nearly none, fairest first."""
        waiting = self.waiting  # counted once: the axis may be in shatters
        self.far = waiting >= self.near
        if not waiting:
            return []
        out: list[Assign] = []
        spe = self.pace.seconds_per_event
        idle = any(w.idle for w in self.workers)
        hungry = [i for i, w in enumerate(self.workers) if self._hungry(w, spe, idle)]
        hungry.sort(key=lambda i: self.workers[i].events)
        for number, index in enumerate(hungry):
            if not self.backlog:
                break
            waiting -= self._give(index, self._take(spe, len(hungry) - number, waiting), out)
        dry = list(range(len(self.workers))) if self.far else []
        enough = max(self.whole, self.near)  # what is queued cannot be called back as easily as what is not
        while waiting >= enough and (dry := [i for i in dry if self._runs_dry(self.workers[i], spe)]):
            for index in dry:  # one each, and again
                if waiting >= enough:
                    waiting -= self._give(index, self._take(spe, 1, waiting), out, True)
        return out

    def _give(self, index: int, ranges: list[Range], out: list[Assign], follow: bool = False) -> int:
        """How many events these are."""
        taken = sum(stop - start for start, stop, _ in ranges)
        worker = self.workers[index]
        worker.given.extend(ranges)
        worker.events += taken
        if worker.unwanted:  # what others had taken and we were granted again is wanted
            left = without([(*pair, 0) for pair in worker.unwanted], [(start, stop) for start, stop, _ in ranges])
            worker.unwanted = [(start, stop) for start, stop, _ in left]
        out.append(Assign(index, ranges, follow))
        return taken

    def _runs_dry(self, w: Worker, spe: float) -> bool:
        """Whether `w` may have done all that it has before we next look at it."""
        if w.state != "ready" or not w.given or w.killed or w.cut or len(w.given) > BATCH_RANGES:
            return False
        return len(w.given) == 1 or (w.events - w.given[0][1] + w.given[0][0]) * spe < 2 * self.unseen

    def _hungry(self, w: Worker, spe: float, idle: bool) -> bool:
        """Whether `w` takes more. At the tail only who has nothing does, while there is any such."""
        if w.state != "ready" or w.killed or w.cut:
            return False
        return not w.given or (w.events * spe < AHEAD_SECONDS if spe and not (idle and self.remaining == 0) else False)

    def balance(self, slots: NDArray[Any]) -> list[Cut]:
        """At the tail: take the rest of the longest range from its worker for those that have nothing."""
        if self.backlog or self.size:  # a range of fixed size stays whole
            return []
        # Those that are asked already come back soon, with work for one worker each, or with what Yoda wants.
        idle = sum(w.idle for w in self.workers) - sum(w.cut == "local" for w in self.workers)
        local = self.remaining == 0 and idle > 0
        wanted = self.reclaim
        if not local and not wanted:
            return []
        spe = self.pace.seconds_per_event
        best, most, soon = -1, max(1.0, 0.02 / spe if spe else 0.0), False
        for index, w in enumerate(self.workers):
            event = int(slots["event"][index])
            begun = sum(event + 1 - start for start, stop, _ in w.given if start <= event < stop)
            soon = soon or bool(w.cut) or (w.state == "ready" and bool(w.given) and not begun)
            if w.killed or not begun:  # who has not begun keeps what was just given: it would only come and go
                continue
            rest = w.events - max(begun, int(slots["count"][index]))
            if w.cut == "yoda":
                wanted -= rest
            elif not w.cut and rest >= most:
                best, most = index, rest
        if not local and wanted <= 0:
            return []
        if best < 0:
            if not soon:
                self.reclaim = 0
            return []
        self.workers[best].cut = "local" if local else "yoda"
        return [Cut(best)]

    def _take(self, spe: float, takers: int, waiting: int) -> list[Range]:
        """The next ranges off the backlog, which has `waiting` events, for the first of so many workers that take some
        now: one, or as many tiny ones as make a message worth while."""
        count = self.size or min(self.whole, -(-waiting // takers))
        budget = AHEAD_SECONDS / spe if spe else 0.0
        if self.remaining == 0 or len(self.backlog) < 2 * len(self.workers):
            share = waiting / (2 * len(self.workers))
            budget = min(budget, share)
            if self.remaining == 0 and not self.size:
                count = min(count, math.ceil(share))
        ranges: list[Range] = []
        while self.backlog and len(ranges) < BATCH_RANGES:
            start, stop, attempt = self.backlog[0]
            if self.cuts is not None:
                cut = min(stop, self.cuts[bisect_right(self.cuts, start)])
            elif self.size or self.remaining == 0:
                cut = min(stop, start + count)
            else:  # equal pieces, at most half as long again: a crumb at the end would cost as much as a whole range
                pieces = max(1, (stop - start + count // 2) // count)
                cut = start - (start - stop) // pieces
            if cut == stop:
                self.backlog.popleft()
            else:
                self.backlog[0] = (cut, stop, attempt)
            ranges.append((start, cut, attempt))
            budget -= cut - start
            if budget < count:
                break
        return ranges
