"""Every check of the doctor, on what it should praise and on what it should find."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import slurm.doctor as doctor
from slurm.commands import Ran
from slurm.doctor import Level, worst
from slurm.environment import cpus_given
from slurm.site import SlurmSite
from yoda import ranks

STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"}


def test_singletons() -> None:
    found = doctor.check_singletons(STEP, 1, ["pmi2", "cray_shasta"])
    assert found.level is Level.FAIL and "3 processes" in found.what and "--mpi=pmi2" in found.todo
    assert "cray_shasta" in found.todo
    assert doctor.check_singletons(STEP, 3).level is Level.OK
    assert doctor.check_singletons({}, 1).level is Level.OK
    assert doctor.check_singletons({"SLURM_NTASKS": "3", "SLURM_PROCID": "0"}, 1).level is Level.OK


def test_mpi_types() -> None:
    recorded = "MPI plugin types are...\n\tpmi2\n\tnone\n\tcray_shasta\n"
    assert doctor.mpi_types(lambda argv, stdin=None: Ran(0, recorded)) == ["pmi2", "cray_shasta"]
    assert doctor.mpi_types(lambda argv, stdin=None: Ran(127, "")) == []


OPEN_MPI = "Open MPI v5.0.11, package: Open MPI root@build Distribution"
MPICH = "MPICH Version:      5.0.2\nMPICH Release date: unknown"


@pytest.mark.parametrize(
    ("library", "launcher", "level"),
    [
        (OPEN_MPI, "mpiexec (Open MPI) 5.0.11", Level.OK),
        (OPEN_MPI, "prterun (PRRTE) 3.0.14", Level.OK),
        (MPICH, "HYDRA build details:\n    Version: 5.0.2", Level.OK),
        ("Intel(R) MPI Library 2021.18 for Linux* OS", "HYDRA build details:", Level.OK),
        (OPEN_MPI, "HYDRA build details:", Level.FAIL),
        (MPICH, "mpirun (Open MPI) 4.1.4", Level.FAIL),
        (MPICH, "", Level.OK),
    ],
)
def test_mpi_match(library: str, launcher: str, level: Level) -> None:
    assert doctor.check_mpi_match(library, launcher).level is level


MOUNTS = """\
rootfs / ext4 rw 0 0
proc /proc proc rw 0 0
mds:/scratch /scratch lustre rw,flock 0 0
tmpfs /scratch/local tmpfs rw 0 0
server:/home /my\\040home nfs4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "nodes", "level"),
    [
        ("/scratch/me/task", 4, Level.OK),
        ("/scratch/local/task", 4, Level.FAIL),
        ("/my home/task", 4, Level.OK),
        ("/var/task", 4, Level.WARN),
        ("/var/task", 1, Level.OK),
        ("/scratcher", 4, Level.WARN),
    ],
)
def test_shared(path: str, nodes: int, level: Level) -> None:
    assert doctor.check_shared(Path(path), nodes, MOUNTS).level is level
    assert doctor.check_shared(Path(path), 4, "").level is Level.OK


def test_seen() -> None:
    task = Path("/data/task")
    assert doctor.check_seen(task, "a", {"a": True, "b": True}).level is Level.OK
    found = doctor.check_seen(task, "a", {"a": True, **dict.fromkeys("bcdef", False)})
    assert found.level is Level.FAIL and "not seen on b, c, d and 2 more" in found.what and "--task" in found.todo


def test_good_directory_is_left_as_it_was(tmp_path: Path) -> None:
    findings = doctor.check_directory(tmp_path / "task")
    assert [f.level for f in findings] == [Level.OK] * 5, findings
    assert list((tmp_path / "task").iterdir()) == []


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor.check_directory(tmp_path / "file")[0].level is Level.FAIL


def test_directory_that_misbehaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(doctor.fcntl, "flock", refuse)
    monkeypatch.setattr(doctor.os, "fsync", refuse)
    levels = {f.what.split(" does")[0]: f.level for f in doctor.check_directory(tmp_path)}
    assert levels["file locks"] is Level.WARN and levels["fsync"] is Level.FAIL


def test_file_times_against_the_clock(tmp_path: Path) -> None:
    late = doctor.check_directory(tmp_path, clock=lambda: 0.0)[-1]
    assert late.level is Level.WARN and "file times differ" in late.what


def test_space_and_paths(tmp_path: Path) -> None:
    assert doctor.check_space(tmp_path / "not" / "yet", 1).level is Level.OK
    assert doctor.check_space(tmp_path, 1 << 60).level is Level.FAIL
    assert worst(doctor.check_writable([tmp_path / "new", tmp_path])) is Level.OK
    if os.geteuid() != 0:
        assert worst(doctor.check_writable([Path("/proc/x")])) is Level.FAIL


def test_open_files() -> None:
    assert doctor.check_open_files(1024, 4096, 64).level is Level.OK
    assert doctor.check_open_files(256, 4096, 64).level is Level.WARN
    found = doctor.check_open_files(256, 256, 64)
    assert found.level is Level.FAIL and "workers: 24" in found.todo


