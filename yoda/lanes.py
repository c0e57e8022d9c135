"""What every core did when, as sums on a grid of lanes x columns: a picture costs its own size, not the task's.

Work is added as (lane, begin, end) in columns, any number at once. An interval adds to each column the part of it that
it covers, through two arrays of ends: its own column gets the fraction, the columns before it are settled by one
cumulative sum at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STATES = ("productive", "failed", "lost", "startup", "merge", "alive", "draining")


class Grid:
    """Core-columns by state, `lanes` x `columns`."""

    def __init__(self, lanes: int, columns: int) -> None:
        self.lanes, self.columns = lanes, columns
        shape = (lanes, columns + 1)
        self._part = {name: np.zeros(shape) for name in STATES}
        self._whole = {name: np.zeros(shape) for name in STATES}

    def add(self, state: str, lane: Any, begin: Any, end: Any, weight: Any = 1.0) -> None:
        """Add intervals [begin, end) in columns, all arrays of shape (n,) (or scalars); lane -1 is left out."""
        lane = np.atleast_1d(np.asarray(lane, np.int64))
        begin, end = np.atleast_1d(np.asarray(begin, float)), np.atleast_1d(np.asarray(end, float))
        weights = np.broadcast_to(np.asarray(weight, float), lane.shape)
        keep = (lane >= 0) & (end > begin)
        if not keep.all():
            lane, begin, end, weights = lane[keep], begin[keep], end[keep], weights[keep]
        if not len(lane):
            return
        width = self.columns + 1
        for place, sign in ((end, 1.0), (begin, -1.0)):
            place = np.clip(place, 0, self.columns)
            column = place.astype(np.int64)
            index = lane * width + column
            size = self.lanes * width
            signed = sign * weights
            self._part[state] += np.bincount(index, signed * (place - column), size).reshape(-1, width)
            self._whole[state] += np.bincount(index, signed, size).reshape(-1, width)

    def sums(self) -> dict[str, NDArray[np.float64]]:
        """Core-columns by state, shape (lanes, columns) each; what is left of `alive` is `idle`, or `drained`."""
        found = {}
        for name in STATES:
            whole = self._whole[name]
            later = whole[:, ::-1].cumsum(axis=1)[:, ::-1] - whole
            found[name] = np.maximum(0.0, (self._part[name] + later)[:, : self.columns])
        alive, left = found["alive"], found["alive"].copy()
        for name in ("startup", "productive", "failed", "lost", "merge"):
            # What a lane did cannot be more than there was time for: the clocks of two nodes differ a little.
            found[name] = np.minimum(found[name], left)
            left -= found[name]
        found["drained"] = np.minimum(np.minimum(found["draining"], alive), left)
        found["idle"] = left - found["drained"]
        return found
