from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(__file__))
from merging import Task, event, events_in, numbers, same, whole

from eventrange import image, records
from eventrange.errors import CannotWrite, FieldsChanged, ImageMissing, MergeIncomplete
from eventrange.records import Kind
from stageout import finalfile, reading
from stageout.merge import gaps, merge, winners


@pytest.fixture(autouse=True, params=[reading._LARGE, 0], ids=["joined", "apart"])
def _size_of_a_large_image(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are joined before they are written, large ones are not: the images of these tests are taken for
    both."""
    monkeypatch.setattr(reading, "_LARGE", request.param)


def _go(task: Task, out: Path, count: int, **options: Any) -> Any:
    options = {"fetch_many": task.fetch_many, "fingerprint": "f00d", "attributes": {"seed": 42}} | options
    return merge(task.placed(), options.pop("fetch", task.fetch), str(out), "t", count, **options)


# --- winners ----------------------------------------------------------------------------------------------------------


def _pieces(*rows: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    made = np.concatenate([records.new(kind=kind, start=a, stop=b) for kind, a, b in rows])
    made["segment"] = np.arange(len(rows))
    return [(int(r["segment"]), int(r["keep_start"]), int(r["keep_stop"])) for r in winners(made)]


D, P = Kind.DONE, Kind.PENDING


def test_without_overlap_each_record_wins_all_of_its_range() -> None:
    assert _pieces((D, 5, 9), (Kind.GRANTED, 0, 99), (D, 0, 5), (D, 12, 13)) == [(2, 0, 5), (0, 5, 9), (3, 12, 13)]
    assert winners(records.new(0)).shape == (0,)


def test_first_record_wins_and_the_later_keeps_the_rest() -> None:
    assert _pieces((D, 3, 7), (D, 0, 10)) == [(1, 0, 3), (0, 3, 7), (1, 7, 10)]
    assert _pieces((D, 0, 10), (D, 3, 7)) == [(0, 0, 10)]
    assert _pieces((D, 0, 4), (D, 0, 4), (D, 0, 4)) == [(0, 0, 4)]
    assert _pieces((D, 4, 8), (D, 0, 5), (D, 7, 9), (D, 20, 21)) == [(1, 0, 4), (0, 4, 8), (2, 8, 9), (3, 20, 21)]


def test_pending_takes_what_came_before_out_of_the_race() -> None:
    assert _pieces((D, 0, 10), (P, 2, 5)) == [(0, 0, 2), (0, 5, 10)]
    assert _pieces((D, 0, 10), (P, 2, 5), (D, 3, 4), (D, 0, 5)) == [
        (0, 0, 2),
        (3, 2, 3),
        (2, 3, 4),
        (3, 4, 5),
        (0, 5, 10),
    ]
    assert _pieces((P, 0, 5), (D, 0, 5)) == [(1, 0, 5)]
    assert _pieces((P, 7, 9)) == []


def test_allocation_index_travels_along() -> None:
    made = np.concatenate([records.new(kind=D, start=5, stop=6), records.new(kind=D, start=0, stop=5)])
    assert winners(made, np.array([7, 3]))["allocation"].tolist() == [3, 7]


def test_gaps() -> None:
    assert gaps(np.array([[4, 6], [0, 2]]), 0, 10).tolist() == [[2, 4], [6, 10]]
    assert gaps(np.zeros((0, 2)), 0, 3).tolist() == [[0, 3]]
    assert gaps(np.array([[-5, 20]]), 0, 10).tolist() == []


# --- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "lzf", "none"])
def test_every_event_is_there_in_order(tmp_path: Path, compression: str) -> None:
    task = whole(str(tmp_path / "s"), 50)
    made = _go(task, tmp_path / "m", 50, compression=compression)
    assert made.files == ["t.h5"] and made.events == 50 and made.fresh and made.jagged == {"hits", "words"}
    path = str(tmp_path / "m" / "t.h5")
    found = events_in(path)
    assert list(found) == list(range(50))
    assert all(same(found[position], event(position)) for position in found)
    with h5py.File(path) as file:
        assert dict(file.attrs) == {
            "task": "t",
            "fingerprint": "f00d",
            "seed": 42,
            "events": 50,
            "first": 0,
            "stop": 50,
        }
        assert file["trio"].shape == (50, 3) and file["trio"].dtype == "i2"
        assert file["energy"].compression == (None if compression == "none" else compression)
    notes = json.loads((tmp_path / "m" / "merge.json").read_text())
    assert notes["files"][0]["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert sorted(os.listdir(tmp_path / "m")) == ["merge.json", "t.h5"]


@pytest.mark.parametrize("make", [event, numbers])
def test_chunks_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.setattr(finalfile, "CHUNK", 64)
    for compression in ("gzip", "lzf", "none"):
        raw = set()
        for size, threads, readers in ((1, 1, 1), (7, 3, 2), (200, 2, 1)):
            task = whole(str(tmp_path / f"s{compression}{size}"), 100, size, make)
            out = tmp_path / f"m{compression}{size}"
            many = task.fetch_many if threads > 1 else None
            _go(task, out, 100, compression=compression, threads=threads, readers=readers, fetch_many=many)
            raw.add((out / "t.h5").read_bytes())
            found = events_in(str(out / "t.h5"))
            assert all(same(found[position], make(position)) for position in range(100))
        assert len(raw) == 1


def test_several_files_cut_where_the_axis_says(tmp_path: Path) -> None:
    task = whole(str(tmp_path / "s"), 50, 8)
    made = _go(task, tmp_path / "m", 50, events_per_file=20)
    assert made.files == ["t-00000.h5", "t-00001.h5", "t-00002.h5"]
    for number, name in enumerate(made.files):
        found = events_in(str(tmp_path / "m" / name))
        assert list(found) == list(range(number * 20, min(50, number * 20 + 20)))
        assert all(same(found[position], event(position)) for position in found)
    again = _go(task, tmp_path / "m", 50)
    assert again.fresh and sorted(os.listdir(tmp_path / "m")) == ["merge.json", "t.h5"]


def test_a_file_of_another_name_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    """Merges of several tasks into one folder: each is told of in a file of its own, and not made twice."""
    task = whole(str(tmp_path), 50)
    out = tmp_path / "m"
    assert _go(task, out, 50, file="a.hdf5").files == ["a.hdf5"]
    assert _go(task, out, 50, file="b.h5", events_per_file=30).files == ["b-00000.h5", "b-00001.h5"]
    assert _go(task, out, 50, file="b.h5").files == ["b.h5"]
    assert sorted(os.listdir(out)) == ["a.hdf5", "a.merge.json", "b.h5", "b.merge.json"]
    assert (out / "a.hdf5").read_bytes() == (out / "b.h5").read_bytes()
    assert not _go(task, out, 50, file="a.hdf5").fresh


def test_layout_is_that_of_the_task_not_of_an_image(tmp_path: Path) -> None:
    def make(position: int) -> dict[str, Any]:
        return {"late": np.ones(3 if position == 999 else 2), "even": np.ones(2), "never": np.zeros(0)}

    os.makedirs(tmp_path / "s")
    task = Task(str(tmp_path / "s"), make)
    for start in range(0, 1010, 2):  # the sample of images does not hold event 999: the merge has to start again
        task.done(start, start + 2)
    made = _go(task, tmp_path / "m", 1010, jagged=["even", "unknown"])
    assert made.jagged == {"late", "even"}
    with h5py.File(tmp_path / "m" / "t.h5") as file:
        assert file["late_count"][998:1001].tolist() == [2, 3, 2] and file["late"].shape == (2021,)
        assert file["even_count"].shape == (1010,) and file["never"].shape == (1010, 0)


def test_second_merge_does_nothing_until_something_changes(tmp_path: Path) -> None:
    task = whole(str(tmp_path / "s"), 30)
    _go(task, tmp_path / "m", 30)
    before = os.stat(tmp_path / "m" / "t.h5")
    assert not _go(task, tmp_path / "m", 30).fresh
    assert os.stat(tmp_path / "m" / "t.h5").st_ino == before.st_ino
    raw = (tmp_path / "m" / "t.h5").read_bytes()
    (tmp_path / "m" / "t.h5").write_bytes(raw[:-1] + b"?")
    assert _go(task, tmp_path / "m", 30).fresh and (tmp_path / "m" / "t.h5").read_bytes() == raw
    (tmp_path / "m" / "merge.json").write_text("{")
    assert _go(task, tmp_path / "m", 30).fresh
    assert _go(task, tmp_path / "m", 30, compression="none").fresh


def test_one_that_sleeps_while_another_merges_spoils_nothing(tmp_path: Path) -> None:
    """It was taken for dead; each writes into a file of its own."""
    task, out = whole(str(tmp_path / "s"), 50), tmp_path / "m"
    calls: list[bool] = []

    def sleeps(row: Any, **options: Any) -> bytes:
        calls.append(any(name.endswith(".tmp") for name in os.listdir(out)))
        if calls.count(True) == 5:  # in the middle of writing
            _go(task, out, 50, **options)
        return task.fetch(row)

    with pytest.raises(CannotWrite):  # what it wrote was cleared away
        _go(task, out, 50, fetch=sleeps, fetch_many=None)
    right = (out / "t.h5").read_bytes()
    assert sorted(os.listdir(out)) == ["merge.json", "t.h5"] and not _go(task, out, 50).fresh
    calls.clear()
    mine = {"file": "mine.h5"}  # without the right to merge nobody clears anything away
    _go(task, out, 50, fetch=partial(sleeps, **mine), fetch_many=None, **mine)
    assert len(calls) > 5 and (out / "mine.h5").read_bytes() == right and not _go(task, out, 50, **mine).fresh


def test_what_killed_merges_left_is_removed(tmp_path: Path) -> None:
    task, out = whole(str(tmp_path / "s"), 50), tmp_path / "m"
    out.mkdir()
    left = ["t.h5.tmp", "t.h5.0123abcd.tmp", "t-00003.h5.0123abcd.tmp"]
    others = ["t.h5.old", "tt.h5.0123abcd.tmp", "t.h5.mine.tmp"]
    for name in [*left, *others]:
        (out / name).touch()
    _go(task, out, 50)
    assert sorted(os.listdir(out)) == sorted([*others, "merge.json", "t.h5"])
    for name in ("u.h5.0123abcd.tmp", "u.h5.fedcba98.tmp"):
        (out / name).touch()
    os.utime(out / "u.h5.0123abcd.tmp", (1.0, 1.0))
    _go(task, out, 50, file="u.h5")  # there another one may be at work
    assert (out / "u.h5.fedcba98.tmp").exists() and not (out / "u.h5.0123abcd.tmp").exists()


def test_missing_events_are_named(tmp_path: Path) -> None:
    task = whole(str(tmp_path / "s"), 30)
    with pytest.raises(MergeIncomplete, match=r"5 of 35.*\[30, 35\)") as caught:
        _go(task, tmp_path / "m", 35)
    assert caught.value.exit_code == 75 and not (tmp_path / "m" / "t.h5").exists()
    made = _go(task, tmp_path / "m", 35, quarantined=np.array([[29, 35]]))
    assert made.quarantined.tolist() == [[30, 35]] and made.events == 30
    made = _go(task, tmp_path / "m", 40, quarantined=np.array([[31, 33]]), partial=True)
    assert made.missing.tolist() == [[30, 31], [33, 40]] and made.events == 30


@pytest.mark.parametrize("make", [event, numbers])
def test_damage_is_collected_then_reported(tmp_path: Path, make: Any) -> None:
    task = whole(str(tmp_path / "s"), 30, 5, make)
    placed = task.placed()
    raw = bytearray(Path(task.path).read_bytes())
    for row in (1, 4):
        raw[int(placed[row]["offset"]) + 50] ^= 1
    Path(task.path).write_bytes(raw)
    with pytest.raises(MergeIncomplete, match=r"10 of 30.*\[5, 10\), \[20, 25\).*checksum") as caught:
        _go(task, tmp_path / "m", 30)
    assert caught.value.values["damaged"]["start"].tolist() == [5, 20]
    assert os.listdir(tmp_path / "m") == []
    made = _go(task, tmp_path / "m", 30, partial=True)
    assert made.missing.tolist() == [[5, 10], [20, 25]] and made.damaged["start"].tolist() == [5, 20]
    assert list(events_in(str(tmp_path / "m" / "t.h5"))) == [*range(5), *range(10, 20), *range(25, 30)]
    for start in (5, 20):  # what the next allocation does about it
        task.note(P, start, start + 5)
        task.done(start, start + 5)
    whole_again = whole(str(tmp_path / "s2"), 30, 30, make)
    _go(whole_again, tmp_path / "m2", 30)
    _go(task, tmp_path / "m", 30)
    assert (tmp_path / "m" / "t.h5").read_bytes() == (tmp_path / "m2" / "t.h5").read_bytes()


@pytest.mark.parametrize("make", [event, numbers])
def test_image_of_other_events_or_none_is_damage(tmp_path: Path, make: Any) -> None:
    task = whole(str(tmp_path / "s"), 10, 5, make)
    task.records[0]["start"], task.records[0]["stop"] = 10, 15
    task.note(D, 0, 5)
    with pytest.raises(MergeIncomplete) as caught:
        _go(task, tmp_path / "m", 15)
    assert caught.value.values["damaged"]["start"].tolist() == [0, 10]

    def gone(row: Any) -> bytes:
        raise ImageMissing(path="x", offset=0, detail="no such file")

    with pytest.raises(MergeIncomplete, match="no such file"):
        merge(task.placed([0, 1]), gone, str(tmp_path / "m"), "t", 15, quarantined=np.array([[0, 5]]))


def test_fields_that_change_between_images(tmp_path: Path) -> None:
    for number, other in enumerate(
        (
            {"a": 1},
            {"a": 1.0, "b": 1},
            {},
            {"a": np.ones(2)},
            {"a": np.float32(1)},
        )
    ):
        os.makedirs(tmp_path / str(number))
        task = Task(str(tmp_path / str(number)), lambda position, other=other: other if position == 7 else {"a": 1.0})
        for position in range(10):
            task.done(position, position + 1)
        with pytest.raises(FieldsChanged, match="event 7"):
            _go(task, tmp_path / "m", 10)
        assert os.listdir(tmp_path / "m") == []


def test_an_image_that_was_never_written_is_said_to_be_so(tmp_path: Path) -> None:
    task = whole(str(tmp_path / "s"), 200, 1, numbers)
    for name in ("size", "offset", "checksum"):
        task.records[63][name] = 0  # none of the images that are looked at first
    with pytest.raises(MergeIncomplete, match="no image was written for events 63 to 64"):
        _go(task, tmp_path / "m", 200)


def test_no_events_at_all(tmp_path: Path) -> None:
    made = merge(winners(records.new(0)), lambda row: b"", str(tmp_path), "t", 3, quarantined=np.array([[0, 3]]))
    assert made.events == 0 and made.quarantined.tolist() == [[0, 3]]
    with h5py.File(tmp_path / "t.h5") as file:
        assert list(file) == ["event"] and file["event"].shape == (0,)


def test_leftovers_of_a_killed_merge_do_not_matter(tmp_path: Path) -> None:
    task = whole(str(tmp_path / "s"), 10)
    os.makedirs(tmp_path / "m")
    (tmp_path / "m" / "t.h5.tmp").write_bytes(b"half a file" * 10_000)
    _go(task, tmp_path / "m", 10)
    assert list(events_in(str(tmp_path / "m" / "t.h5"))) == list(range(10))


def test_big_rows(tmp_path: Path) -> None:
    os.makedirs(tmp_path / "s")
    task = Task(str(tmp_path / "s"), lambda p: {"huge": np.full((200, 300), p, "f8"), "hits": np.full((p + 1, 9), p)})
    task.done(0, 3)
    task.done(3, 5)
    _go(task, tmp_path / "m", 5)
    with h5py.File(tmp_path / "m" / "t.h5") as file:
        assert file["huge"][4, 199, 299] == 4 and file["huge"].chunks == (1, 200, 300)


def test_image_of_a_range_with_a_missing_event_is_not_trusted(tmp_path: Path) -> None:
    data = image.build(0, [0, 2], [{"a": 1}, {"a": 2}])
    row = records.new(kind=D, start=0, stop=3, size=len(data))
    row["checksum"] = zlib.crc32(data)
    with pytest.raises(MergeIncomplete, match="other events"):
        merge(winners(row), lambda _: data, str(tmp_path), "t", 3)
