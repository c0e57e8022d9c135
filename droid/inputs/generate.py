"""No input at all: an event is its position, and the payload makes everything from it and its random numbers."""

from __future__ import annotations

from collections.abc import Sequence


class GenerateInput:
    """Stands where an input file would: `read` gives the positions themselves."""

    def __init__(self, events: int) -> None:
        self._events = events

    def count(self) -> int:
        return self._events

    def read(self, start: int, stop: int) -> Sequence[int]:
        """Positions start to stop - 1, as ints. IndexError outside of 0 to count."""
        if not 0 <= start <= stop <= self._events:
            raise IndexError(f"[{start}, {stop}) is outside of {self._events} events")
        return list(range(start, stop))

    def close(self) -> None:
        pass
