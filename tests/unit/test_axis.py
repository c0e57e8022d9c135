"""The axis: positions, ranges and names, and what is said of wrong ones."""

from __future__ import annotations

import pickle

import pytest

from eventrange.axis import Axis, unique_names
from eventrange.errors import ConfigError


@pytest.fixture
def axis() -> Axis:
    return Axis([("in/a.lhe", 10), ("in/empty.lhe", 0), ("in/b.lhe", 5), ("in/c.lhe", 1)])


def test_positions(axis: Axis) -> None:
    assert axis.total == len(axis) == 16
    assert list(axis.cuts) == [0, 10, 10, 15, 16]
    assert axis.locate(0) == (0, 0)
    assert axis.locate(9) == (0, 9)
    assert axis.locate(10) == (2, 0), "an empty file holds no position"
    assert axis.locate(15) == (3, 0)
    for bad in (-1, 16):
        with pytest.raises(IndexError, match="16 events"):
            axis.locate(bad)


def test_pieces(axis: Axis) -> None:
    assert axis.pieces(8, 16) == [(0, 8, 10), (2, 0, 5), (3, 0, 1)]
    assert axis.pieces(4, 4) == []
    with pytest.raises(IndexError):
        axis.pieces(5, 17)
    assert axis.member("task", 10, 12) == "task.11-12.h5"


def test_names_there_and_back(axis: Axis) -> None:
    assert axis.name(0, 10) == "a.lhe:1-10"
    assert axis.name(11, 12) == "b.lhe:2-2"
    assert axis.names(8, 12) == ["a.lhe:9-10", "b.lhe:1-2"]
    assert axis.parse("b.lhe:2-2") == axis.parse("b.lhe:2") == axis.parse("#11") == (11, 12)
    assert axis.parse("in/b.lhe:1-5") == axis.parse("b.lhe") == (10, 15)
    assert axis.parse("1-16") == (0, 16)
    assert axis.parse(" 16 ") == (15, 16)
    with pytest.raises(ValueError, match="2 pieces"):
        axis.name(9, 11)
    with pytest.raises(ValueError, match="0 pieces"):
        axis.name(3, 3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("b.lhe:0-3", "numbered 1 to 5"),
        ("b.lhe:4-3", "numbered 1 to 5"),
        ("b.lhe:1-6", "numbered 1 to 5"),
        ("d.lhe:1-2", "no input file is called 'd.lhe'"),
        ("bb.lhe:1-2", "did you mean 'b.lhe'"),
        ("1-17", "numbered 1 to 16"),
        ("#16", "positions #0 to #15"),
        ("nonsense", "neither FILE:first-last"),
        ("b.lhe:x", "neither"),
        ("", "neither"),
    ],
)
def test_wrong_names_are_explained(axis: Axis, name: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        axis.parse(name)
    assert says in str(caught.value)
    assert "write for example a.lhe:1-1" in str(caught.value)


def test_unique_names() -> None:
    assert unique_names(["x/a", "y/b"]) == ["a", "b"]
    assert unique_names(["r1/a", "r2/a", "r2/b"]) == ["r1/a", "r2/a", "b"]
    assert unique_names(["1/r/a", "2/r/a", "2/q/a"]) == ["1/r/a", "2/r/a", "q/a"]
    assert unique_names(["a", "x/a"]) == ["a", "x/a"]
    assert unique_names(["x/a", "x/a", "x/a"]) == ["x/a", "x/a~2", "x/a~3"]
    assert len(set(unique_names(["a", "a", "a~2", "/a"]))) == 4


def test_a_colon_in_a_file_name() -> None:
    axis = Axis([("s3://b/run:1", 4), ("t:2", 4)])
    for piece in ((0, 4), (1, 3), (4, 5)):
        assert axis.parse(axis.name(*piece)) == piece


def test_limit() -> None:
    files = [("a", 10), ("b", 5), ("c", 7)]
    axis = Axis(files, limit=12)
    assert [(file.path, file.events) for file in axis.files] == [("a", 10), ("b", 2)]
    assert Axis(files, limit=22).total == 22
    with pytest.raises(ConfigError, match="first 23 events, but the 3 input file\\(s\\) hold 22") as caught:
        Axis(files, limit=23, where="job.yaml")
    assert "job.yaml: inputs.events" in str(caught.value)
    assert caught.value.exit_code == 78
    with pytest.raises(ConfigError, match="not a number of events"):
        Axis(files, limit=0)


def test_plain_data(axis: Axis) -> None:
    assert Axis.from_dict(axis.to_dict()) == axis
    assert pickle.loads(pickle.dumps(axis)) == axis
    generated = Axis.generate(10**12)
    assert generated.name(0, 10) == "generate:1-10"
    assert generated.parse("generate:1-10") == (0, 10)
    assert Axis.from_dict(generated.to_dict()) == generated
    assert "1000000000000" in repr(generated)
