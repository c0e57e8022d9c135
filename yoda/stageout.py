"""`yoda stageout`: stage out what no living allocation takes care of, without MPI; on a login node, or beside rank 0.

Segments that dead allocations left open are sealed first (stageout/repair.py). What is done goes into a journal of its
own, note by note: written, synced, and only then is the stage-out process told. One at a time per task: whoever comes
second leaves it to the first.
"""

from __future__ import annotations

import fcntl
import glob
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from droid.stageout import breaker_note, failure_note, fields, unusable_note
from eventrange.errors import CannotWrite, ConfigError, StagerGone
from eventrange.journal import JournalWriter
from eventrange.taskdir import TaskDir
from stageout import breakerfile, protocol
from stageout.breaker import Breaker
from stageout.catalogue import (
    Catalogue,
    Copy,
    Known,
    SegmentId,
    prefix_of,
    removed_note,
    staged_note,
    task_prefix,
)
from stageout.opening import open_endpoint
from stageout.site import EndpointSite, StageoutRules
from stageout.stagerclient import StagerProcess
from stageout.staging import NOT_ITS_FAULT
from yoda.leftopen import Reading, counting, done_rows, left_open, read
from yoda.nodes import KIND as NODE
from yoda.sweep import Swept, in_doubt, sweep

GRACE = 30.0  #: seconds for the stage-out process to end when nothing is left to do
STARTS = 4  #: stage-out processes, one after another, where they die
CLEANED = 20  #: allocations, at most, below whose names unfinished uploads are looked for


@dataclass(frozen=True)
class Storage:
    """The endpoints of a task, in order, and the rules."""

    endpoints: tuple[EndpointSite, ...]
    rules: StageoutRules = field(default_factory=StageoutRules)

    def service(self, endpoint: str) -> str:
        """The server of the endpoint of that name."""
        return next(site.service for site in self.endpoints if site.name == endpoint)


@dataclass
class Outcome:
    """What one call did, in segments. `left` have no copy on any endpoint though they could; `elsewhere` belong to
    living allocations; `unusable` are damaged on disk or gone, have no copy, and images in them count."""

    staged: int = 0
    repaired: int = 0
    left: int = 0
    elsewhere: int = 0
    unusable: int = 0
    busy: bool = False  # another one is at it
    swept: Swept | None = None


def storage_of(taskdir: TaskDir, catalogue: Catalogue, site: Any = None) -> Storage:
    """From the site file, or else as the last allocation had it but for the rules that `site` gives all the same
    (--set). Raises ConfigError when no endpoint is known."""
    if site is not None and site.stageout:
        return Storage(site.stageout, site.stageout_rules)
    kept = catalogue.rules
    if site is not None:
        said = msgspec.to_builtins(site.stageout_rules)
        given = {key.split(".")[1] for key in site.origins if key.startswith("stageout_rules.")}
        kept = kept | {key: said[key] for key in given}
    try:
        found = msgspec.convert(catalogue.endpoints, tuple[EndpointSite, ...], strict=False)
        rules = msgspec.convert(kept, StageoutRules, strict=False)
    except msgspec.ValidationError:
        found, rules = (), StageoutRules()
    if not found:
        hint = "name a site file that has `stageout:` with --site"
        raise ConfigError(file=taskdir.root, key="stageout", detail="no storage endpoint is known", hint=hint)
    return Storage(found, rules)


def endpoints_note(endpoints: tuple[EndpointSite, ...], rules: StageoutRules) -> dict[str, Any]:
    """Values of the `endpoints` note. How people are alerted may hold what is nobody's business, so it stays out."""
    kept = {k: v for k, v in msgspec.to_builtins(rules).items() if not k.startswith("alert_")}
    return {"endpoints": msgspec.to_builtins(endpoints), "rules": kept}


