"""Metrics for Prometheus: `TASK/metrics.prom`, replaced as a whole every few seconds by rank 0.

For node_exporter's textfile collector, or anything else that reads the text format. The names below are documented in
docs/journal.md and stay. It is a view of the moment and no record: it is not synced to the disk, and a file that cannot
be written is passed over, since a full disk must not end the run over its monitoring.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from eventrange.times import quantile

EVERY = 5.0  #: seconds between two writings

#: name -> (type, meaning). Every sample also has the labels `task` and `allocation`.
NAMES = {
    "yoda_events": ("gauge", "events of the task; label state: total, done, quarantined, in_flight, open"),
    "yoda_droids": ("gauge", "Droids of this allocation; label state: active, spare, doubted, sick, bye, lost"),
    "yoda_workers": ("gauge", "workers of the Droids at work"),
    "yoda_workers_busy": ("gauge", "those of them that have an event"),
    "yoda_commit_lag_seconds": ("gauge", "age of the oldest journal entry that is not yet durable"),
    "yoda_event_seconds": ("gauge", "time of one event on one core; label quantile: 0.5, 0.9, 0.99"),
    "yoda_longest_running_seconds": ("gauge", "time the event that has been running longest has taken so far"),
    "yoda_longest_silence_seconds": ("gauge", "time since the Droid at work that was heard least lately was heard"),
    "yoda_draining": ("gauge", "1 while nothing new is begun, else 0"),
    "yoda_deadline_timestamp_seconds": ("gauge", "when the allocation ends; left out where it is not known"),
    "yoda_started_timestamp_seconds": ("gauge", "when this allocation began"),
    "yoda_updated_timestamp_seconds": ("gauge", "when this file was written"),
}


class Metrics:
    """Call it at every turn with the dispatcher and the commit lag; it writes when it is time to."""

    def __init__(
        self,
        path: str,
        task: str,
        allocation: str,
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.clock, self.now = path, clock, now
        self._labels = f'task="{_quoted(task)}",allocation="{_quoted(allocation)}"'
        self._due = -1.0
        self._started = clock()
        self._temporary = f"{path}.{os.urandom(4).hex()}"

    def __call__(self, dispatcher: Any, lag: float) -> None:
        now = self.now()
        if now < self._due:
            return
        self._due = now + EVERY
        self.write(dispatcher, lag)

    def write(self, dispatcher: Any, lag: float) -> None:
        """Replace the file now."""
        try:
            with open(self._temporary, "w") as file:
                file.write(self.text(dispatcher, lag))
            os.replace(self._temporary, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)

    def text(self, dispatcher: Any, lag: float) -> str:
        """What stands in the file."""
        now, unix = self.now(), self.clock()
        ledger, at_work = dispatcher.ledger, dispatcher.at_work
        samples: dict[str, list[tuple[str, float]]] = {name: [] for name in NAMES}
        for state, count in (
            ("total", ledger.total),
            ("done", ledger.done),
            ("quarantined", ledger.quarantined.total),
            ("in_flight", ledger.in_flight),
            ("open", ledger.open),
        ):
            samples["yoda_events"].append((f'state="{state}"', count))
        states = dict.fromkeys(("active", "spare", "doubted", "sick", "bye", "lost"), 0)
        for droid in dispatcher.droids.values():
            states[droid.state] = states.get(droid.state, 0) + 1
        samples["yoda_droids"] = [(f'state="{state}"', count) for state, count in states.items()]
        for q in (0.5, 0.9, 0.99):
            samples["yoda_event_seconds"].append((f'quantile="{q}"', quantile(dispatcher.times, q)))
        longest = (x.oldest + now - x.heard for x in at_work if x.on)
        for name, value in (
            ("yoda_workers", sum(x.workers for x in at_work)),
            ("yoda_workers_busy", sum(x.busy for x in at_work)),
            ("yoda_commit_lag_seconds", lag),
            ("yoda_longest_running_seconds", max(longest, default=0.0)),
            ("yoda_longest_silence_seconds", max((now - x.heard for x in at_work), default=0.0)),
            ("yoda_draining", 1 if dispatcher.draining else 0),
            ("yoda_started_timestamp_seconds", self._started),
            ("yoda_updated_timestamp_seconds", unix),
        ):
            samples[name].append(("", value))
        if dispatcher.deadline is not None:
            samples["yoda_deadline_timestamp_seconds"].append(("", unix + dispatcher.deadline - now))
        out = []
        for name, values in samples.items():
            if values:
                kind, meaning = NAMES[name]
                out += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
                for label, value in values:
                    labels = f"{self._labels},{label}" if label else self._labels
                    out.append(f"{name}{{{labels}}} {value:.15g}")
        return "\n".join(out) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
