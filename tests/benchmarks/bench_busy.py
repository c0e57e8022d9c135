"""Busy cores: what part of the CPU time the machine could give became work in payloads, start-up excluded, output
written.

Events use a known, lognormal CPU time, or are real ones of Pythia (where pythia8mc is installed), which measure their
own: it is longer or shorter by some per cent from minute to minute, as the machine is. Beside Yoda: every runner that
is installed here, doing the same events and writing the same fields from the parent process, in chunks that suit it;
and bare processes that share a counter and do nothing else, which is the limit. None of the others makes anything
durable, or could go on after a kill.

Everything, with peers of an environment of their own: `yoda bench busy --peers VENV/bin/python`, on a quiet machine;
it takes more than half an hour. `pip install dask distributed ray parsl hyperqueue pythia8mc==8.317.2 h5py` makes
one.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import payloads
from benchlib import (
    CORES,
    ENTRY,
    MODULES,
    Figure,
    Sampler,
    median,
    peer,
    peer_python,
    workspace,
    write_job,
    yoda,
)

#: mean seconds per event -> budget; 0: Pythia
MEANS = {0.5: None, 0.05: 0.985, 0.005: 0.95, 0.001: None, 0.0: None}
PYTHIA_MEAN = 0.0045  #: seconds, about, to know how many make a run
#: seconds of work in one chunk: what costs a peer a message, or as with HyperQueue a process, is worth it, and the end
#: of the run is still even
CHUNKS = {
    "multiprocessing.Pool": 0.05,
    "concurrent.futures": 0.05,
    "mpi4py.futures": 0.05,
    "dask": 0.1,
    "ray": 0.1,
    "parsl": 0.1,
    "hyperqueue": 1.0,
}
SECONDS, LONG = 8.0, 64.0  #: of work per core and case; of half a second it takes more events to even out the end


def run(quick: bool = False) -> dict[str, Any]:
    """Fractions for every mean and system, all rounds."""
    rounds = 1 if quick else 2
    out: dict[str, Any] = {"workers": CORES, "busy": {}}
    for mean in MEANS:
        if (quick and mean != 0.005) or (not mean and importlib.util.find_spec("pythia8mc") is None):
            continue
        seconds = 0.3 if quick else LONG if mean == max(MEANS) else SECONDS
        events = max(2 * CORES, int(seconds * CORES / (mean or PYTHIA_MEAN)))
        busy: dict[str, list[float]] = {}
        for turn in range(rounds):
            # Other lengths in each round, the same for all: how even the end is, is luck, and not always for the same.
            known = float(payloads.durations(mean, events, turn).sum()) if mean else 0.0
            with workspace() as folder:
                cases = _cases(folder, mean, events, turn, quick)
                cases["limit"]()  # a machine that was idle is slow for a few seconds
                for name in cases if turn % 2 == 0 else reversed(list(cases)):
                    found = cases[name]()
                    busy.setdefault(name, []).append((known or found["cpu"]) / found["capacity"])
        out["busy"][str(mean)] = busy
    return out


def _cases(folder: Path, mean: float, events: int, seed: int, quick: bool) -> dict[str, Any]:
    if mean:
        options = {"mean": mean, "events": events, "seed": seed}
        job = write_job(folder, "spin", "Spin", events, options=options)
    else:
        job = write_job(folder, "pythia", "Pythia", events)
    cases: dict[str, Any] = {"yoda": lambda: _ours(job, measured=not mean)}
    for kind, chunk in list(CHUNKS.items())[: 1 if quick else None]:
        if kind in MODULES and not _usable(kind, mean):
            continue
        size = max(1, round(chunk / (mean or PYTHIA_MEAN)))
        cases[kind] = lambda kind=kind, size=size: _peer(folder, kind, mean, events, seed, size)
    cases["limit"] = lambda: _limit(mean, events, seed)
    return cases


def _usable(kind: str, mean: float) -> bool:
    """Whether some environment has this peer, and Pythia if that is what it is about."""
    python = peer_python(MODULES[kind])
    if python is None or mean:
        return python is not None
    return not subprocess.run([python, "-c", "import pythia8mc"], capture_output=True).returncode


def _ours(job: Path, measured: bool) -> dict[str, float]:
    outcome = yoda(job)
    cpu = 0.0
    if measured:
        merged = Path(outcome.taskdir.root) / "all.h5"
        words = [sys.executable, ENTRY, "merge", outcome.taskdir.root, "-o", str(merged)]
        subprocess.run(words, check=True, capture_output=True)
        with h5py.File(merged) as file:
            cpu = float(file["cpu"][:].sum())
    return {"cpu": cpu, "capacity": outcome.sampler.capacity(*outcome.window)}


def _peer(folder: Path, kind: str, mean: float, events: int, seed: int, chunk: int) -> dict[str, float]:
    answer = peer(folder, kind, "spin" if mean else "pythia", events, chunk, mean=mean, seed=seed)
    return {"cpu": answer["cpu"], "capacity": answer["sampler"].capacity(*answer["window"])}


def _limit(mean: float, events: int, seed: int) -> dict[str, float]:
    """Bare processes that take the next event from a shared counter: CPU seconds of the events, and what there was."""
    seconds = payloads.durations(mean, events, seed) if mean else None
    context = multiprocessing.get_context("fork")
    counter, cpu, first = context.Value("q", 0), context.Value("d", 0.0), context.Value("d", 0.0)
    ready = context.Barrier(CORES)

    def work() -> None:
        made = payloads.pythia() if seconds is None else None
        ready.wait()
        with first.get_lock():
            first.value = first.value or time.time()
        used = 0.0
        while True:
            with counter.get_lock():
                mine = counter.value
                counter.value += 1
            if mine >= events:
                break
            if made is not None:
                used += made.process(mine)["cpu"]
            elif seconds is not None:
                payloads.spin(float(seconds[mine]))
        with cpu.get_lock():
            cpu.value += used

    def parent() -> None:  # of all the others, so that they are one tree
        workers = [context.Process(target=work) for _ in range(CORES)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        os._exit(0)

    root = context.Process(target=parent)
    root.start()
    with Sampler(root.pid or 0) as sampler:
        root.join()
        end = time.time()
    return {"cpu": cpu.value, "capacity": sampler.capacity(first.value, end)}


def figures(result: dict[str, Any]) -> list[Figure]:
    """Per cent of cores x wall, less what other processes took. Best of all: no installed peer is above us."""
    out = []
    for mean, rounds in result["busy"].items():
        values = {name: 100 * median(found) for name, found in rounds.items()}
        budget = MEANS[float(mean)]
        ours, limit = values.pop("yoda"), values.pop("limit")
        what = f"busy cores, {f'events of {1000 * float(mean):g} ms' if float(mean) else 'Pythia, top quarks'}"
        promised = f">= {100 * budget:g} %" if budget else ""
        met = ours >= 100 * budget if budget else None
        out.append(Figure(what, ours, "%", "bare processes, no output", limit, promised, met))
        best = max(values, key=lambda name: values[name])
        for name, value in values.items():
            least = ("best of all", ours >= value) if name == best else ("", None)
            out.append(Figure(what, ours, "%", f"{name}, not durable", value, *least))
    return out
