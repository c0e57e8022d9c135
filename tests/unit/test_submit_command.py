"""`yoda submit`, `yoda doctor` and Slurm's part of `yoda status`, with recorded answers of Slurm; no Slurm needed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

import slurm.doctor as checks
import yoda.cli
from eventrange.errors import ConfigError, PayloadImport, RanksAlone
from eventrange.taskdir import TaskDir
from slurm.commands import Ran
from slurm.script import PLACEMENT
from yoda import doctor
from yoda.config import load_site
from yoda.placing import allocation_launcher, nodes_here, script_launcher
from yoda.setting import Request
from yoda.slurm_view import render, slurm_view
from yoda.submit import Asked, show, submit_task

OUTPUT = """\
2026-01-01 10:00:00 allocation 7.0: starts on n[1-2]
2026-01-01 11:00:00 allocation 7.0: work is left; for Slurm the job is RUNNING, reason None, preempted 2026-01-01T11:00
slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T11:00:09 DUE TO PREEMPTION ***
2026-01-01 12:00:00 allocation 7.1: starts on n[1-2]
2026-01-01 13:00:00 allocation 7.1: work is left; for Slurm the job is COMPLETING, reason TimeLimit, preempted None
2026-01-01 14:00:00 allocation 7.2: starts on n[1-2]
"""


class FakeSlurm:
    """Answers by command; keeps what was asked."""

    def __init__(self, **answers: Ran) -> None:
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def __call__(self, argv: Sequence[str], stdin: str | None = None) -> Ran:
        self.asked.append(list(argv))
        key = "test" if "--test-only" in argv else argv[0]
        return self.answers.get(key, Ran(127, "", f"{argv[0]}: not found"))


SLURM = {
    "sinfo": Ran(0, "64|low*\n"),
    "sbatch": Ran(0, "41\n"),
    "test": Ran(
        0, "", "sbatch: Job 9 to start at 2030-01-02T03:04:05 using 128 processors on nodes n[1-2] in partition low\n"
    ),
}


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    (tmp_path / "payload.py").write_text("def light(event, random):\n    return {'x': 1.0}\n")
    job = {
        "task": "zjets",
        "seed": 1,
        "inputs": {"format": "generate", "events": 30},
        "payload": {"python": "payload.py:light"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    site = {"site": "s", "slurm": {"partition": "low", "nodes": 2, "time": "4h", "time_min": "1h"}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    return Request(str(tmp_path / "job.yaml"), str(tmp_path / "site.yaml"), str(tmp_path / "task"))


def test_submit_makes_the_task_and_keeps_the_script(request_: Request) -> None:
    slurm = FakeSlurm(**SLURM)
    got = submit_task(request_, Asked(allocations=2), slurm)
    task = TaskDir(str(request_.task))
    assert got.code == 0 and got.jobs == [41, 41] and Path(task.task_file).exists()
    text = Path(got.script).read_text()
    assert Path(got.script).parent == Path(task.slurm) and f"script={got.script}" in text
    assert f"run {request_.job} --site {request_.site} --task {request_.task}" in text
    said = show(got)
    assert "at most 1,024.0 core-hours: 2 x (2 nodes x 04:00:00) x 64 cores" in said and got.script in said
    assert [argv[-1] for argv in slurm.asked if argv[0] == "sbatch"] == [got.script] * 2


def test_dry_run_makes_nothing(request_: Request) -> None:
    got = submit_task(request_, Asked(dry_run=True), FakeSlurm(**SLURM))
    said = show(got)
    assert "#SBATCH --time=04:00:00" in said and "30 of 30 to do" in said and "2030-01-02 03:04:05" in said
    assert not Path(str(request_.task)).exists()
    without = show(submit_task(request_, Asked(dry_run=True), FakeSlurm()))
    assert "Slurm's command sbatch was not found" in without and "cores per node are not known" in without
    refused = {**SLURM, "test": Ran(1, "", "allocation failure: Invalid account")}
    got = submit_task(request_, Asked(dry_run=True), FakeSlurm(**refused))
    assert got.code == 78 and "Invalid account" in show(got)


def test_submit_needs_a_slurm_part(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("site: s\n")
    with pytest.raises(ConfigError, match="slurm: is missing"):
        submit_task(request_, Asked(), FakeSlurm(**SLURM))


def test_what_is_wrong_with_the_job_is_said_before_slurm_is_asked(
    request_: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "payload.py").unlink()
    assert yoda.cli.main(["submit", request_.job, "--site", str(request_.site)]) == 78
    assert "payload.python" in capsys.readouterr().err


def test_payload_is_imported_before_anything_is_submitted(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "payload.py").write_text("import no_such_package\n")
    slurm = FakeSlurm(**SLURM)
    with pytest.raises(PayloadImport, match="no_such_package"):
        submit_task(request_, Asked(), slurm)
    assert slurm.asked == []
    site = {"slurm": {"partition": "low", "setup": "module load everything"}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    got = submit_task(request_, Asked(), slurm)
    assert got.jobs == [41] and "no_such_package" in show(got) and "set-up lines" in show(got)


def test_script_launcher() -> None:
    assert script_launcher("srun --mpi=pmi2 -n {ranks}") == "srun --mpi=pmi2 -n {ranks}"
    default = script_launcher(None)
    assert "mpiexec" in default and default.endswith("-n {ranks}") and "oversubscribe" not in default


# -- status ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def submitted(tmp_path: Path) -> TaskDir:
    task = TaskDir(str(tmp_path / "task"))
    Path(task.slurm).mkdir(parents=True)
    (Path(task.slurm) / "slurm-7.out").write_text(OUTPUT)
    return task


def test_view_of_a_task_never_submitted(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    assert slurm_view(TaskDir(str(tmp_path)), "zjets", slurm) is None and slurm.asked == []
    assert render(None) == []


def test_view_tells_pending_running_and_preempted(submitted: TaskDir) -> None:
    script = f"{submitted.slurm}/allocation-x.sh"
    answer = (
        f"7|PENDING|BeginTime|2030-01-01T00:00:00|N/A|2|{script}\n"
        f"8|RUNNING|None|2026-01-01T00:00:00|2030-01-01T00:00:00|4|{script}\n"
        "9|RUNNING|None|2026-01-01T00:00:00|2030-01-01T00:00:00|4|/another/task/slurm/allocation-x.sh\n"
        f"10_1|RUNNING|None|2026-01-01T00:00:00|2030-01-01T00:00:00|4|{script}\n"
    )
    slurm = FakeSlurm(squeue=Ran(0, answer))
    view = slurm_view(submitted, "zjets", slurm)
    assert view is not None and view["answered"] and json.dumps(view)
    assert [(j["job"], j["state"], j["preempted"], j["starts"]) for j in view["jobs"]] == [
        (7, "PENDING", 1, 3),
        (8, "RUNNING", 0, 0),
    ]
    assert "--name=zjets" in slurm.asked[0]
    now = time.mktime(time.strptime("2029-12-31 23:00:00", "%Y-%m-%d %H:%M:%S"))
    said = "\n".join(render(view, now))
    assert (
        "job 7  pending (BeginTime, expected to start in 1 h 00 min), preempted 1 time, otherwise restarted once"
        in said
    )
    assert "job 8  running on 4 nodes, 1 h 00 min left" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("gives up: 5 starts in a row ended and no event was done; see above why.", "gives up: 5 starts in a row"),
        ("ends with code 78", "ends with code 78"),
        ("ends with code 0", ""),
        ("work is left; for Slurm the job is RUNNING", ""),
    ],
)
def test_view_of_a_job_that_gave_up(submitted: TaskDir, words: str, said: str) -> None:
    path = Path(submitted.slurm) / "slurm-9.out"
    path.write_text(f"2026-11-22 19:00:00 allocation 9.0: starts on n1\n2026-11-22 19:00:09 allocation 9.0: {words}\n")
    view = slurm_view(submitted, "zjets", FakeSlurm(squeue=Ran(0, "")))
    lines = [line for line in render(view) if "job 9 " in line]
    assert (said in lines[0] and str(path) in lines[0]) if said else lines == []


def test_view_without_an_answer(submitted: TaskDir) -> None:
    for ran, why in ((Ran(127, ""), "there is no squeue here"), (Ran(124, "", "squeue: no answer"), "no answer")):
        view = slurm_view(submitted, "zjets", FakeSlurm(squeue=ran))
        assert view is not None and not view["answered"] and why in view["why"]
        assert view["jobs"][0]["preempted"] == 1 and why in "\n".join(render(view))


# -- doctor ------------------------------------------------------------------------------------------------------------

STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0"}
MPICH, OPEN_MPI = "MPICH Version: 5.0.2", "Open MPI v5.0.11"


def test_singletons_name_the_line_to_try() -> None:
    with pytest.raises(RanksAlone, match=r"srun --mpi=pmi2 --ntasks=\{ranks\}"):
        doctor.singletons(STEP, 1, MPICH, ["pmi2", "pmix_v4"])
    with pytest.raises(RanksAlone, match=r"srun --mpi=pmix_v4 --ntasks=\{ranks\}"):
        doctor.singletons(STEP, 1, OPEN_MPI, ["pmi2", "pmix_v4"])
    with pytest.raises(RanksAlone, match="this Slurm offers pmi2"):
        doctor.singletons(STEP, 1, OPEN_MPI, ["pmi2"])
    with pytest.raises(RanksAlone, match=r"3 processes were started.*mpi4py uses MPICH, but mpiexec is of Open MPI"):
        doctor.singletons({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3"}, 1, MPICH)
    doctor.singletons(STEP, 3, MPICH)
    doctor.singletons({}, 1, MPICH)


def test_types_are_asked_for_only_where_they_may_be_needed() -> None:
    assert doctor.offered_types({}) == []
    assert doctor.offered_types({**STEP, "PMI_RANK": "0"}) == []


def test_package_shadowed_by_the_other_yoda(tmp_path: Path) -> None:
    assert doctor.package({}).level is checks.Level.OK
    (tmp_path / "yoda").mkdir()
    (tmp_path / "yoda" / "__init__.py").touch()
    found = doctor.package({"PYTHONPATH": str(tmp_path)})
    assert found.level is checks.Level.WARN and "histogramming" in found.what


def test_launcher_that_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(f"launcher: {sys.executable} -c 'raise SystemExit(3)'\n")
    site = load_site(str(tmp_path / "site.yaml"))
    (found,) = doctor.check_mpi(site, {"PATH": "/usr/bin"})
    assert found.level is checks.Level.FAIL and "starts no MPI program: exit code 3" in found.what
    missing = load_site(None, ["launcher=/no/such/mpiexec -n {ranks}"])
    assert checks.worst(doctor.check_mpi(missing, {"PATH": "/usr/bin"})) is checks.Level.FAIL


def test_srun_outside_an_allocation_is_not_tried() -> None:
    (found,) = doctor.check_mpi(load_site(None, ["launcher=srun -n {ranks}"]), {})
    assert found.level is checks.Level.WARN and "salloc" in found.todo


def test_command_says_it_in_json_and_by_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--task", str(tmp_path), "--json", "--set", "launcher=/no/such/mpiexec -n {ranks}"]
    assert yoda.cli.main(words) == 78
    said = json.loads(capsys.readouterr().out)
    assert (said["version"], said["worst"]) == (1, "fail")
    assert {"level", "what", "where", "todo"} == set(said["findings"][0])


# -- placement ---------------------------------------------------------------------------------------------------------


def test_placement_is_that_of_the_script(request_: Request) -> None:
    text = show(submit_task(request_, Asked(dry_run=True), FakeSlurm(**SLURM)))
    assert all(f"{name}={value}" in text for name, value in PLACEMENT.items())


def test_run_in_an_allocation_takes_all_of_its_nodes() -> None:
    assert nodes_here({}) == 1 and nodes_here({"SLURM_JOB_NUM_NODES": "4"}) == 1
    assert nodes_here({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4"}) == 4
    command, extra = allocation_launcher("srun -N {nodes} -n {ranks}", 4)
    assert command == ["srun", "-N", "4", "-n", "5"] and extra["SLURM_OVERCOMMIT"] == "1"
