"""What a Droid's workers spent their time on that no record shows: a note in the journal now and then. Pure.

A record says when a range was processed. It does not say how long its worker waited for the input inside it, how long
a worker took to start, or what a range had cost that was begun, broken off and begun again elsewhere. The Droid adds
these up over its workers and tells them as soon as the first workers are ready, then once a minute, and at its end; of
a Droid that is killed the last minute is not known.
"""

from __future__ import annotations

from typing import Any

EVERY = 60.0  #: seconds between two notes
LEAST = 0.001  #: seconds that are worth a note


class Spent:
    """Worker-seconds since the last note. `begun` is when the Droid was ready to start workers."""

    def __init__(self, begun: float) -> None:
        self.starting = 0.0  #: from there, or from its fork, until a worker was ready
        self.input = 0.0  #: waiting for input, without using the CPU
        self.again = 0.0  #: on ranges that were broken off, and not for want of time
        self._begun = begun
        self._forked: dict[int, float] = {}
        self._next = begun

    def forked(self, worker: int, now: float) -> None:
        """`worker` was ordered; the first time this counts from the Droid's own beginning."""
        self._forked[worker] = now if worker in self._forked else self._begun

    def ready(self, worker: int, now: float) -> None:
        self.starting += now - self._forked[worker]

    def note(self, droid: int, now: float, last: bool = False) -> list[dict[str, Any]]:
        """The note, if there is anything to say now."""
        found = {name: round(getattr(self, name), 6) for name in ("starting", "input", "again")}
        if sum(found.values()) < LEAST or (now < self._next and not last):
            return []
        self.starting = self.input = self.again = 0.0
        self._next = now + EVERY
        return [{"note": "spent", "droid": droid, **found}]
