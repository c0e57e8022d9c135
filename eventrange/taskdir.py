"""The one place that knows file names inside a task directory."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

_STAMP = re.compile(r"\d{8}T\d{9}Z")  # of allocations and commands, in UTC; the last three digits are milliseconds


@dataclass(frozen=True)
class TaskDir:
    """Paths below one task directory; nothing is created by asking for a path."""

    root: str

    @property
    def task_file(self) -> str:
        return os.path.join(self.root, "task.yaml")

    @property
    def journals(self) -> str:
        return os.path.join(self.root, "journal")

    @property
    def indexes(self) -> str:
        return os.path.join(self.root, "index")

    @property
    def leases(self) -> str:
        return os.path.join(self.root, "leases")

    @property
    def quarantine(self) -> str:
        return os.path.join(self.root, "quarantine")

    @property
    def merged(self) -> str:
        return os.path.join(self.root, "merged")

    @property
    def slurm(self) -> str:
        """Scripts, outputs and notes of the batch jobs that were submitted for this task."""
        return os.path.join(self.root, "slurm")

    @property
    def report(self) -> str:
        return os.path.join(self.root, "report.html")

    @property
    def metrics(self) -> str:
        return os.path.join(self.root, "metrics.prom")

    def journal(self, allocation: str) -> str:
        return os.path.join(self.journals, f"{allocation}.yj")

    def segments(self, allocation: str) -> str:
        return os.path.join(self.root, "segments", allocation)

    def segment(self, allocation: str, droid: int, number: int, kind: str = "") -> str:
        """The segment of that number; without `kind` (tar, zip) the one that is there, tar if there is none."""
        path = os.path.join(self.segments(allocation), f"{droid:05d}-{number:04d}.")
        if not kind:
            kind = "zip" if not os.path.exists(path + "tar") and os.path.exists(path + "zip") else "tar"
        return path + kind

    def logs(self, allocation: str) -> str:
        return os.path.join(self.root, "logs", allocation)

    def log(self, allocation: str, rank: int) -> str:
        return os.path.join(self.logs(allocation), f"rank-{rank:05d}.log")

    def allocations(self) -> list[str]:
        """Names of all allocations that have a journal, in journal order (L2: by name)."""
        try:
            names = os.listdir(self.journals)
        except FileNotFoundError:
            return []
        return sorted(name[:-3] for name in names if name.endswith(".yj"))

    def after(self, now: float) -> float:
        """`now` (unix seconds), or just after the latest time that a journal is named by: names tell the order, and the
        clock may have been set back, or that of another node may be ahead."""
        told = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"{int(now * 1000) % 1000:03d}Z"
        latest = next((name for name in reversed(self.allocations()) if _STAMP.match(name)), "")
        if latest[: len(told)] < told:
            return now
        from calendar import timegm

        try:
            return timegm(time.strptime(latest[:15], "%Y%m%dT%H%M%S")) + (int(latest[15:18]) + 1.5) / 1000
        except ValueError:  # not a date
            return now

    def make(self) -> None:
        """Create the folders every allocation needs."""
        for path in (self.root, self.journals, self.leases, self.indexes, os.path.join(self.root, "segments")):
            os.makedirs(path, exist_ok=True)
