"""HDF5: dense and jagged fields against h5py itself; what does not fit together is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from inputs_samples import real, write_hdf5

from droid.inputs import hdf5, index_file, open_input
from eventrange import image
from eventrange.errors import ConfigError, InputDamaged, InputMissing


def opened(path: str, cache: Path | None = None, **options: Any) -> hdf5.HDF5Input:
    found = open_input("hdf5", path, index_file("hdf5", path, options, cache), options)
    assert isinstance(found, hdf5.HDF5Input)
    return found


def test_fields_against_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "EVERY", 8)
    path = write_hdf5(tmp_path / "a.h5", 1100)
    file = opened(path, tmp_path / "index")
    with h5py.File(path, locking=False) as plain:
        x, vector, hits, counts = (plain[name][()] for name in ("x", "vector", "hits", "hits_count"))
    edges = np.concatenate([[0], np.cumsum(counts.astype(int))])
    assert file.count() == 1100
    assert len(file.index.arrays["rows0"]) == 1100 // 8 + 2
    for start, stop in [(0, 1100), (7, 9), (8, 8), (500, 517), (1099, 1100)]:
        events = file.read(start, stop)
        assert len(events) == stop - start
        for i, event in enumerate(events, start):
            assert set(event) == {"x", "vector", "hits", "deep/y"}
            assert event["x"] == x[i] and event["vector"].tolist() == vector[i].tolist()
            assert event["hits"].tolist() == hits[edges[i] : edges[i + 1]].tolist()
            assert event["deep/y"] == str(i).encode()
    with pytest.raises(IndexError):
        file.read(1090, 1101)


def test_options_choose_group_and_fields(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", 10)
    assert opened(path, fields=["hits", "hits_count"]).read(3, 4)[0]["hits_count"] == 3
    assert opened(path, group="deep").read(3, 4) == [{"y": b"3"}]
    for options, says in [
        ({"group": "nowhere"}, "write one of: /, deep"),
        ({"fields": ["nothing"]}, "there are: deep/y, hits, hits_count, vector, x"),
        ({"fields": ["scalar"]}, "no dataset 'scalar' with a leading axis"),
        ({"layout": "odd"}, "write fields or lheh5"),
        ({"field": "x"}, "inputs.options.field: is no option"),
    ]:
        with pytest.raises(ConfigError) as caught:
            opened(path, **options)
        assert says in str(caught.value)


def test_unequal_leading_axes_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.h5")
    with h5py.File(path, "w") as file:
        file["x"], file["y"], file["z"] = np.arange(5), np.arange(5), np.arange(7)
    with pytest.raises(InputDamaged, match="5 rows: x, y; 7 rows: z") as caught:
        opened(path)
    assert "inputs.options.fields" in str(caught.value)
    assert opened(path, fields=["x", "y"]).count() == 5


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([1, 2, 3], "adds up to 6 rows, but x has 7"),
        ([-1, 4, 4], "one number of rows per event"),
        ([1.0, 3.0, 3.0], "one number of rows per event"),
    ],
)
def test_counts_that_do_not_add_up(counts: list[Any], says: str, tmp_path: Path) -> None:
    path = str(tmp_path / "a.h5")
    with h5py.File(path, "w") as file:
        file["x"], file["x_count"] = np.arange(7), np.array(counts)
    with pytest.raises(InputDamaged) as caught:
        opened(path)
    assert says in str(caught.value)


def test_lhe_in_hdf5_layout() -> None:
    path = real("pylhe-testfile-hpcgen.hdf5")
    file = opened(path, layout="lheh5")
    with h5py.File(path, locking=False) as plain:
        events, particles = plain["events"][()], plain["particles"][()]
    assert file.count() == 100
    assert file.particle_columns[:2] == ["id", "status"]
    for i, event in enumerate(file.read(40, 60), 40):
        assert event["scale"] == events[i, 4]
        first, number = int(events[i, 2]), int(events[i, 1])
        assert np.array_equal(event["particles"], particles[first : first + number])
    with pytest.raises(InputDamaged, match=r"10 rows: init; 100 rows: events"):
        opened(path)


def test_not_laid_out_as_lheh5(tmp_path: Path) -> None:
    with pytest.raises(InputDamaged, match="not laid out as lheh5"):
        opened(write_hdf5(tmp_path / "a.h5", 4), layout="lheh5")
    path = str(tmp_path / "b.h5")
    with h5py.File(path, "w") as file:
        file["events"] = np.array([[0.0, 2.0], [2.0, 9.0]])
        file["events"].attrs["properties"] = ["start", "nparticles"]
        file["particles"] = np.zeros((4, 13))
        file["particles"].attrs["properties"] = ["id"]
    with pytest.raises(InputDamaged, match="rows up to 11 of particles, which has 4"):
        opened(path, layout="lheh5")


def test_garbage_truncated_and_empty(tmp_path: Path) -> None:
    path = Path(write_hdf5(tmp_path / "a.h5", 1000))
    whole = path.read_bytes()
    for text in (whole[: len(whole) // 2], b"garbage" * 100):
        path.write_bytes(text)
        with pytest.raises(InputDamaged, match="no HDF5 file, or is cut short"):
            opened(str(path))
    with h5py.File(path, "w"):
        pass
    with pytest.raises(InputDamaged, match="no dataset with a leading axis"):
        opened(str(path))
    assert opened(write_hdf5(tmp_path / "b.h5", 0)).read(0, 0) == []


def test_urls_go_through_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://inputs/a.h5", "wb") as file:
        file.write(Path(write_hdf5(tmp_path / "a.h5", 20)).read_bytes())
    url = "memory://inputs/a.h5"
    assert opened(url, tmp_path / "index").read(7, 8)[0]["x"] == 10.5
    assert opened(f"file://{tmp_path}/a.h5").count() == 20
    for bad, says in [("memory://inputs/b.h5", "no such file"), ("odd://x/y", "no URL that fsspec can read")]:
        with pytest.raises(InputMissing, match=says):
            opened(bad)


def test_strings_of_a_merged_file_can_be_returned(tmp_path: Path) -> None:
    """Scalars and arrays, of any length: what one task wrote another may read and write again."""
    names, tags = ["ab", "abc", "", "\u00fc"], ["x", "yy", "zzz"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["name"], file["tags"] = np.array(names, object), np.array(tags, object)
        file["tags_count"] = [2, 0, 0, 1]
    events = opened(str(tmp_path / "a.h5")).read(0, 4)
    assert [event["name"] for event in events] == names
    assert [event["tags"].tolist() for event in events] == [tags[:2], [], [], tags[2:]]
    found = image.read(image.build(0, None, events)).fields
    assert [text.decode() for text in found["name"].values] == names
    assert [text.decode() for text in found["tags"].values] == tags and found["tags"].counts.tolist() == [2, 0, 0, 1]
