"""What Yoda and a Droid use while workers work: CPU of their processes over some seconds of sleeping events; memory
per worker.

The memory is what a worker adds to its node while all of them read one table that set-up made: its private pages, and
its share of all pages (PSS), beside all that the zygote has, which is what a process costs that is not forked from it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from benchlib import CORES, Figure, alternate, journal, median, peer, precise_cpu, tree, workspace, write_job, yoda

from eventrange.taskdir import TaskDir

BUDGET = 1.0  #: per cent of a core
TABLE_MB = 256


def run(quick: bool = False) -> dict[str, Any]:
    """Per cent of a core for rank 0 and the Droid, all rounds; megabytes of each worker."""
    seconds, rounds = (1.0, 1) if quick else (8.0, 3)
    with workspace() as folder:
        events = int((seconds + 3) * CORES)
        options = {"seconds": 0.5}
        job = write_job(folder, "sleep", "sleep", 2 * events, options=options, ranges={"events": 1})
        heavy = write_job(folder, "heavy", "Heavy", events * 10, options={"megabytes": 16 if quick else TABLE_MB})
        cases: dict[str, Any] = {"yoda": lambda: _watch(job, seconds)}
        cases["mpi4py.futures"] = lambda: _futures(folder, events, options["seconds"])
        found = alternate(cases, rounds)
        memory = _memory(heavy, seconds)
    return {"percent": found, "table_mb": 16 if quick else TABLE_MB, **memory}


def _watch(job: Path, seconds: float) -> dict[str, float]:
    used: dict[str, float] = {}

    def watch(taskdir: TaskDir, _: int) -> None:
        pids = _ranks(taskdir)
        time.sleep(1.0)  # the burst at the start
        begin, before = time.monotonic(), {name: precise_cpu(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        span = time.monotonic() - begin
        used.update({name: 100 * (precise_cpu(pid) - before[name]) / span for name, pid in pids.items()})

    yoda(job, watch=watch)
    return used


def _ranks(taskdir: TaskDir) -> dict[str, int]:
    """Pids of rank 0 and the Droid, once the first grant is out."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(0.1)
        try:
            rows, notes = journal(taskdir)
        except (OSError, ValueError, TypeError, KeyError):  # not there yet, or half
            continue
        named = {note["note"]: note["pid"] for note in notes if note["note"] in ("journal", "joined")}
        if len(rows) and len(named) == 2:
            return {"rank 0": named["journal"], "Droid": named["joined"]}
    raise TimeoutError("the run has not begun")


def _futures(folder: Path, events: int, seconds: float) -> dict[str, float]:
    answer = peer(folder, "mpi4py.futures", "sleep", events, 1, seconds=seconds)
    used = answer["sampler"].tree_used(answer["begin"], answer["end"])
    return {"per rank": 100 * used / (answer["end"] - answer["begin"]) / (CORES + 1)}


def _memory(job: Path, seconds: float) -> dict[str, list[float]]:
    """Megabytes of each worker, and of the zygote they are forked from."""
    found: dict[str, list[float]] = {"worker_private_mb": [], "worker_pss_mb": [], "zygote_rss_mb": []}

    def watch(taskdir: TaskDir, launcher: int) -> None:
        _ranks(taskdir)
        time.sleep(min(seconds, 2.0))
        for pid in tree(launcher):
            try:
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    next(file)
                    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in file}
                output = os.path.basename(os.readlink(f"/proc/{pid}/fd/2"))
            except (OSError, IndexError):
                continue
            if output.startswith("worker-"):
                found["worker_private_mb"].append(sizes["Private_Clean"] + sizes["Private_Dirty"])
                found["worker_pss_mb"].append(sizes["Pss"])
            elif output == "zygote.out":
                found["zygote_rss_mb"].append(sizes["Rss"])

    yoda(job, watch=watch)
    return found


def figures(result: dict[str, Any]) -> list[Figure]:
    """Rank 0 and Droid each have the budget."""
    rounds = result["percent"]
    theirs = median([r["per rank"] for r in rounds["mpi4py.futures"]])
    out = []
    for name in ("rank 0", "Droid"):
        ours = median([r[name] for r in rounds["yoda"]])
        who = "mpi4py.futures, mean of all ranks"
        out.append(Figure(f"CPU of {name}", ours, "% of a core", who, theirs, f"<= {BUDGET:g} %", ours <= BUDGET))
    if result["worker_private_mb"] and result["zygote_rss_mb"]:
        who, whole = "the zygote, all of it", median(result["zygote_rss_mb"])
        out.append(Figure("private memory of a worker", median(result["worker_private_mb"]), "MB", who, whole))
        out.append(Figure("its share of all memory (PSS)", median(result["worker_pss_mb"]), "MB", who, whole))
    return out
