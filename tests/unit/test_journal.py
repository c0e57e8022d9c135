"""The journal as it is meant to be used: order, frames, notes, following a live writer. Damage is in tests/crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eventrange import records
from eventrange.errors import CannotWrite
from eventrange.journal import FRAME_BYTES, FRAME_RECORDS, HEADER_SIZE, JournalReader, JournalWriter
from eventrange.records import Kind


def done(first: int, count: int) -> NDArray[Any]:
    rows = records.new(count, kind=Kind.DONE)
    rows["start"] = np.arange(first, first + count)
    rows["stop"] = rows["start"] + 1
    return rows


def entries(reader: JournalReader) -> list[Any]:
    """Note names, and starts of records."""
    out: list[Any] = []
    for entry in reader:
        out += [entry["note"]] if isinstance(entry, dict) else entry["start"].tolist()
    return out


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.yj")


def test_order_of_records_and_notes_is_kept(path: str) -> None:
    writer = JournalWriter(path, "f", "a", host="n1")
    writer.append(done(0, 2))
    writer.append(done(2, 1))
    writer.note("x", time=1.0)
    writer.append(done(3, 1))
    assert writer.waiting == 5
    size = writer.flush()
    assert writer.waiting == 0 and Path(path).stat().st_size == size
    writer.append(done(4, 1))
    writer.flush()
    reader = JournalReader(path, "f", "a")
    assert entries(reader) == ["journal", 0, 1, 2, "x", 3, 4]
    assert not reader.damage and reader.offset == Path(path).stat().st_size


def test_first_note_says_whose_it_is(path: str) -> None:
    JournalWriter(path, "f", "a", host="n1", created=5.0).flush()
    first = next(iter(JournalReader(path, "f", "a")))
    assert first == {
        "note": "journal", "allocation": "a", "fingerprint": "f", "version": 1, "host": "n1", "created": 5.0,
    }  # fmt: skip


def test_values_come_back_as_written(path: str) -> None:
    rows = done(0, 3000)
    rng = np.random.default_rng(1)
    for name, (dtype, _) in (records.RECORD.fields or {}).items():
        if name not in ("check", "start", "stop", "kind"):
            rows[name] = rng.integers(0, 200, len(rows)).astype(dtype)
    before = rows.copy()
    writer = JournalWriter(path, "f", "a")
    writer.append(rows)
    writer.flush()
    assert (rows == before).all(), "the caller's array is left alone"
    back = np.concatenate([entry for entry in JournalReader(path, "f", "a") if not isinstance(entry, dict)])
    names = [name for name in records.RECORD.names or () if name != "check"]
    assert (back[names] == rows[names]).all()


def test_many_records_are_several_frames(path: str) -> None:
    writer = JournalWriter(path, "f", "a")
    start = writer.flush()
    writer.append(done(0, 2 * FRAME_RECORDS + 1))
    assert writer.flush() == start + 3 * HEADER_SIZE + (2 * FRAME_RECORDS + 1) * records.SIZE
    assert entries(JournalReader(path, "f", "a"))[1:] == list(range(2 * FRAME_RECORDS + 1))


def test_nothing_to_write(path: str) -> None:
    writer = JournalWriter(path, "f", "a")
    size = writer.flush()
    writer.append(records.new(0))
    assert writer.flush() == size and writer.flush() == size
    assert entries(JournalReader(path, "f", "a")) == ["journal"]


def test_a_read_only_array_can_be_appended(path: str) -> None:
    writer = JournalWriter(path, "f", "a")
    writer.append(np.frombuffer(done(7, 1).tobytes(), records.RECORD))
    writer.flush()
    assert entries(JournalReader(path, "f", "a")) == ["journal", 7]


@pytest.mark.parametrize("text", ["", "héé\n\0\x1b", "\ud800 lone surrogate", "\u2028", "x" * 100_000])
def test_any_text_in_a_note(path: str, text: str) -> None:
    writer = JournalWriter(path, "f", "a")
    writer.note("evidence", time=1.0, text=text, odd=Path("p"))
    writer.flush()
    note = list(JournalReader(path, "f", "a"))[-1]
    assert isinstance(note, dict) and note["text"] == text and note["odd"] == "p"


def test_a_note_that_is_too_large_is_cut_and_the_rest_stays_readable(path: str) -> None:
    writer = JournalWriter(path, "f", "a")
    writer.note("evidence", time=1.0, text="x" * (FRAME_BYTES + 1))
    writer.note("x", time=2.0)
    writer.append(done(1, 1))
    writer.flush()
    reader = JournalReader(path, "f", "a")
    assert entries(reader) == ["journal", "evidence", "x", 1] and not reader.damage


def test_the_largest_note_that_is_not_cut(path: str) -> None:
    writer = JournalWriter(path, "f", "a")
    room = FRAME_BYTES - len(json.dumps({"note": "n", "text": ""}, separators=(",", ":")))
    writer.note("n", text="x" * room)
    writer.flush()
    note = list(JournalReader(path, "f", "a"))[-1]
    assert isinstance(note, dict) and len(note["text"]) == room


def test_an_old_file_is_never_appended_to(path: str) -> None:
    JournalWriter(path, "f", "a").flush()
    before = Path(path).read_bytes()
    with pytest.raises(CannotWrite):
        JournalWriter(path, "f", "a")
    assert Path(path).read_bytes() == before


def test_following_a_live_writer(path: str) -> None:
    writer = JournalWriter(path, "f", "a")
    reader = JournalReader(path, "f", "a")
    assert entries(reader) == []
    for n in range(20):
        writer.append(done(n, 1))
        assert entries(reader) == []
        writer.flush()
        assert entries(reader) == (["journal", n] if n == 0 else [n])
    assert not reader.damage and reader.damage.tail == 0


def test_following_while_frames_are_torn(path: str, tmp_path: Path) -> None:
    writer = JournalWriter(path, "f", "a")
    for n in range(3):
        writer.append(done(10 * n, 5))
        writer.note("x", time=1.0)
    writer.flush()
    content = Path(path).read_bytes()
    growing = tmp_path / "b.yj"
    reader = JournalReader(str(growing), "f", "a")
    found: list[Any] = []
    for size in range(len(content) + 1):
        growing.write_bytes(content[:size])
        found += entries(reader)
    assert found == entries(JournalReader(path, "f", "a")) and not reader.damage


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError):
        list(JournalReader("/nonexistent/a.yj", "f", "a"))


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    name = b"\xff".decode("utf-8", "surrogateescape")
    writer = JournalWriter(str(tmp_path / f"{name}.yj"), "f", name)
    writer.append(done(1, 1))
    writer.flush()
    assert entries(JournalReader(str(tmp_path / f"{name}.yj"), "f", name)) == ["journal", 1]


def test_golden_bytes(path: str) -> None:
    """The format on disk: a change here is a new version of it."""
    writer = JournalWriter(path, "f", "a")
    writer.append(records.new(1, kind=Kind.DONE, start=1, stop=3, time=2.0, size=9))
    writer.flush()
    content = Path(path).read_bytes()
    note = b'{"note":"journal","allocation":"a","fingerprint":"f","version":1}'
    assert content[:24].hex() == "f5594f44416a6e0a01000200" + "2307b29b" + "00000000" + "01000000"
    assert content[HEADER_SIZE : HEADER_SIZE + len(note)] == note
    frame = content[HEADER_SIZE + len(note) :]
    assert frame[:20].hex() == "f5594f44416a6e0a01000100" + "2307b29b" + "01000000"
    assert frame[HEADER_SIZE:].hex() == (
        "0200000000000000" "0000000000000000" "0100000000000000" "0300000000000000"
        "0000000000000040" "0000000000000000" "0000000000000000" "09000000" "66a1debd"
    )  # fmt: skip
