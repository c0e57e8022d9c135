"""Goodput under SIGKILL: a task whose every allocation is shot after five seconds of work, beside the same task
undisturbed.

Two figures. Kept work: of the core seconds that payloads worked, what part is in the result; that is what killing
costs (L4). Wall: undisturbed time over disturbed time, start-ups included, as a user would see it; the more so, the
longer a start takes.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import payloads
import yaml
from benchlib import CORES, Figure, Sampler, alternate, command, median, tree, workspace, write_job
from numpy.typing import NDArray

from eventrange import records
from eventrange.history import Story
from eventrange.records import Kind
from eventrange.taskdir import TaskDir

BUDGET = 0.90
MEAN = 0.02  #: seconds per event


def run(quick: bool = False) -> dict[str, Any]:
    """Of both, all rounds: seconds with start-ups, and the part of the cores, once granted work, that is in the
    result."""
    seconds, period, rounds = (1.0, 0.7, 1) if quick else (24.0, 5.0, 3)
    events = int(seconds * CORES / MEAN)
    with workspace() as folder:
        job = write_job(folder, "kill", "Spin", events, options={"mean": MEAN, "events": events})
        cases: dict[str, Any] = {"calm": lambda: _run(job, None, events), "killed": lambda: _run(job, period, events)}
        found = alternate(cases, rounds)
    return {"workers": CORES, "events": events, "period": period, **found}


def _run(job: Path, period: float | None, events: int) -> dict[str, float]:
    """Run a task to its end, and shoot everything `period` seconds after the first grant of each allocation is
    durable."""
    taskdir = TaskDir(str(job.parent / f"run-{time.monotonic_ns()}.task"))
    begin = time.monotonic()
    spans: dict[str, tuple[Sampler, float]] = {}  # of each allocation: who else used the machine, and when it ended
    code = 1
    while code != 0:
        known = set(taskdir.allocations())
        with open(job.parent / "output", "a") as output:
            arguments = command(job, "--task", taskdir.root, "--workers", str(CORES))
            child = subprocess.Popen(arguments, stdout=output, stderr=output)
        with Sampler(child.pid) as sampler:
            working = math.inf
            while child.poll() is None and (period is None or time.monotonic() - working < period):
                time.sleep(0.02)
                if working == math.inf and _granted(taskdir, known):
                    working = time.monotonic()
            if child.poll() is None:
                for pid in tree(child.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            ended = time.time()
            code = child.wait()
        # None when the task turns out to be complete: then there is no allocation.
        spans.update({name: (sampler, ended) for name in taskdir.allocations() if name not in known})
        if code > 0:
            raise RuntimeError(f"yoda run ended with {code}")
    seconds = time.monotonic() - begin
    work, capacity = float(payloads.durations(MEAN, events).sum()), 0.0
    found = _allocations(taskdir)
    for name, (sampler, end) in spans.items():
        rows = found[name]
        if len(rows):
            first = float(rows["time"].min())
            done = rows[rows["kind"] == Kind.DONE]
            if period is None or name == max(spans):  # the last ended by itself: after its last event
                end = float((done["time"] + done["wall"]).max())
            capacity += CORES * (end - first) - sampler.others(first, end)
    return {"seconds": seconds, "kept": work / capacity, "kills": len(spans) - 1}


def _allocations(taskdir: TaskDir) -> dict[str, NDArray[Any]]:
    """The records of each allocation."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in taskdir.allocations()}
    with open(taskdir.task_file) as file:
        fingerprint = yaml.safe_load(file)["fingerprint"]
    for name, entry in Story(taskdir, fingerprint):
        if not isinstance(entry, dict):
            parts[name].append(entry)
    return {name: np.concatenate(found) if found else records.new(0) for name, found in parts.items()}


def _granted(taskdir: TaskDir, known: set[str]) -> bool:
    """Whether a new allocation has committed something after its first note."""
    new = set(taskdir.allocations()) - known
    return any(os.path.getsize(taskdir.journal(name)) > 2000 for name in new)


def figures(result: dict[str, Any]) -> list[Figure]:
    """The part of granted cores that became result, and all time against all time."""
    calm = {key: median([r[key] for r in result["calm"]]) for key in ("seconds", "kept")}
    killed = {key: median([r[key] for r in result["killed"]]) for key in ("seconds", "kept", "kills")}
    what = f"SIGKILL every {result['period']:g} s ({killed['kills']:g} kills)"
    budget, met = f">= {BUDGET:.0%} of undisturbed", killed["kept"] >= BUDGET * calm["kept"]
    rate = result["events"]
    return [
        Figure(what, 100 * killed["kept"], "% of cores", "undisturbed", 100 * calm["kept"], budget, met),
        Figure(f"{what}, with start-ups", rate / killed["seconds"], "events/s", "undisturbed", rate / calm["seconds"]),
    ]
