"""The same fixtures as for tests/mpi: crashes need real runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_MPI = Path(__file__).parents[1] / "mpi"
sys.path.insert(0, str(_MPI))

_spec = importlib.util.spec_from_file_location("mpi_fixtures", _MPI / "conftest.py")
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

mpi, mpi_here, place, place_here = _module.mpi, _module.mpi_here, _module.place, _module.place_here
