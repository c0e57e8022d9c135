"""Yoda itself under a real Slurm: submitted, preempted, shortened, hit by a dead node; always the same bytes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import runs
import tasks
from cluster import Cluster, Options, running, until, why_no_pmix, why_not
from tasks import Task
from test_holes import SLEEP, planned

from slurm.ending import Ended

PMI2, PMIX = "srun --mpi=pmi2 --ntasks={ranks}", "srun --mpi=pmix --ntasks={ranks}"
IDLE_MACHINE = 1.0  #: seconds per worker and preemption that a busy machine may add before a kill is felt


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("openmpi", None),
        pytest.param("openmpi", PMIX, marks=pytest.mark.slow),
        pytest.param("mpich", None, marks=pytest.mark.slow),
        ("mpich", PMI2),
    ],
)
def test_submitted_job_completes(
    slurm_netns: Cluster, tmp_path: Path, reference: str, name: str, launcher: str | None
) -> None:
    """Two nodes, two workers on each; the job ends by itself with Yoda's code, and the bytes are the reference's."""
    if launcher == PMIX and why_no_pmix():
        pytest.skip(why_no_pmix())
    task = Task(slurm_netns, tmp_path, tasks.mpi_named(name), launcher=launcher)
    said = task.submit().stdout
    assert "core-hours" in said and str(task.root / "slurm") in said
    job = task.until_over()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), task.said()
    assert (task.root / "slurm" / f"slurm-{task.job}.done").read_text() == f"{tasks.EVENTS}\n"
    status = task.check_complete(reference)
    droids = status["allocations"][0]["droids"]
    assert sorted(d["host"] for d in droids) == ["n1", "n2"] and all(d["events_done"] for d in droids), task.said()
    assert "nothing to submit" in task.submit().stdout and len(task.jobs) == 1


@pytest.mark.parametrize(
    ("grace", "name", "launcher"),
    [
        (0, "openmpi", None),
        pytest.param(5, "openmpi", None, marks=pytest.mark.slow),
        pytest.param(0, "mpich", PMI2, marks=pytest.mark.slow),
        pytest.param(5, "openmpi", PMIX, marks=pytest.mark.slow),
    ],
)
def test_preempted_job_resumes_by_itself(
    slurm_netns: Cluster, tmp_path: Path, reference: str, grace: int, name: str, launcher: str | None
) -> None:
    if launcher == PMIX and why_no_pmix():
        pytest.skip(why_no_pmix())
    slurm_netns.set_partition("low", GraceTime=grace)
    task = Task(slurm_netns, tmp_path, tasks.mpi_named(name), pace=0.1, launcher=launcher)
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


@pytest.fixture(scope="module", autouse=True)
def under_way(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    """Stories that mostly wait for Slurm, each on a cluster of its own, beside the other tests from the first one on.

    Only those whose test is going to run.
    """
    stories = {
        test_preempted_five_times_and_complete: preempted_five_times,
        test_time_limit_drains_and_goes_on: time_limit,
        test_node_crash_requeues_and_resumes: node_crash,
        test_end_that_is_moved_is_noticed: end_moved,
        test_one_of_two_allocations_is_killed: one_of_two_killed,
    }
    chosen = {getattr(item, "function", None) for item in request.session.items}
    wanted = [story for test, story in stories.items() if test in chosen]
    reason, here = why_not(netns=True), runs.here()
    if not wanted or reason or here is None:
        yield {}
        return
    reference: str = request.getfixturevalue("reference")
    paths: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    with ThreadPoolExecutor(len(wanted)) as pool:
        yield {s.__name__: pool.submit(s, Stage(paths.mktemp(s.__name__), here, reference)) for s in wanted}


def finish(under_way: dict[str, Future[None]], name: str) -> None:
    """Wait for the end of a story, which tells what went wrong in it."""
    if name not in under_way:
        pytest.skip(why_not(netns=True) or "no mpiexec in this environment")
    under_way[name].result(240)


@dataclass(frozen=True)
class Stage:
    """What a story is given."""

    folder: Path
    mpi: runs.Mpi
    reference: str


def preempted_five_times(stage: Stage) -> None:
    with running(Options(nodes=2, netns=True)) as cluster:
        task = Task(cluster, stage.folder, stage.mpi, pace=0.3)
        task.submit()
        for restart in range(5):
            task.until_done(30 * restart)
            task.preempt(nodes=2)
            task.until_output(rf"allocation {task.job}\.{restart + 1}: starts on")
        job = task.until_over()
        assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "5"), task.said()
        status = task.check_complete(stage.reference)
        assert not runs.granted_again(task.place().story())
        view = status["slurm"]["jobs"][0]
        assert (view["starts"], view["preempted"]) == (6, 5), view
        assert "preempted 5 times" in task.yoda("status", str(task.root)).stdout
        # what was in flight: one event per worker and preemption, and what one group commit gathers
        seconds = status["core_seconds"]
        workers, commit = 4, 0.5
        assert seconds["lost_in_flight"] <= 5 * workers * (task.pace + commit + IDLE_MACHINE), seconds
        assert seconds["retried"] == 0, seconds
        print("five preemptions:", json.dumps({k: round(v, 2) for k, v in seconds.items()}))


def time_limit(stage: Stage) -> None:
    """A minute of work for four workers in allocations of a minute, of which the warning takes what it likes."""
    with running(Options(nodes=2, netns=True)) as cluster:
        slurm = {"time": "1min", "signal_before_end": "30s"}
        task = Task(cluster, stage.folder, stage.mpi, pace=1.0, slurm=slurm)
        task.submit()
        job = task.until_over(240)
        assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 1, task.said()
        status = task.check_complete(stage.reference)
        # Slurm may warn as soon as the job starts, and then nothing is done in that start
        assert any(a["exit_code"] == 75 and a["events_done"] for a in status["allocations"]), status["allocations"]
        assert seconds_lost(status) == 0, status["core_seconds"]
        assert not runs.granted_again(task.place().story())


def node_crash(stage: Stage) -> None:
    with running(Options(nodes=3, netns=True)) as cluster:
        task = Task(cluster, stage.folder, stage.mpi, pace=0.5)
        task.submit()
        before = task.until_done(20)
        nodes = cluster.nodes_of(task.job)
        cluster.kill_node(nodes[-1])
        task.until_output(rf"allocation {task.job}\.1: starts on")
        job = task.until_over(180)
        assert job["JobState"] == "COMPLETED", task.said()
        status = task.check_complete(stage.reference)
        assert status["allocations"][0]["events_done"] >= before
        hosts = {d["host"] for d in status["allocations"][-1]["droids"]}
        assert nodes[-1] not in hosts
        assert not runs.granted_again(task.place().story())


def end_moved(stage: Stage) -> None:
    """An administrator shortens the job while it runs: it drains before the new end and goes on in its next start."""
    with running(Options(nodes=2, netns=True)) as cluster:
        task = Task(cluster, stage.folder, stage.mpi, pace=2.2, slurm={"signal_before_end": "1s"})
        task.submit()
        task.until_output("this allocation ends at")
        task.until_done(4)
        cluster.run(["scontrol", "update", f"JobId={task.job}", "TimeLimit=2"], check=True)
        task.until_output("not as was told before", 100)
        task.until_output(rf"allocation {task.job}\.1: starts on", 180)
        first = task.status()["allocations"][0]
        assert first["exit_code"] == 75, first
        cluster.run(["scancel", str(task.job)], check=True)


def one_of_two_killed(stage: Stage) -> None:
    """Each is its own failure domain: the other takes over what the killed one had, and nothing is missing or twice."""
    with running(Options(nodes=2)) as cluster:
        site = {"lease_timeout": "5s", "silent": "10s"}
        task = Task(cluster, stage.folder, stage.mpi, pace=0.3, slurm={"nodes": 1, "requeue": False}, site=site)
        task.submit("--allocations", "2")
        task.until_done(40)
        until(lambda: len(list((task.root / "journal").glob("*.yj"))) == 2, 60, task.said)
        # everything at once, the script too, so that nothing brings it back
        assert cluster.kill_job(task.jobs[0])
        job = task.until_over(job=task.jobs[1], timeout=180)
        assert job["JobState"] == "COMPLETED", task.said()
        status = task.check_complete(stage.reference)
        states = {a["name"].split("-slurm-")[1]: a["state"] for a in status["allocations"] if a["droids_total"]}
        assert states == {f"{task.jobs[0]}-r0": "killed", f"{task.jobs[1]}-r0": "ended"}, states


def seconds_lost(status: dict[str, Any]) -> float:
    return float(status["core_seconds"]["lost_in_flight"])


@pytest.mark.slow
def test_preempted_five_times_and_complete(under_way: dict[str, Future[None]]) -> None:
    """The same bytes, and only what was in flight done again."""
    finish(under_way, "preempted_five_times")


@pytest.mark.slow
def test_time_limit_drains_and_goes_on(under_way: dict[str, Future[None]]) -> None:
    finish(under_way, "time_limit")


def test_node_crash_requeues_and_resumes(under_way: dict[str, Future[None]]) -> None:
    finish(under_way, "node_crash")


@pytest.mark.slow
def test_end_that_is_moved_is_noticed(under_way: dict[str, Future[None]]) -> None:
    finish(under_way, "end_moved")


@pytest.mark.slow
def test_one_of_two_allocations_is_killed(under_way: dict[str, Future[None]]) -> None:
    finish(under_way, "one_of_two_killed")


@pytest.mark.slow
def test_several_allocations_on_one_task(slurm: Cluster, tmp_path: Path, mpi_here: runs.Mpi, reference: str) -> None:
    """Two jobs of one node each share the work."""
    task = Task(slurm, tmp_path, mpi_here, pace=0.15, slurm={"nodes": 1})
    said = task.submit("--allocations", "2").stdout
    assert len(task.jobs) == 2 and "2 x (1 node x 00:10:00)" in said
    for job in task.jobs:
        assert task.until_over(job=job)["JobState"] == "COMPLETED", task.said()
    status = task.check_complete(reference)
    shares = [a["events_done"] for a in status["allocations"] if a["droids_total"]]
    assert len(shares) == 2 and all(shares), (shares, task.said())
    assert runs.done_twice(task.place().story()) <= 0.1 * tasks.EVENTS


@pytest.mark.slow
def test_fit_starts_in_front_of_a_big_pending_job(
    slurm: Cluster, tmp_path: Path, mpi_here: runs.Mpi, reference: str
) -> None:
    big, start = waiting_job(slurm)
    task = Task(slurm, tmp_path, mpi_here, pace=0.02, slurm={"nodes": 3, "time": "1h", "time_min": "2min"})
    assert "pending (" in (pending_status(slurm, tmp_path / "other", mpi_here))
    said = task.submit("--fit").stdout
    assert "1 nodes for 00:0" in said, said
    job = task.until_over()
    assert job["JobState"] == "COMPLETED", task.said()
    task.check_complete(reference)
    assert slurm.state(big) == "PENDING" and planned(slurm, big) == start


@pytest.mark.slow
def test_time_min_lets_slurm_shrink_the_job(slurm: Cluster, tmp_path: Path, mpi_here: runs.Mpi, reference: str) -> None:
    big, start = waiting_job(slurm)
    slurm_keys = {"nodes": 1, "time": "1h", "time_min": "1min", "signal_before_end": "20s"}
    task = Task(slurm, tmp_path, mpi_here, pace=0.02, slurm=slurm_keys)
    task.submit()
    job = task.until_over()
    assert job["JobState"] == "COMPLETED" and job["TimeLimit"] != "01:00:00", task.said()
    assert "this allocation ends at" in task.output()
    task.check_complete(reference)
    assert planned(slurm, big) == start


def waiting_job(slurm: Cluster) -> tuple[int, str]:
    """Two of three nodes run a job of five minutes, and a job waits for all three; its id and expected start."""
    slurm.cancel_all()
    slurm.wait(slurm.sbatch(SLEEP, "-N2", "--exclusive", "-t5"), "RUNNING")
    big = slurm.sbatch(SLEEP, "-N3", "--exclusive", "-t10")
    return big, planned(slurm, big)


def pending_status(slurm: Cluster, folder: Path, mpi: runs.Mpi) -> str:
    """What `yoda status` says of a task whose job has to wait."""
    task = Task(slurm, folder, mpi, slurm={"nodes": 3}, name="waits")
    task.submit()
    until(lambda: task.status()["slurm"]["jobs"] != [], 30, task.said)
    said = task.yoda("status", str(task.root)).stdout
    slurm.run(["scancel", str(task.job)], check=True)
    return said


def test_dry_run_shows_script_cost_and_forecast(slurm: Cluster, tmp_path: Path, mpi_here: runs.Mpi) -> None:
    task = Task(slurm, tmp_path, mpi_here)
    said = task.submit("--dry-run").stdout
    assert "#SBATCH --partition=low" in said and "exit 75" in said
    assert "at most 0.7 core-hours: 2 nodes x 00:10:00 x 2 cores" in said
    assert "forecast   Slurm would start it at 20" in said
    assert not task.root.exists() and not task.jobs
    task.slurm = {"partition": "nope"}
    refused = task.submit("--dry-run", check=False)
    assert refused.returncode == 78 and "partition" in refused.stdout + refused.stderr


@pytest.mark.parametrize(("nodes", "name", "launcher"), [(2, "openmpi", None), (1, "mpich", PMI2), (2, "mpich", PMI2)])
def test_plain_run_in_a_script_of_ones_own(
    slurm_netns: Cluster, tmp_path: Path, reference: str, nodes: int, name: str, launcher: str | None
) -> None:
    """No mpiexec, no srun and no `yoda submit`: the run finds the nodes of its allocation, one Droid on each."""
    mpi = tasks.mpi_named(name)
    task = Task(slurm_netns, tmp_path, mpi, pace=0.02, launcher=launcher)
    task.write()
    words = ["run", str(task.folder / "job.yaml"), "--task", str(task.root), "--site", str(task.folder / "site.yaml")]
    script = "\n".join(["#!/bin/sh", *tasks.setup(task.pace), " ".join([mpi.python, runs.ENTRY, *words])]) + "\n"
    log = f"--output={tmp_path}/log"
    job = slurm_netns.sbatch(script, f"-N{nodes}", "--ntasks-per-node=1", "--exclusive", "-t5", log)
    done = task.until_over(job=job)
    assert done["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    status = task.check_complete(reference)
    assert sorted(d["host"] for d in status["allocations"][0]["droids"]) == ["n1", "n2"][:nodes]


@pytest.mark.slow
def test_the_script_of_the_page(slurm_netns: Cluster, tmp_path: Path, mpi_here: runs.Mpi, reference: str) -> None:
    """What docs/slurm.md proposes for a script of one's own: preempted, it goes on by itself."""
    task = Task(slurm_netns, tmp_path, mpi_here, pace=0.1)
    task.write()
    page = (runs.REPOSITORY / "docs" / "slurm.md").read_text()
    [script] = [text for text in page.split("```sh\n")[1:] if text.startswith("#!/bin/bash")]
    script = script.split("```")[0].replace("--nodes=4", "--nodes=2").replace("--time=4:00:00", "--time=10")
    words = [mpi_here.python, runs.ENTRY, "run", str(tmp_path / "job.yaml"), "--site", str(tmp_path / "site.yaml")]
    script = script.replace("yoda run job.yaml --site site.yaml", shlex.join([*words, "--task", str(task.root)]))
    script = script.replace("\ntrap", "\n" + "\n".join(tasks.setup(task.pace)) + "\ntrap")
    task.jobs.append(slurm_netns.sbatch(script, "-plow", f"--output={tmp_path}/log"))
    task.until_done(20)
    task.preempt()
    job = task.until_over()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), (tmp_path / "log").read_text()
    task.check_complete(reference)
