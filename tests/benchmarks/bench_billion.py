"""A task of 10^9 generated events beside one of 10^3: planning, starting, resuming, and the memory of rank 0 (L12).

Each task is started, works for a moment, is killed without warning and started again, which is the resume. Time is
from the command to the first grant in the journal, memory the most that rank 0 ever had.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchlib import ENTRY, Figure, alternate, command, journal, median, tree, workspace, write_job

from eventrange.records import Kind
from eventrange.taskdir import TaskDir

SMALL, LARGE = 10**3, 10**9
BUDGET = 1.2  #: times as long, or as much memory: the same but for noise


def run(quick: bool = False) -> dict[str, Any]:
    """Seconds and megabytes of all rounds, for both tasks."""
    rounds, moment = (1, 0.3) if quick else (5, 1.5)
    with workspace() as folder:
        jobs = {
            str(events): write_job(folder, f"task{events}", "sleep", events, options={"seconds": 0.02})
            for events in (SMALL, LARGE)
        }
        counter = iter(range(1000))

        def one(job: Path) -> dict[str, Any]:
            task = TaskDir(str(folder / f"{next(counter)}.task"))
            begin = time.perf_counter()
            subprocess.run([sys.executable, ENTRY, "plan", str(job)], check=True, capture_output=True)
            plan = time.perf_counter() - begin
            (start, first), (resume, second) = (_begin(job, task, moment) for _ in range(2))
            size = sum(f.stat().st_size for f in Path(task.task_file).parent.glob("task.yaml"))
            return {"plan": plan, "start": start, "resume": resume, "mb": max(first, second), "task_bytes": size}

        found = alternate({name: lambda job=job: one(job) for name, job in jobs.items()}, rounds)
    return {"events": [SMALL, LARGE], "rounds": found}


def _begin(job: Path, task: TaskDir, moment: float) -> tuple[float, float]:
    """Start, or resume; seconds until the first grant, and megabytes of rank 0 a moment later. Ends with SIGKILL."""
    before = _allocations(task)
    launched = time.time()
    child = subprocess.Popen(
        command(job, "--task", os.path.dirname(task.task_file), "--workers", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and child.poll() is None:
            time.sleep(0.05)
            found = _granted(task, before)
            if found is not None:
                time.sleep(moment)
                return found[0] - launched, _peak(found[1])
        raise RuntimeError(f"no grant in {job.name}")
    finally:
        for pid in tree(child.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.wait()


def _allocations(task: TaskDir) -> set[str]:
    with suppress(OSError):
        return set(task.allocations())
    return set()


def _granted(task: TaskDir, before: set[str]) -> tuple[float, int] | None:
    """(time of the first grant, pid of rank 0) of the allocation that is not among those `before`."""
    if not _allocations(task) - before:
        return None
    try:
        rows, notes = journal(task)
    except (OSError, ValueError, TypeError, KeyError):  # not there yet, or half
        return None
    begun = [note for note in notes if note["note"] == "journal"]
    if len(begun) <= len(before):
        return None
    since = float(begun[-1].get("time") or begun[-1].get("created") or 0.0)
    times = rows["time"][(rows["kind"] == Kind.GRANTED) & (rows["time"] >= since)]
    return (float(times.min()), int(begun[-1]["pid"])) if since and len(times) else None


def _peak(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def figures(result: dict[str, Any]) -> list[Figure]:
    """10^9 events against 10^3; the peer here is our own small task."""
    small, large = (result["rounds"][str(events)] for events in result["events"])
    out = []
    for what, name, unit in (
        ("plan", "plan", "s"),
        ("start, to the first grant", "start", "s"),
        ("resume, to the first grant", "resume", "s"),
        ("memory of rank 0", "mb", "MB"),
    ):
        ours, theirs = median([r[name] for r in large]), median([r[name] for r in small])
        out.append(
            Figure(
                f"10^9 events: {what}", ours, unit, "10^3 events", theirs, f"<= {BUDGET:g} x", ours <= BUDGET * theirs
            )
        )
    return out


if __name__ == "__main__":
    print(json.dumps(run("--quick" in sys.argv), indent=1))
