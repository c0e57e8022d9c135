"""Holes on a real Slurm: a small job starts in front of a big waiting one and does not delay it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cluster import Cluster

from eventrange.errors import SlurmRefused
from slurm.doctor import Level, check_commands, check_partition, mpi_types
from slurm.environment import EndTime, end_from_slurm, read_allocation, unix_time
from slurm.fit import Fit, fit, look
from slurm.site import SlurmSite
from slurm.submit import forecast, submit

SLEEP = "#!/bin/sh\nsleep 300\n"


@pytest.fixture
def hole(slurm: Cluster) -> tuple[int, str]:
    """Two of three nodes run a job of five minutes, and a job waits for all three; its id and expected start."""
    slurm.cancel_all()
    slurm.wait(slurm.sbatch(SLEEP, "-N2", "--exclusive", "-t5"), "RUNNING")
    big = slurm.sbatch(SLEEP, "-N3", "--exclusive", "-t10")
    return big, planned(slurm, big)


def planned(slurm: Cluster, job: int) -> str:
    """When Slurm expects to start a waiting job, once it has thought about it."""
    end = time.monotonic() + 30
    while True:
        start = slurm.run(["squeue", "-h", "-j", str(job), "-o", "%S|%Y"]).stdout.strip()
        if unix_time(start.partition("|")[0]) is not None and "n3" in start + "n3" * start.count("[1-3]"):
            return start
        assert time.monotonic() < end, slurm.story(job)
        time.sleep(0.2)


def script(folder: Path) -> Path:
    path = folder / "job.sh"
    path.write_text(f"#!/bin/sh\n#SBATCH --exclusive --output={folder}/out.txt\nsleep 300\n")
    return path


def test_fit_finds_the_hole_and_delays_nobody(slurm: Cluster, hole: tuple[int, str], tmp_path: Path) -> None:
    big, start = hole
    site = SlurmSite(partition="low", nodes=3, time="1h", time_min="2min", signal_before_end="30s")
    got: Fit = fit(script(tmp_path), site, slurm.runner, time.time())
    assert got.shape.nodes == 1 and 120 <= got.shape.length < 300
    small = submit(script(tmp_path), slurm.runner, got.options).jobid
    slurm.wait(small, "RUNNING")
    assert slurm.state(big) == "PENDING" and planned(slurm, big) == start


def test_time_min_is_shrunk_to_the_hole(slurm: Cluster, hole: tuple[int, str], tmp_path: Path) -> None:
    big, start = hole
    small = submit(script(tmp_path), slurm.runner, ("-N1", "--time=1:00:00", "--time-min=0:01:00")).jobid
    described = slurm.wait(small, "RUNNING")
    assert described["TimeLimit"] != "01:00:00"
    assert planned(slurm, big) == start
    end = unix_time(described["EndTime"])
    assert end_from_slurm(small, slurm.runner) == end


def test_forecast_and_refusal(slurm: Cluster, tmp_path: Path) -> None:
    slurm.cancel_all()
    assert forecast(script(tmp_path), slurm.runner, ("-N2", "-t1")).start < time.time() + 60
    with pytest.raises(SlurmRefused, match="not available"):
        forecast(script(tmp_path), slurm.runner, ("-N9", "-t1"))
    with pytest.raises(SlurmRefused, match="nope"):
        submit(script(tmp_path), slurm.runner, ("-p", "nope"))
    assert len(look(None, slurm.runner).idle) == 3
    wide = SlurmSite(partition="low", nodes=8, time="1h")
    assert fit(script(tmp_path), wide, slurm.runner, time.time()).shape.nodes == 3


def test_end_time_that_an_administrator_moves(slurm: Cluster) -> None:
    job = slurm.sbatch(SLEEP, "-t5")
    slurm.wait(job, "RUNNING")
    environ = {"SLURM_JOB_ID": str(job)}
    allocation = read_allocation(environ, time.time(), "head", 1, slurm.runner)
    end = EndTime(allocation, environ, time.time, slurm.runner, interval=0)
    first = end()
    slurm.run(["scontrol", "update", f"JobId={job}", "TimeLimit=9"], check=True)
    later = end()
    assert first is not None and later is not None and later == first + 240


def test_doctor_on_a_real_slurm(slurm: Cluster) -> None:
    assert all(f.level is Level.OK for f in check_partition(SlurmSite(partition="low"), slurm.runner))
    assert check_partition(SlurmSite(partition="nope"), slurm.runner)[0].level is Level.FAIL
    assert "pmi2" in mpi_types(slurm.runner)
    assert check_commands(lambda name: "/usr/bin/" + name).level is Level.OK
