"""metrics.prom: names as documented, readable as Prometheus reads it, replaced as a whole, never in the way."""

from __future__ import annotations

import os
import re
from pathlib import Path

from eventrange import messages
from eventrange.ledger import Ledger
from yoda.dispatcher import Dispatcher, Settings
from yoda.metrics import EVERY, NAMES, Metrics

SAMPLE = re.compile(r'^([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+)\} (-?[0-9.e+-]+|NaN)$')


def dispatcher() -> Dispatcher:
    made = Dispatcher(Ledger(100), [0], Settings(), 100)
    made.hello(10.0, 1, "n1", 4)
    report = messages.Report(b"", [], 8, 0, 3, 0.1, messages.pack_running([(5, 2.0)]), {0: 10})
    made.report(11.0, 1, report, messages.rows(b""))
    made.deadline = 100.0
    return made


def test_text(tmp_path: Path) -> None:
    text = Metrics("x", 'a "task"\\', "1", lambda: 1000.0, lambda: 20.0).text(dispatcher(), 0.25)
    seen: dict[str, float] = {}
    for entry in text.splitlines():
        if entry.startswith("#"):
            assert entry.split()[1] in ("HELP", "TYPE") and entry.split()[2] in NAMES
            continue
        found = SAMPLE.match(entry)
        assert found, entry
        seen[re.sub(r'task=.*?allocation="1",?', "", found[2]) + found[1]] = float(found[3])
    assert {name for name in NAMES if any(key.endswith(name) for key in seen)} == set(NAMES)
    assert seen["yoda_workers"] == 4 and seen["yoda_workers_busy"] == 3 and seen["yoda_commit_lag_seconds"] == 0.25
    assert seen["yoda_longest_running_seconds"] == 11.0 and seen["yoda_deadline_timestamp_seconds"] == 1080.0
    assert seen['state="total"yoda_events'] == 100 and seen['state="active"yoda_droids'] == 1
    assert text.endswith("\n")


def test_written_now_and_then_and_whole(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "metrics.prom"
    metrics = Metrics(str(path), "t", "1", now=lambda: now[0])
    metrics(dispatcher(), 0.0)
    assert path.read_text().startswith("# HELP")
    path.unlink()
    now[0] = EVERY - 1
    metrics(dispatcher(), 0.0)
    assert not path.exists()
    now[0] = EVERY
    metrics(dispatcher(), 0.0)
    assert path.exists() and os.listdir(tmp_path) == ["metrics.prom"]


def test_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    Metrics(str(tmp_path / "nowhere" / "metrics.prom"), "t", "1").write(dispatcher(), 0.0)
    (tmp_path / "m").mkdir()
    Metrics(str(tmp_path / "m"), "t", "1").write(dispatcher(), 0.0)
    assert os.listdir(tmp_path) == ["m"]
