"""The fixture itself: the nodes are what they should be, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, Options, job_processes, running, until, why_not


def test_nodes_of_the_netns_cluster_are_separate(slurm_netns: Cluster) -> None:
    script = "hostname; hostname -I 2>/dev/null || ip -4 -o addr show eth0"
    out = slurm_netns.run(["srun", "-N3", "-n3", "sh", "-c", script], check=True).stdout
    assert {"n1", "n2", "n3"} <= set(out.split())


@pytest.mark.parametrize("netns", [False, True])
def test_two_clusters_side_by_side_leave_nothing(netns: bool) -> None:
    reason = why_not(netns)
    if reason:
        pytest.skip(reason)
    hosts, links = Path("/etc/hosts").read_text(), interfaces()
    with running(Options(nodes=1, netns=netns)) as one, running(Options(nodes=1, netns=netns)) as two:
        jobs = [c.sbatch("#!/bin/sh\nsleep 600\n") for c in (one, two)]
        for c, job in zip((one, two), jobs, strict=True):
            c.wait(job, "RUNNING")
        folders = [one.folder, two.folder]
        assert Path("/etc/hosts").read_text() == hosts
    assert not any(folder.exists() for folder in folders)
    assert not processes_mentioning(folders)
    assert interfaces() == links


KILLED = """\
import sys, time
sys.path[:0] = {path!r}
from cluster import Options, running
with running(Options(nodes=1, netns={netns})) as cluster:
    cluster.wait(cluster.sbatch("#!/bin/sh\\nsleep 600 & setsid sleep 600\\n"), "RUNNING")
    print(cluster.folder, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("netns", [False, True])
def test_nothing_is_left_of_a_cluster_whose_test_was_killed(netns: bool) -> None:
    reason = why_not(netns)
    if reason:
        pytest.skip(reason)
    links = interfaces()
    code = KILLED.format(path=[str(Path(__file__).parent), *sys.path], netns=netns)
    test = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert test.stdout is not None
    folder = Path(test.stdout.readline().strip())
    assert folder.is_dir() and processes_mentioning([folder])
    test.kill()
    test.wait()
    until(lambda: not folder.exists(), 30, f"{folder} is left")
    until(lambda: not job_processes(folder / "slurm.conf"), 30, lambda: f"left: {processes_mentioning([folder])}")
    assert not processes_mentioning([folder])
    assert interfaces() == links


def interfaces() -> list[str]:
    return sorted(entry.name for entry in Path("/sys/class/net").iterdir())


def processes_mentioning(folders: list[Path]) -> list[str]:
    out = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if any(str(folder) in line for folder in folders)]
