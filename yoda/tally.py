"""How many events are settled, in a file that our batch script reads: a job in which it does not grow does nothing."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

INTERVAL = 5.0  #: seconds; what is missed is told by the next start, which reads the journals


class Tally:
    """Writes done and quarantined events to `path`, which may be None, when called as a progress callback."""

    def __init__(self, path: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = path, clock
        self._next, self._told = -1e9, -1

    def __call__(self, dispatcher: Any, lag: float) -> None:
        if self.path and self._clock() >= self._next:
            self._next = self._clock() + INTERVAL
            self.write(dispatcher)

    def write(self, dispatcher: Any) -> None:
        """Write the number now, if it has changed. A disk that is full is told elsewhere."""
        settled = dispatcher.ledger.done + dispatcher.ledger.quarantined.total
        if not self.path or settled == self._told:
            return
        with contextlib.suppress(OSError):
            with open(self.path + ".new", "w") as file:
                file.write(f"{settled}\n")
            os.replace(self.path + ".new", self.path)
            self._told = settled
