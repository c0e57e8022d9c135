"""How much work a range is, where the job leaves it to us, and how far apart group commits are. Pure.

What a kill costs is half a range of every worker; what it costs to be ready for one is what each range takes beyond its
events. The best of both is Young's rule for checkpoints: the square root of twice the cost of one times the mean time
between kills. So with commits, but that one of them is for all workers of a Droid.

A task that was never killed is taken for one that will be, in about eight times what it has lived: that is what follows
for the mean rate of kills when all one knows is that it may be anything between one in seconds and one in a month, any
factor of ten as likely as the next, and that for some minutes there was none.

Source: J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974) 530.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

RANGE_COST = 0.0005  #: core-seconds a range takes beyond its events, from worker to journal
COMMIT_COST = 0.0025  #: core-seconds a group commit takes: the Droid, Yoda, and what two fsyncs have the kernel do
SHORTEST, LONGEST = 0.05, 0.5  #: seconds of a range (L4)
UNHURT = 8  #: times what it has lived, to the next kill of a task that was never killed
QUIET = 60.0  #: seconds between kills that a task is taken to have at least while it was never killed


@dataclass(frozen=True)
class Past:
    """What became of the allocations a task had: `lived`, the seconds of all together, and how many were killed."""

    lived: float = 0.0
    kills: int = 0

    @classmethod
    def of(cls, lives: Mapping[str, tuple[float, float]], ended: Collection[str], living: Collection[str]) -> Past:
        """`lives` are begin and last sign of life (unix seconds) of each allocation, by name; those neither in `ended`
        nor in `living` were killed."""
        kills = sum(1 for name in lives if name not in ended and name not in living)
        return cls(sum(max(0.0, last - first) for first, last in lives.values()), kills)

    def between_kills(self, age: float) -> float:
        """Mean seconds between kills, as one allocation sees it that has lived for `age` seconds."""
        lived = self.lived + max(0.0, age)
        return lived / self.kills if self.kills else max(QUIET, UNHURT * lived)


def range_seconds(between: float) -> float:
    """Seconds of work per range where it is so long, in seconds, from one kill to the next."""
    return min(max(math.sqrt(2 * RANGE_COST * between), SHORTEST), LONGEST)


def commit_seconds(between: float, workers: int) -> float:
    """Seconds between the group commits of a Droid of so many workers; sites allow less, and file systems may."""
    return math.sqrt(2 * COMMIT_COST * between / max(1, workers))
