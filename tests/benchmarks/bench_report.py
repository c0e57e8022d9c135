"""Report, status and explain of a task with a million journal records and a hundred thousand cores.

    python tests/benchmarks/bench_report.py [RECORDS] [--json]

Budget: report <= 10 s and <= 1 GiB and < 5 MB of HTML; status <= 1 s. Every command is a process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from eventrange import records
from eventrange.journal import JournalWriter
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from yoda.bench import Figure
from yoda.frozen import Frozen, FrozenInputs, FrozenPayload
from yoda.task import _text

WORKERS = 64


def make_task(root: Path, count: int, cores: int, allocations: int = 4, events: int = 1, seed: int = 1) -> TaskDir:
    """A task directory whose journals hold about `count` records of `cores` cores; the last allocation is killed."""
    task = TaskDir(str(root))
    task.make()
    axis = {"files": [{"path": "generate", "events": count * events}]}
    payload = FrozenPayload("p.py:P", None, {}, None)
    frozen = Frozen(
        "synthetic", 1, FrozenInputs("generate", count * events, {}, ()), payload, str(root / "j.yaml"), {}, axis
    )
    Path(task.task_file).write_text(_text(frozen))
    random = np.random.default_rng(seed)
    droids = max(1, cores // WORKERS)
    workers = min(cores, WORKERS)
    position, clock = 0, 1.7e9
    for number in range(allocations):
        name = f"2026-{number:03d}"
        writer = JournalWriter(task.journal(name), frozen.fingerprint, name, created=clock, started=clock, host="n0")
        for droid in range(1, droids + 1):
            host = f"nid{droid:06d}"
            writer.note("joined", time=clock + 1, droid=droid, host=host, workers=workers, cores=workers, startup=1.0)
        here = count // allocations // 2  # each is granted, and done
        lane = np.arange(here) % (droids * workers)
        turn = np.arange(here) // (droids * workers)
        wall = random.lognormal(np.log(30.0), 0.5, here)
        begin = clock + 2 + turn * 50.0 + random.uniform(0, 5, here)
        rows = records.new(here, kind=Kind.DONE, size=5000)
        rows["start"] = position + np.arange(here) * events
        rows["stop"] = rows["start"] + events
        rows["droid"], rows["worker"], rows["time"] = lane // workers + 1, lane % workers, begin
        rows["wall"], rows["cpu"] = wall, wall
        granted = records.new(here, kind=Kind.GRANTED)
        for field in ("start", "stop", "droid"):
            granted[field] = rows[field]
        granted["time"] = begin - 1
        order = np.argsort(np.concatenate([granted["time"], rows["time"] + wall]), kind="stable")
        both = np.concatenate([granted, rows])[order]
        for at in range(0, len(both), 700):
            writer.append(both[at : at + 700])
            writer.flush()
        failed = records.new(20, kind=Kind.FAILED, code=Code.EXCEPTION, droid=1, time=clock + 20, wall=2.0)
        failed["start"] = position + here * events - 1 - np.arange(20)
        failed["stop"] = failed["start"] + 1
        writer.append(failed)
        end = float((begin + wall).max()) + 1
        if number < allocations - 1:
            writer.note("drain", time=end - 30, reason="SIGTERM", grace=30.0, deadline=None)
            for droid in range(1, droids + 1):
                writer.note("left", time=end, droid=droid, host=f"nid{droid:06d}", reason="drained")
            writer.note("end", time=end + 1, reason="SIGTERM", exit_code=75, done=position, quarantined=0, total=count)
        writer.flush()
        writer.file.close()
        position += here * events
        clock = end + 3600
    return task


def measure(arguments: list[str]) -> dict[str, Any]:
    """Wall seconds and peak memory (MiB) of one yoda command."""
    begun = time.monotonic()
    code = "import sys; from eventrange.entry import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": time.monotonic() - begun,
        "cpu": usage.ru_utime + usage.ru_stime,
        "mib": usage.ru_maxrss / 1024,
        "code": process.returncode,
    }


def run(quick: bool = False, count: int = 1_000_000) -> dict[str, Any]:
    """Seconds, CPU and memory of status, report and explain, for few cores and for many."""
    count = 2000 if quick else count
    found: dict[str, Any] = {"records": count, "limit": resource.getrlimit(resource.RLIMIT_AS)[0]}
    with tempfile.TemporaryDirectory() as folder:
        for cores in (128, min(100_000, count)):
            task = make_task(Path(folder) / str(cores), count, cores)
            html = os.path.join(folder, "report.html")
            one = {
                "status": measure(["status", task.root]),
                "report": measure(["report", task.root, "-o", html]),
                "explain": measure(["explain", task.root, "#77"]),
            }
            one["report"]["megabytes"] = os.path.getsize(html) / 1e6 if os.path.exists(html) else None
            found[f"{cores} cores"] = one
    return found


def figures(result: dict[str, Any]) -> list[Figure]:
    """Seconds of every command."""
    out = []
    for where in (name for name in result if name.endswith("cores")):
        for command, limit in (("status", 1.0), ("report", 10.0), ("explain", None)):
            seconds, what = result[where][command]["seconds"], f"{command}, {result['records']:,} records, {where}"
            budget, met = (f"<= {limit:g} s", seconds <= limit) if limit else ("", None)
            out.append(Figure(what, seconds, "s", budget=budget, met=met))
    return out


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    count = int(float(words[0])) if words else 1_000_000
    found = run(count=count)
    if "--json" in sys.argv:
        print(json.dumps(found))
        return
    for where in (name for name in found if name.endswith("cores")):
        for command, result in found[where].items():
            size = f", {result['megabytes']:.2f} MB of HTML" if result.get("megabytes") else ""
            print(
                f"{count:,} records, {where}: {command} {result['seconds']:.2f} s "
                f"({result['cpu']:.2f} s CPU), {result['mib']:.0f} MiB{size}"
            )


if __name__ == "__main__":
    main()
