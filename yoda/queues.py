"""Queues that only fail: a circuit breaker per queue (site, partition, qos), so that `yoda submit` does not feed them.

What is counted are starts of this task's jobs, as the job's output, Slurm and the journals tell: a start in which an
event was done speaks for the queue; one that ended without, by itself or at its time limit, against it. Preemption, a
dead node, scancel and a requeue say nothing. TASK/slurm/slurm-JOB.queue names the job's queue, and below that the
starts that have been judged, each with its verdict.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventrange.durable import explain
from eventrange.errors import QueueOff
from eventrange.history import Story
from eventrange.quantity import span
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from slurm.commands import NOT_FOUND, Ran, Runner
from slurm.ending import Ended, why_ended
from slurm.environment import job_of
from slurm.site import SlurmSite
from stageout import breakerfile
from stageout.alert import alert
from stageout.breaker import Breaker, Change
from yoda.nodes import note_of
from yoda.setting import Setting
from yoda.stageout import command_journal, command_name

KIND = "queue:"
_AGAINST = (Ended.FINISHED, Ended.WALLTIME)
_OUTPUT = re.compile(r"slurm-(\d+)\.out$")
_LINE = r"^(\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d) allocation {job}\.(\d+): (.*)$"


@dataclass(frozen=True)
class Start:
    """One start of a job, as its output tells it; `told`: the script lived to say how it ended."""

    job: int
    number: int
    end: float
    last: bool
    told: bool


def queue_of(site: str, slurm: SlurmSite) -> str:
    """The name of the queue that a site file feeds."""
    return f"{site}/{slurm.partition or 'default'}/{slurm.qos or 'default'}"


def verdict(ended: Ended, done: bool) -> bool | None:
    """Whether a start speaks for its queue (True), against it, or says nothing. Pure."""
    return True if done else False if ended in _AGAINST else None


def starts_of(job: int, text: str, changed: float) -> list[Start]:
    """The starts that a job's output tells of; `changed` is when that was last written to. A job whose script did not
    get as far as that has one of which nothing is known. Pure."""
    found: dict[int, list[tuple[float, str]]] = {}
    for stamp, number, said in re.findall(_LINE.format(job=job), text, re.M):
        when = time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S"))
        found.setdefault(int(number), []).append((when, said))
    begun = sorted(n for n, lines in found.items() if any(said.startswith("starts on") for _, said in lines))
    out = [] if begun else [Start(job, 0, changed, True, False)]
    for number in begun:
        last = number == begun[-1]
        said = [text for _, text in found[number]]
        told = any(re.match(r"work is left|ends with|gives up", text) for text in said)
        out.append(Start(job, number, changed if last else found[number][-1][0], last, told))
    return out


class Queues:
    """The queue that `setting` feeds, and what its breaker says of it."""

    def __init__(self, setting: Setting, fingerprint: str, run: Runner, now: float) -> None:
        assert setting.site.slurm is not None
        self.name = queue_of(setting.site.site, setting.site.slurm)
        self._setting, self._fingerprint, self._run, self._now = setting, fingerprint, run, now
        self._path = breakerfile.state_path(setting.site.stageout_rules, setting.taskdir.root)
        state = breakerfile.load(self._path)
        self._breaker = Breaker(setting.site.queue_breaker, state, probes=True)
        self._changes: list[Change] = []

    def learn(self) -> None:
        """Judge the starts that have ended since the last time, of all queues of this task."""
        taskdir, results = self._setting.taskdir, []
        for queue, start, text in _unjudged(taskdir):
            done = self._done(start)
            ended = why_ended(start.job, start.number, self._run if start.last else _nobody, text)
            if ended is Ended.NOT_YET or (start.last and not start.told and ended is Ended.UNKNOWN):
                continue
            good = verdict(ended, done)
            results.append((start, queue, good, ended))
        for start, queue, good, ended in sorted(results, key=lambda result: result[0].end):
            word = {True: "good", False: "bad", None: "says nothing"}[good]
            _add(taskdir, start.job, queue, f"{start.number} {word}: {ended.value}")
            key = KIND + queue
            if good:
                self._changes += self._breaker.success(key, start.end)
            elif good is False:
                why = f"job {start.job}, {ended.value}, nothing done"
                self._changes += self._breaker.failure(key, start.end, why)
        self._keep()

    def ask(self, allocations: int, force: bool) -> tuple[int, str]:
        """How many allocations may be submitted, and a remark for people. Raises QueueOff."""
        key = KIND + self.name
        if force:
            self._changes += self._breaker.reset(key, self._now)
            self._keep()
            return allocations, ""
        if self._breaker.state(key) == "closed":
            return allocations, ""
        allowed, changes = self._breaker.allow(key, self._now)
        self._changes += changes
        self._keep()
        if not allowed:
            raise QueueOff(queue=self.name, detail=self.why(), logs=self._setting.taskdir.slurm)
        return 1, f"queue {self.name} failed too often and is tried again, with one allocation"

    def why(self) -> str:
        """What is wrong with the queue and until when; empty when nothing is."""
        key = KIND + self.name
        state, retry = self._breaker.state(key), self._breaker.retry_at(key)
        if state == "closed":
            return ""
        if retry is None:
            return "it was tried again several times, for nothing; it is off for good"
        if state == "half-open":
            return "it is on trial: see what becomes of the last job"
        return f"it is tried again in {span(max(0.0, retry - self._now))}"

    def submitted(self, job: int) -> None:
        """Job `job` went to this queue."""
        _add(self._setting.taskdir, job, self.name)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _done(self, start: Start) -> bool:
        """Whether anything was done in this start; a task that was complete already is well, too."""
        taskdir = self._setting.taskdir
        names = {name for name in taskdir.allocations() if job_of(name) == (start.job, start.number)}
        for _, entry in Story(taskdir, self._fingerprint, names).whole() if names else ():
            if isinstance(entry, dict):
                if entry.get("note") == "end" and entry.get("exit_code") in (0, 65):
                    return True
            elif (entry["kind"] == Kind.DONE).any():
                return True
        return False

    def _keep(self) -> None:
        """Save the state, write the changes down, and have people told of those that matter."""
        breakerfile.save(self._path, self._breaker.to_dict())
        if not self._changes:
            return
        taskdir = self._setting.taskdir
        journal = command_journal(taskdir, self._fingerprint, command_name(taskdir, "submit"))
        for change in self._changes:
            journal.note("breaker", time=change.time, **note_of(change).values)
            if change.alert:
                what = {"queue": change.key.partition(":")[2], "state": change.after, "reason": change.reason}
                told = {**what, "time": change.time, "task": self._setting.job.task}
                alert(self._setting.site.stageout_rules, told)
        journal.flush()
        journal.file.sync()
        journal.file.close()
        self._changes = []


def _unjudged(taskdir: TaskDir) -> Iterator[tuple[str, Start, str]]:
    """(queue, start, output of its job) of all starts without a verdict, jobs in the order of their numbers. A job that
    a script submitted by itself has the queue of the one before it."""
    try:
        outputs = {int(m[1]): e.path for e in os.scandir(taskdir.slurm) if (m := _OUTPUT.search(e.name))}
    except OSError:
        return
    queue = ""
    for job, path in sorted(outputs.items()):
        try:
            judged = Path(_file(taskdir, job)).read_text().splitlines()
        except OSError:
            judged = []
        queue = judged[0] if judged else queue
        known = {line.split(" ")[0] for line in judged[1:]}
        try:
            text, changed = _told(job, path), os.path.getmtime(path)
        except OSError:
            continue
        for start in starts_of(job, text, changed) if queue else ():
            if str(start.number) not in known:
                yield queue, start, text


def _told(job: int, path: str) -> str:
    """What script and slurmstepd say in a job's output, without all that Yoda says there."""
    with open(path, errors="replace") as file:
        return "".join(line for line in file if f" allocation {job}." in line or f"*** JOB {job} ON" in line)


def _add(taskdir: TaskDir, job: int, queue: str, line: str = "") -> None:
    path = _file(taskdir, job)
    try:
        with open(path, "a") as file:
            if file.tell() == 0:
                file.write(queue + "\n")
            if line:
                file.write(line + "\n")
    except OSError as error:
        raise explain(error, path) from error


def _file(taskdir: TaskDir, job: int) -> str:
    return os.path.join(taskdir.slurm, f"slurm-{job}.queue")


def _nobody(argv: Any, stdin: str | None = None) -> Ran:
    """Earlier starts are told by the output alone: Slurm has forgotten them."""
    return Ran(NOT_FOUND, "")
