"""Busy cores: what part of the CPU time the machine could give became work in payloads, start-up excluded, output
written.

Events use a known, lognormal CPU time. Beside Yoda: pools that do the same events and write the same fields from the
parent process, and two bare processes that share a counter and do nothing else, which is the limit.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import payloads
from benchlib import CORES, Figure, Sampler, alternate, median, peer, workspace, write_job, yoda

#: mean seconds per event -> (budget, chunk sizes that suit the pools: about 20 ms of work, so that they batch as we do)
MEANS = {0.5: (None, 1), 0.05: (0.985, 1), 0.005: (0.95, 4), 0.001: (None, 20)}
SECONDS = 12.0  #: of work per core and case


def run(quick: bool = False) -> dict[str, Any]:
    """Fractions for every mean and system, all rounds."""
    seconds, rounds = (0.3, 1) if quick else (SECONDS, 3)
    out: dict[str, Any] = {"workers": CORES, "busy": {}}
    for mean, (_, chunk) in MEANS.items():
        if quick and mean != 0.005:
            continue
        events = max(2 * CORES, int(seconds * CORES / mean))
        with workspace() as folder:
            job = write_job(folder, "spin", "Spin", events, options={"mean": mean, "events": events})
            cases: dict[str, Any] = {"yoda": lambda job=job, mean=mean, events=events: _ours(job, mean, events)}
            for kind in ("multiprocessing.Pool", "concurrent.futures", "mpi4py.futures")[: 1 if quick else None]:
                cases[kind] = _peer(folder, kind, mean, events, chunk)
            cases["limit"] = lambda mean=mean, events=events: _limit(mean, events)
            out["busy"][str(mean)] = alternate(cases, rounds)
    return out


def _ours(job: Path, mean: float, events: int) -> float:
    outcome = yoda(job)
    return outcome.sampler.busy(float(payloads.durations(mean, events).sum()), *outcome.window)


def _peer(folder: Path, kind: str, mean: float, events: int, chunk: int) -> Any:
    def measure() -> float:
        answer = peer(folder, kind, "spin", events, chunk, mean=mean)
        busy: float = answer["sampler"].busy(float(payloads.durations(mean, events).sum()), *answer["window"])
        return busy

    return measure


def _limit(mean: float, events: int) -> float:
    """Bare processes that take the next event from a shared counter."""
    seconds = payloads.durations(mean, events)
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)

    def work() -> None:
        while True:
            with counter.get_lock():
                mine = counter.value
                counter.value += 1
            if mine >= events:
                return
            payloads.spin(float(seconds[mine]))

    def parent() -> None:  # of all the others, so that they are one tree
        workers = [context.Process(target=work) for _ in range(CORES)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        os._exit(0)

    root = context.Process(target=parent)
    begin = time.time()
    root.start()
    with Sampler(root.pid or 0) as sampler:
        root.join()
        end = time.time()
    return sampler.busy(float(seconds.sum()), begin, end)


def figures(result: dict[str, Any]) -> list[Figure]:
    """Per cent of cores x wall, less what other processes took."""
    out = []
    for mean, rounds in result["busy"].items():
        values = {name: 100 * median(found) for name, found in rounds.items()}
        budget = MEANS[float(mean)][0]
        ours = values.pop("yoda")
        what = f"busy cores, events of {1000 * float(mean):g} ms"
        words = f">= {100 * budget:g} %" if budget else ""
        met = ours >= 100 * budget if budget else None
        for name, value in values.items():
            peer_name = "bare processes, no output" if name == "limit" else f"{name}, not durable"
            out.append(Figure(what, ours, "%", peer_name, value, words, met))
            words, met = "", None
    return out
