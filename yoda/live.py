"""A task as it is now, kept up to date: reads only what the journals have gained since the last look.

For `yoda status --watch`, the progress line of `yoda run`, and whoever else looks again and again. What has been read
is kept as sums; a look costs what is new, and a copy of the sums.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

from eventrange.axis import Axis
from eventrange.history import Story
from eventrange.taskdir import TaskDir
from stageout.catalogue import Catalogue
from yoda.accounting import NOBODY, Accountant
from yoda.core_seconds import Account, Allocation
from yoda.names import event_name
from yoda.pace import Pace
from yoda.status import ALIVE, compose, last_words, living
from yoda.storage_view import storage_view

SHOWN = 8  #: events and Droids named


class Live:
    """Follows all journals of one task. Works on dead tasks, too."""

    def __init__(self, taskdir: TaskDir, name: str, fingerprint: str, axis: Axis) -> None:
        self.taskdir, self.name, self.fingerprint, self.axis = taskdir, name, fingerprint, axis
        self._story = Story(taskdir, fingerprint)
        self._accountant = Accountant()
        self._voids = 0
        self.pace = Pace()
        self.catalogue = Catalogue()
        self.notes: dict[str, dict[str, Any]] = {}  #: the latest breaker note of each key
        self.quarantined: list[dict[str, Any]] = []  #: the last evidence of failures

    def read(self) -> None:
        """Take in what is new."""
        for allocation, entry in self._story:
            self._accountant.add(allocation, entry)
            if not isinstance(entry, dict):
                self.pace.add(entry)
                continue
            self.catalogue.add(allocation, entry)
            if entry.get("note") == "breaker":
                self.notes[str(entry.get("key"))] = entry
            elif entry.get("note") == "evidence":
                self.quarantined = [*self.quarantined[1 - SHOWN :], entry]
        if len(self._accountant.voids) > self._voids:  # what was productive is not: add everything up again
            self._voids = len(self._accountant.voids)
            self._accountant = Accountant(self._accountant.voids)
            self._story = Story(self.taskdir, self.fingerprint)
            self._accountant.read(self._story)
            self._accountant.voids = self._accountant.voids[: self._voids]

    def account(self, now: float, dead: Mapping[str, float] = NOBODY) -> Account:
        """Where the core-seconds went until now."""
        return copy.deepcopy(self._accountant).result(now - ALIVE, last_words(dead, now))

    def state(self, now: float | None = None, dead: Mapping[str, float] = NOBODY) -> dict[str, Any]:
        """As `yoda status --json`, and `live`: what is so at this moment; `dead` as for task_status."""
        self.read()
        now = time.time() if now is None else now
        account = self.account(now, dead)
        found = compose(
            self.taskdir,
            self.name,
            self.fingerprint,
            self.axis.total,
            account,
            self._story.journals,
            self.pace,
            now,
            ranges=self.axis.ranges,
        )
        alive = living(account, now)
        began = min((a.created for a in alive if a.created), default=0.0)
        found["live"] = {
            "events_per_second": self.pace.rate(now, began) if alive else 0.0,
            "commit_lag": max((float((a.pulse or {}).get("lag", 0.0)) for a in alive), default=0.0),
            "slowest": self._slowest(alive, now),
            "silent": self._silent(alive, now),
            "storage": storage_view(self.catalogue),
            "breaker": {key: str(note.get("after", "?")) for key, note in sorted(self.notes.items())},
            "evidence": [self._evidence(note) for note in reversed(self.quarantined)],
        }
        return found

    def _slowest(self, alive: list[Allocation], now: float) -> list[dict[str, Any]]:
        """Events that have been running longest, as of the last pulses; those that are done since then left out."""
        found = []
        done, _, _ = self._accountant.fold.result()
        for one in alive:
            pulse = one.pulse or {}
            age = max(0.0, now - float(pulse.get("time", now)))
            for event, seconds, droid in pulse.get("slowest", ()):
                if event not in done:
                    host = one.droids[droid].host if droid in one.droids else "?"
                    name = event_name(self.axis, event)
                    found.append({"event": name, "seconds": seconds + age, "droid": droid, "host": host})
        return sorted(found, key=lambda entry: -entry["seconds"])[:SHOWN]

    def _silent(self, alive: list[Allocation], now: float) -> list[dict[str, Any]]:
        """Droids by how long they have said nothing, the longest first."""
        found = []
        for one in alive:
            pulse = one.pulse or {}
            since = float(pulse.get("time", now))
            for droid, seconds in pulse.get("silent", ()):
                life = one.droids.get(droid)
                if life is not None and life.left is None:
                    heard = max(life.last, since - seconds)
                    found.append({"droid": droid, "host": life.host, "workers": life.workers, "seconds": now - heard})
        return sorted(found, key=lambda entry: -entry["seconds"])[:SHOWN]

    def _evidence(self, note: dict[str, Any]) -> dict[str, Any]:
        event, text = note.get("event"), str(note.get("text", "")).strip()
        name = event_name(self.axis, event) if isinstance(event, int) else "?"
        return {"event": name, "attempt": note.get("attempt"), "text": text.splitlines()[-1] if text else "?"}
