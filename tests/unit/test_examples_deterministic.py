"""The examples obey L3: an event is the same whatever was made before it, in any grouping, and from a fresh start."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from droid.channel import CommandPayload
from droid.inputs import index_file, open_input
from droid.payload import Worker, load
from eventrange.axis import Axis

EXAMPLES = Path(__file__).parents[2] / "examples"
SEED = 42


def module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def started(spec: str, options: dict[str, Any] | None = None) -> Any:
    payload = load(str(EXAMPLES / spec), options)
    payload.setup()
    payload.start(Worker(0, 1, Path("/nonexistent"), SEED))
    return payload


def assert_same(one: dict[str, Any], other: dict[str, Any], event: int) -> None:
    assert one.keys() == other.keys()
    for name in one:
        left, right = np.asarray(one[name]), np.asarray(other[name])
        assert left.dtype == right.dtype and left.shape == right.shape, f"event {event}, {name}"
        assert left.tobytes() == right.tobytes(), f"event {event}, {name}"


def check(payload: Any, events: Sequence[Any], fresh: Any = None) -> list[Any]:
    """Forwards in one range; backwards one by one; in an odd order; in ranges of three; some by a fresh payload."""
    n = len(events)
    first = payload.process_events(list(events), range(n))
    assert len(first) == n
    mixed = np.random.default_rng(1).permutation(n).tolist()
    for i in [*range(n - 1, -1, -1), *mixed]:
        assert_same(first[i], payload.process_events([events[i]], [i])[0], i)
    for low in range(1, n, 3):
        some = range(low, min(low + 3, n))
        for i, made in zip(some, payload.process_events([events[i] for i in some], some), strict=True):
            assert_same(first[i], made, i)
    if fresh is not None:
        for i in (n - 1, n // 2):  # as after a restart, where another event comes first
            assert_same(first[i], fresh.process_events([events[i]], [i])[0], i)
    return first


def test_toy() -> None:
    check(started("toy/payload.py:Toy"), range(200), started("toy/payload.py:Toy"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_command(tmp_path: Path) -> None:
    folder = EXAMPLES / "command"
    subprocess.run(["cc", "-O2", "-o", tmp_path / "simulate", folder / "simulate.c", "-lm"], check=True)
    command = ["./simulate", "{seed}", "{first}", "{last}", "{output}"]
    payload = CommandPayload(command, tmp_path, {"fields": {"hit": "int32"}}, Axis.generate(40))
    payload.start(Worker(0, 1, tmp_path, SEED))
    made = check(payload, range(40))
    for event in made:
        assert event["layers"].sum() + event["leak"] == pytest.approx(event["energy"], rel=1e-8)


def test_nanoaod(tmp_path: Path) -> None:
    pytest.importorskip("uproot")
    path = str(tmp_path / "events.root")
    module(EXAMPLES / "nanoaod" / "make_events.py").make(path, 100)
    source = open_input("root", path, index_file("root", path, {}), {})
    events = source.read(0, 100)
    source.close()
    spec = "nanoaod/skim.py:Skim"
    made = check(started(spec, {"min_pt": 10}), events, started(spec, {"min_pt": 10}))
    masses = np.concatenate([event["z_mass"] for event in made])
    assert len(masses) > 30 and 85 < np.median(masses) < 97


def test_pythia_top_pairs() -> None:
    pytest.importorskip("pythia8mc")
    made = check(started("pythia8/ttbar.py:TopPairs"), range(30), started("pythia8/ttbar.py:TopPairs"))
    assert len({event["top_p4"].tobytes() for event in made}) == 30  # thirty different events


def test_pythia_shower(tmp_path: Path) -> None:
    pytest.importorskip("pythia8mc")
    path = str(tmp_path / "zmumu.lhe.gz")
    # A process of its own: Pythia must not find state of the writer.
    subprocess.run([sys.executable, EXAMPLES / "pythia8" / "make_lhe.py", path, "40"], check=True, capture_output=True)
    source = open_input("lhe", path, index_file("lhe", path, {}), {})
    events = source.read(0, 40)
    source.close()
    made = check(started("pythia8/shower.py:Shower"), events, started("pythia8/shower.py:Shower"))
    for event, given in zip(made, events, strict=True):
        muons = given.particles[-2:]
        total = [muons[name].sum() for name in ("e", "px", "py", "pz")]
        mass = np.sqrt(total[0] ** 2 - total[1] ** 2 - total[2] ** 2 - total[3] ** 2)
        assert event["hard_mass"] == pytest.approx(mass, rel=1e-5)  # it is this event of the file that was showered


@pytest.mark.slow
def test_pythia_lead_lead() -> None:
    """Quick peripheral events, each after several others: what Angantyr keeps from event to event shows in few."""
    pytest.importorskip("pythia8mc")
    payload = started("pythia8/leadlead.py:LeadLead")
    # 6 after 23, 4 after 23 and 10 after 11 are the ones that found each of the three things of which it must be rid.
    order = [6, 4, 23, 6, 23, 4, 22, 23, 22, 10, 11, 10, 6]
    first: dict[int, Any] = {}
    for position in order:
        made = payload.process_events([position], [position])[0]
        assert_same(first.setdefault(position, made), made, position)
