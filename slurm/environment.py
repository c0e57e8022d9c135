"""What this allocation is: read once from the environment, and its end time again and again from Slurm.

The environment is a mapping passed in, so is the clock, and so is whatever runs Slurm's commands. After MPI_Init
nothing may fork, so in a rank the end time comes from the file our batch script keeps fresh (YODA_END_FILE), or
through a runner that does not fork there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from slurm.commands import Ran, Runner

END_FILE = "YODA_END_FILE"
EXIT_FILE = "YODA_EXIT_FILE"
DONE_FILE = "YODA_DONE_FILE"


@dataclass(frozen=True)
class Allocation:
    """One batch job, or one local run, that works on a task."""

    name: str
    """Unique and sorting in time order: UTC start, then `slurm-JOBID-rRESTART` or `local-HOST-PID`."""
    jobid: int | None
    restart: int
    """How many times Slurm has started this job before."""
    nodes: tuple[str, ...]
    cpus: tuple[int, ...]
    """CPUs Slurm gave us on each node; empty without Slurm."""
    end: float | None
    """Unix time at which Slurm will end it, as known at the start; None if there is no end."""
    partition: str | None = None


def read_allocation(
    environ: Mapping[str, str], now: float, host: str, pid: int, run: Runner | None = None
) -> Allocation:
    """The allocation we are in. `run` is asked for the end time if the environment does not tell."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"{int(now * 1000) % 1000:03d}Z"
    jobid = _number(environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID"))
    if jobid is None:
        return Allocation(f"{stamp}-local-{_plain(host)}-{pid}", None, 0, (host,), (), None)
    restart = _number(environ.get("SLURM_RESTART_COUNT")) or 0
    end = end_from_file(environ) or _number(environ.get("SLURM_JOB_END_TIME"))
    if end is None and run is not None:
        end = end_from_slurm(jobid, run)
    return Allocation(
        name=f"{stamp}-slurm-{jobid}-r{restart}",
        jobid=jobid,
        restart=restart,
        nodes=tuple(expand(environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST") or host)),
        cpus=tuple(repeated(environ.get("SLURM_JOB_CPUS_PER_NODE", ""))),
        end=float(end) if end is not None else None,
        partition=environ.get("SLURM_JOB_PARTITION"),
    )


def job_of(name: str) -> tuple[int, int] | None:
    """Job id and restart count from an allocation's name; None for a local run."""
    found = re.search(r"-slurm-(\d+)-r(\d+)$", name)
    return (int(found[1]), int(found[2])) if found else None


def cpus_given(environ: Mapping[str, str]) -> dict[str, int]:
    """CPUs that Slurm gives us on each node of the allocation, by the node's short name; empty without Slurm."""
    nodes = expand(environ.get("SLURM_JOB_NODELIST", ""))
    return dict(zip(nodes, repeated(environ.get("SLURM_JOB_CPUS_PER_NODE", "")), strict=False))


class EndTime:
    """The end of the allocation while it runs: an administrator can move it either way, and a preemption moves it too.

    A call costs nothing until `interval` seconds after the last look. When Slurm does not answer, the last answer
    stands.
    """

    def __init__(
        self,
        allocation: Allocation,
        environ: Mapping[str, str],
        clock: Callable[[], float],
        run: Runner | None = None,
        interval: float = 30.0,
    ) -> None:
        self._jobid = allocation.jobid
        self._environ, self._clock, self._run, self._interval = environ, clock, run, interval
        self._end = allocation.end
        self._next = clock()

    def __call__(self) -> float | None:
        now = self._clock()
        if self._jobid is not None and now >= self._next:
            self._next = now + self._interval
            seen = end_from_file(self._environ)
            if seen is None and self._run is not None:
                seen = end_from_slurm(self._jobid, self._run)
            if seen is not None:
                self._end = seen
        return self._end


def end_from_file(environ: Mapping[str, str]) -> float | None:
    """The end time our batch script writes every minute; None when there is no such file."""
    path = environ.get(END_FILE)
    if not path:
        return None
    try:
        return float(Path(path).read_text())
    except (OSError, ValueError):
        return None


def end_from_slurm(jobid: int, run: Runner) -> float | None:
    """The end time squeue knows; None when it does not answer or there is no limit."""
    ran = run(["squeue", "-h", "-j", str(jobid), "-o", "%e"])
    return unix_time(ran.out.strip()) if ran.code == 0 else None


def unix_time(text: str) -> float | None:
    """Slurm's standard time format, local time without a zone, as unix time; None for Unknown, N/A, None."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def launched_rank(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Rank and size as the launcher tells before MPI_Init; None when no launcher started this process.

    In a batch script SLURM_NTASKS and SLURM_PROCID=0 are set although nothing was launched; only a job step has
    SLURM_STEP_ID. mpirun and mpiexec start their daemons as a step, so their own variables come first. A launcher that
    sets only a Slurm step may still have started N MPI singletons: compare with MPI's size (see doctor).
    """
    if "OMPI_COMM_WORLD_RANK" in environ and "OMPI_COMM_WORLD_SIZE" in environ:
        return int(environ["OMPI_COMM_WORLD_RANK"]), int(environ["OMPI_COMM_WORLD_SIZE"])
    if "PMI_RANK" in environ and "PMI_SIZE" in environ:
        return int(environ["PMI_RANK"]), int(environ["PMI_SIZE"])
    if environ.get("SLURM_STEP_ID") and "SLURM_PROCID" in environ:
        size = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS")
        if size:
            return int(environ.get("PMIX_RANK") or environ["SLURM_PROCID"]), int(size)
    return None


def expand(nodelist: str) -> list[str]:
    """Slurm's short form of a list of nodes, such as `n[1-3,07],gpu5`, one by one and in its order."""
    names: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        made = [""]
        for literal, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", item):
            made = [left + right for left in made for right in ([literal] if literal else _numbers(ranges))]
        names += made
    return names


def _numbers(ranges: str) -> list[str]:
    out: list[str] = []
    for part in ranges.split(","):
        first, dash, last = part.partition("-")
        out += [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)] if dash else [first]
    return out


def repeated(text: str) -> list[int]:
    """Slurm's list of numbers with repetition: `2(x3),4` is 2, 2, 2, 4."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(number) for number, times in found for _ in range(int(times or 1))]


def describe(jobid: int, run: Runner) -> dict[str, str]:
    """Everything `scontrol show job` tells about a job; empty when Slurm no longer knows it or does not answer."""
    ran: Ran = run(["scontrol", "show", "job", "-o", str(jobid)])
    return dict(re.findall(r"([\w/:]+)=(\S*)", ran.out)) if ran.code == 0 else {}


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _plain(host: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", host.split(".")[0])
