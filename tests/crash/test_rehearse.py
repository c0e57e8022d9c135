"""`yoda rehearse`: preempted without warning and with one, until the task is complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import eventrange.entry

JOB = """
task: rehearsal
seed: 7
inputs: {format: generate, events: 60}
payload: {python: "work.py:work"}
output: {merge: true}
"""
WORK = """
import time
def work(event, random):
    time.sleep(0.1)
    return {"x": random.normal()}
"""


@pytest.mark.parametrize("grace", ["0", pytest.param("10s", marks=pytest.mark.slow)])
def test_preempted_until_complete(tmp_path: Path, grace: str) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "work.py").write_text(WORK)
    done = subprocess.run(
        [
            *(sys.executable, os.path.abspath(eventrange.entry.__file__), "rehearse", str(tmp_path / "job.yaml")),
            *("--task", str(tmp_path / "task"), "--workers", "1", "--preempt-after", "6s", "--grace", grace),
            *("--times", "2", "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["complete"] and found["events"]["done"] == 60
    assert found["allocations"] >= 2 or found["preemptions"] == 0
    assert found["durable_twice"] == 0
    parts = {name: value for name, value in found["core_seconds"].items() if name != "total"}
    assert sum(parts.values()) == pytest.approx(found["core_seconds"]["total"])
