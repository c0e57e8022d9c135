"""The fixture itself: the nodes are what they should be, and nothing is left behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cluster import Cluster, Options, running, why_not


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


def interfaces() -> list[str]:
    return sorted(entry.name for entry in Path("/sys/class/net").iterdir())


def processes_mentioning(folders: list[Path]) -> list[str]:
    out = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if any(str(folder) in line for folder in folders)]