def stage_out(
    taskdir: TaskDir,
    task: str,
    fingerprint: str,
    storage: Storage | None,
    *,
    wait: float = 0.0,
    site: Any = None,
    by_hand: bool = False,
    sweeping: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Stage what can be staged; go on trying for `wait` seconds where storage is down. `storage` None: found out.
    `by_hand`: somebody asks for it, so endpoints that are off for some time are tried now. `sweeping`: look for objects
    that no journal knows of, too."""
    with _alone(taskdir) as alone:
        if not alone:
            return Outcome(busy=True)
        known = read(taskdir, fingerprint)
        storage = storage or storage_of(taskdir, known.catalogue, site)
        carrier = Carrier(taskdir, task, fingerprint, storage, say, by_hand)
        try:
            carrier.repair(known)
            if sweeping:
                carrier.sweep(known)
            return carrier.carry(known, wait)
        finally:
            carrier.close()


@contextmanager
def _alone(taskdir: TaskDir) -> Iterator[bool]:
    """Whether this is the only one. The lock goes with its process; without locks, work may be done twice."""
    fd = os.open(os.path.join(taskdir.root, "stageout.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(fd)


@dataclass
class Carrier:
    """One go at the segments of a task."""

    taskdir: TaskDir
    task: str
    fingerprint: str
    storage: Storage
    say: Callable[[str], None]
    by_hand: bool = False
    journal: JournalWriter | None = None
    outcome: Outcome = field(default_factory=Outcome)
    _known: dict[str, Known] = field(default_factory=dict)
    _was: dict[str, str] = field(default_factory=dict)  # why segments were unusable until now
    _over: set[str] = field(default_factory=set)  # allocations that write no more, and whose journals are whole
    _ends: dict[SegmentId, int] = field(default_factory=dict)  # where the last image that has a record ends
    _primary: str = "closed"  # the state of its breaker
    _primary_ill: bool = False  # its last answer was a failure
    _primary_off: bool = False  # it takes nothing now, so nothing is re-homed
    _given_up: set[str] = field(default_factory=set)  # segments that cannot be re-homed now

    def note(self, values: dict[str, Any]) -> None:
        """Write a note and make it durable. Raises CannotWrite."""
        if self.journal is None:
            self.journal = command_journal(self.taskdir, self.fingerprint, command_name(self.taskdir, "stageout"))
        values = {"time": time.time(), **values}
        self.journal.note(values.pop("note"), **values)
        self.journal.flush()
        self.journal.file.sync()

    def close(self) -> None:
        """Let go of the journal."""
        if self.journal is not None:
            self.journal.file.close()

    def repair(self, told: Reading) -> None:
        """Seal what dead allocations left open, and once more what one that only slept has gone on with since."""
        from stageout.repair import seal_left_open

        catalogue = told.catalogue
        for allocation in sorted(told.dead):
            files = left_open(self.taskdir, allocation, catalogue, told.ends)
            rows = done_rows(self.taskdir, self.fingerprint, allocation) if files else {}
            for id, path in files.items():
                mine = rows.get((id.droid, id.number))
                known = catalogue.segments.get(id, Known(id))
                note = seal_left_open(path, mine, known.end) if mine is not None else None
                if note is None:
                    continue
                where = {"allocation": id.allocation, "droid": id.droid, "segment": id.number}
                self.note({"note": "sealed", **where, **note})
                catalogue.add(allocation, {"note": "sealed", **where, **note})
                self.outcome.repaired += 1
                self.say(f"segment {id} was left open and is sealed now: {note['members']} images")

    def sweep(self, known: Reading) -> None:
        """Adopt or remove what nobody knows of. An allocation that only keeps silent may yet say what is its."""
        doubted = in_doubt(self.taskdir, self.fingerprint, known.journals, known.catalogue, known.over)
        endpoints = [open_endpoint(site) for site in self.storage.endpoints]
        try:
            rules = self.storage.rules
            where = self.taskdir, self.task, rules, endpoints
            done = sweep(*where, known.catalogue, known.over, doubted, self.note, self.say)
        finally:
            for endpoint in endpoints:
                endpoint.close()
        self.outcome.swept = done

    def carry(self, told: Reading, wait: float) -> Outcome:
        """Give the stage-out process all that is to be done and write down what it says."""
        todo, bad, away = [], set(), []
        self._over = told.over - {name for name, state in told.journals.items() if state.damaged}
        self._ends = told.ends
        for id, known in sorted(told.catalogue.segments.items()):
            if not known.sealed or (known.members == 0 and not known.copies and not known.file):
                continue
            if id.allocation not in told.dead:
                self.outcome.elsewhere += not self._on(known)
            elif self._wanted(known) or (self.by_hand and self._wanted(replace(known, unusable=""))):
                self._was[str(id)], known.unusable = known.unusable, ""  # the trouble may be over: looked at again
                todo.append(known)
            elif not known.copies:
                bad.add(id)
            elif not self._on(known):
                away.append(known)
        if away:
            url = next(iter(away[0].copies.values())).url
            self.say(
                f"{len(away)} segments are only at addresses that no endpoint has now ({url} ...); "
                "if they were moved, --sweep finds them"
            )
        if todo:
            self._carry(todo, wait)
        bad |= {known.id for known in todo if known.unusable and not known.copies}
        self.outcome.unusable = len(bad & counting(self.taskdir, self.fingerprint)) if bad else 0
        self.outcome.left = sum(not self._on(known) and not known.unusable for known in todo)
        return self.outcome

    def _carry(self, todo: list[Known], wait: float) -> None:
        """With one stage-out process after another, where they die."""
        rules = self.storage.rules
        self._known = {str(known.id): known for known in todo}
        names = sorted({known.id.allocation for known in todo if not self._on(known)}, reverse=True)[:CLEANED]
        mine = tuple(p for name in names if (p := prefix_of(rules.key, self.task, name)))
        state_path = breakerfile.state_path(rules, self.taskdir.root)
        shared = task_prefix(rules.key, self.task)
        state = breakerfile.load(state_path)
        if self.by_hand:
            state = breakerfile.tried_now(state)
        first = f"endpoint:{self.storage.endpoints[0].name}"
        self._primary = Breaker(rules.breaker, state).state(first)
        self._primary_ill = self._primary in ("open", "exhausted")
        self._primary_off = self._primary == "exhausted" or (self._primary_ill and wait <= 0)
        for attempt in range(STARTS):
            stager = StagerProcess(protocol.Start(self.storage.endpoints, rules, state, mine=mine, task=shared))
            try:
                for known in filter(self._wanted, todo):
                    segment = known.segment(self.taskdir, rules.key, self.task)
                    stager.send(protocol.Submit(segment, self._on(known)))
                self._follow(stager, state_path, wait)
                break
            except StagerGone as error:
                self.say(str(error))
                state = breakerfile.load(state_path)
                time.sleep(min(rules.backoff_max, rules.backoff * 2.0**attempt))
            finally:
                stager.close()

    def _on(self, known: Known) -> tuple[str, ...]:
        """The endpoints that have it."""
        return known.on(self.storage.endpoints)

    def _wanted(self, known: Known) -> bool:
        """Whether anything is still to be done for it, as far as that can be done."""
        rules = self.storage.rules
        if self._primary_off or str(known.id) in self._given_up:
            rules = msgspec.structs.replace(rules, rehome=False)
        here = known.local and os.path.exists(known.path(self.taskdir))
        known = replace(known, local=here)
        return known.unfinished(self.storage.endpoints, rules)

    def _follow(self, stager: StagerProcess, state_path: str, wait: float) -> None:
        """Until nothing is left to do; where storage is down, for at most `wait` seconds. What goes well is not cut."""
        begun, primary, draining = time.monotonic(), self.storage.endpoints[0].name, False
        blocked: protocol.Blocked | None = None
        while not stager.ended:
            select.select([stager], [], [], 1.0)
            patient = time.monotonic() - begun < wait
            for report in stager.receive():
                match report:
                    case protocol.Staged():
                        blocked = None
                        if patient and report.endpoint == primary:
                            self._primary_ill = False
                        self._staged(stager, report)
                    case protocol.Removed():
                        self._removed(stager, report)
                    case protocol.Breaker():
                        breakerfile.save(state_path, report.state)
                        self.note(breaker_note(report))
                        self.say(f"storage {report.key.partition(':')[2]} is {report.after}: {report.reason}")
                        if report.key == f"endpoint:{primary}":
                            self._primary = report.after
                            self._primary_ill = report.after in ("open", "exhausted")
                    case protocol.Failed():
                        if report.detail != self._was.get(report.segment):
                            self.note(failure_note(report, 1))
                        self.say(f"{report.segment} to {report.endpoint}: {report.kind}: {report.detail}")
                        if report.endpoint == primary and report.kind not in NOT_ITS_FAULT:
                            self._primary_ill = True
                        taken = report.endpoint == primary and report.kind == "StorageConflict"
                        if taken or (report.endpoint != primary and self._on(self._known[report.segment])):
                            self._given_up.add(report.segment)  # cannot go there, or its copy cannot be had
                    case protocol.Damaged():
                        self._known[report.segment].unusable = report.detail
                        if report.detail != self._was.get(report.segment):
                            self.note(unusable_note(report))
                        self.say(f"segment {report.segment} cannot be staged: {report.detail}")
                    case protocol.Blocked():
                        blocked = report
                        self.note({"note": "blocked", **fields(report)})
                    case protocol.Ended():
                        breakerfile.save(state_path, report.breaker)
                        self._say_off(Breaker(self.storage.rules.breaker, report.breaker))
            # What has a copy elsewhere stays there until the next call; what is off for good is not worth any wait.
            self._primary_off = self._primary == "exhausted" or (self._primary_ill and not patient)
            if not draining and not any(self._wanted(known) for known in self._known.values()):
                draining = True
                stager.send(protocol.Drain(GRACE))
            elif not draining and blocked and (blocked.until is None or not patient):
                draining = True
                self.say("nothing more can be staged now")
                stager.send(protocol.Stop())

    def _say_off(self, breaker: Breaker) -> None:
        """Which endpoints are not used, and until when."""
        for one in self.storage.endpoints:
            retry = breaker.retry_at(f"endpoint:{one.name}")
            if retry is None:
                self.say(
                    f"storage {one.name} is off for good: `yoda stageout --reset {one.name}` once it is well again"
                )
            elif retry > time.time():
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(retry))
                self.say(f"storage {one.name} failed too often and is not used before {when}")

    def _staged(self, stager: StagerProcess, report: protocol.Staged) -> None:
        known, service = self._known[report.segment], self.storage.service(report.endpoint)
        self.note(staged_note(report, service, known.file))
        stager.send(protocol.Recorded(report.segment, report.endpoint))
        self.outcome.staged += not self._on(known)
        known.copies[report.endpoint] = Copy(report.key, report.url, service)
        self.say(f"{report.segment} {'re-homed' if report.rehomed else 'staged'} to {report.url}")

    def _removed(self, stager: StagerProcess, report: protocol.Removed) -> None:
        self.note(removed_note(report))
        known = self._known[report.segment]
        if report.endpoint is None:
            known.local = False
        else:
            known.copies.pop(report.endpoint, None)
        if report.endpoint is not None:
            stager.send(protocol.Recorded(report.segment, report.endpoint, removed=True))
        elif known.repaired and known.id.allocation in self._over and self._ends.get(known.id, 0) <= known.end:
            # This file is gone; so may go what it was made from, or what was made from it, where nobody can wake up and
            # go on writing there, and has not done so before.
            escaped = replace(self.taskdir, root=glob.escape(self.taskdir.root))
            for path in (one for kind in ("*tar", "*zip") for one in glob.glob(escaped.segment(*known.id, kind))):
                with suppress(OSError):
                    os.unlink(path)


_last_name = 0  #: milliseconds


def command_name(taskdir: TaskDir, what: str) -> str:
    """A name for the journal of a command that is no allocation; it comes after all that exist now.

    No name is given twice: two within one millisecond are a millisecond apart.
    """
    global _last_name
    _last_name = now = max(int(1000 * taskdir.after(time.time())), _last_name + 1)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1000)) + f"{now % 1000:03d}Z"
    return f"{stamp}-{what}-{os.getpid()}"


def command_journal(taskdir: TaskDir, fingerprint: str, name: str) -> JournalWriter:
    """The journal of that name."""
    return JournalWriter(taskdir.journal(name), fingerprint, name, created=time.time())


def reset(taskdir: TaskDir, fingerprint: str, storage: Storage, name: str) -> bool:
    """A person says that this endpoint (or node: `node:NAME`) is well again; False when there was nothing to reset."""
    path = breakerfile.state_path(storage.rules, taskdir.root)
    breaker, now = Breaker(storage.rules.breaker, breakerfile.load(path)), time.time()
    changes = breaker.reset(name if name.startswith(NODE) else f"endpoint:{name}", now)
    breakerfile.save(path, breaker.to_dict())
    for c in changes:
        journal = command_journal(taskdir, fingerprint, command_name(taskdir, "reset"))
        values = {"key": c.key, "before": c.before, "after": c.after, "reason": c.reason, "alert": c.alert}
        journal.note("breaker", time=c.time, **values)
        journal.flush()
        journal.file.sync()
        journal.file.close()
    return bool(changes)


__all__ = ["CannotWrite", "Carrier", "Outcome", "Storage", "reset", "stage_out", "storage_of"]
