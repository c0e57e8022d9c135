"""A Droid's end of stage-out: gives sealed segments to the stage-out process and takes its news to the journal.

Nothing here waits. What the process has done goes as a note into a report to Yoda; when Yoda says that the journal has
it (`messages.Kept`), the process hears of it, and only then deletes what the site wants deleted. Whatever is left when
the Droid ends is in the task directory, and the next allocation or `yoda stageout` goes on with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO, Any

from eventrange.errors import StagerGone
from eventrange.taskdir import TaskDir
from stageout import breakerfile, protocol
from stageout.catalogue import Known, SegmentId, removed_note, staged_note, task_prefix
from stageout.site import EndpointSite, StageoutRules
from stageout.stagerclient import StagerProcess

FAILURES = 60.0  #: seconds between notes of failed uploads to one endpoint
LATE = 10.0  #: seconds the process may take to end after its time is over


class Uploads:
    """Made before MPI, since it starts a process (L11); `begin` when the allocation has its name."""

    def __init__(
        self,
        endpoints: tuple[EndpointSite, ...],
        rules: StageoutRules,
        taskdir: TaskDir,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        self.endpoints, self.rules, self.taskdir = endpoints, rules, taskdir
        self.log: Callable[[str], None] = lambda text: None
        self._stager = StagerProcess(stderr=stderr)
        self._state_path = breakerfile.state_path(rules, taskdir.root)
        self._task = self._allocation = ""
        self._rank = 0
        self._asked: dict[int, protocol.Recorded] = {}  # number of a note -> what to say when the journal has it
        self._number = 0
        self._waiting: set[str] = set()  # segments without a recorded copy
        self._failed: dict[str, tuple[float, int]] = {}  # endpoint -> time of its last note, failures since
        self._until: float | None = None  # set by `finish`
        self._dead = False

    def begin(self, task: str, allocation: str, rank: int, log: Callable[[str], None]) -> None:
        """Tell the process what it is for."""
        self._task, self._allocation, self._rank, self.log = task, allocation, rank, log
        state, shared = breakerfile.load(self._state_path), task_prefix(self.rules.key, task)
        self._stager.send(protocol.Start(self.endpoints, self.rules, state, task=shared))

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._stager.fileno()

    @property
    def ended(self) -> bool:
        """Whether no more news will come."""
        return self._dead or self._stager.ended

    def sealed(self, note: dict[str, Any]) -> None:
        """A segment was sealed: `note` is the journal's. Empty ones stay where they are."""
        if self.ended or not note["members"]:
            return
        known = Known(SegmentId(self._allocation, self._rank, int(note["segment"])))
        known.size, known.adler32, known.sha256 = note["size"], int(note["adler32"], 16), note["sha256"]
        segment = known.segment(self.taskdir, self.rules.key, self._task)
        self._waiting.add(segment.name)
        self._stager.send(protocol.Submit(segment))

    def kept(self, number: int) -> None:
        """The journal has every note up to this number."""
        for known in [n for n in self._asked if n <= number]:
            recorded = self._asked.pop(known)
            if not recorded.removed:
                self._waiting.discard(recorded.segment)
            self._stager.send(recorded)

    def news(self) -> list[dict[str, Any]]:
        """Notes for the journal: what the process has said since the last call."""
        if self._dead:
            return []
        try:
            reports = self._stager.receive()
        except StagerGone as error:
            self._dead = True
            self.log(str(error))
            return [{"note": "stager_gone", "time": time.time(), "detail": error.values["detail"]}]
        return [note for report in reports for note in self._take(report)]

    def finish(self, seconds: float) -> None:
        """The last segment was given. Go on for at most `seconds`, and only while some endpoint takes anything."""
        if self._until is None:
            self._until = time.monotonic() + seconds + LATE
            if self._waiting and not self.ended:
                self.log(f"{len(self._waiting)} segments are not staged yet; waiting for at most {seconds:.0f} s")
            self._stager.send(protocol.Drain(seconds))

    @property
    def over(self) -> bool:
        """After `finish`: whether there is nothing more to wait for."""
        return self._until is not None and (self.ended or time.monotonic() > self._until)

    def close(self) -> None:
        """End the process."""
        if self._waiting:
            self.log(f"{len(self._waiting)} segments are not staged; the next allocation or `yoda stageout` goes on")
        if not self._dead:
            self._stager.send(protocol.Stop())
        self._stager.close(timeout=5.0)

    # -- inner workings ----------------------------------------------------------------------------------------------

    def _take(self, report: protocol.AnyReport) -> list[dict[str, Any]]:
        match report:
            case protocol.Staged():
                where = "re-homed to" if report.rehomed else "staged to"
                self.log(f"segment {report.segment} {where} {report.endpoint} ({report.size} bytes)")
                return [self._ask(staged_note(report), protocol.Recorded(report.segment, report.endpoint))]
            case protocol.Removed(endpoint=None):
                return [removed_note(report)]
            case protocol.Removed(endpoint=str(where)):
                return [self._ask(removed_note(report), protocol.Recorded(report.segment, where, removed=True))]
            case protocol.Breaker():
                breakerfile.save(self._state_path, report.state)
                return [{**breaker_note(report), "by": self._rank}]
            case protocol.Blocked():
                if self._until is not None and not self.ended:
                    self._stager.send(protocol.Stop())  # to wait for what is down keeps nodes and helps nobody
                return [{"note": "blocked", "by": self._rank, **fields(report)}]
            case protocol.Failed():
                return [{**note, "by": self._rank} for note in self._failure(report)]
            case protocol.Damaged():
                self._waiting.discard(report.segment)
                self.log(f"segment {report.segment} cannot be staged: {report.detail}")
                return [unusable_note(report)]
            case protocol.Ended():
                breakerfile.save(self._state_path, report.breaker)
        return []

    def _ask(self, note: dict[str, Any], recorded: protocol.Recorded) -> dict[str, Any]:
        self._number += 1
        self._asked[self._number] = recorded
        return {**note, "by": self._rank, "number": self._number}

    def _failure(self, report: protocol.Failed) -> list[dict[str, Any]]:
        """At most one note a minute and endpoint, however many uploads fail."""
        at, count = self._failed.get(report.endpoint, (0.0, 0))
        if report.time - at < FAILURES:
            self._failed[report.endpoint] = at, count + 1
            return []
        self._failed[report.endpoint] = report.time, 0
        self.log(f"upload of {report.segment} to {report.endpoint} failed: {report.kind}: {report.detail}")
        return [failure_note(report, count + 1)]


def fields(report: protocol.Report) -> dict[str, Any]:
    """The fields of a report as a dict."""
    return {name: getattr(report, name) for name in report.__struct_fields__}


def breaker_note(report: protocol.Breaker) -> dict[str, Any]:
    """The journal's note of an endpoint that went on or off."""
    return {"note": "breaker", **fields(report)}


def failure_note(report: protocol.Failed, count: int) -> dict[str, Any]:
    """The journal's note of `count` failed uploads, of which this is the last."""
    return {"note": "upload_failed", "count": count, **fields(report)}


def unusable_note(report: protocol.Damaged) -> dict[str, Any]:
    """The journal's note of a local segment that is not as it was sealed."""
    id = SegmentId.parse(report.segment)
    where = {"allocation": id.allocation, "droid": id.droid, "segment": id.number}
    return {"note": "unusable", **where, "detail": report.detail, "time": report.time}
