"""Launchers on a real Slurm: srun that starts ranks which do not find each other, or binds them; and what the doctor
says of them before it costs an allocation."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
import tasks
from cluster import Cluster, Options, running, why_no_pmix, why_not
from tasks import Task


@pytest.mark.parametrize(
    ("name", "plugin", "right"),
    [("mpich", "none", "pmi2"), pytest.param("openmpi", "pmi2", "pmix", marks=pytest.mark.slow)],
)
def test_singletons_stop_at_once(slurm_netns: Cluster, tmp_path: Path, name: str, plugin: str, right: str) -> None:
    """srun without the right --mpi starts ranks that do not find each other: exit 78, and the line to try."""
    if right == "pmix" and why_no_pmix():
        pytest.skip(why_no_pmix())
    task = Task(slurm_netns, tmp_path, tasks.mpi_named(name), launcher=f"srun --mpi={plugin} --ntasks={{ranks}}")
    task.submit()
    job = task.until_over()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "78:0"), task.said()
    assert f"srun --mpi={right} --ntasks={{ranks}}" in task.output(), task.said()


def doctor(cluster: Cluster, folder: Path, launcher: str, *lines: str, task_at: str = "") -> tuple[str, str]:
    """`yoda doctor` in an allocation of two nodes, under MPICH: its exit code and what it said. `lines` are shell."""
    mpi = tasks.mpi_named("mpich")
    task = Task(cluster, folder, mpi, launcher=launcher)
    task.write()
    words = [mpi.python, runs.ENTRY, "doctor", "--site", str(folder / "site.yaml"), "--task", task_at or str(folder)]
    script = "\n".join(["#!/bin/sh", *tasks.setup(0), *lines, shlex.join(words)]) + "\n"
    asked = ["-N2", "--ntasks-per-node=1", "--exclusive", "-t5", f"--output={folder}/said"]
    job = cluster.wait(cluster.sbatch(script, *asked), "COMPLETED", "FAILED", timeout=90)
    return job["ExitCode"], (folder / "said").read_text()


@pytest.mark.parametrize(
    ("plugin", "code", "said"),
    [
        ("pmi2", "0:0", "3 ranks"),
        pytest.param("none", "78:0", "srun --mpi=pmi2", marks=pytest.mark.slow),  # each an MPI of its own
        pytest.param("pmix", "78:0", "srun --mpi=pmi2", marks=pytest.mark.slow),  # MPI_Init ends them
    ],
)
def test_doctor_within_an_allocation(slurm_netns: Cluster, tmp_path: Path, plugin: str, code: str, said: str) -> None:
    """The doctor starts the site's launcher: an MPI that does not fit is found, and the right plugin is well."""
    got, text = doctor(slurm_netns, tmp_path, f"srun --mpi={plugin} --ntasks={{ranks}}")
    assert got == code and said in text, text
    if code == "0:0":
        assert "clocks agree" in text and "may use 2 CPUs" in text and "2 nodes see what n1 writes" in text, text
        assert not list(tmp_path.glob(".doctor*"))


def test_doctor_finds_a_clock_that_is_wrong(slurm_netns: Cluster, tmp_path: Path) -> None:
    """A second node whose clock is forty seconds ahead, which here only its Python believes."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\n"
        "if socket.gethostname() == 'n2':\n"
        "    right = time.time\n"
        "    time.time = lambda: right() + 40\n"
    )
    launcher = "srun --mpi=pmi2 --ntasks={ranks}"
    code, text = doctor(slurm_netns, tmp_path, launcher, f"export PYTHONPATH={tmp_path}")
    assert code == "78:0" and "the clock of n2 is 40 s ahead of that of n1" in text, text


@pytest.mark.slow
def test_doctor_finds_a_task_that_other_nodes_do_not_see(slurm_netns: Cluster, tmp_path: Path) -> None:
    """Each node of the cluster has a /dev/shm of its own."""
    code, text = doctor(slurm_netns, tmp_path, "srun --mpi=pmi2 --ntasks={ranks}", task_at="/dev/shm/mine.task")
    assert code == "78:0" and "what n1 writes is not seen on n2" in text, text


# -- binding: as on a Cray, where Slurm binds tasks to cores -----------------------------------------------------------


@pytest.fixture(scope="module")
def binding() -> Iterator[Cluster]:
    reason = why_not(netns=True)
    if reason:
        pytest.skip(reason)
    with running(Options(nodes=2, netns=True, task_plugin="task/affinity")) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("bind", "workers"),
    [
        ("--cpu-bind=none", {"n1": 2, "n2": 2}),
        # Yoda and a Droid share the first node, so Slurm gives each of them half of it
        pytest.param("--cpu-bind=cores --cpus-per-task=2", {"n1": 1, "n2": 2}, marks=pytest.mark.slow),
    ],
)
def test_droids_start_a_worker_for_each_core_they_may_use(
    binding: Cluster, tmp_path: Path, reference: str, bind: str, workers: dict[str, int]
) -> None:
    launcher = f"srun --mpi=pmi2 --ntasks={{ranks}} --kill-on-bad-exit=0 {bind}"
    task = Task(binding, tmp_path, tasks.mpi_named("mpich"), pace=0.02, launcher=launcher, site={"workers": "auto"})
    task.submit()
    assert task.until_over()["JobState"] == "COMPLETED", task.said()
    status = task.check_complete(reference)
    assert {d["host"]: d["workers"] for d in status["allocations"][0]["droids"]} == workers, task.said()
    half = "may use 1 of the 2 CPUs that Slurm gives on its node"
    assert (half in task.output()) == (workers["n1"] == 1), task.output()


def test_plain_run_on_one_node_may_use_all_of_it(binding: Cluster, tmp_path: Path, reference: str) -> None:
    """`yoda run --site` in a script of one's own that asks for one task of two cores: srun has to start two."""
    mpi = tasks.mpi_named("mpich")
    task = Task(binding, tmp_path, mpi, pace=0.02, launcher="srun --mpi=pmi2 --ntasks={ranks}")
    task.write()
    words = ["run", str(task.folder / "job.yaml"), "--task", str(task.root), "--site", str(task.folder / "site.yaml")]
    script = "\n".join(["#!/bin/sh", *tasks.setup(task.pace), shlex.join([mpi.python, runs.ENTRY, *words])]) + "\n"
    asked = ["-N1", "--ntasks-per-node=1", "-c2", "--exclusive", "-t5", f"--output={tmp_path}/log"]
    done = task.until_over(job=binding.sbatch(script, *asked))
    assert done["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    assert [d["workers"] for d in task.check_complete(reference)["allocations"][0]["droids"]] == [2]
    assert "may use" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_doctor_finds_droids_that_are_bound(binding: Cluster, tmp_path: Path) -> None:
    _, text = doctor(binding, tmp_path, "srun --mpi=pmi2 --ntasks={ranks} --cpu-bind=cores")
    assert "rank 1 on n1 may use 1 of the 2 CPUs" in text and "--cpu-bind=none" in text, text
