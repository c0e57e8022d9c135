"""The sbatch script on a real Slurm: whatever ends an allocation, the job comes back as long as work is left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import Cluster, Options, running, why_not

from slurm.ending import Ended, why_ended
from slurm.script import sbatch_script
from slurm.site import SlurmSite
from slurm.submit import submit

PAYLOAD = [sys.executable, str(Path(__file__).with_name("payload.py"))]
# as root in a container Open MPI wants to be asked twice; MPICH would take nodes that share /tmp for one machine
SETUP = [
    f"export PATH={Path(sys.executable).parent}:$PATH",
    "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
    "export MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp",
]


@dataclass
class Task:
    """A submitted job with the stand-in payload."""

    cluster: Cluster
    folder: Path
    jobid: int = 0
    site: dict[str, object] = field(default_factory=dict)

    def submit(self, launcher: str = "mpiexec -n {ranks}", seconds: float = 4, *words: str) -> int:
        asked = {"partition": "low", "nodes": 2, "time": "10min", "signal_before_end": "60s", "setup": SETUP}
        site = SlurmSite(**{**asked, **self.site})  # type: ignore[arg-type]
        path = self.folder / "job.sh"
        command = [*PAYLOAD, str(self.folder), str(seconds), *words]
        where = {"script_path": path, "logs": self.folder}
        text = sbatch_script("stand-in", site, command, launcher=launcher, max_barren_starts=2, **where)  # type: ignore[arg-type]
        path.write_text(text)
        self.jobid = submit(path, self.cluster.runner).jobid
        return self.jobid

    @property
    def output(self) -> str:
        path = self.folder / f"slurm-{self.jobid}.out"
        return path.read_text() if path.exists() else ""

    def story(self, words: str, timeout: float = 60) -> str:
        return self.cluster.wait_text(self.folder / "story", words, timeout)

    def preempt(self) -> int:
        """A job of higher priority takes every node for a moment."""
        return self.cluster.sbatch("#!/bin/sh\nsleep 1\n", "-p", "high", "-N3", "--exclusive", "-t1")

    def why(self, restart: int) -> Ended:
        return why_ended(self.jobid, restart, self.cluster.runner, self.output)


@pytest.fixture
def task(slurm: Cluster, tmp_path: Path) -> Task:
    return Task(slurm, tmp_path)


@pytest.fixture
def spread(slurm_netns: Cluster, tmp_path: Path) -> Task:
    return Task(slurm_netns, tmp_path)


def test_complete_job_ends_with_the_code_yoda_wrote(task: Task) -> None:
    job = task.submit("", 0.5)
    assert task.cluster.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0"
    assert "ends with code 0" in task.output
    assert task.why(0) is Ended.FINISHED


def test_all_launchers_put_yoda_and_one_droid_per_node(spread: Task) -> None:
    """Three nodes, four ranks: two on the first node, one on each other, and Open MPI needs no extra options."""
    where = "sh -c 'echo placed $(hostname) >> {}/story; exec {} {} {} 0.5' sh"
    spread.site = {"nodes": 3}
    launcher = "mpiexec -n {ranks} " + where.format(spread.folder, *PAYLOAD, spread.folder)
    job = spread.submit(launcher)
    spread.cluster.wait(job, "COMPLETED")
    placed = [line.split()[1] for line in spread.story("ends").splitlines() if line.startswith("placed")]
    assert sorted(placed) == ["n1", "n1", "n2", "n3"]


def test_preempted_where_requeue_is_forbidden(task: Task) -> None:
    """Slurm ends the job as PREEMPTED; the work goes on in a new job."""
    task.site = {"requeue": False}
    job = task.submit("", 300)
    task.story("rank 0 starts 0")
    task.preempt()
    found = task.cluster.wait_text(task.folder / f"slurm-{job}.out", "Submitted batch job")
    assert task.cluster.wait(job, "PREEMPTED", "COMPLETED")["JobState"] == "PREEMPTED"
    assert task.why(0) is Ended.PREEMPTED
    task.cluster.wait(int(found.split("Submitted batch job")[1].split()[0]), "RUNNING")


def test_cancelled_job_stays_cancelled(task: Task) -> None:
    job = task.submit("", 300)
    task.story("rank 0 starts 0")
    task.cluster.run(["scancel", str(job)], check=True)
    assert task.cluster.wait(job, "CANCELLED", "COMPLETED", "PENDING")["JobState"] == "CANCELLED"
    assert task.why(0) is Ended.CANCELLED
    task.story("rank 0 ends 75")


@pytest.mark.slow
def test_requeued_by_hand(task: Task) -> None:
    job = task.submit("", 300)
    task.story("rank 0 starts 0")
    task.cluster.run(["scontrol", "requeue", str(job)], check=True)
    task.story("rank 0 starts 1")
    assert task.why(0) is Ended.REQUEUED


# --- slow ones: under way on a cluster of their own since the first test of this file


@pytest.fixture(scope="module", autouse=True)
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Task]]:
    reason = why_not(netns=False)
    if reason:
        pytest.skip(reason)
    with running(Options(nodes=6)) as cluster:
        names = ("limit", "resubmit", "stubborn", "broken", "chained", "idle")
        tasks = {name: Task(cluster, tmp_path_factory.mktemp(name)) for name in names}
        # Slurm warns up to a minute early, so with a limit of a minute the warning may come at once
        short = {"nodes": 1, "time": "1min", "signal_before_end": "50s"}
        tasks["limit"].site = short
        tasks["limit"].submit("", 300)
        tasks["resubmit"].site = {**short, "requeue": False}
        tasks["resubmit"].submit("", 300)
        tasks["stubborn"].site = {**short, "signal_before_end": "8s"}
        tasks["stubborn"].submit("", 300, "stubborn")
        tasks["broken"].site = {"nodes": 1}
        tasks["broken"].submit("/no/such/launcher -n {ranks}")
        tasks["chained"].site = {"nodes": 1, "requeue": False}
        tasks["chained"].submit("/no/such/launcher -n {ranks}")
        tasks["idle"].site = {"nodes": 1}
        tasks["idle"].submit("", 300, "idle")
        yield tasks


@pytest.mark.slow
def test_time_limit_requeues(slow: dict[str, Task]) -> None:
    task = slow["limit"]
    task.story("rank 0 ends 75")
    task.story("rank 0 starts 1")


def test_time_limit_resubmits_where_requeue_is_forbidden(slow: dict[str, Task]) -> None:
    task = slow["resubmit"]
    found = task.cluster.wait_text(task.folder / f"slurm-{task.jobid}.out", "Submitted batch job")
    next_job = int(found.split("Submitted batch job")[1].split()[0])
    task.cluster.wait_text(task.folder / f"slurm-{next_job}.out", "starts on")


def test_payload_that_does_not_stop_is_given_up_before_the_limit(slow: dict[str, Task]) -> None:
    slow["stubborn"].story("rank 0 starts 1", timeout=90)


@pytest.mark.parametrize("name", ["broken", "idle"])
def test_job_that_does_nothing_is_not_requeued_for_ever(slow: dict[str, Task], name: str) -> None:
    """A launcher that cannot start, and a Yoda that ends with work left, again and again."""
    task = slow[name]
    assert task.cluster.wait(task.jobid, "FAILED", timeout=120)["Restarts"] == "1"
    assert "gives up: 2 starts in a row" in task.output
    assert not list(task.folder.glob("*.barren"))


def test_job_that_does_nothing_is_not_submitted_for_ever(slow: dict[str, Task]) -> None:
    task = slow["chained"]
    first = task.cluster.wait_text(task.folder / f"slurm-{task.jobid}.out", "Submitted batch job")
    second = int(first.split("Submitted batch job")[1].split()[0])
    assert "gives up" in task.cluster.wait_text(task.folder / f"slurm-{second}.out", "gives up")
    assert task.cluster.wait(second, "FAILED", timeout=60)["ExitCode"] == "1:0"
