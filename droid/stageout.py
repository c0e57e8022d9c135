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
from stageout.catalogue import Copy, Known, SegmentId, prefix_of, removed_note, staged_note, task_prefix
from stageout.site import EndpointSite, StageoutRules
from stageout.stagerclient import Spawn, StagerProcess

FAILURES = 60.0  #: seconds between notes of failed uploads to one endpoint
LATE = 10.0  #: seconds the process may take to end after its time is over
STEADY = 300.0  #: seconds after which the death of a process has nothing to do with that of the one before


class Uploads:
    """Made before MPI, since it starts a process (L11); `begin` when the allocation has its name. With MPI, `spawn`
    must be set: should the process die, another takes its place, after a pause that doubles."""

    def __init__(
        self,
        endpoints: tuple[EndpointSite, ...],
        rules: StageoutRules,
        taskdir: TaskDir,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        self.endpoints, self.rules, self.taskdir = endpoints, rules, taskdir
        self.spawn: Spawn | None = None
        self.log: Callable[[str], None] = lambda text: None
        self._stderr = stderr
        self._stager: StagerProcess | None = StagerProcess(stderr=stderr)
        self._started = time.monotonic()
        self._deaths = 0  # in a row
        self._again_at = 0.0  # when to start another one
        self._state_path = breakerfile.state_path(rules, taskdir.root)
        self._services = {site.name: site.service for site in endpoints}
        self._task = self._allocation = ""
        self._rank = 0
        self._known: dict[str, Known] = {}  # segments that are not finished, with the copies the journal knows of
        self._given: set[str] = set()  # those that the present process has heard of
        self._asked: dict[int, protocol.Staged | protocol.Removed] = {}  # by number of the note that the journal gets
        self._number = 0
        self._failed: dict[str, tuple[float, int]] = {}  # endpoint -> time of its last note, failures since
        self._until: float | None = None  # set by `finish`

    def begin(self, task: str, allocation: str, rank: int, log: Callable[[str], None]) -> None:
        """Tell the process what it is for."""
        self._task, self._allocation, self._rank, self.log = task, allocation, rank, log
        self._send_start()

    @property
    def waiting(self) -> int:
        """Segments without a copy that the journal knows of."""
        return sum(not known.copies and not known.unusable for known in self._known.values())

    def sealed(self, note: dict[str, Any]) -> None:
        """A segment was sealed: `note` is the journal's. Empty ones stay where they are."""
        if not note["members"]:
            return
        known = Known(SegmentId(self._allocation, self._rank, int(note["segment"])))
        known.size, known.adler32, known.sha256 = note["size"], int(note["adler32"], 16), note["sha256"]
        self._known[str(known.id)] = known
        self._submit(known)

    def kept(self, number: int) -> None:
        """The journal has every note up to this number."""
        for one in [n for n in self._asked if n <= number]:
            report = self._asked.pop(one)
            known = self._known.get(report.segment)
            if report.endpoint is None or known is None:
                continue
            gone = isinstance(report, protocol.Removed)
            if isinstance(report, protocol.Staged):
                known.copies[report.endpoint] = Copy(report.key, report.url, self._services[report.endpoint])
            # To a process that has not heard of the segment, `Recorded` alone would say nothing.
            self._submit(known)
            self._send(protocol.Recorded(report.segment, report.endpoint, removed=gone))
            if gone:
                known.copies.pop(report.endpoint, None)
            self._forget(known)

    def news(self) -> list[dict[str, Any]]:
        """Notes for the journal: what the process has said since the last call."""
        now = time.monotonic()
        if self._stager is None:
            if now >= self._again_at and self._task and (self._known or self._until is None):
                self._replace(now)
            return []
        try:
            reports = self._stager.receive()
        except StagerGone as error:
            return [self._gone(error, now)]
        return [note for report in reports for note in self._take(report)]

    def finish(self, seconds: float) -> None:
        """The last segment was given. Go on for at most `seconds`, and only while some endpoint takes anything."""
        if self._until is None:
            self._until = time.monotonic() + seconds + LATE
            if self.waiting and not self._ended:
                self.log(f"{self.waiting} segments are not staged yet; waiting for at most {seconds:.0f} s")
            self._again_at = 0.0  # no time left for long pauses
            self._send(protocol.Drain(seconds))

    @property
    def over(self) -> bool:
        """After `finish`: whether there is nothing more to wait for."""
        nothing = self._ended or (self._stager is None and not self._known)
        return self._until is not None and (nothing or time.monotonic() > self._until)

    def close(self) -> None:
        """End the process."""
        if self.waiting:
            self.log(f"{self.waiting} segments are not staged; the next allocation or `yoda stageout` goes on")
        if self._stager is not None:
            self._send(protocol.Stop())
            self._stager.close(timeout=5.0)
            self._stager = None

    # -- the process -------------------------------------------------------------------------------------------------

    @property
    def _ended(self) -> bool:
        """Whether the process has said its last word."""
        return self._stager is not None and self._stager.ended

    def _send(self, command: protocol.Command) -> None:
        if self._stager is not None:
            self._stager.send(command)

    def _send_start(self, mine: tuple[str, ...] = ()) -> None:
        state, shared = breakerfile.load(self._state_path), task_prefix(self.rules.key, self._task)
        self._send(protocol.Start(self.endpoints, self.rules, state, mine=mine, task=shared))

    def _submit(self, known: Known) -> None:
        """Tell the process of a segment, unless it knows. Copies that the journal has are named, and no others: what
        may be deleted depends on it."""
        name = str(known.id)
        if self._stager is not None and name not in self._given:
            self._given.add(name)
            segment = known.segment(self.taskdir, self.rules.key, self._task)
            self._send(protocol.Submit(segment, known.on(self.endpoints)))

    def _gone(self, error: StagerGone, now: float) -> dict[str, Any]:
        """The process died: the note that says so, and when there will be another one."""
        assert self._stager is not None
        self._stager.close(timeout=0.0)
        self._stager = None
        self._given.clear()
        self._deaths = self._deaths + 1 if now - self._started < STEADY else 1
        pause = min(self.rules.backoff_max, self.rules.backoff * 2.0 ** min(self._deaths - 1, 40))
        self._again_at = now + pause
        detail = str(error.values["detail"])
        self.log(f"the stage-out process ended: {detail}; nothing is lost, another one starts in {pause:.3g} s")
        return {"note": "stager_gone", "by": self._rank, "time": time.time(), "detail": detail, "pause": pause}

    def _replace(self, now: float) -> None:
        """Another process for the one that died. What that left unfinished on the endpoints is removed."""
        try:
            self._stager = StagerProcess(stderr=self._stderr, spawn=self.spawn)
        except (StagerGone, OSError):
            self._again_at = now + self.rules.backoff
            return
        self._started = now
        prefix = prefix_of(self.rules.key, self._task, self._allocation, self._rank)
        self._send_start((prefix,) if prefix else ())
        asked = {report.segment for report in self._asked.values()}
        for name, known in self._known.items():
            if name not in asked:  # those have to wait for the journal
                self._submit(known)
        if self._until is not None:
            self._send(protocol.Drain(max(0.0, self._until - LATE - now)))

    # -- its news ----------------------------------------------------------------------------------------------------

    def _take(self, report: protocol.AnyReport) -> list[dict[str, Any]]:
        match report:
            case protocol.Staged():
                where = "re-homed to" if report.rehomed else "staged to"
                self.log(f"segment {report.segment} {where} {report.endpoint} ({report.size} bytes)")
                return [self._ask(staged_note(report, self._services[report.endpoint]), report)]
            case protocol.Removed(endpoint=None):
                known = self._known.get(report.segment)
                if known is not None:
                    known.local = False
                    self._forget(known)
                return [removed_note(report)]
            case protocol.Removed():
                return [self._ask(removed_note(report), report)]
            case protocol.Breaker():
                breakerfile.save(self._state_path, report.state)
                return [{**breaker_note(report), "by": self._rank}]
            case protocol.Blocked():
                if self._until is not None and not self._ended:
                    self._send(protocol.Stop())  # to wait for what is down keeps nodes and helps nobody
                return [{"note": "blocked", "by": self._rank, **fields(report)}]
            case protocol.Failed():
                return [{**note, "by": self._rank} for note in self._failure(report)]
            case protocol.Damaged():
                self._known.pop(report.segment, None)
                self.log(f"segment {report.segment} cannot be staged: {report.detail}")
                return [unusable_note(report)]
            case protocol.Ended():
                breakerfile.save(self._state_path, report.breaker)
        return []

    def _ask(self, note: dict[str, Any], report: protocol.Staged | protocol.Removed) -> dict[str, Any]:
        self._number += 1
        self._asked[self._number] = report
        return {**note, "by": self._rank, "number": self._number}

    def _forget(self, known: Known) -> None:
        if not known.unfinished(self.endpoints, self.rules):
            self._known.pop(str(known.id), None)

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
