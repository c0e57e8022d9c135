"""What Slurm knows of a task's allocations: which wait and why, which run until when, how often each was preempted.

Jobs are found by the script they were submitted with, which lies in TASK/slurm: that holds for a job a script submitted
again by itself, too. Slurm forgets why a start ended once it has requeued the job, but the job's output in TASK/slurm
tells. Asked is only where a task was submitted, and not for long: a status must come though slurmctld is down.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from eventrange.quantity import span
from eventrange.taskdir import TaskDir
from slurm.commands import NOT_FOUND, Ran, Runner, run_command
from slurm.ending import Ended, why_ended
from slurm.environment import unix_time

PATIENCE = 3.0  #: seconds Slurm has for its answer
_FIELDS = "%i|%T|%r|%S|%e|%D|%o"
_OUTPUT = re.compile(r"slurm-(\d+)\.out$")
_TAIL = 4 << 20  #: bytes of a job's output that are looked at, from its end


def slurm_view(taskdir: TaskDir, name: str, run: Runner | None = None) -> dict[str, Any] | None:
    """What Slurm says of the jobs of task `name`; None where it was never submitted.

    `answered` is false, with the reason, when Slurm could not be asked; what the outputs tell is there all the same.
    Times are unix seconds.
    """
    folder = taskdir.slurm
    try:
        outputs = {int(m[1]): e.path for e in os.scandir(folder) if (m := _OUTPUT.search(e.name))}
    except OSError:
        return None
    ask = run or _bounded
    ran = ask(
        ["squeue", "-h", f"--name={name}", "--states=PENDING,RUNNING,SUSPENDED,COMPLETING,CONFIGURING", "-o", _FIELDS]
    )
    jobs: dict[int, dict[str, Any]] = {}
    if ran.code == 0:
        for line in ran.out.splitlines():
            found = _job(line, folder)
            if found is not None:
                jobs[found["job"]] = found
    for number, path in outputs.items():
        starts, ends, said = past(number, path)
        if number in jobs or starts:
            entry = jobs.setdefault(number, {"job": number, "state": "GONE", "reason": "", "start": None, "end": None})
            entry.update(starts=starts, preempted=ends[Ended.PREEMPTED], ends={e.value: n for e, n in ends.items()})
            entry.update(said=said, output=path)
    if ran.code == NOT_FOUND:
        why = "there is no squeue here"
    else:
        why = (ran.err or ran.out).strip() if ran.code else ""
    return {"answered": ran.code == 0, "why": why, "jobs": [jobs[number] for number in sorted(jobs)]}


def _bounded(argv: Any, stdin: str | None = None) -> Ran:
    return run_command(argv, stdin, timeout=PATIENCE)


def _job(line: str, folder: str) -> dict[str, Any] | None:
    number, state, reason, start, end, nodes, command = line.split("|", 6)
    # another task may have the same name; a job array's elements are not ours
    if not number.isdigit() or os.path.dirname(os.path.realpath(command.split(" ")[0])) != os.path.realpath(folder):
        return None
    return {
        "job": int(number),
        "state": state,
        "reason": "" if reason == "None" else reason,
        "start": unix_time(start),
        "end": unix_time(end),
        "nodes": int(nodes) if nodes.isdigit() else None,
        "starts": 0,
        "preempted": 0,
        "ends": {},
        "said": "",
    }


def past(job: int, path: str) -> tuple[int, Counter[Ended], str]:
    """How often a job has started, why its starts ended but for the last, and the last words of the script, if it has
    ended by itself; from its output."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return 0, Counter(), ""
    starts = sorted({int(n) for n in re.findall(rf"allocation {job}\.(\d+): starts on", text)})
    last = re.findall(rf"allocation {job}\.(\d+): (ends with code \d+|gives up: [^;]*)", text)[-1:]
    said = "".join(words for number, words in last if not starts or int(number) >= starts[-1])
    if not starts:
        return 0, Counter(), said
    nobody: Runner = _nobody
    ends = Counter(why_ended(job, number, nobody, text) for number in starts[:-1])
    return starts[-1] + 1, ends, said


def _nobody(argv: Any, stdin: str | None = None) -> Ran:
    """Past starts are told by the output alone: one question to Slurm per status is enough."""
    return Ran(NOT_FOUND, "")


def render(view: dict[str, Any] | None, now: float | None = None) -> list[str]:
    """Lines for people; none where there is nothing to say."""
    if view is None:
        return []
    now = time.time() if now is None else now
    lines = []
    for job in view["jobs"]:
        parts = [_where(job, now)]
        if job["preempted"]:
            parts.append(f"preempted {job['preempted']} time{'s' * (job['preempted'] != 1)}")
        others = sum(job["ends"].values()) - job["preempted"]
        if others > 0:
            parts.append("otherwise restarted " + (f"{others} times" if others > 1 else "once"))
        bad = job["state"] == "GONE" and job.get("said", "") not in ("", "ends with code 0", "ends with code 65")
        if bad:
            parts += [job["said"], f"see {job['output']}"]
        if job["state"] != "GONE" or job["preempted"] or others or bad:
            lines.append(f"  job {job['job']}  {', '.join(parts)}")
    if not view["answered"]:
        lines.append(f"  Slurm does not answer: {view['why'].splitlines()[0] if view['why'] else 'no reason given'}")
    return ["Slurm", *lines] if lines else []


def _where(job: dict[str, Any], now: float) -> str:
    if job["state"] == "PENDING":
        when = f", expected to start in {_minutes(job['start'] - now)}" if job["start"] and job["start"] > now else ""
        return f"pending ({job['reason'] or 'no reason yet'}{when})"
    if job["state"] == "RUNNING":
        until = f", {_minutes(job['end'] - now)} left" if job["end"] else ""
        return f"running on {job['nodes']} node{'s' * (job['nodes'] != 1)}{until}"
    return "no longer in the queue" if job["state"] == "GONE" else str(job["state"]).lower()


def _minutes(seconds: float) -> str:
    return span(max(0.0, seconds))


def outputs_of(taskdir: TaskDir) -> list[Path]:
    """The output files of all jobs of a task, oldest first."""
    return sorted(Path(taskdir.slurm).glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)
