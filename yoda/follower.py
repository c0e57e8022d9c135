"""What all journals of a task say, again and again while others write in them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from eventrange import records
from eventrange.history import Fold, Progress, Story
from eventrange.intervals import Array, IntervalSet
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from yoda.leases import Known


class Follower:
    """Reads the journals for the allocation `name`, its own among them; a reading goes on where the last one ended."""

    def __init__(self, taskdir: TaskDir, fingerprint: str, name: str) -> None:
        self.name = name
        self._story = Story(taskdir, fingerprint)
        self._fold = Fold()
        self._schemas: dict[str, str] = {}
        self._ended: dict[str, str] = {}
        self._lives: dict[str, tuple[float, float]] = {}

    def read(self, over: Callable[[str], bool], names: Collection[str] = ()) -> Known:
        """Take in what is new; of allocations that are `over` to the very end. `names` have journals, listed or not."""
        for name, entry in self._story.follow(over, names):
            if not isinstance(entry, dict):
                self._alive(name, float(entry["time"].max(initial=0.0)))
                if name > self.name:
                    # A later journal voids what comes before it, so also what we would do now: the next one does it.
                    # A quarantined event that it takes up is its own, and none of ours.
                    entry = entry[entry["kind"] != Kind.PENDING]
                self._fold.add(entry, name)
                continue
            self._fold.note(entry, name)
            if entry.get("note") == "journal" and "mpi" in entry:  # of an allocation, not of a command
                self._alive(name, entry.get("created"), begins=True)
            self._alive(name, entry.get("time"))
            if entry.get("note") == "schema":
                self._schemas.setdefault(name, str(entry.get("schema") or ""))
            elif entry.get("note") == "end":
                self._ended[name] = str(entry.get("reason", ""))
        return self.known()

    def _alive(self, name: str, time: object, begins: bool = False) -> None:
        if isinstance(time, float) and (begins or name in self._lives):  # a note that was too long has None
            first, last = self._lives.get(name, (time, time))
            self._lives[name] = first, max(last, time)

    def known(self) -> Known:
        done, quarantined, attempts = self._fold.result()
        tried = {event: found.attempts for event, found in attempts.items()}
        schema_of = min(self._schemas, default="")
        schema = self._schemas.get(schema_of, "")
        return Known(_arrays(done), _arrays(quarantined), tried, schema, schema_of)

    def progress(self) -> Progress:
        """The same, as resume wants it."""
        done, quarantined, attempts = self._fold.result()
        journals = dict(self._story.journals)
        count = sum(state.records for state in journals.values())
        schema = self._schemas.get(min(self._schemas, default=""), "")
        return Progress(done, quarantined, attempts, schema, journals, dict(self._ended), dict(self._lives), count)

    def retry(self, events: IntervalSet) -> None:
        """These quarantined events are taken up again; our own journal is about to say so."""
        rows = records.new(len(events), kind=Kind.PENDING, code=Code.RETRY)
        rows["start"], rows["stop"] = events.starts, events.stops
        self._fold.add(rows, self.name)


def _arrays(pairs: IntervalSet) -> tuple[Array, Array]:
    return np.array(pairs.starts, np.int64), np.array(pairs.stops, np.int64)
