"""Named ranges that make no sense are refused before any work, each with its place; and so is a damaged copy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from eventrange.axis import Axis
from eventrange.errors import ConfigError, RangesDamaged
from eventrange.named import NamedRanges
from yoda.sources import named_axis


def entry(name: str, first: int, last: int, file: str | None = "a.lhe") -> dict[str, Any]:
    return {"eventRangeID": name, "startEvent": first, "lastEvent": last, **({"LFN": file} if file else {})}


def whole() -> Axis:
    return Axis([("in/a.lhe", 10), ("in/b.lhe", 5), ("x/c.lhe", 3), ("y/c.lhe", 3)])


def lay(folder: Path, entries: list[dict[str, Any]], axis: Axis | None = None, numbering: str = "file") -> Axis:
    path = folder / "ranges.json"
    path.write_text(json.dumps(entries))
    return named_axis(axis or whole(), str(path), str(folder / "index"), numbering, lambda seconds: None)


@pytest.mark.parametrize(
    ("entries", "where", "says"),
    [
        ([], "ranges.file", "names no range"),
        ([entry("x", 1, 5), entry("x", 6, 9)], "range x", "two ranges are called 'x'"),
        ([entry("x", 6, 9), entry("y", 1, 6)], "range x", "y and x both have event 6 of a.lhe"),
        ([entry("x", 1, 9), entry("y", 3, 4)], "range y", "x and y both have event 3 of a.lhe"),
        ([entry("x", 1, 2), entry("y", 3, 11)], "entry 2 (y)", "events 3 to 11 are not in a.lhe"),
        ([entry("x", 0, 2)], "entry 1 (x)", "numbered 1 to 10, both included; .* numbering: inputs|numbered 1 to 10"),
        ([entry("x", 3, 2)], "entry 1 (x)", "events 3 to 2 are not in"),
        ([entry("x", 1, 1 << 64)], "entry 1 (x)", "lastEvent is 18446744073709551616"),
        (
            [entry("x", 1, 2, "aa.lhe")],
            "entry 1 (x)",
            "no input file is called 'aa.lhe'(.|\n)*did you mean 'in/a.lhe'|a.lhe",
        ),
        ([entry("x", 1, 2, "c.lhe")], "entry 1 (x)", "2 input files are called 'c.lhe'"),
        ([entry("x", 1, 2, None)], "entry 1 (x)", "no LFN, and there are 4 input files"),
        ([entry("x", 1, 2), entry("a/b", 3, 4)], "entry 2 (a/b)", "cannot be part of a file name"),
        ([entry("x\ny", 1, 2)], "entry 1", "cannot be part of a file name"),
        ([entry("", 1, 2)], "entry 1", "cannot be part of a file name"),
        ([entry("é" * 101, 1, 2)], "entry 1", "1 to 200 bytes"),
    ],
)
def test_refused(tmp_path: Path, entries: list[dict[str, Any]], where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        lay(tmp_path, entries)
    assert str(caught.value).startswith(f"{tmp_path / 'ranges.json'}: {where}")
    assert caught.value.exit_code == 78
    assert list((tmp_path / "index").iterdir()) == [], "nothing is left of it"


def test_numbers_may_count_through_all_inputs(tmp_path: Path) -> None:
    axis = lay(tmp_path, [entry("x", 11, 12, "b.lhe"), entry("y", 15, 15, "b.lhe")], numbering="inputs")
    assert axis.pieces(0, 3) == [(1, 0, 2), (1, 4, 5)]
    with pytest.raises(ConfigError, match=r"events 1 to 2 are not in b.lhe(.|\n)*numbered 11 to 15"):
        lay(tmp_path, [entry("x", 1, 2, "b.lhe")], numbering="inputs")
    with pytest.raises(ConfigError, match="if they are counted through all input files, write `numbering: inputs`"):
        lay(tmp_path, [entry("x", 11, 12, "b.lhe")])


def test_one_input_file_needs_no_name(tmp_path: Path) -> None:
    axis = lay(tmp_path, [entry("x", 2, 3, None)], Axis.generate(5))
    assert axis.total == 2 and axis.name(0, 2) == "generate:2-3" and axis.parse("x") == (0, 2)
    assert axis.parse("generate:3") == (1, 2)
    for other in ("generate:1", "generate:3-4", "generate:4"):
        with pytest.raises(ConfigError, match="not all of these events are in a named range"):
            axis.parse(other)
    with pytest.raises(ConfigError, match="numbered 1 to 5"):
        axis.parse("generate:6")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    lay(tmp_path, [entry("x", 1, 2)])
    old, young = tmp_path / "index" / ".ranges-old", tmp_path / "index" / ".ranges-young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    lay(tmp_path, [entry("x", 1, 2)])
    assert young.exists() and not old.exists()


def test_a_file_that_is_still_being_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    text = json.dumps([entry("x", 1, 2), entry("y", 3, 4)])
    pieces = [text[:20], text[:60], text]
    path.write_text(pieces.pop(0))

    def write_on(seconds: float) -> None:
        path.write_text(pieces.pop(0))

    axis = named_axis(whole(), str(path), str(tmp_path), sleep=write_on)
    assert axis.total == 4 and not pieces
    path.write_text(text[:60])
    with pytest.raises(ConfigError, match="ends in the middle"):
        named_axis(whole(), str(path), str(tmp_path), sleep=lambda seconds: None)


def test_groups_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({"43": [entry("x", 6, 6)], "42": [entry("y", 1, 2), entry("z", 8, 9)]}))
    ranges = named_axis(whole(), str(path), str(tmp_path)).ranges
    assert ranges is not None
    assert [(ranges.name(i), ranges.group(i)) for i in range(3)] == [("y", "42"), ("x", "43"), ("z", "42")]


def test_a_damaged_copy_is_noticed(tmp_path: Path) -> None:
    axis = lay(tmp_path, [entry("x", 1, 2), entry("y", 3, 4)])
    plain = axis.to_dict()
    path = Path(plain["ranges"]["path"])
    data = path.read_bytes()
    path.unlink()
    for bad in (data[:100], data[:-10], b"", b"x" * len(data), data[:16] + b"q" + data[17:]):
        path.write_bytes(bad)
        with pytest.raises(RangesDamaged):
            Axis.from_dict(plain)
            NamedRanges(str(path)).check()
        path.unlink()
    with pytest.raises(RangesDamaged, match="No such file"):
        Axis.from_dict(plain)
    path.write_bytes(data)
    assert Axis.from_dict(plain) == axis
    plain["ranges"]["sha256"] = "0" * 64
    with pytest.raises(RangesDamaged, match="of other ranges"):
        Axis.from_dict(plain)
