"""Durable dispatch: how many one-event ranges a second are granted, done, and in an fsynced journal, beside pools that
keep nothing.

Ours counts from the first grant to the last thing in the journal, so the last fsync and the goodbyes of all Droids are
in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchlib import CORES, MODULES, Figure, alternate, median, peer, peer_python, workspace, write_job, yoda

#: kind, chunk size, events in a full run: enough for a second or so of work each
PEERS = (
    ("mpi4py.futures", 1, 6000),
    ("mpi4py.futures", 100, 300_000),
    ("concurrent.futures", 1, 20_000),
    ("multiprocessing.Pool", 1, 60_000),
    ("dask", 1, 2000),
    ("ray", 1, 4000),
    ("parsl", 1, 3000),
    ("hyperqueue", 1, 100),
)


def run(quick: bool = False) -> dict[str, Any]:
    """Ranges per second of every system, all rounds; `_images` with an image of one dataset for each range."""
    events, rounds = (4000, 1) if quick else (400_000, 3)
    with workspace() as folder:
        plain = write_job(folder, "plain", "noop", events, ranges={"events": 1})
        images = write_job(folder, "images", "small", events // 4, ranges={"events": 1})
        cases = {"yoda": lambda: _rate(plain, "--no-images"), "yoda_images": lambda: _rate(images)}
        for kind, chunk, number in PEERS[: 2 if quick else None]:
            if kind not in MODULES or peer_python(MODULES[kind]):
                cases[f"{kind} {chunk}"] = _peer(folder, kind, min(number, events), chunk)
        rates = alternate(cases, rounds)
    return {"workers": CORES, "events": events, "ranges_per_second": rates}


def _rate(job: Path, *flags: str) -> float:
    outcome = yoda(job, *flags)
    return len(outcome.done) / (outcome.end_note - outcome.first_grant)


def _peer(folder: Path, kind: str, events: int, chunk: int) -> Any:
    return lambda: peer(folder, kind, "noop", events, chunk)["rate"]


def figures(result: dict[str, Any]) -> list[Figure]:
    """Ours against each peer; the budget is absolute and relative."""
    rates = {name: median(values) for name, values in result["ranges_per_second"].items()}
    ours, futures = rates["yoda"], rates["mpi4py.futures 1"]
    out = [
        Figure(
            "durable dispatch, no-op",
            ours,
            "ranges/s",
            "mpi4py.futures, chunksize 1, not durable",
            futures,
            ">= 20,000 and 5x mpi4py.futures",
            ours >= 20_000 and ours >= 5 * futures,
        )
    ]
    for name, rate in rates.items():
        if name not in ("yoda", "yoda_images", "mpi4py.futures 1"):
            kind, chunk = name.rsplit(" ", 1)
            out.append(
                Figure("durable dispatch, no-op", ours, "ranges/s", f"{kind}, chunksize {chunk}, not durable", rate)
            )
    images = rates["yoda_images"]
    out.append(Figure("with an HDF5 image each", images, "ranges/s", "mpi4py.futures, chunksize 1, no output", futures))
    return out
