"""Why an allocation ended: preempted, time limit, cancelled, node failure, or nothing Slurm can tell apart.

Slurm forgets why as soon as it has requeued a job: `scontrol` then shows the next start. What stays is accounting
(where the site has it) and the job's output, in which slurmstepd notes the reason and our script what Slurm called the
job.
"""

from __future__ import annotations

import enum
import re

from slurm.commands import Runner
from slurm.environment import describe


class Ended(enum.Enum):
    """The causes that can be told apart."""

    NOT_YET = "not ended"
    FINISHED = "finished by itself"
    PREEMPTED = "preempted"
    WALLTIME = "time limit"
    CANCELLED = "cancelled"
    NODE_FAILURE = "node failure"
    REQUEUED = "requeued, by its own script or by hand"
    UNKNOWN = "unknown"


_STATES = {
    "PREEMPTED": Ended.PREEMPTED,
    "TIMEOUT": Ended.WALLTIME,
    "DEADLINE": Ended.WALLTIME,
    "CANCELLED": Ended.CANCELLED,
    "NODE_FAIL": Ended.NODE_FAILURE,
    "BOOT_FAIL": Ended.NODE_FAILURE,
    "REQUEUED": Ended.REQUEUED,
    "COMPLETED": Ended.FINISHED,
    "FAILED": Ended.FINISHED,
}
_NOTES = {
    "PREEMPTION": Ended.PREEMPTED,
    "TIME LIMIT": Ended.WALLTIME,
    "NODE FAILURE": Ended.NODE_FAILURE,
    "JOB REQUEUE": Ended.REQUEUED,
    "JOB_REQUEUE": Ended.REQUEUED,
}


def why_ended(jobid: int, restart: int, run: Runner, output: str = "") -> Ended:
    """Why the given start of a job ended.

    `output` is the text of the job's output file (all starts append to it); without it a requeued start is often
    UNKNOWN.
    """
    told = _from_output(jobid, restart, output)
    if told in (Ended.PREEMPTED, Ended.WALLTIME, Ended.NODE_FAILURE):
        return told
    job = describe(jobid, run)
    if job and int(job.get("Restarts") or 0) == restart:
        now = _from_job(job)
        if now is not None:
            return now
    accounted = _from_accounting(jobid, restart, run)
    if accounted is not Ended.UNKNOWN:
        return accounted
    return told


def _from_job(job: dict[str, str]) -> Ended | None:
    """From `scontrol show job`, while Slurm still speaks of the start in question."""
    state = job.get("JobState", "").split("+")[0]
    if state == "COMPLETING" and job.get("Reason") == "TimeLimit":
        return Ended.WALLTIME
    if state in ("RUNNING", "SUSPENDED", "COMPLETING", "PENDING", "CONFIGURING"):
        return Ended.NOT_YET
    return _STATES.get(state)


def _from_accounting(jobid: int, restart: int, run: Runner) -> Ended:
    """From sacct with duplicates, one line per start; UNKNOWN where the site has no accounting."""
    ran = run(["sacct", "-X", "-n", "-P", "-D", "-j", str(jobid), "-o", "State"])
    lines = ran.out.split("\n")[:-1] if ran.code == 0 else []
    if restart >= len(lines):
        return Ended.UNKNOWN
    return _STATES.get(lines[restart].split(" ")[0], Ended.UNKNOWN)


def _from_output(jobid: int, restart: int, output: str) -> Ended:
    """From what the batch script and slurmstepd wrote while this start was under way."""
    own = re.compile(rf"allocation {jobid}\.(\d+): (.*)")
    starts, told = -1, Ended.UNKNOWN
    for line in output.splitlines():
        said = own.search(line)
        if said:
            starts = int(said[1])
        if starts != restart:
            continue
        if said and (
            found := re.search(r"preempted (\d{4}-\S+)|reason (TimeLimit)|(ends with code)|(gives up)", said[2])
        ):
            return Ended.PREEMPTED if found[1] else Ended.WALLTIME if found[2] else Ended.FINISHED
        noted = re.search(rf"\*\*\* JOB {jobid} ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z_, ]+?))? \*\*\*", line)
        if noted and told is Ended.UNKNOWN:
            reason = noted[1] or ""
            told = next((ended for note, ended in _NOTES.items() if reason.startswith(note)), Ended.UNKNOWN)
            told = told if reason else Ended.CANCELLED
    return told
