"""How much work a range is, where the job leaves it to us. Pure.

What a kill costs is half a range of every worker; what it costs to be ready for one is what each range takes beyond its
events. The best of both is Young's rule for checkpoints: the square root of twice the cost of one times the mean time
between kills. A task that was never killed gets the longest that L4 allows.

Source: J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974) 530.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

RANGE_COST = 0.002  #: core-seconds a range takes beyond its events, from worker to journal
SHORTEST, LONGEST = 0.1, 0.5


def range_seconds(lives: Mapping[str, tuple[float, float]], ended: Collection[str], living: Collection[str]) -> float:
    """Seconds of work per range for a task with such a past.

    `lives` are begin and last sign of life (unix seconds) of each allocation by name; those neither in `ended` nor in
    `living` were killed.
    """
    kills = sum(1 for name in lives if name not in ended and name not in living)
    if not kills:
        return LONGEST
    lived = sum(max(0.0, last - first) for first, last in lives.values())
    return min(max(math.sqrt(2 * RANGE_COST * lived / kills), SHORTEST), LONGEST)
