"""Explain: every attempt at an event, where its image is; of a task: why, and what next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample_task import BAD, BEGIN, beating, frozen, sample_task

from eventrange import records
from eventrange.errors import ConfigError
from eventrange.journal import JournalWriter
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from yoda.cli import main
from yoda.explain import MOST, _next, _why, explain_range, explain_task, render_range, render_task
from yoda.status import status
from yoda.task import _text

LATER = BEGIN + 90000


def test_quarantined_event(tmp_path: Path) -> None:
    found = explain_range(sample_task(tmp_path), f"#{BAD}")
    assert (found["state"], found["done"], found["range"]) == ("quarantined", 0, f"generate:{BAD + 1}")
    whats = [entry["what"] for entry in found["entries"]]
    assert whats.count("failed") == 3 and whats.count("evidence") == 3 and whats[-1] == "quarantined"
    page = render_range(found)
    assert "failed on Droid 1 on n1, worker 0" in page and "ValueError" in page and "after 3 attempts" in page
    json.dumps(found)


def test_done_range_says_where_its_image_is(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    found = explain_range(task, "generate:1-4")
    assert found["state"] == "done" and [one["covers"] for one in found["images"]] == [2, 2]
    assert "nowhere" in found["images"][0]["where"][0]  # no segment was written
    path = Path(task.segment("1", 1, 0))
    path.parent.mkdir(parents=True)
    path.touch()
    assert str(path) in explain_range(task, "1-4")["images"][0]["where"][0]
    staged = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 9000)
    where = {"allocation": "1", "droid": 1, "segment": 0}
    for name in ("primary", "failover"):
        staged.note("staged", time=BEGIN + 9001, **where, endpoint=name, url=f"s3://{name}/k", size=9)
    staged.note("removed", time=BEGIN + 9002, **where, endpoint="failover")
    staged.flush()
    staged.file.close()
    assert explain_range(task, "1-4")["images"][0]["where"][1:] == ["primary: s3://primary/k at byte 0"]


def test_pending_event_names_the_grant_that_was_lost(tmp_path: Path) -> None:
    found = explain_range(sample_task(tmp_path), "#360")
    assert found["state"] == "pending" and found["entries"][-1]["what"] == "returned"
    page = render_range(found)
    assert "not heard of again" in page and "came back from Droid 1 on n3: drained" in page


def test_first_record_wins_and_pending_voids(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    writer = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 9000)
    writer.append(records.new(1, kind=Kind.DONE, start=0, stop=4, droid=9, time=BEGIN + 9000, size=5))
    writer.flush()
    assert {one["allocation"] for one in explain_range(task, "1-4")["images"]} == {"1"}
    writer.append(records.new(1, kind=Kind.PENDING, start=0, stop=2, time=BEGIN + 9001))
    writer.flush()
    writer.file.close()
    found = explain_range(task, "1-2")
    assert found["state"] != "done" and not found["images"]


def told(root: Path, events: int, *journals: list[tuple[Kind, int, int, float]]) -> TaskDir:
    """A task with these records (kind, start, stop, time), a journal each."""
    task, one = TaskDir(str(root)), frozen(root, events)
    task.make()
    Path(task.task_file).write_text(_text(one))
    for name, rows in enumerate(journals, 1):
        writer = JournalWriter(task.journal(str(name)), one.fingerprint, str(name), created=BEGIN)
        for kind, start, stop, at in rows:
            writer.append(records.new(1, kind=kind, start=start, stop=stop, droid=1, time=BEGIN + at, size=9))
        writer.flush()
        writer.file.close()
    return task


def agrees(task: TaskDir, events: int) -> dict[str, Any]:
    """The story of all events, which has as many done and quarantined as the status says."""
    found, state = explain_range(task, f"1-{events}"), status(task, LATER)
    assert found["done"] == state["events"]["done"] == sum(one["covers"] for one in found["images"])
    assert ("quarantined" in found["state"]) == bool(state["events"]["quarantined"])
    return found


def test_pending_takes_back_only_its_part(tmp_path: Path) -> None:
    first = [(Kind.DONE, 50, 51, 1.0), (Kind.DONE, 0, 100, 2.0)]
    task = told(tmp_path, 100, first, [(Kind.PENDING, 50, 51, 3.0), (Kind.DONE, 50, 51, 4.0)])
    found = agrees(task, 100)
    assert found["state"] == "done" and [(one["start"], one["covers"]) for one in found["images"]] == [(0, 99), (50, 1)]


def test_what_is_done_twice_counts_once_however_long_the_range(tmp_path: Path) -> None:
    half, whole = 1 << 24, 1 << 25
    task = told(tmp_path, whole, [(Kind.DONE, 0, half, 1.0), (Kind.DONE, 0, half, 2.0)])
    assert agrees(task, whole)["state"] == f"{half} of {whole} events done"


@pytest.mark.parametrize("later", [3.0, 1.0])
def test_quarantine_is_over_after_pending_whatever_the_clock_says(tmp_path: Path, later: float) -> None:
    given_up = (Kind.QUARANTINED, 0, 1, 2.0)
    task = told(tmp_path, 1, [given_up], [(Kind.PENDING, 0, 1, later)])
    assert agrees(task, 1)["state"] == "pending"
    task = told(tmp_path / "t", 1, [given_up, (Kind.PENDING, 0, 1, later), given_up])
    assert agrees(task, 1)["state"] == "quarantined"


def test_the_first_images_stand_for_all(tmp_path: Path) -> None:
    task = told(tmp_path, 1000, [(Kind.DONE, n, n + 1, 1.0) for n in reversed(range(1000))])
    found = explain_range(task, "1-1000")
    assert [one["start"] for one in found["images"]] == list(range(MOST)) and found["images_total"] == 1000
    assert found["done"] == 1000 and "and 980 more images" in render_range(found)


def test_event_that_was_quarantined_and_is_done_stays_so(tmp_path: Path) -> None:
    """The records of another allocation that took it up at the same moment say nothing of what is done."""
    task = sample_task(tmp_path)
    before = explain_range(task, "1-4")
    writer = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 9000)
    writer.append(records.new(1, kind=Kind.PENDING, code=Code.RETRY, start=0, stop=2, time=BEGIN + 9001))
    writer.flush()
    writer.file.close()
    after = explain_range(task, "1-4")
    assert after["state"] == before["state"] == "done" and after["images"] == before["images"]
    assert after["entries"][-1]["what"] == "pending"


def test_long_stories_are_cut_in_the_middle(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    writer = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 9000)
    writer.append(records.new(3 * MOST, kind=Kind.GRANTED, start=0, stop=1, droid=1, time=BEGIN + 9000))
    writer.flush()
    writer.file.close()
    found = explain_range(task, "1")
    assert len(found["entries"]) == MOST and "entries in the middle are left out" in render_range(found)


def test_what_was_taken_from_a_droid_that_did_it_all_the_same(tmp_path: Path) -> None:
    task = told(tmp_path, 1, [])
    writer = JournalWriter(task.journal("2"), frozen(tmp_path, 1).fingerprint, "2", created=BEGIN)
    for kind, code in (
        (Kind.GRANTED, 0),
        (Kind.RETURNED, Code.DROID_LOST),
        (Kind.GRANTED, Code.REVOKED),
        (Kind.DONE, 0),
    ):
        writer.append(records.new(1, kind=kind, code=code, start=0, stop=1, droid=1, time=BEGIN))
    writer.flush()
    found = explain_range(task, "#0")
    assert [entry["what"] for entry in found["entries"]] == ["granted", "returned", "kept", "done"]
    assert "taken from Droid 1 on ?, which had it all the same" in render_range(found)


@pytest.mark.parametrize("name", ["nofile:3", "generate:0", "#400", "12-11", "x"])
def test_names_that_mean_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        explain_range(sample_task(tmp_path), name)
    assert raised.value.exit_code == 78


def test_task_that_stopped(tmp_path: Path) -> None:
    found = explain_task(sample_task(tmp_path), LATER)
    page = render_task(found)
    assert "Nothing is running. The last allocation, 2," in page and "SIGTERM (exit code 75)" in page
    assert "Run the same `yoda run`" in page


def test_task_that_runs(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    Path(task.journal("2")).unlink()
    with beating(task, "1"):
        found = explain_task(task, BEGIN + 41)
    assert "is at work with 2 Droids" in " ".join(found["why"]) and "--watch" in found["next"][0]


def test_task_that_was_killed(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    Path(task.journal("2")).unlink()
    assert "so it was killed" in render_task(explain_task(task, LATER))


def test_advice_is_that_of_the_last_allocation_that_worked(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    journal = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 6000)
    journal.note("joined", time=BEGIN + 6000, droid=1, host="n1", workers=4, startup=1.0)
    journal.note("end", time=BEGIN + 6010, reason="disk full", exit_code=73)
    journal.flush()
    assert "Make room" in explain_task(task, LATER)["next"][0]
    journal = JournalWriter(task.journal("4"), frozen(tmp_path).fingerprint, "4", created=BEGIN + 7000)
    journal.note("joined", time=BEGIN + 7000, droid=1, host="n1", workers=4, startup=1.0)
    journal.flush()
    found = explain_task(task, LATER)
    assert "The last allocation, 4," in " ".join(found["why"]) and found["next"][0].startswith("Run the same")


def test_complete_task(tmp_path: Path) -> None:
    page = render_task(explain_task(sample_task(tmp_path, finish=True), LATER))
    assert "yoda merge" in page and f"'#{BAD}'" in page and "--retry-quarantined" in page


def _said(state: dict[str, Any]) -> tuple[str, list[str]]:
    return " ".join(_why(state)), _next(state)


def test_task_that_is_being_merged(tmp_path: Path) -> None:
    task = sample_task(tmp_path, finish=True)
    journal = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 6000)
    journal.note("joined", time=BEGIN + 6000, droid=1, host="n1", workers=4, startup=1.0)
    journal.note("end", time=BEGIN + 6010, reason="complete", exit_code=0)
    journal.note("merging", time=BEGIN + 6020, done=100, total=400)
    journal.flush()
    with beating(task, "3", "merging"):
        why, todo = _said(status(task, BEGIN + 6025))
    assert "Allocation 3 has ended its work and makes the final files: complete; merging, 25 %." in why
    assert "Nothing is running" not in why and todo == [f"yoda status {task.root} --watch"]


def test_what_a_lease_and_slurm_say(tmp_path: Path) -> None:
    state = status(sample_task(tmp_path), LATER)
    lease = {"allocation": "9", "host": "n7", "pid": 1, "state": "silent", "wants": False, "parts": 3, "beat_age": 99.0}
    state["leases"] = [lease | {"merges": False}]
    state["slurm"] = {"answered": True, "jobs": [{"job": 77, "state": "PENDING", "reason": "Priority"}]}
    why, todo = _said(state)
    assert "Lease of 9 on n7: silent, last beat 1 min 39 s ago; holds 3 parts of the axis" in why
    assert "Slurm has job 77 of this task: pending (Priority)." in why and todo[0].startswith("Wait: Slurm")


def test_task_of_which_nothing_is_left(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    journal = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 6000)
    journal.append(records.new(1, kind=Kind.PENDING, start=0, stop=400))
    journal.append(records.new(1, kind=Kind.QUARANTINED, start=0, stop=400, attempt=3))
    journal.flush()
    why, todo = _said(status(task, LATER))
    assert why.startswith("0 of 400 events are done, 400 quarantined.")
    assert any("'#0'" in line for line in todo) and any("--retry-quarantined" in line for line in todo)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = sample_task(tmp_path)
    assert main(["explain", task.root]) == 0 and main(["explain", task.root, "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["state"] == "done"
