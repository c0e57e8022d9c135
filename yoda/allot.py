"""Which pending and failed events a Droid gets. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import islice

from eventrange.ledger import Ledger
from eventrange.messages import Range
from yoda.droids import Droid, spread

GRANT_RANGES = 1024  #: in one grant at most
RETRIES = 1024  #: failed events looked at in one go at most


class Allotment:
    """Cuts pieces off the ledger. `cuts` are the first positions of all files, `size` a fixed range size or 0.

    `whole`: `cuts` are the edges of named ranges, from 0 to `total`; a piece is made of whole ones, of many where there
    are. The Droid, which knows the cuts too, takes them apart.
    """

    def __init__(self, ledger: Ledger, cuts: Sequence[int], size: int, total: int, whole: bool = False) -> None:
        self.ledger, self.cuts, self.size, self.total = ledger, cuts, 0 if whole else size, total
        self.whole = whole

    def cursor(self, index: int) -> int:
        """Where the Droid of this number begins: far from the others, at a file or on the grid of ranges."""
        position = int(spread(index) * self.total)
        base = self.cuts[bisect_right(self.cuts, position) - 1]
        if len(self.cuts) > index:
            return base
        return base + (position - base) // self.size * self.size if self.size else position

    def take(self, droid: Droid, got: int, workers: int) -> list[Range]:
        """Contiguous pieces from the Droid's cursor on: not more than it wants besides the `got` events it gets
        already, and at most its fair share, among all `workers`, of half of what is pending."""
        pending, size = self.ledger.pending, self.size
        # The other half keeps what is left divisible at the end; with one Droid there is nobody to divide with.
        fair = pending.total if workers <= droid.workers else math.ceil(pending.total * droid.workers / (2 * workers))
        count = min(droid.want - got, max(1, fair))
        ranges: list[Range] = []
        while count > 0 and pending and len(ranges) < GRANT_RANGES:
            found = pending.next_from(droid.cursor)
            assert found is not None
            start, stop = found
            file = bisect_right(self.cuts, start)
            if self.whole:
                if before := pending.overlap(self.cuts[file - 1], start):  # a cursor may be within a range
                    start = before[-1][0] if before[-1][1] == start else start
                cut = min(stop, self.cuts[bisect_left(self.cuts, min(start + count, self.total))])
            else:
                stop = min(stop, self.cuts[file]) if file < len(self.cuts) else stop
                cut = min(stop, start + count)
            if size:  # whole ranges of the grid only; what begins within one, behind a hole, ends with it
                inside = (start - self.cuts[file - 1]) % size
                whole = size - inside if inside else math.ceil((cut - start) / size) * size
                cut = min(stop, start + whole)
            self.ledger.grant(droid.rank, start, cut)
            ranges.append((start, cut, 0))
            count -= cut - start
            droid.cursor = cut
        return ranges

    def retries(self, waiting: dict[int, Droid], anywhere: Callable[[set[int]], bool]) -> dict[int, list[Range]]:
        """Failed events, alone, for Droids that wait and where they have not failed; for any if `anywhere` allows."""
        grants: dict[int, list[Range]] = {}
        waiting = dict(waiting)
        for event, retry in list(islice(self.ledger.retries.items(), RETRIES)):
            if not waiting:
                break
            fit = next((d for rank, d in waiting.items() if rank not in retry.droids), None)
            if fit is None and anywhere(retry.droids):
                fit = next(iter(waiting.values()))
            if fit is None:
                continue
            mine = grants.setdefault(fit.rank, [])
            mine.append((event, event + 1, self.ledger.grant_retry(fit.rank, event)))
            if len(mine) >= min(fit.want, GRANT_RANGES):
                del waiting[fit.rank]
        return grants
