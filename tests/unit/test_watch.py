"""The live view: the same figures as status, read piece by piece; fits its terminal; no colour alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from sample_task import BEGIN, frozen, sample_task

from eventrange import records
from eventrange.axis import Axis
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from yoda.live import Live
from yoda.merge_notes import MergeNotes
from yoda.progress import Shown
from yoda.status import progress_bar, task_status
from yoda.watch import follow, line, page, watch


def shown(state: dict[str, Any], width: int, height: int = 1000) -> list[str]:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(page(state, width, height))
    return out.getvalue().splitlines()


def running(root: Path) -> TaskDir:
    task = sample_task(root)
    Path(task.journal("2")).unlink()
    return task


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("now", [BEGIN + 41, BEGIN + 9000])
def test_page_fits(tmp_path: Path, width: int, now: float) -> None:
    state = follow(running(tmp_path)).state(now)
    lines = shown(state, width)
    assert all(len(text) <= width for text in lines)
    words = " ".join(" ".join(lines).split())
    assert "299 of 400 events done" in words and "1 quarantined" in words
    alive = now < BEGIN + 100
    assert ("running in 1 allocation" in words) == alive
    assert ("slowest events now running" in words) == alive
    if not alive:
        assert "the same `yoda run` goes on with it" in words


def test_what_runs_now(tmp_path: Path) -> None:
    state = follow(running(tmp_path)).state(BEGIN + 42)
    words = " ".join(shown(state, 80))
    assert "generate:311" in words and "14.5 s" in words and "silent" in words
    assert [one["event"] for one in state["live"]["slowest"]] == ["generate:311", "generate:312"]
    assert state["live"]["silent"][0]["droid"] == 2


def test_small_terminals_lose_tables_not_lines(tmp_path: Path) -> None:
    state = follow(running(tmp_path)).state(BEGIN + 42)
    assert len(shown(state, 80, 12)) <= 12


def test_the_same_as_status_however_often_it_looks(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    one = frozen(tmp_path)
    live = Live(task, "sample", one.fingerprint, Axis.from_dict(one.axis))
    live.state(BEGIN + 42)
    writer = JournalWriter(task.journal("3"), one.fingerprint, "3", created=BEGIN + 9000)
    for n in range(10):
        rows = records.new(1, kind=Kind.DONE, start=350 + n, stop=351 + n, droid=1, time=BEGIN + 9001 + n, wall=0.5)
        writer.append(rows)
        if n == 6:  # takes back what was done: everything is added up again
            writer.append(records.new(1, kind=Kind.PENDING, start=352, stop=354, time=BEGIN + 9007))
        writer.flush()
        now = BEGIN + 9010 + n
        found, want = live.state(now), task_status(task, "sample", one.fingerprint, 400, now)
        for key in ("events", "core_seconds", "ranges_done", "complete", "holes", "allocations"):
            assert found[key] == want[key], key
    writer.file.close()


def test_breaker_and_failures(tmp_path: Path) -> None:
    words = " ".join(shown(follow(sample_task(tmp_path)).state(BEGIN + 5030), 100))
    assert "endpoint:primary" in words and "off for now" in words and "ValueError" in words


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_progress_line(tmp_path: Path, width: int) -> None:
    text = line(follow(running(tmp_path)).state(BEGIN + 41), width)
    assert len(text) <= width and text.startswith("299/400"[:width]) and "\n" not in text
    if width == 200:
        for part in ("events/s", "ETA", "busy", "lost", "lag 0.2 s", "1 quarantined"):
            assert part in text


def test_not_on_a_terminal_it_shows_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch(running(tmp_path), every=60.0)
    assert "299 of 400" in capsys.readouterr().out


def test_no_line_without_a_terminal() -> None:
    assert Shown(None).pipes == {} and Shown(None).environment == {}


def test_storage_and_the_bar(tmp_path: Path) -> None:
    task = sample_task(tmp_path, finish=True)
    live = follow(task)
    journal = JournalWriter(task.journal("3"), live.fingerprint, "3", created=BEGIN + 6000)
    journal.note("endpoints", time=BEGIN + 6000, endpoints=[{"name": "tape", "url": "file:///t"}], rules={})
    where = {"allocation": "2", "droid": 1, "segment": 0, "endpoint": "tape", "key": "k", "url": "file:///t/k"}
    journal.note("staged", time=BEGIN + 6001, **where, size=1000, adler32="0", sha256="0")
    journal.note("sealed", time=BEGIN + 6001, droid=1, segment=1, size=2_000_000, adler32="0", sha256="1", members=3)
    journal.note("breaker", time=BEGIN + 6002, key="endpoint:tape", before="closed", after="open", reason="gone")
    journal.flush()
    lines = shown(live.state(BEGIN + 7000), 80)
    words = " ".join(" ".join(lines).split())
    assert "tape off for now 1 segments, 0.0 MB" in words and "nowhere yet waiting 1 segments, 2.0 MB" in words
    assert lines[1] == "[" + "#" * 77 + "x]", "one of 400 is quarantined, and seen"
    assert progress_bar({"done": 0, "quarantined": 0, "total": 5}, 12) == "[..........]"
    assert progress_bar({"done": 1, "quarantined": 0, "total": 10**9}, 12) == "[#.........]"
    assert progress_bar({"done": 10**9 - 1, "quarantined": 0, "total": 10**9}, 12) == "[#########.]"


def test_merging(tmp_path: Path) -> None:
    """The watch goes on while the allocation that finished the task merges it."""
    task = sample_task(tmp_path, finish=True)
    live = follow(task)
    journal = JournalWriter(task.journal("3"), live.fingerprint, "3", created=BEGIN + 6000, started=BEGIN + 6000)
    journal.note("joined", time=BEGIN + 6000, droid=1, host="n1", workers=4, startup=1.0)
    journal.note("left", time=BEGIN + 6009, droid=1, host="n1", reason="drained")
    journal.note("end", time=BEGIN + 6010, reason="complete", exit_code=0)
    with MergeNotes(journal, lambda: BEGIN + 6020) as notes:
        notes.progress(100, 399)  # too soon after the last one: not told
        state = live.state(BEGIN + 6025)
        assert state["allocations"][-1]["state"] == "merging" and "merging" in shown(state, 80)[0]
        assert state["allocations"][-1]["merging"]["exit_code"] is None
        killed = live.state(BEGIN + 6100)["allocations"][-1]
        assert (killed["state"], killed["why"]) == ("ended", "complete; killed while it merged")
    state = live.state(BEGIN + 6025)
    assert state["allocations"][-1]["state"] == "ended" and "complete" in shown(state, 80)[0]
    with pytest.raises(ZeroDivisionError), MergeNotes(journal, lambda: BEGIN + 6030):
        _ = 1 / 0
    assert "the merge failed: ZeroDivisionError" in live.state(BEGIN + 6035)["allocations"][-1]["why"]


def test_the_dead_are_known_at_once(tmp_path: Path) -> None:
    live = follow(running(tmp_path))
    alive, dead = live.state(BEGIN + 41), live.state(BEGIN + 41, dead={"1": 0.0})
    assert (alive["allocations"][0]["state"], dead["allocations"][0]["state"]) == ("alive", "killed")
    before, after = (state["core_seconds"] for state in (alive, dead))
    assert before["lost_in_flight"] == 0 < after["lost_in_flight"] and after["productive"] < before["productive"]
    assert alive["live"]["slowest"] and not dead["live"]["slowest"] and dead["live"]["events_per_second"] == 0.0
