"""Status: the keys DESIGN promises, sums that hold, and a page that fits 80 columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_task import BEGIN, frozen, sample_task

from eventrange import records
from eventrange.journal import JournalWriter
from eventrange.quantity import span
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from yoda import journal_view
from yoda.rehearse import cost
from yoda.status import render, task_status

SCHEMA: dict[str, Any] = {
    "version": int,
    "task": str,
    "complete": bool,
    "events": {"total": int, "done": int, "quarantined": int, "in_flight": int, "pending": int},
    "ranges_done": int,
    "events_per_second": float,
    "eta_seconds": (float, type(None)),
    "allocations": [
        {
            "name": str,
            "state": str,
            "why": str,
            "exit_code": (int, type(None)),
            "last_sign_of_life": (float, type(None)),
            "events_done": int,
            "damage": str,
            "droids": [{"droid": int, "host": str, "workers": int, "last_sign_of_life": (float, type(None))}],
        }
    ],
    "core_seconds": dict.fromkeys(
        ("productive", "lost_in_flight", "retried", "idle", "startup", "overhead", "total"), float
    ),
    "quarantined": [int],
    "holes": [[int]],
    "damaged": [str],
}


def conforms(value: Any, schema: Any, where: str = "status") -> None:
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        for key, part in schema.items():
            assert key in value, f"{where}.{key}"
            conforms(value[key], part, f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for number, part in enumerate(value):
            conforms(part, schema[0], f"{where}[{number}]")
    else:
        assert isinstance(value, schema) and not (schema is int and isinstance(value, bool)), (where, value)


def killed(task: TaskDir) -> None:
    task.make()
    writer = JournalWriter(task.journal("1"), "f", "1", created=1000.0, host="n0")
    for droid in (1, 2):
        writer.note("joined", time=1001.0, droid=droid, host=f"n{droid}", workers=4, cores=4, startup=1.0, versions={})
    writer.append(records.new(1, kind=Kind.GRANTED, start=0, stop=60, droid=1, time=1001))
    start = np.arange(0, 50, 5)
    rows = records.new(
        10, kind=Kind.DONE, droid=1, worker=start % 4, time=1001 + start / 5, wall=1, size=99, checksum=7
    )
    rows["start"], rows["stop"] = start, start + 5
    writer.append(rows)
    writer.append(records.new(1, kind=Kind.FAILED, code=Code.TIMEOUT, start=50, stop=51, droid=1, time=1012, wall=3))
    writer.append(records.new(1, kind=Kind.QUARANTINED, start=50, stop=51, attempt=3, droid=1, time=1015))
    writer.note("evidence", time=1015.0, event=50, text='a "quoted", text\nof two lines')
    writer.note("pulse", time=1020.0, workers=8, busy=4, pending=40, in_flight=9, done=50, droids=2)
    writer.flush()
    writer.file.close()


def check(state: dict[str, Any]) -> None:
    state = json.loads(json.dumps(state, allow_nan=False))
    conforms(state, SCHEMA)
    seconds = state["core_seconds"]
    assert sum(value for name, value in seconds.items() if name != "total") == seconds["total"]
    events = state["events"]
    assert events["done"] + events["quarantined"] + events["in_flight"] + events["pending"] == events["total"]
    page = render(state)
    assert all(len(line) <= 80 for line in page.splitlines())
    assert state["task"] in page


def test_nothing_yet(tmp_path: Path) -> None:
    state = task_status(TaskDir(str(tmp_path / "none")), "zjets", "f", 100, 2000.0)
    check(state)
    assert state["events"]["pending"] == 100 and not state["complete"] and state["eta_seconds"] is None


def test_killed(tmp_path: Path) -> None:
    task = TaskDir(str(tmp_path))
    killed(task)
    state = task_status(task, "zjets", "f", 100, 2000.0)
    check(state)
    assert state["events"] == {
        "total": 100, "done": 50, "quarantined": 1, "in_flight": 0, "pending": 49, "failed_before": 0,
    }  # fmt: skip
    assert state["ranges_done"] == 10 and state["quarantined"] == [50] and state["holes"] == [[51, 100]]
    (one,) = state["allocations"]
    assert (one["state"], one["why"]) == ("killed", "killed without warning")
    assert one["last_sign_of_life"] == 1020.0 and [d["host"] for d in one["droids"]] == ["n1", "n2"]
    assert state["core_seconds"]["total"] == 2 * 4 * 20.0
    assert state["core_seconds_detail"]["hung"] == 3.0 and state["core_seconds"]["retried"] == 3.0
    assert "the same `yoda run` goes on" in render(state)


def test_alive(tmp_path: Path) -> None:
    task = TaskDir(str(tmp_path))
    killed(task)
    state = task_status(task, "zjets", "f", 100, 1021.0)
    check(state)
    assert state["allocations"][0]["state"] == "alive" and state["events"]["in_flight"] == 9
    assert state["events_per_second"] == pytest.approx(50 / 20) and state["eta_seconds"] == pytest.approx(49 / 2.5)
    assert state["core_seconds"]["lost_in_flight"] == 0


def test_complete_with_damage_and_things_that_are_no_journal(tmp_path: Path) -> None:
    task = TaskDir(str(tmp_path))
    killed(task)
    writer = JournalWriter(task.journal("2"), "f", "2", created=1100.0)
    writer.append(records.new(1, kind=Kind.DONE, start=51, stop=100, time=1100, wall=9, droid=1))
    writer.note("end", time=1200.0, reason="complete", exit_code=65, done=99, quarantined=1, total=100)
    writer.flush()
    writer.file.close()
    with open(task.journal("2"), "ab") as out:
        out.write(bytes(5000))
    Path(task.journal("3")).mkdir()
    Path(task.journal("4")).touch()
    state = task_status(task, "zjets", "f", 100, 2000.0)
    check(state)
    assert state["complete"] and state["damaged"] == ["2", "3", "4"]
    assert [one["state"] for one in state["allocations"]] == ["killed", "ended", "none", "none"]
    assert state["allocations"][1]["exit_code"] == 65


def test_what_a_rehearsal_made_twice_are_done_records(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    journal = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 9000)
    journal.append(records.new(1, kind=Kind.PENDING, start=350, stop=400, time=BEGIN + 9000))  # nothing is done there
    journal.append(records.new(1, kind=Kind.DONE, start=340, stop=360, time=BEGIN + 9001))
    journal.flush()
    assert cost(task, 2)["durable_twice"] == 10


def test_span() -> None:
    assert [span(s) for s in (0.5, 59.0, 61.0, 7260.0, 200000.0)] == [
        "0.5 s", "59.0 s", "1 min 01 s", "2 h 01 min", "2 d 07 h",
    ]  # fmt: skip


def test_journal_view(tmp_path: Path) -> None:
    task = TaskDir(str(tmp_path))
    killed(task)
    lines = [json.loads(line) for line in journal_view.json_lines(task, "f")]
    assert lines[0]["version"] == 1 and list(lines[0]["columns"]) == list(journal_view.COLUMNS)
    done = [line for line in lines[1:] if line["record"] == "done"]
    assert len(done) == 10 and done[1]["start"] == 5 and done[0]["checksum"] == "00000007"
    table = list(csv.reader("\n".join(journal_view.csv_lines(task, "f")).splitlines(keepends=True)))
    assert table[0] == list(journal_view.COLUMNS) and {len(line) for line in table} == {len(journal_view.COLUMNS)}
    assert len(table) == len(lines)
    assert [line[1] for line in table[1:]] == [line["record"] for line in lines[1:]]
    assert len(list(journal_view.text_lines(task, "f"))) == len(lines) - 1
