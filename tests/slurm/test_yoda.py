"""Yoda itself under a real Slurm: submitted, preempted, shortened, requeued, hit by a dead node; always the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
import tasks
from cluster import Cluster
from tasks import Task

from slurm.ending import Ended

PMI2 = "srun --mpi=pmi2 --ntasks={ranks}"


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """sha256 of the merged file of an undisturbed run."""
    here = runs.here()
    if here is None:
        pytest.skip("no mpiexec in this environment")
    return tasks.reference(tmp_path_factory.mktemp("reference"), here)


def mpi_named(name: str) -> runs.Mpi:
    try:
        return runs.get(name)
    except runs.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def mpi_here() -> runs.Mpi:
    found = runs.here()
    if found is None:
        pytest.skip("no mpiexec in this environment: pip install 'yoda-droid[mpi]'")
    return found


@pytest.mark.parametrize(("name", "launcher"), [("openmpi", None), ("mpich", None), ("mpich", PMI2)])
def test_submitted_job_completes(
    slurm_netns: Cluster, tmp_path: Path, reference: str, name: str, launcher: str | None
) -> None:
    """Two nodes, two workers on each; the job ends by itself with Yoda's code, and the bytes are the reference's."""
    task = Task(slurm_netns, tmp_path, mpi_named(name), launcher=launcher)
    said = task.submit().stdout
    assert "core-hours" in said and str(task.root / "slurm") in said
    job = task.until_over()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), task.said()
    status = task.check_complete(reference)
    droids = status["allocations"][0]["droids"]
    assert sorted(d["host"] for d in droids) == ["n1", "n2"] and all(d["events_done"] for d in droids), task.said()
    assert "nothing to submit" in task.submit().stdout and len(task.jobs) == 1


@pytest.mark.parametrize(
    ("grace", "name", "launcher"), [(0, "openmpi", None), (5, "openmpi", None), (0, "mpich", PMI2)]
)
def test_preempted_job_resumes_by_itself(
    slurm_netns: Cluster, tmp_path: Path, reference: str, grace: int, name: str, launcher: str | None
) -> None:
    slurm_netns.set_partition("low", GraceTime=grace)
    task = Task(slurm_netns, tmp_path, mpi_named(name), pace=0.1, launcher=launcher)
    task.submit()
    before = task.until_done(20)
    task.preempt()
    task.until_output(rf"allocation {task.job}\.1: starts on")
    assert task.why(0) is Ended.PREEMPTED
    job = task.until_over()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), task.said()
    status = task.check_complete(reference)
    assert before <= status["allocations"][0]["events_done"] < tasks.EVENTS
    assert not runs.granted_again(task.place().story())
    assert status["slurm"]["jobs"][0]["preempted"] == 1
