"""Several jobs of a real Slurm on one task: one joins late, one is cancelled, one is frozen past its lease and woken.

Whatever happens to one, the others finish the task, and nothing is lost or merged twice. What was processed twice is
counted, in the journals, by who did it second.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import runs
import tasks
from cluster import Cluster, until
from tasks import Task

pytestmark = pytest.mark.slow


def one_node_jobs(slurm: Cluster, folder: Path, mpi: runs.Mpi, lease_timeout: str = "1h") -> Task:
    """A minute of work for one core; allocations of one node of two."""
    site = {"lease_timeout": lease_timeout, "grace": "5s"}
    return Task(slurm, folder, mpi, pace=0.25, slurm={"nodes": 1, "requeue": False}, site=site)


def finished(task: Task, reference: str) -> tuple[dict[str, int], int]:
    """Wait for the end of all jobs; returns what each allocation that had Droids did first, and what was done twice."""
    for job in task.jobs:
        task.until_over(job=job)
    status = task.check_complete(reference)
    twice = runs.done_twice(task.place().story())
    print("done twice:", twice, "core-seconds:", status["core_seconds"])
    return {a["name"].split("-slurm-")[1]: a["events_done"] for a in status["allocations"] if a["droids_total"]}, twice


def test_one_joins_late(slurm: Cluster, tmp_path: Path, mpi_here: runs.Mpi, reference: str) -> None:
    task = one_node_jobs(slurm, tmp_path, mpi_here)
    task.submit()
    task.until_done(40)
    task.submit()
    shares, twice = finished(task, reference)
    assert [slurm.state(job) for job in task.jobs] == ["COMPLETED"] * 2, task.said()
    assert len(shares) == 2 and min(shares.values()) >= tasks.EVENTS // 10, shares
    assert twice <= 4


def test_one_is_cancelled(slurm: Cluster, tmp_path: Path, mpi_here: runs.Mpi, reference: str) -> None:
    """It drains, and what it held is free at once, though its lease would last an hour."""
    task = one_node_jobs(slurm, tmp_path, mpi_here)
    task.submit("--allocations", "2")
    task.until_done(60)
    until(lambda: len(task.status()["leases"]) == 2, 30, task.said)
    slurm.run(["scancel", str(task.jobs[0])], check=True)
    shares, twice = finished(task, reference)
    assert [slurm.state(job) for job in task.jobs] == ["CANCELLED", "COMPLETED"], task.said()
    assert len(shares) == 2 and all(shares.values()), shares
    assert twice == 0


def stopped(slurm: Cluster, job: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """SIGSTOP and SIGCONT to every process of a job."""

    def all_of_it(number: int) -> None:
        for pid in slurm.processes_of(job):
            os.kill(pid, number)

    return lambda: all_of_it(signal.SIGSTOP), lambda: all_of_it(signal.SIGCONT)


def suspended(slurm: Cluster, job: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Slurm does the same when it gives a node to a job of higher priority for a while (PreemptMode=SUSPEND)."""

    def tell(word: str) -> Callable[[], object]:
        return lambda: slurm.run(["scontrol", word, str(job)], check=True)

    return tell("suspend"), tell("resume")


@pytest.mark.parametrize("how", [stopped, suspended])
def test_one_is_frozen_past_its_lease_and_wakes(
    slurm: Cluster,
    tmp_path: Path,
    mpi_here: runs.Mpi,
    reference: str,
    how: Callable[..., tuple[Callable[[], object], ...]],
) -> None:
    task = one_node_jobs(slurm, tmp_path, mpi_here, lease_timeout="4s")
    task.submit("--allocations", "2")
    until(lambda: sum(one["parts"] > 0 for one in task.status()["leases"]) == 2, 60, task.said)
    task.until_done(40)
    freeze, wake = how(slurm, task.jobs[0])
    freeze()
    place = task.place()
    until(lambda: any(note.get("from") for note in place.notes("claimed")), 60, task.said)
    wake()
    shares, twice = finished(task, reference)
    assert [slurm.state(job) for job in task.jobs] == ["COMPLETED"] * 2, task.said()
    assert len(shares) == 2 and all(shares.values()), shares
    # at most what its workers were on and what was on its way when it froze
    assert twice <= tasks.EVENTS // 8, twice
    assert place.notes("lost_parts"), task.said()
