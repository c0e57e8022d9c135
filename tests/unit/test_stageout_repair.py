"""Segments left open are sealed as copies: offsets stay, what has no record is left out, the original is untouched."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eventrange import records
from eventrange.records import Kind
from eventrange.segment import checksum, digest, writer
from eventrange.segmentreader import read_image
from stageout.repair import seal_left_open

KINDS = ["tar", "zip"]


def images(count: int = 5) -> list[bytes]:
    return [bytes([65 + n]) * (700 + 900 * n) for n in range(count)]


def left_open(folder: Path, kind: str, recorded: int = 5) -> tuple[Path, NDArray[Any]]:
    """A segment with five images that nobody sealed, of which the first have records."""
    path = folder / f"00001-0000.{kind}"
    out = writer(str(path), kind)
    rows = records.new(5, kind=Kind.DONE, droid=1)
    for number, data in enumerate(images()):
        rows["start"][number], rows["stop"][number] = 10 * number, 10 * number + 10
        rows["offset"][number] = out.append(f"t.{10 * number + 1}-{10 * number + 10}.h5", data)
        rows["size"][number], rows["checksum"][number] = len(data), checksum(data)
    out.sync()
    out.close()
    return path, rows[:recorded]


def names(path: Path) -> list[str]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            return archive.namelist()
    with tarfile.open(path) as tar:
        return tar.getnames()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 1, 100, 2000])
def test_a_torn_tail_is_left_out(tmp_path: Path, kind: str, cut: int) -> None:
    path, rows = left_open(tmp_path, kind, recorded=4)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - cut)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    note = seal_left_open(str(path), rows)
    assert note is not None and note["members"] == 4 and note["file"] == f"00001-0000.repaired.{kind}"
    copy = tmp_path / note["file"]
    assert names(copy) == [f"t.{10 * n + 1}-{10 * n + 10}.h5" for n in range(4)]
    assert digest(str(copy)) == (note["size"], int(note["adler32"], 16), note["sha256"])
    for row, data in zip(rows, images(), strict=False):
        assert read_image(str(copy), int(row["offset"]), int(row["size"]), int(row["checksum"])) == data
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_the_middle_keeps_the_offsets_of_the_rest(tmp_path: Path, kind: str) -> None:
    path, rows = left_open(tmp_path, kind)
    with open(path, "r+b") as file:
        file.seek(int(rows["offset"][2]) - 40)
        file.write(b"\xff" * 400)
    note = seal_left_open(str(path), rows)
    assert note is not None
    for number in (0, 1, 3, 4):
        row = rows[number]
        copy = str(tmp_path / note["file"])
        assert read_image(copy, int(row["offset"]), int(row["size"]), int(row["checksum"])) == images()[number]


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_was_sealed_and_only_not_noted_needs_no_copy(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"00001-0000.{kind}"
    out = writer(str(path), kind)
    row = records.new(1, kind=Kind.DONE, start=0, stop=10, size=4, checksum=checksum(b"data"))
    row["offset"] = out.append("t.1-10.h5", b"data")
    sealed = out.seal()
    note = seal_left_open(str(path), row)
    assert note is not None and note["file"] == "" and note["sha256"] == sealed.sha256
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_usable_is_nothing_sealed(tmp_path: Path) -> None:
    path, rows = left_open(tmp_path, "tar")
    path.write_bytes(b"\0" * 5000)
    assert seal_left_open(str(path), rows) is None
    assert seal_left_open(str(tmp_path / "missing.tar"), rows) is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_after_a_repair_makes_another_copy(tmp_path: Path, kind: str) -> None:
    """Its name is its own, for the first may be on an endpoint. What cannot be used makes none."""
    path, rows = left_open(tmp_path, kind)
    first = seal_left_open(str(path), rows[:3])
    assert first is not None and seal_left_open(str(path), rows[:3], first["size"]) is None
    note = seal_left_open(str(path), rows, first["size"])
    assert note is not None and note["members"] == 5 and note["size"] > first["size"]
    assert note["file"] == f"00001-0000.repaired-{first['size']}.{kind}"
    assert {first["file"], note["file"], path.name} == {one.name for one in tmp_path.iterdir()}
    with open(path, "r+b") as file:
        file.seek(int(rows["offset"][3]))
        file.write(bytes(int(rows["size"][3])))
    assert seal_left_open(str(path), rows[:4], first["size"]) is None


def test_an_interrupted_repair_is_begun_again(tmp_path: Path) -> None:
    path, rows = left_open(tmp_path, "tar", recorded=3)
    (tmp_path / "00001-0000.repaired.tar").write_bytes(b"half")
    note = seal_left_open(str(path), rows[np.array([2, 0, 1, 1])])
    assert note is not None and note["members"] == 3
