"""Histogram of event processing times: logarithmic bins, four to the octave, that add up across workers and Droids.

`times` is a dict bin -> events. Bin 0 begins at one second. A bin is 19 % wide: enough for limits, margins and tails.
"""

from __future__ import annotations

import math

PER_OCTAVE = 4
SHORTEST = -93  #: bin of everything below a tenth of a microsecond


def time_bin(seconds: float) -> int:
    return math.floor(PER_OCTAVE * math.log2(seconds)) if seconds > 1e-7 else SHORTEST


def edge(bin_: int) -> float:
    """Upper edge of a bin, seconds."""
    return float(2.0 ** ((bin_ + 1) / PER_OCTAVE))


def add(times: dict[int, int], more: dict[int, int]) -> None:
    for bin_, count in more.items():
        times[bin_] = times.get(bin_, 0) + count


def quantile(times: dict[int, int], q: float) -> float:
    """Upper edge, in seconds, of the bin in which the `q` quantile lies; 0 if there are no events."""
    total = sum(times.values())
    seen = 0
    for bin_ in sorted(times):
        seen += times[bin_]
        if seen >= q * total:
            return edge(bin_)
    return 0.0