def test_clocks() -> None:
    assert doctor.check_clocks({}).level is Level.OK
    assert doctor.check_clocks({"n1": 0, "n2": 0.5}).level is Level.OK
    found = doctor.check_clocks({"n1": 0, "n2": 7, "n3": -4})
    assert found.level is Level.WARN and "n2 is 11 s ahead of that of n3" in found.what
    assert doctor.check_clocks({"n1": 0, "n2": 60}).level is Level.FAIL
    assert doctor.check_clocks({"n1": 0, "n2": 3}, uncertain=2).level is Level.OK


def test_clocks_that_ranks_looked_at() -> None:
    """A rank's clock lies somewhere between two moments of rank 0's, if it is right."""

    def seen(clock: float) -> doctor.Finding:
        rows = [{"host": "a", "cpus": 1, "reach": 1, "sees": True, "clock": at} for at in (100.1, 100.2)]
        rows.append({"host": "b", "cpus": 1, "reach": 1, "sees": True, "clock": clock})
        found = ranks.read([{"size": 3, "library": "", "rows": rows, "before": 100.0, "after": 101.0}])
        assert set(found.ahead) == {"a", "b"} and len(found.ranks) == 3
        return doctor.check_clocks(found.ahead, found.uncertain)

    assert [seen(at).level for at in (100.0, 102.4, 103.1, 96.0, 140.0)] == [
        Level.OK,
        Level.OK,
        Level.WARN,
        Level.WARN,
        Level.FAIL,
    ]
    assert "clock of a is 4 s ahead of that of b" in seen(96.0).what


def test_cores() -> None:
    def level(*given: int | None) -> Level:
        return doctor.check_cores("rank 1 on n1", *given).level  # type: ignore[arg-type]

    assert level(256, 256, 256) is Level.OK
    assert level(128, 256, 256, 128) is Level.OK, "one thread of each core"
    assert level(128, 128, 256) is Level.WARN, "half of the node"
    assert level(1, 2, 256) is Level.FAIL
    assert level(2, 2, None, 4) is Level.WARN, "workers share"
    assert level(2, 2, None) is Level.OK
    assert "--cpu-bind=none" in doctor.check_cores("rank 1", 1, 2, 256).todo


def test_reach(tmp_path: Path) -> None:
    for cpu, text in ((0, "0,4"), (1, "1-2"), (3, "3")):
        (tmp_path / str(cpu)).write_text(text + "\n")
    assert doctor.reach([0, 1, 3, 9], f"{tmp_path}/{{}}") == {0, 1, 2, 3, 4, 9}


def test_cpus_given() -> None:
    environ = {"SLURM_JOB_NODELIST": "n[1-3],gpu1", "SLURM_JOB_CPUS_PER_NODE": "2(x3),64"}
    assert cpus_given(environ) == {"n1": 2, "n2": 2, "n3": 2, "gpu1": 64}
    assert cpus_given({}) == {}


def test_commands() -> None:
    assert doctor.check_commands(lambda name: name).level is Level.OK
    found = doctor.check_commands(lambda name: None if name == "srun" else name)
    assert found.level is Level.FAIL and "srun" in found.what


CONFIG = (
    "Configuration data as of 2026-11-22T17:46:35\nPreemptMode             = REQUEUE\nSlurmctldParameters     = {}\n"
)


@pytest.mark.parametrize(
    ("sinfo", "parameters", "levels"),
    [
        (Ran(0, "low*|up\n"), "preempt_send_user_signal", [Level.OK]),
        (Ran(0, "low*|up\n"), "(null)", [Level.OK, Level.WARN]),
        (Ran(0, "low*|drain\n"), "preempt_send_user_signal", [Level.OK, Level.WARN]),
        (Ran(0, ""), "", [Level.FAIL]),
        (Ran(1, "", "slurm_load_partitions: Unable to contact slurm controller"), "", [Level.FAIL]),
    ],
)
def test_partition(sinfo: Ran, parameters: str, levels: list[Level]) -> None:
    def run(argv: Sequence[str], stdin: str | None = None) -> Ran:
        return sinfo if argv[0] == "sinfo" else Ran(0, CONFIG.format(parameters))

    assert [f.level for f in doctor.check_partition(SlurmSite(partition="low"), run)] == levels


def test_shadowed_package(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "view"
    for folder in (ours, theirs):
        (folder / "yoda").mkdir(parents=True)
        (folder / "yoda" / "__init__.py").touch()
    assert doctor.check_yoda_package([str(tmp_path), str(ours), str(theirs)], ours).level is Level.OK
    found = doctor.check_yoda_package([str(theirs), str(ours)], ours)
    assert found.level is Level.WARN and str(theirs) in found.what
    assert doctor.check_yoda_package([str(tmp_path)], ours).level is Level.FAIL


def test_worst() -> None:
    assert worst([]) is Level.OK
    assert worst([doctor.Finding(Level.WARN, "", ""), doctor.Finding(Level.OK, "", "")]) is Level.WARN
