"""What the journal of an allocation says of the merge at its end, behind its `end` note.

Processing is over by then and the journal durable, so these notes are a courtesy to those who look on: `merging` when
it begins and now and then, `merged` when it is over. A merge that was killed has no `merged`. Where they cannot be
written the merge goes on without.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from eventrange.errors import CannotWrite, YodaError
from eventrange.journal import JournalWriter

PULSE = 10.0  #: seconds between two `merging` notes


class MergeNotes:
    """A context around a merge; `progress` is what the merge calls. Without a journal it does nothing."""

    def __init__(self, journal: JournalWriter | None, clock: Callable[[], float] = time.time) -> None:
        self._journal, self._clock, self._next = journal, clock, 0.0

    def __enter__(self) -> MergeNotes:
        self.progress(0, 0)
        return self

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` events are written."""
        now = self._clock()
        if now >= self._next:
            self._next = now + PULSE
            self._note("merging", now, done=done, total=total)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        code = 0 if error is None else getattr(error, "exit_code", 1)
        lines = str(error).splitlines() if isinstance(error, YodaError) else [repr(error)]
        self._note("merged", self._clock(), exit_code=code, reason="" if error is None else lines[0])

    def _note(self, name: str, now: float, **values: Any) -> None:
        if self._journal is None:
            return
        try:
            self._journal.note(name, time=now, **values)
            self._journal.flush()
        except CannotWrite:
            self._journal = None
