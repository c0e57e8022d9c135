"""ROOT: TTree and RNTuple against uproot itself; the error names the trees and branches there are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs_samples import real, write_root

from droid.inputs import index_file, open_input, root
from eventrange.errors import ConfigError, ExtraMissing, InputDamaged, InputMissing

uproot = pytest.importorskip("uproot")
awkward = pytest.importorskip("awkward")


def opened(path: str, cache: Path | None = None, **options: Any) -> root.RootInput:
    found = open_input("root", path, index_file("root", path, options, cache), options)
    assert isinstance(found, root.RootInput)
    return found


def check(file: root.RootInput, tree: Any, start: int, stop: int) -> None:
    """Every value of [start, stop) as uproot gives it for that event alone."""
    events = file.read(start, stop)
    assert len(events) == stop - start
    for name in file.index.meta["branches"]:
        expected = tree[name].array(library="ak", entry_start=start, entry_stop=stop).to_list()
        for event, value in zip(events, expected, strict=True):
            found = event[name]
            assert (found.tolist() if hasattr(found, "tolist") else found) == value, name


def test_real_ttree() -> None:
    path = real("uproot-HZZ.root")
    file = opened(path)
    assert file.count() == 2421
    with uproot.open(path) as plain:
        for start, stop in [(0, 5), (1200, 1210), (250, 260), (2420, 2421), (7, 7), (0, 2421)]:
            check(file, plain["events"], start, stop)
    event = opened(path, tree="events", branches=["Muon_P[xy]", "NMuon"]).read(1000, 1001)[0]
    assert set(event) == {"Muon_Px", "Muon_Py", "NMuon"}
    assert isinstance(event["Muon_Px"], np.ndarray) and event["Muon_Px"].shape == (event["NMuon"],)


def test_real_nanoaod() -> None:
    path = real("nanoAOD_2015_CMS_Open_Data_ttbar.root")
    file = opened(path, tree="Events", branches=["Muon_*", "nMuon", "run", "HLT_IsoMu2*"])
    with uproot.open(path) as plain:
        check(file, plain["Events"], 90, 110)
    assert len(opened(path).index.meta["branches"]) == 947


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_small_windows(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root, "FIRST_WINDOW", 16)
    monkeypatch.setattr(root, "MOST_ENTRIES", 7)
    path = write_root(tmp_path / "a.root", 53, kind)
    file = opened(path, tmp_path / "index")
    assert file.count() == 53
    with uproot.open(path) as plain:
        for start, stop in [(0, 53), (6, 8), (7, 14), (20, 21), (21, 22), (13, 50), (52, 53)]:
            check(file, plain["t"], start, stop)
    event = file.read(5, 6)[0]
    assert event["jagged"].tolist() == [5.0]
    assert event["x"] == 7.5
    if kind == "rntuple":
        assert event["name"] == "event 5"
    else:
        assert event["vector"].tolist() == [15.0, 16.0, 17.0]
    with pytest.raises(IndexError):
        file.read(50, 54)


def test_nested_values_are_awkward_arrays(tmp_path: Path) -> None:
    nested = [[[1, 2], []], [], [[3]]]
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mkrntuple("t", {"nested": awkward.Array(nested)})
    events = opened(str(tmp_path / "a.root")).read(0, 3)
    assert [event["nested"].to_list() for event in events] == nested


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_what_a_payload_does_to_its_events_is_not_read_again(kind: str, tmp_path: Path) -> None:
    file = opened(write_root(tmp_path / "a.root", 20, kind))
    for event in file.read(2, 9):
        for value in event.values():
            if isinstance(value, np.ndarray):
                value *= 10
    with uproot.open(tmp_path / "a.root") as plain:
        for start, stop in [(2, 9), (3, 4), (0, 20)]:
            check(file, plain["t"], start, stop)


def test_nor_what_it_does_to_nested_values(tmp_path: Path) -> None:
    nested = [[[1, 2], [3]], [[4]], [[]], [[5, 6]]]
    with uproot.recreate(tmp_path / "a.root") as made:
        made.mkrntuple("t", {"nested": awkward.Array(nested), "name": awkward.Array(["a", "bc", "", "d"])})
    file = opened(str(tmp_path / "a.root"))
    for event in file.read(0, 2):
        awkward.to_numpy(event["nested"][0])[:] = 0
    assert [(event["nested"].to_list(), event["name"]) for event in file.read(0, 3)] == [
        ([[1, 2], [3]], "a"),
        ([[4]], "bc"),
        ([[]], ""),
    ]


def test_trees_and_branches_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "a.root")
    with uproot.recreate(path) as file:
        for name in ("one", "dir/two"):
            file.mktree(name, {"x": "f8"})
            file[name].extend({"x": np.arange(4.0)})
    for options, says in [
        ({}, "holds 2 trees, so one must be named"),
        ({"tree": "three"}, "there are: one, dir/two"),
        ({"tree": "one", "branches": ["y*"]}, "'y*' matches no branch"),
        ({"tree": "one", "branch": "x"}, "inputs.options.branch: is no option"),
    ]:
        with pytest.raises(ConfigError) as caught:
            opened(path, **options)
        assert says in str(caught.value)
    assert opened(path, tree="dir/two").read(1, 2) == [{"x": 1.0}]
    assert opened(path, tree="/one;1", branches="x").count() == 4


def test_garbage_truncated_and_no_tree(tmp_path: Path) -> None:
    path = Path(write_root(tmp_path / "a.root", 53))
    whole = path.read_bytes()
    for keep in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(InputDamaged):
            opened(str(path))
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(InputDamaged, match="no ROOT file that can be read"):
        opened(str(path))
    with uproot.recreate(path) as file:
        file["h"] = np.histogram(np.arange(3))
    with pytest.raises(InputDamaged, match="holds no TTree and no RNTuple"):
        opened(str(path))


def test_a_damaged_basket_is_named(tmp_path: Path) -> None:
    path = Path(write_root(tmp_path / "a.root", 53))
    index = index_file("root", str(path))
    with uproot.open(path) as plain:
        basket = int(plain["t/x"].member("fBasketSeek")[0])
    whole = bytearray(path.read_bytes())
    whole[basket : basket + 100] = b"\xff" * 100
    path.write_bytes(whole)
    file = open_input("root", str(path), index)
    for _ in range(2):
        with pytest.raises(InputDamaged, match="entries 0 to 53 cannot be read"):
            file.read(0, 53)


def test_no_entries(tmp_path: Path) -> None:
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("t", {"x": "f8"})
    assert opened(str(tmp_path / "a.root")).read(0, 0) == []


def test_urls_go_through_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://inputs/a.root", "wb") as file:
        file.write(Path(write_root(tmp_path / "a.root", 20)).read_bytes())
    assert opened("memory://inputs/a.root").read(7, 8)[0]["x"] == 10.5
    with pytest.raises(InputMissing, match="no such file"):
        opened("memory://inputs/b.root")


def test_without_uproot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_root(tmp_path / "a.root", 3)
    monkeypatch.setitem(sys.modules, "uproot", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'yoda-droid\[root\]'"):
        opened(path)
