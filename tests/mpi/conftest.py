"""Fixtures: both MPIs, and a place to run in that leaves no process behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import runs


@pytest.fixture(scope="session", params=["openmpi", pytest.param("mpich", marks=pytest.mark.slow)])
def mpi(request: pytest.FixtureRequest) -> runs.Mpi:
    """Each MPI in turn; one that cannot be had is skipped, and says why."""
    try:
        return runs.get(request.param)
    except runs.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def mpi_here() -> runs.Mpi:
    """The MPI of this environment, for what does not depend on which it is."""
    found = runs.here()
    if found is None:
        pytest.skip("no mpiexec in this environment: pip install 'yoda-droid[mpi]'")
    return found


@pytest.fixture
def place(mpi: runs.Mpi, tmp_path: Path) -> Iterator[runs.Place]:
    """A folder to run in under each MPI."""
    with runs.place(mpi, tmp_path) as made:
        yield made


@pytest.fixture
def place_here(mpi_here: runs.Mpi, tmp_path: Path) -> Iterator[runs.Place]:
    """A folder to run in under this environment's MPI."""
    with runs.place(mpi_here, tmp_path) as made:
        yield made
