"""Goodput under SIGKILL: a task of which every process is shot every five seconds, counted from when the command was
started, and which is started again at once; beside the same task undisturbed.

Goodput is the CPU time that payloads need for what is in the result over what the machine could give in all that time,
start-ups and ends included. Beside it stand the same without start-ups, which is what is lost of work (L4), and the
limit: a runner that starts as fast as an mpi4py program that does nothing, and loses nothing at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import payloads
import yaml
from benchlib import CORES, Figure, Sampler, alternate, command, empty, median, tree, workspace, write_job
from numpy.typing import NDArray

from eventrange import records
from eventrange.errors import RUN_AGAIN
from eventrange.history import Story
from eventrange.records import Kind
from eventrange.taskdir import TaskDir

BUDGET = 0.90
MEAN = 0.02  #: seconds per event


def run(quick: bool = False) -> dict[str, Any]:
    """Of both, all rounds: seconds, and the part of the cores that is in the result, with start-ups and once granted
    work. And seconds an empty MPI program takes to start."""
    seconds, period, rounds = (1.0, 3.0, 1) if quick else (24.0, 5.0, 3)
    events = int(seconds * CORES / MEAN)
    with workspace() as folder:
        job = write_job(folder, "kill", "Spin", events, options={"mean": MEAN, "events": events})
        cases: dict[str, Any] = {"calm": lambda: _run(job, None, events), "killed": lambda: _run(job, period, events)}
        cases["empty"] = lambda: empty(folder)
        found = alternate(cases, rounds)
    return {"workers": CORES, "events": events, "period": period, **found}


def _run(job: Path, period: float | None, events: int) -> dict[str, float]:
    """Run a task to its end, and shoot everything `period` seconds after each start; or on a machine that is so busy
    that nothing has come of it by then, once something has."""
    taskdir = TaskDir(str(job.parent / f"run-{time.monotonic_ns()}.task"))
    begin = time.monotonic()
    spans: dict[str, tuple[Sampler, float]] = {}  # of each allocation: who else used the machine, and when it ended
    everything = 0.0  # core seconds the machine could give
    code = 1
    while code != 0:
        known = set(taskdir.allocations())
        launched = time.time()
        with open(job.parent / "output", "a") as output:
            arguments = command(job, "--task", taskdir.root, "--workers", str(CORES))
            child = subprocess.Popen(arguments, stdout=output, stderr=output)
        with Sampler(child.pid) as sampler:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(period)
            while child.poll() is None and not _worked(taskdir, known):
                time.sleep(0.1)
            if child.poll() is None:
                for pid in tree(child.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            ended = time.time()
            code = child.wait()
        everything += CORES * (ended - launched) - sampler.others(launched, ended)
        # None when the task turns out to be complete: then there is no allocation.
        spans.update({name: (sampler, ended) for name in taskdir.allocations() if name not in known})
        if code > 0 and code != RUN_AGAIN:  # a launcher whose predecessor was shot may fail to start
            raise RuntimeError(f"yoda run ended with {code}:\n{(job.parent / 'output').read_text()[-2000:]}")
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
    return {"seconds": seconds, "all": work / everything, "kept": work / capacity, "kills": len(spans) - 1}


def _worked(taskdir: TaskDir, known: set[str]) -> bool:
    """Whether a new allocation has a range done in its journal."""
    new = set(taskdir.allocations()) - known
    if not new:
        return False
    found = _allocations(taskdir)
    return any((found[name]["kind"] == Kind.DONE).any() for name in new)


def _allocations(taskdir: TaskDir) -> dict[str, NDArray[Any]]:
    """The records of each allocation."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in taskdir.allocations()}
    with open(taskdir.task_file) as file:
        fingerprint = yaml.safe_load(file)["fingerprint"]
    for name, entry in Story(taskdir, fingerprint):
        if not isinstance(entry, dict):
            parts[name].append(entry)
    return {name: np.concatenate(found) if found else records.new(0) for name, found in parts.items()}


def figures(result: dict[str, Any]) -> list[Figure]:
    """Everything counted against undisturbed, and against the limit; and without start-ups."""
    keys = ("seconds", "all", "kept", "kills")
    calm = {key: median([r[key] for r in result["calm"]]) for key in keys}
    killed = {key: median([r[key] for r in result["killed"]]) for key in keys}
    start, period = median(result["empty"]), result["period"]
    limit = calm["all"] * (1 - start / period) / (1 - start / calm["seconds"])
    what = f"SIGKILL every {period:g} s ({killed['kills']:g} kills)"
    budget, met = f">= {BUDGET:.0%} of undisturbed", killed["all"] >= BUDGET * calm["all"]
    who = f"starts like empty mpi4py ({start:.2f} s), loses nothing"
    return [
        Figure(what, 100 * killed["all"], "% of cores", "undisturbed", 100 * calm["all"], budget, met),
        Figure(what, 100 * killed["all"], "% of cores", who, 100 * limit),
        Figure(f"{what}, once work is granted", 100 * killed["kept"], "% of cores", "undisturbed", 100 * calm["kept"]),
    ]
