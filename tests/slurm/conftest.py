"""Fixtures: a real Slurm, plain or with a network namespace per node; each test's jobs are cancelled after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Options, running, why_not

sys.path.append(str(Path(__file__).parents[1] / "mpi"))  # runs.py: both MPIs, and what journals say
import runs
import tasks


@pytest.fixture(scope="session")
def plain_cluster() -> Iterator[Cluster]:
    reason = why_not(netns=False)
    if reason:
        pytest.skip(reason)
    with running(Options()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def netns_cluster() -> Iterator[Cluster]:
    reason = why_not(netns=True)
    if reason:
        pytest.skip(reason)
    with running(Options(netns=True)) as cluster:
        yield cluster


@pytest.fixture
def slurm(plain_cluster: Cluster) -> Iterator[Cluster]:
    """A Slurm of three nodes of two CPUs, all on the loopback address."""
    plain_cluster.set_partition("low", GraceTime=0)
    yield plain_cluster
    plain_cluster.cancel_all(wait=False)


@pytest.fixture
def slurm_netns(netns_cluster: Cluster) -> Iterator[Cluster]:
    """A Slurm of three nodes of two CPUs, each node with its own address, host name and processes."""
    netns_cluster.set_partition("low", GraceTime=0)
    yield netns_cluster
    for name in netns_cluster.nodes:
        if name not in netns_cluster.alive_nodes():
            netns_cluster.start_node(name)
    netns_cluster.cancel_all(wait=False)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """sha256 of the merged file of an undisturbed run."""
    here = runs.here()
    if here is None:
        pytest.skip("no mpiexec in this environment")
    return tasks.reference(tmp_path_factory.mktemp("reference"), here)


@pytest.fixture
def mpi_here() -> runs.Mpi:
    found = runs.here()
    if found is None:
        pytest.skip("no mpiexec in this environment: pip install 'yoda-droid[mpi]'")
    return found
