"""Weak scaling for real: as many ranks as this machine bears, one worker each, with payloads that sleep.

The same work per Droid, more and more Droids, under a real launcher that oversubscribes the cores. What must hold at
any number: every Droid gets work, every event is done once, the run drains by itself, and rank 0 stays small. `busy` is
the share of time workers are at work, from the moment the last Droid has joined until 90 % of the events are done.

    python tests/benchmarks/bench_weak.py 8 32 64 128
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from benchlib import Figure, command, journal, precise_cpu, tree, workspace, write_job

from eventrange.records import Kind
from eventrange.taskdir import TaskDir

NAP = 0.25  #: seconds of one event
PATIENCE = 1500.0


def measure(droids: int, events: int) -> dict[str, Any]:
    """One run of `droids` Droids and `events` events for each."""
    with workspace() as folder:
        job = write_job(folder, "weak", "sleep", droids * events, options={"seconds": NAP})
        site = folder / "site.yaml"
        site.write_text("site: weak\nstarting: 20min\n")
        task = TaskDir(str(folder / "weak.task"))
        words = command(job, "--task", str(folder / "weak.task"), "--site", str(site), "--workers", "1")
        launched = time.time()
        with open(folder / "output", "w+") as output:
            child = subprocess.Popen([*words, "--droids", str(droids)], stdout=output, stderr=output)
            try:
                seen = _watch(task, child)
            except BaseException:
                for pid in tree(child.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise
            output.seek(0)
            if child.returncode:
                raise RuntimeError(f"{droids} Droids ended with {child.returncode}:\n{output.read()[-3000:]}")
        rows, notes = journal(task)
    return {"droids": droids, "events": droids * events, **seen, **told(rows, notes, launched, droids)}


def _watch(task: TaskDir, child: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for the end; CPU and memory of rank 0, and the memory of the whole run, as long as they are there."""
    until, pid = time.monotonic() + PATIENCE, 0
    seen = {"rank0_mb": 0.0, "rank0_percent": 0.0, "all_mb": 0.0}
    while child.poll() is None:
        if time.monotonic() > until:
            raise TimeoutError(f"still running after {PATIENCE:.0f} s")
        time.sleep(2.0)
        if not pid:
            pid = _rank0(task)
            begun, cpu = time.monotonic(), precise_cpu(pid) if pid else 0.0
            continue
        now = precise_cpu(pid)
        size, high = _sizes(pid)
        if now and size:
            seen["rank0_percent"] = 100 * (now - cpu) / (time.monotonic() - begun)
            seen["rank0_mb"] = high
            seen["all_mb"] = seen["all_mb"] or sum(_sizes(one)[0] for one in tree(child.pid))
    return seen


def _rank0(task: TaskDir) -> int:
    """Its pid, once all that were started have joined or half a minute of work is done."""
    try:
        rows, notes = journal(task)
    except (OSError, ValueError, TypeError, KeyError):  # not there yet, or half
        return 0
    if not (rows["kind"] == Kind.DONE).any():
        return 0
    return int(next(note["pid"] for note in notes if note["note"] == "journal"))


def _sizes(pid: int) -> tuple[float, float]:
    """(PSS now, RSS at most) in megabytes; zeros if it is gone."""
    try:
        now = Path(f"/proc/{pid}/smaps_rollup").read_text()
        most = Path(f"/proc/{pid}/status").read_text()
        return _number(now, "Pss:"), _number(most, "VmHWM:")
    except (OSError, StopIteration):
        return 0.0, 0.0


def _number(text: str, name: str) -> float:
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) / 1024


def told(rows: Any, notes: list[dict[str, Any]], launched: float, droids: int) -> dict[str, Any]:
    """What the journal says of a run of one worker per Droid."""
    done = rows[rows["kind"] == Kind.DONE]
    joined = [note["time"] for note in notes if note["note"] == "joined"]
    begin, stop = done["time"], done["time"] + done["wall"].astype(float)
    since = max(joined) + 1.0
    until = max(float(np.quantile(stop, 0.9)), since)
    inside = np.clip(np.minimum(stop, until) - np.maximum(begin, since), 0.0, None)
    order = np.lexsort((begin, done["droid"]))
    same = done["droid"][order][1:] == done["droid"][order][:-1]
    gaps = (begin[order][1:] - stop[order][:-1])[same & (begin[order][1:] > since) & (stop[order][:-1] < until)]
    count = (done["stop"] - done["start"]).sum()
    end = next(note["time"] for note in notes if note["note"] == "end")
    return {
        "joined": len(joined),
        "at_work": len(set(done["droid"].tolist())),
        "done": int(count),
        "fewest_events": int(np.bincount(done["droid"], done["stop"] - done["start"])[1:].min()),
        "start_seconds": since - 1.0 - launched,
        "window_seconds": until - since,
        "busy_percent": 100 * float(inside.sum()) / (droids * (until - since)) if until > since else 0.0,
        "gap_ms": {
            name: 1e3 * float(np.quantile(gaps, q)) if len(gaps) else 0.0 for name, q in (("p50", 0.5), ("p99", 0.99))
        },
        "drain_seconds": end - float(stop.max()),
    }


def run(quick: bool = False) -> dict[str, Any]:
    """A few sizes, twice as many Droids each."""
    sizes, events = ((2, 4), 12) if quick else ((4, 8, 16, 32), 240)
    return {"runs": [measure(droids, events) for droids in sizes]}


def figures(result: dict[str, Any]) -> list[Figure]:
    """The largest run beside the smallest."""
    first, last = result["runs"][0], result["runs"][-1]
    whole = last["at_work"] == last["joined"] == last["droids"] and last["done"] == last["events"]
    few = f"{first['droids']} Droids"
    what = f"{last['droids']} Droids of one worker"
    return [
        Figure(f"{what}: busy", last["busy_percent"], "%", few, first["busy_percent"]),
        Figure(f"{what}: that got work", last["at_work"], "", budget="all, and every event once", met=whole),
        Figure(f"{what}: memory of rank 0", last["rank0_mb"], "MB", few, first["rank0_mb"]),
        Figure(f"{what}: gap between ranges, 99 %", last["gap_ms"]["p99"], "ms", few, first["gap_ms"]["p99"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("droids", nargs="*", type=int)
    parser.add_argument("--events", type=int, default=240, help="for each Droid, of a quarter of a second")
    args = parser.parse_args()
    for droids in args.droids or (4, 8, 16, 32):
        print(json.dumps(measure(droids, args.events)), flush=True)


if __name__ == "__main__":
    main()
