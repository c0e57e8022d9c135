"""Disks that are full or read-only under real runs: exit 73, the path and the room left said, and nothing done falsely.

A small tmpfs stands for the full disk; mounting one needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
from runs import Place

#: Every event is 20 kB of noise, which no compression makes smaller.
NOISE = """
import time
import numpy as np

def noise(event, random):
    time.sleep(0.005)
    return {"x": random.bytes(20_000) and random.integers(0, 2**63, 2500)}
"""
EVENTS = 400


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB, about half of what the task needs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)


def reference(place: Place) -> str:
    done = place.run(task="reference")
    assert done.code == 0, done.text
    return place.sha256("reference")


def job(place: Place, **keys: Any) -> None:
    place.job(NOISE, "noise", inputs={"format": "generate", "events": EVENTS}, **keys)


def test_a_disk_full_of_segments(place: Place, small_disk: Path) -> None:
    """The task directory fills up while two Droids write: 73; with more room the same command completes."""
    job(place)
    expected = reference(place)
    os.symlink(small_disk, place.folder / "task")
    done = place.run("--droids", "2")
    assert done.code == 73, done.text
    assert "No space left" in done.err and "MB free" in done.err and str(place.folder / "task") in done.err, done.text
    known = place.progress()
    assert 0 < known.done.total < EVENTS
    grow(small_disk)
    done = place.run("--droids", "2")
    assert done.code == 0, done.text
    assert place.sha256() == expected
    assert runs.granted_again(place.story()) == [], "what was acknowledged was on the disk"


def test_a_disk_without_room_for_the_journal(place_here: Place, small_disk: Path) -> None:
    """Segments have room, the journal has not: what it could not keep is not done."""
    place = place_here
    job(place, ranges={"events": 1})  # so many records that a disk without a free page has no room for them
    expected = reference(place)
    task = Path(place.task().root)
    (task / "segments").mkdir(parents=True)
    os.symlink(small_disk, task / "journal")
    filler = small_disk / "filler"
    run = place.start()
    run.until(lambda: place.done() >= 20, "20 events done")
    yoda = run.until_role("yoda")[0].pid
    run.signal(yoda, signal.SIGSTOP)  # else it may be done with all before the disk is full
    with open(filler, "wb", buffering=0) as file:  # somebody else's files, as ever
        while True:
            try:
                file.write(bytes(1 << 16))
            except OSError:
                break
    run.signal(yoda, signal.SIGCONT)
    done = run.wait()
    assert done.code == 73, done.text
    assert "No space left" in done.err and "journal" in done.err, done.text
    before = place.progress().done.total
    assert before < EVENTS
    filler.unlink()
    done = place.run()
    assert done.code == 0, done.text
    assert place.sha256() == expected
    assert runs.granted_again(place.story()) == []


def test_no_room_for_the_final_file(place_here: Place, small_disk: Path) -> None:
    """All events are done, the merged file does not fit: 73, and the next run only merges."""
    place = place_here
    job(place)
    expected = reference(place)
    task = Path(place.task().root)
    task.mkdir()
    shutil.copytree(place.task("reference").root, task, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(task / "merged")
    os.symlink(small_disk, task / "merged")
    done = place.run()
    assert done.code == 73, done.text
    assert "No space left" in done.err and "merged" in done.err, done.text
    grow(small_disk)
    done = place.run()
    assert done.code == 0, done.text
    assert place.sha256() == expected


def test_a_directory_that_cannot_be_written(place_here: Place, small_disk: Path) -> None:
    """A read-only file system is said at once, before any work; also when it becomes so between two runs."""
    place = place_here
    place.job(inputs={"format": "generate", "events": 50})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for how in ({}, {"ranks": 2}):
        done = place.run(task="disk/task", **how)
        assert done.code == 73, done.text
        assert "Read-only" in done.err and "disk/task" in done.err, done.text
