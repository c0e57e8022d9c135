"""Python overhead per event: what a worker's core spends on an event that does nothing, in ranges of 100, images
written.

CPU seconds of the worker processes over events; and all CPU seconds of the run (worker, Droid, Yoda) over events.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchlib import CORES, Figure, alternate, median, peer, workspace, write_job, yoda

BUDGET = 30.0  #: microseconds per event per core


def run(quick: bool = False) -> dict[str, Any]:
    """Microseconds of core time per event, all rounds: payloads of one field without and with random numbers, of five
    fields, and a pool without output."""
    events, rounds = (20_000, 1) if quick else (1_000_000, 3)
    with workspace() as folder:
        names = ("small", "drawing", "five")
        jobs = {name: write_job(folder, name, name, events, ranges={"events": 100}) for name in names}
        cases: dict[str, Any] = {name: lambda job=job: _ours(job, events) for name, job in jobs.items()}
        cases["mpi4py.futures"] = lambda: {
            "wall": CORES * 1e6 / peer(folder, "mpi4py.futures", "noop", events, 100)["rate"]
        }
        found = alternate(cases, rounds)
    return {"workers": CORES, "events": events, "microseconds": found}


def _ours(job: Path, events: int) -> dict[str, float]:
    outcome = yoda(job)
    begin, end = outcome.window
    cores = CORES * (end - begin) - outcome.sampler.others(begin, end)
    return {"worker": 1e6 * float(outcome.done["cpu"].sum()) / events, "wall": 1e6 * cores / events}


def _futures(folder: Path, events: int) -> dict[str, float]:
    answer = peer(folder, "mpi4py.futures", "noop", events, 100)
    begin, end = answer["begin"], answer["end"]
    return {"wall": 1e6 * (CORES * (end - begin) - answer["sampler"].others(begin, end)) / events}


def figures(result: dict[str, Any]) -> list[Figure]:
    """The budget is for one field; five fields are what real events have at least."""
    rounds = {
        name: {key: median([r[key] for r in found]) for key in found[0]}
        for name, found in result["microseconds"].items()
    }
    futures = rounds["mpi4py.futures"]["wall"]
    small, drawing, five = rounds["small"], rounds["drawing"], rounds["five"]
    who = "mpi4py.futures, chunksize 100, no output"
    budget = f"<= {BUDGET:g} us"
    return [
        Figure("all cores, one field", small["wall"], "us/event", who, futures, budget, small["wall"] <= BUDGET),
        Figure("worker's CPU, one field", small["worker"], "us/event"),
        Figure("all, random numbers too", drawing["wall"], "us/event", who, futures, budget, drawing["wall"] <= BUDGET),
        Figure("all cores, five fields", five["wall"], "us/event", who, futures),
        Figure("worker's CPU, five fields", five["worker"], "us/event"),
    ]
