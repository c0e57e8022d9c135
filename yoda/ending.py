"""When to stop: how long before a known end nothing new is begun, and how long a drain may take. Pure.

The end of an allocation is known (`--time`, Slurm's end of the job), or a signal warns of it and the kill comes `grace`
seconds later; whichever is sooner. Slurm warns of the end of a job with the same signal as of a preemption; where the
end is as near as that warning comes, it is taken for what it says, and events at hand get the time there really is.
"""

from __future__ import annotations

from eventrange.times import add, quantile, time_bin

MARGIN_FLOOR = 5.0  #: seconds before a deadline in which nothing new is started, at least
MESSAGES = 2.0  #: seconds of the margin for messages, and for what ends a segment
COMMIT_MOST = 60.0  #: seconds that a commit is believed to take at most: one in which we were suspended says nothing
SHARE = 0.9  #: of the time until a deadline is used
EARLY = 65.0  #: seconds by which Slurm's warning of the end may come early: it looks once a minute


class Ending:
    """`grace` and `margin` are the site's (a `margin` of None is measured); `lead` is how long before the end of a job
    Slurm warns, and `patience` how long after that our batch script waits for us; 0 where there is neither. Seconds."""

    def __init__(self, grace: float, margin: float | None = None, lead: float = 0.0, patience: float = 0.0) -> None:
        self.grace, self.fixed, self.lead, self.patience = grace, margin, lead, patience
        self._droids: dict[int, int] = {}  # seconds until results are durable at a Droid, and then in the journal
        self._journal: dict[int, int] = {}

    def committed(self, droids: dict[int, int] | None = None, journal: float | None = None) -> None:
        """Commits took so long: a histogram (times.py) from a Droid, or one of the journal."""
        if droids:
            add(self._droids, droids)
        if journal is not None:
            add(self._journal, {time_bin(journal): 1})

    def margin(self, times: dict[int, int]) -> float:
        """Seconds before the deadline at which to begin nothing new: the tail of event times, and the commits."""
        if self.fixed is not None:
            return self.fixed
        commits = sum(min(COMMIT_MOST, quantile(known, 0.9)) for known in (self._droids, self._journal))
        return max(MARGIN_FLOOR, 1.2 * quantile(times, 0.995) + 2 * commits + MESSAGES)

    def left(self, now: float, deadline: float) -> float:
        """Seconds a drain may take that begins because of the deadline."""
        return SHARE * max(0.0, deadline - now)

    def warned(self, now: float, deadline: float | None, signal: str = "") -> float:
        """Seconds a drain may take after `signal`, or for a reason of our own."""
        if deadline is None or deadline <= now:  # past it, a batch system goes by its signals
            return self.grace
        left = self.left(now, deadline)
        if signal == "SIGUSR1" and deadline - now <= self.lead + EARLY:
            return min(left, max(self.grace, self.patience))
        return min(left, self.grace)
