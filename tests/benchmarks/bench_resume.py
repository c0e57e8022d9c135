"""Resume from ten million journal records: seconds and peak memory, beside numpy.fromfile of the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from eventrange import records
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from yoda.bench import Figure

RECORDS = 10_000_000
DROIDS = 64

# Measured in a process of its own: peak memory counts from the start of a process.
_RESUME = """
import json, sys, time
from eventrange.history import read_progress
from eventrange.taskdir import TaskDir
def peak():  # not ru_maxrss, which begins with what the parent had
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
begun, cpu = time.perf_counter(), time.process_time()
found = read_progress(TaskDir(sys.argv[1]), "f")
seconds = time.perf_counter() - begun
cpu = time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak(), "imports_mib": before,
                  "records": found.records, "done": found.done.total, "holes": len(found.done),
                  "damage": found.damage}))
"""


def write(root: str, count: int, frame: int, order: str) -> TaskDir:
    """A journal of `count` done records of one event each, `frame` per commit.

    Order: `droids` (each goes through its own part of the axis) or `random` (no record touches the one before).
    """
    task = TaskDir(root)
    task.make()
    writer = JournalWriter(task.journal("a"), "f", "a", created=1.7e9)
    if order == "droids":
        width = count // DROIDS
        at = (np.arange(width * DROIDS).reshape(DROIDS, width)).T.ravel()
    else:
        at = np.random.default_rng(1).permutation(count)
    rows = records.new(frame, kind=Kind.DONE, time=1.7e9, wall=1.0, cpu=1.0, size=5000)
    for begin in range(0, len(at), frame):
        part = rows[: len(at) - begin]
        part["start"] = at[begin : begin + frame]
        part["stop"] = part["start"] + 1
        writer.append(part)
        writer.flush()
    writer.file.close()
    return task


def measure(count: int, frame: int, order: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("YODA_BENCH_DIR")) as root:
        path = write(root, count, frame, order).journal("a")
        size = os.path.getsize(path)
        begun = time.perf_counter()
        raw = np.fromfile(path, np.uint8)
        fromfile = time.perf_counter() - begun
        del raw
        out = subprocess.run([sys.executable, "-c", _RESUME, root], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(out.stdout)
    assert found["done"] == found["records"] and not found["damage"], found
    return {**found, "order": order, "records_per_commit": frame, "bytes": size, "fromfile_seconds": fromfile}


def run(quick: bool = False, count: int = RECORDS) -> dict[str, Any]:
    """`resume_seconds` and `peak_mib` are the worst of the cases."""
    count = min(count, 20_000) if quick else count
    cases = [measure(count, frame, order) for frame, order in ((1000, "droids"), (1000, "random"), (20, "droids"))]
    return {
        "name": "resume",
        "budget_seconds": 2.0,
        "budget_mib": 1024,
        "resume_seconds": max(case["seconds"] for case in cases),
        "peak_mib": max(case["peak_mib"] for case in cases),
        "cases": cases,
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """Every case has the budget; the peer only reads the bytes."""
    out = []
    for case in result["cases"]:
        what = f"resume, {case['records']:,} records, {case['order']}, {case['records_per_commit']} per commit"
        seconds, peak = case["seconds"], case["peak_mib"]
        out.append(Figure(what, seconds, "s", "numpy.fromfile", case["fromfile_seconds"], "<= 2 s", seconds <= 2.0))
        out.append(Figure("its peak memory", peak, "MiB", budget="<= 1 GiB", met=peak <= 1024))
    return out


if __name__ == "__main__":
    print(json.dumps(run(count=int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS), indent=2))
