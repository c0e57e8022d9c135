"""Whole runs under a real mpiexec: the same bytes from any history (L2, L3), nothing twice (L4), exit codes."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import runs
from runs import Place

LHE = '''
import numpy as np

def leptons(event, random):
    """Momenta with a little smearing: depends on the event and on its random numbers."""
    p = event.particles
    final = p[p["status"] == 1]
    pt = np.hypot(final["px"], final["py"])
    return {"pt": pt * random.normal(1.0, 0.01, len(pt)), "id": final["id"], "weight": np.float64(event.xwgtup)}
'''


def inputs(what: str, folder: Path) -> tuple[str, str, dict[str, Any]]:
    """(payload code, its name, inputs section) for generated events or for the MadGraph file."""
    if what == "generate":
        return runs.LIGHT, "light", {"format": "generate", "events": 10_000}
    data = runs.data_folder()
    if data is None:
        pytest.skip("no test data: set YODA_TEST_DATA")
    file = data / "pylhe-testfile-madgraph-2.2.1-Z-ckkwl.lhe.gz"
    if not file.exists():
        pytest.skip(f"no {file}")
    return LHE, "leptons", {"format": "lhe", "files": [str(file)]}


@pytest.fixture(scope="session")
def references() -> dict[str, str]:
    """sha256 of the merged file of each input, from the first run that made one; all others must agree, in any MPI."""
    return {}


def slowly(code: str, name: str) -> str:
    """The same payload, a little slower, so that a run can be hit while it is at work."""
    return code.replace(f"def {name}(event, random):", f"def {name}(event, random):\n    import time; time.sleep(0.0004)")


@pytest.mark.parametrize("what", ["generate", "lhe"])
def test_same_bytes_from_any_history(place: Place, references: dict[str, str], what: str) -> None:
    """One worker; two Droids of two workers under mpirun; killed three times at random moments and resumed."""
    code, name, section = inputs(what, place.folder)
    place.job(code, name, inputs=section)
    done = place.run(task="one", workers=1)
    assert done.code == 0, done.text
    reference = references.setdefault(what, place.sha256("one"))
    assert place.sha256("one") == reference
    done = place.run(task="two", ranks=3)
    assert done.code == 0, done.text
    assert place.sha256("two") == reference
    place.job(slowly(code, name), name, inputs=section)
    chance = random.Random(what)
    before = -1
    for _ in range(3):
        run = place.start(task="killed", ranks=4, workers=1)
        after = before + chance.randrange(1, 2500)
        run.until(lambda: place.done("killed") > after, f"more than {after} events done")  # noqa: B023
        time.sleep(chance.uniform(0, 0.1))
        run.kill_everything()
        before = place.done("killed")
    done = place.run(task="killed", ranks=4, workers=1)
    assert done.code == 0, done.text
    assert place.sha256("killed") == reference
    story = place.story("killed")
    assert runs.granted_again(story) == []
    assert place.progress("killed").done.total == 10_000
