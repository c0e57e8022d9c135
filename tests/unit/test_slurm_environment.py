"""The allocation from recorded environments and recorded answers of Slurm 22.05; no Slurm needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from slurm.commands import Ran
from slurm.ending import Ended, why_ended
from slurm.environment import EndTime, expand, job_of, launched_rank, read_allocation, repeated, unix_time

BATCH = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_JOB_CPUS_PER_NODE": "2(x2),4",
    "SLURM_JOB_PARTITION": "low",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "0",
}
NOW = 1795369572.345


class Answers:
    """A runner that gives recorded answers, by the first words of the command."""

    def __init__(self, **answers: str) -> None:
        self.answers, self.asked = answers, 0

    def __call__(self, argv: Sequence[str], stdin: str | None = None) -> Ran:
        self.asked += 1
        answer = self.answers.get(argv[0])
        return Ran(1, "", "slurm_load_jobs error: Invalid job id specified") if answer is None else Ran(0, answer)


def test_batch_job() -> None:
    run = Answers(squeue="2026-11-22T17:51:32\n")
    got = read_allocation(BATCH, NOW, "n1", 5, run)
    assert (got.jobid, got.restart, got.nodes, got.cpus, got.partition) == (77, 2, ("n1", "n2", "n3"), (2, 2, 4), "low")
    assert got.end == unix_time("2026-11-22T17:51:32")
    assert job_of(got.name) == (77, 2)


def test_local_run() -> None:
    got = read_allocation({}, NOW, "my.laptop.org", 4711)
    assert got.name.endswith("Z-local-my-4711") and job_of(got.name) is None
    assert (got.jobid, got.end, got.nodes) == (None, None, ("my.laptop.org",))


def test_names_sort_in_time_order() -> None:
    jobs = [{**BATCH, "SLURM_JOB_ID": job} for job in ("999", "1000")]
    names = [read_allocation(environ, NOW + i, "h", 1).name for i, environ in enumerate([*jobs, {}, jobs[0]])]
    assert names == sorted(names) and len(set(names)) == 4
    assert read_allocation(BATCH, NOW, "h", 1).name < read_allocation(BATCH, NOW + 0.002, "h", 1).name


def test_end_time_follows_slurm_but_asks_rarely() -> None:
    times = [0.0]
    run = Answers(squeue="2026-11-22T17:51:32")
    end = EndTime(read_allocation(BATCH, NOW, "h", 1, run), BATCH, lambda: times[0], run, interval=30)
    first = end()
    asked = run.asked
    run.answers["squeue"] = "2026-11-22T17:31:32"
    times[0] = 29
    assert end() == first and run.asked == asked
    times[0] = 31
    assert first is not None and end() == first - 1200
    run.answers.clear()
    times[0] = 99
    assert end() == first - 1200


def test_end_time_from_the_file_of_the_batch_script(tmp_path: Path) -> None:
    file = tmp_path / "end"
    file.write_text("1795369577\n")
    environ = {**BATCH, "YODA_END_FILE": str(file)}
    allocation = read_allocation(environ, NOW, "h", 1)
    assert allocation.end == 1795369577
    end = EndTime(allocation, environ, time.monotonic, interval=0)
    file.write_text("1795369000\n")
    assert end() == 1795369000
    file.unlink()
    assert end() == 1795369000


@pytest.mark.parametrize("text", ["Unknown", "N/A", "NONE", "", "None"])
def test_no_end(text: str) -> None:
    assert read_allocation(BATCH, NOW, "h", 1, Answers(squeue=text)).end is None


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("n[1-3,07-09]", ["n1", "n2", "n3", "n07", "n08", "n09"]),
        ("gpu5", ["gpu5"]),
        ("a1,b[2,4]-ib,c", ["a1", "b2-ib", "b4-ib", "c"]),
        ("r[1-2]c[01-02]", ["r1c01", "r1c02", "r2c01", "r2c02"]),
        ("nid[000098-000101]", ["nid000098", "nid000099", "nid000100", "nid000101"]),
        ("", []),
    ],
)
def test_expand(short: str, names: list[str]) -> None:
    assert expand(short) == names


def test_repeated() -> None:
    assert repeated("2(x3),4") == [2, 2, 2, 4]
    assert repeated("") == []


# recorded: Open MPI 5 and MPICH 5 inside an allocation of three nodes, and srun
OPEN_MPI = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "PMIX_RANK": "3"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, None),
        (BATCH, None),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, (3, 4)),
        ({**STEP, "PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4)),
        (STEP, (1, 3)),
        ({**BATCH, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, (2, 4)),
    ],
)
def test_launched_rank(environ: dict[str, str], rank: tuple[int, int] | None) -> None:
    assert launched_rank(environ) == rank


JOB = "JobId=77 JobName=x JobState={} Reason={} Requeue=1 Restarts={} BatchFlag=1 PreemptTime=None EndTime=Unknown"
OUTPUT = """\
2026-11-22 17:41:27 allocation 77.0: starts on n[1-3]
slurmstepd-n1: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-22T17:41:31 DUE TO PREEMPTION ***
2026-11-22 17:41:31 allocation 77.0: TERM received, Yoda is told to stop
2026-11-22 17:41:31 allocation 77.0: work is left; for Slurm the job is COMPLETING, reason None, preempted None
2026-11-22 17:42:27 allocation 77.1: starts on n[1-3]
2026-11-22 17:42:27 allocation 77.1: work is left; the job is RUNNING, reason None, preempted 2026-11-22T17:42:26
slurmstepd-n1: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-22T17:42:27 DUE TO JOB REQUEUE ***
2026-11-22 17:43:00 allocation 77.2: starts on n[1-3]
slurmstepd-n1: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-22T17:43:04 DUE TO TIME LIMIT ***
2026-11-22 17:44:00 allocation 77.3: starts on n[1-3]
slurmstepd-n1: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-22T17:44:04 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***
2026-11-22 17:45:00 allocation 77.4: starts on n[1-3]
slurmstepd-n1: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-22T17:45:04 DUE TO JOB REQUEUE ***
2026-11-22 17:46:00 allocation 77.5: starts on n[1-3]
slurmstepd-n1: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-22T17:46:04 ***
2026-11-22 17:47:00 allocation 77.6: starts on n[1-3]
2026-11-22 17:47:09 allocation 77.6: ends with code 0
"""


@pytest.mark.parametrize(
    ("restart", "why"),
    [
        (0, Ended.PREEMPTED),
        (1, Ended.PREEMPTED),
        (2, Ended.WALLTIME),
        (3, Ended.NODE_FAILURE),
        (4, Ended.REQUEUED),
        (5, Ended.CANCELLED),
        (6, Ended.FINISHED),
        (7, Ended.UNKNOWN),
    ],
)
def test_why_from_the_output(restart: int, why: Ended) -> None:
    assert why_ended(77, restart, Answers(), OUTPUT) is why


@pytest.mark.parametrize(
    ("state", "reason", "why"),
    [
        ("TIMEOUT", "TimeLimit", Ended.WALLTIME),
        ("COMPLETING", "TimeLimit", Ended.WALLTIME),
        ("CANCELLED", "None", Ended.CANCELLED),
        ("NODE_FAIL", "None", Ended.NODE_FAILURE),
        ("PREEMPTED", "None", Ended.PREEMPTED),
        ("COMPLETED", "None", Ended.FINISHED),
        ("RUNNING", "None", Ended.NOT_YET),
        ("PENDING", "BeginTime", Ended.NOT_YET),
    ],
)
def test_why_from_scontrol(state: str, reason: str, why: Ended) -> None:
    assert why_ended(77, 1, Answers(scontrol=JOB.format(state, reason, 1))) is why


def test_why_of_an_earlier_start_needs_accounting() -> None:
    job = JOB.format("RUNNING", "None", 2)
    assert why_ended(77, 1, Answers(scontrol=job)) is Ended.UNKNOWN
    accounted = "PREEMPTED\nNODE_FAIL\nCANCELLED by 1000\n"
    assert why_ended(77, 1, Answers(scontrol=job, sacct=accounted)) is Ended.NODE_FAILURE
    assert why_ended(77, 2, Answers(sacct=accounted)) is Ended.CANCELLED
