"""What has an image somewhere is not made again: not while there is another image of the same events, nor while a copy
may be where storage cannot be asked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging import event, events_in, same
from sample_task import frozen

from eventrange import image, records
from eventrange.errors import MergeIncomplete, StorageOffline
from eventrange.history import Story, done_records, read_progress
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.segment import checksum, writer
from eventrange.taskdir import TaskDir
from stageout.site import EndpointSite
from stageout.winners import PLACED, instead, winners
from yoda.merging import MergeChoices, merge_task, read_notes
from yoda.schema import Site
from yoda.verify import verify

COUNT = 20


def row(start: int, stop: int, kind: int = Kind.DONE, **where: int) -> Any:
    return records.new(1, kind=kind, start=start, stop=stop, size=9, **where)


def pieces(placed: Any) -> list[tuple[int, int, int]]:
    return [(int(p["keep_start"]), int(p["keep_stop"]), int(p["segment"])) for p in placed]


def test_the_next_best_takes_over_piece_by_piece() -> None:
    rows = np.concatenate([row(0, 10, segment=0), row(10, 20, segment=1), row(4, 12, segment=2), row(2, 6, segment=3)])
    placed = winners(rows)
    assert pieces(placed) == [(0, 10, 0), (10, 20, 1)]
    again = instead(rows, 0, placed, placed[:1])
    assert again is not None and pieces(again) == [(0, 2, 0), (2, 4, 3), (4, 10, 2), (10, 20, 1)]
    spoilt = np.concatenate((placed[:1], again[2:3]))
    third = instead(rows, 0, again, spoilt)
    assert third is not None and pieces(third) == [(0, 2, 0), (2, 4, 3), (4, 6, 3), (6, 10, 2), (10, 20, 1)]
    assert instead(rows, 0, placed, placed[1:]) is not None
    lonely = winners(rows[:2])
    assert instead(rows[:2], 0, lonely, lonely[:1]) is None


def test_what_was_given_up_stays_given_up() -> None:
    rows = np.concatenate([row(0, 10, segment=0), row(0, 10, Kind.PENDING), row(0, 10, segment=1)])
    placed = winners(rows)
    assert pieces(placed) == [(0, 10, 1)] and instead(rows, 0, placed, placed) is None
    assert placed.dtype == PLACED


@pytest.fixture
def task(tmp_path: Path) -> TaskDir:
    """Allocation `2020a` has done all events in ranges of 4, `2020b` the first 10 again in ranges of 5."""
    taskdir = TaskDir(str(tmp_path / "task"))
    for name, ranges in (("2020a", [(n, n + 4) for n in range(0, COUNT, 4)]), ("2020b", [(0, 5), (5, 10)])):
        path = taskdir.segment(name, 1, 0, "tar")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.makedirs(taskdir.journals, exist_ok=True)
        out = writer(path)
        journal = JournalWriter(taskdir.journal(name), frozen(tmp_path, COUNT).fingerprint, name)
        for start, stop in ranges:
            data = image.build(start, None, [event(position) for position in range(start, stop)], {"task": "t"})
            new = row(start, stop, droid=1)
            new["offset"], new["size"], new["checksum"] = out.append(f"{start}", data), len(data), checksum(data)
            journal.append(new)
        done = out.seal()
        sums = {"size": done.size, "adler32": f"{done.adler32:08x}", "sha256": done.sha256, "members": done.members}
        journal.note("sealed", droid=1, segment=0, **sums)
        journal.flush()
        journal.file.close()
    return taskdir


@pytest.fixture
def merged(task: TaskDir, tmp_path: Path) -> Callable[..., list[str]]:
    """`merged()` merges the task and returns what was said; the file must hold the right events."""

    def call(partial: bool = False) -> list[str]:
        said: list[str] = []
        done = merge_task(task, frozen(tmp_path, COUNT), MergeChoices(partial=partial), say=said.append)
        found = events_in(os.path.join(task.merged, done.files[0]))
        gone = {n for start, stop in done.missing.tolist() for n in range(start, stop)}
        assert set(found) == set(range(COUNT)) - gone
        assert all(same(found[position], event(position)) for position in found)
        return said

    return call


def noted(task: TaskDir, *notes: dict[str, Any]) -> None:
    """A journal with these notes."""
    out = JournalWriter(task.journal("2020c"), frozen(Path(task.root).parent, COUNT).fingerprint, "2020c")
    for one in notes:
        values = dict(one)
        out.note(values.pop("note"), **values)
    out.flush()
    out.file.close()


def staged(endpoint: str, url: str) -> dict[str, Any]:
    """The note of a copy of the segment of `2020a`."""
    sums = {"size": 1, "adler32": "0", "sha256": "0" * 64}
    where = {"allocation": "2020a", "droid": 1, "segment": 0}
    return {"note": "staged", **where, "endpoint": endpoint, "key": "k", "url": url, **sums}


def spoil(task: TaskDir, allocation: str, *starts: int) -> None:
    """Damage the images of an allocation that begin at these positions."""
    rows, of, names = done_records(task, frozen(Path(task.root).parent, COUNT).fingerprint)
    for one in rows[of == names.index(allocation)]:
        if int(one["start"]) in starts:
            with open(task.segment(allocation, 1, 0), "r+b") as file:
                file.seek(int(one["offset"]) + 100)
                file.write(b"\xff" * 64)


def test_an_image_that_lost_the_race_is_used_where_the_winner_is_damaged(
    task: TaskDir, merged: Callable[..., list[str]], tmp_path: Path
) -> None:
    merged()
    first = Path(task.merged, "sample.h5").read_bytes()
    shutil.rmtree(task.merged)
    spoil(task, "2020a", 0, 4)
    assert any("there are others" in text for text in merged())
    assert Path(task.merged, "sample.h5").read_bytes() == first  # L3
    assert read_progress(task, frozen(tmp_path, COUNT).fingerprint).done.total == COUNT  # nothing is made again


def test_only_what_has_no_readable_image_is_made_again(
    task: TaskDir, merged: Callable[..., list[str]], tmp_path: Path
) -> None:
    spoil(task, "2020a", 0, 8)  # 8 and 9 are in the second image of b, 10 and 11 in none
    spoil(task, "2020b", 0)
    with pytest.raises(MergeIncomplete):
        merged()
    progress = read_progress(task, frozen(tmp_path, COUNT).fingerprint)
    assert set(range(COUNT)) - {n for start, stop in progress.done for n in range(start, stop)} == {0, 1, 2, 3, 10, 11}
    story = Story(task, frozen(tmp_path, COUNT).fingerprint).whole()
    assert [e["pending"] for _, e in story if isinstance(e, dict) and e.get("note") == "salvaged"] == [6]


def test_a_partial_merge_takes_them_too(task: TaskDir, merged: Callable[..., list[str]]) -> None:
    spoil(task, "2020a", 8)
    merged(partial=True)
    assert set(events_in(os.path.join(task.merged, "sample.h5"))) == set(range(COUNT)) - {10, 11}


def test_a_winner_on_storage_that_is_away_is_waited_for_only_without_another_image(
    task: TaskDir, merged: Callable[..., list[str]], tmp_path: Path
) -> None:
    fingerprint = frozen(tmp_path, COUNT).fingerprint
    noted(task, staged("gone", "s3://b/k"))
    spoil(task, "2020a", 0, 4)
    merged()
    spoil(task, "2020a", 12)
    shutil.rmtree(task.merged)
    with pytest.raises(StorageOffline):
        merged()
    assert read_progress(task, fingerprint).done.total == COUNT


def test_copies_outlive_the_address_of_their_endpoint(task: TaskDir, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    (new / "another").touch()
    os.rename(task.segment("2020a", 1, 0), old / "k")
    noted(task, staged("primary", f"file://{old}/k"))
    one = frozen(tmp_path, COUNT)

    def merge(folder: Path) -> int:
        site = Site(stageout=(EndpointSite(name="primary", url=f"file://{folder}/"),))
        return merge_task(task, one, MergeChoices(), site=site).events

    with pytest.raises(StorageOffline, match="is not in the site file"):
        merge(new)
    assert read_progress(task, one.fingerprint).done.total == COUNT
    assert merge(old) == COUNT


@pytest.mark.parametrize("by", ["merge", "verify"])
def test_a_stage_out_beside_us_may_delete_what_it_has_noted(
    task: TaskDir, merged: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The segment is staged and deleted just after the journals were read."""
    one, here = frozen(tmp_path, COUNT), Path(task.segment("2020a", 1, 0))
    primary = {"name": "primary", "url": f"file://{tmp_path}"}

    def read_then_move(*args: Any) -> Any:
        found = read_notes(*args)
        if here.exists():
            noted(task, {"note": "endpoints", "endpoints": [primary]}, staged("primary", f"file://{tmp_path}/k"))
            here.rename(tmp_path / "k")
        return found

    monkeypatch.setattr("yoda.merging.read_notes", read_then_move)
    monkeypatch.setattr("yoda.verify.read_notes", read_then_move)
    if by == "merge":
        assert any("were moved" in text for text in merged())
    else:
        assert verify(task, one)["sound"]
    assert not here.exists() and read_progress(task, one.fingerprint).done.total == COUNT
