"""Every example, run as its README says, and its merged file looked at with a physicist's eyes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("yoda.cli") is None, reason="yoda run is not there yet (no yoda.cli)"
)

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def example(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an example's folder: what the examples make is made beside the job file."""

    def example(name: str) -> Path:
        return Path(shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")))

    return example


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`yoda run JOB --task ...`; gives the merged datasets."""

    def run(job: Path, *more: str) -> dict[str, Any]:
        task = tmp_path / f"task-{job.stem}"
        code = "import sys; from eventrange.entry import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "run", str(job), "--task", str(task), *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-4000:]
        (merged,) = (task / "merged").glob("*.h5")
        with h5py.File(merged, "r") as file:
            return {name: item[()] for name, item in file.items()}

    return run


def made(script: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, script, *arguments], check=True, cwd=script.parent, capture_output=True)


def rows(fields: dict[str, Any], name: str) -> list[np.ndarray]:
    """One array per event of a jagged field."""
    return np.split(fields[name], np.cumsum(fields[f"{name}_count"])[:-1])


def assert_whole(fields: dict[str, Any], events: int, names: set[str]) -> None:
    """Every event once, in order, and these fields, whose counts add up."""
    assert (fields["event"] == np.arange(events)).all() and len(fields["event"]) == events
    jagged = {name.removesuffix("_count") for name in fields if name.endswith("_count")}
    assert {name for name in fields if not name.endswith("_count")} == names | {"event"}
    for name in names:
        if name in jagged:
            assert fields[f"{name}_count"].shape == (events,) and fields[f"{name}_count"].sum() == len(fields[name])
        else:
            assert len(fields[name]) == events


def test_toy(example: Callable[[str], Path], run: Run) -> None:
    fields = run(example("toy") / "job.yaml")
    assert_whole(fields, 20000, {"n_tracks", "pt", "eta", "phi", "missing"})
    assert (fields["pt_count"] == fields["n_tracks"]).all()
    assert fields["n_tracks"].mean() == pytest.approx(20, abs=5 * np.sqrt(20 / 20000))
    assert fields["pt"].mean() == pytest.approx(2.0, abs=0.02)
    x = np.add.reduceat(np.append(fields["pt"] * np.cos(fields["phi"]), 0.0), np.cumsum(fields["pt_count"])[:-1])
    busy = fields["pt_count"][1:] > 0
    assert np.allclose(-x[busy], fields["missing"][1:, 0][busy])


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_command(example: Callable[[str], Path], run: Run) -> None:
    folder = example("command")
    subprocess.run(["cc", "-O2", "-o", "simulate", "simulate.c", "-lm"], check=True, cwd=folder)
    fields = run(folder / "job.yaml")
    assert_whole(fields, 2000, {"energy", "leak", "layers", "hit"})
    assert np.allclose(fields["layers"].sum(axis=1) + fields["leak"], fields["energy"], rtol=1e-7)
    assert fields["hit"].dtype == np.int32
    assert ((fields["layers"] > 1.0).sum(axis=1) == fields["hit_count"]).all()
    assert fields["energy"].mean() == pytest.approx(20.0, abs=5 * 20 / np.sqrt(2000))


def test_panda(example: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    folder = example("panda")
    made(folder / "make_ranges.py")
    fields = run(folder / "job.yaml")
    assert_whole(fields, 4000, {"number", "energy", "cell"})
    assert (fields["number"] == np.arange(1000, 5000)).all()
    for energy, cells in zip(fields["energy"], rows(fields, "cell"), strict=True):
        assert not len(cells) or cells.sum() == pytest.approx(energy)
    code = "import sys; from eventrange.entry import main; sys.exit(main())"
    task, dump = tmp_path / "task-job", tmp_path / "event_status.dump.json"
    subprocess.run([sys.executable, "-c", code, "ranges", task, "--harvester", dump], check=True)
    (entries,) = json.loads(dump.read_text()).values()
    assert {entry["eventStatus"] for entry in entries} == {"finished"}
    assert [entry["eventRangeID"] for entry in entries] == [
        f"8848710-3005316503-6391858827-{first}-10" for first in range(1001, 5000, 5)
    ]
    with tarfile.open(entries[0]["path"]) as tar:
        assert f"EventService_premerge.{entries[0]['eventRangeID']}" in tar.getnames()


def test_nanoaod(example: Callable[[str], Path], run: Run) -> None:
    pytest.importorskip("uproot")
    folder = example("nanoaod")
    made(folder / "make_events.py")
    fields = run(folder / "job.yaml")
    muons = {f"muon_{name}" for name in ("pt", "eta", "phi", "charge")}
    assert_whole(fields, 4000, {"run", "number", "ht", "z_mass"} | muons)
    assert (fields["number"] == fields["event"] + 1).all()
    assert fields["muon_pt"].min() > 10 and set(fields["muon_charge"]) == {-1, 1}
    assert set(fields["z_mass_count"]) == {0, 1}
    peak = np.abs(fields["z_mass"] - 91.19) < 10
    assert 0.5 < fields["z_mass_count"].mean() < 0.75 and peak.mean() > 0.8


def test_pythia_top_pairs(example: Callable[[str], Path], run: Run) -> None:
    pytest.importorskip("pythia8mc")
    fields = run(example("pythia8") / "ttbar.yaml")
    assert_whole(fields, 400, {"weight", "top_p4", "particle_id", "particle_p4"})
    momentum = fields["top_p4"]
    mass = np.sqrt(momentum[..., 3] ** 2 - (momentum[..., :3] ** 2).sum(axis=-1))
    assert np.median(mass) == pytest.approx(173, abs=1) and (np.abs(mass - 173) < 15).mean() > 0.9
    for p4 in rows(fields, "particle_p4"):
        assert p4.sum(axis=0, dtype=float) == pytest.approx([0, 0, 0, 13000], abs=0.1)  # GeV, of float32
    assert len(np.unique(momentum[:, 0, 0])) == 400  # no event twice
    assert fields["particle_id_count"].mean() > 200


def test_pythia_shower_of_an_lhe_file(example: Callable[[str], Path], run: Run) -> None:
    pytest.importorskip("pythia8mc")
    folder = example("pythia8")
    made(folder / "make_lhe.py")
    fields = run(folder / "shower.yaml")
    assert_whole(fields, 400, {"weight", "hard_mass", "particle_id", "particle_p4"})
    assert ((fields["hard_mass"] > 60) & (fields["hard_mass"] < 120)).all()
    assert np.median(fields["hard_mass"]) == pytest.approx(91, abs=1)
    dressed = []
    for identity, p4 in zip(rows(fields, "particle_id"), rows(fields, "particle_p4"), strict=True):
        p4 = p4.astype(float)
        assert p4.sum(axis=0) == pytest.approx([0, 0, 0, 13000], abs=0.1)
        hardest = []
        for code in (13, -13):
            muons = p4[identity == code]
            assert len(muons)
            hardest.append(muons[np.hypot(muons[:, 0], muons[:, 1]).argmax()])
        pair = hardest[0] + hardest[1]
        dressed.append(np.sqrt(max(pair[3] ** 2 - (pair[:3] ** 2).sum(), 0)))
    # Photons take little: most pairs of final muons still have the mass of the event they came from.
    assert (np.abs(np.array(dressed) - fields["hard_mass"]) < 2).mean() > 0.7


@pytest.mark.slow
def test_pythia_lead_lead(example: Callable[[str], Path], run: Run) -> None:
    pytest.importorskip("pythia8mc")
    fields = run(example("pythia8") / "leadlead.yaml", "--set", "inputs.events=8")
    assert_whole(fields, 8, {"weight", "b", "charged_eta", "pt", "id"})
    assert fields["charged_eta"].shape == (8, 50)
    assert ((fields["b"] > 0) & (fields["b"] < 25)).all()
    assert np.corrcoef(fields["b"], fields["charged_eta"].sum(axis=1))[0, 1] < -0.5
    assert (fields["pt_count"] <= fields["charged_eta"].sum(axis=1)).all()
