"""What rolling stage-out costs a CPU-bound run: the same job with and without it, in turns, to a real S3 server.

    python tests/benchmarks/bench_stageout.py [--seconds 20] [--rounds 3] [--server rclone]

Prints one JSON line: wall seconds of both from the first worker to the last event, and the median `ratio` of
neighbouring runs, which must be at most 1.02. On a machine that others use too walls say little: `cpu_ratio` counts,
the same of the CPU seconds of all processes of a run, and `stager_share`: those of the stage-out process by those of
the payload. Most of them are for starting, so both fall with the length of a run. The server runs on the same cores,
which is no fault of stage-out; its CPU time is reported too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "s3"), str(HERE.parent / "mpi")]

import runs  # noqa: E402
import servers  # noqa: E402

CODE = """
import time
import numpy as np

def spin(event, random):
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass
    return {"x": random.normal(size=500)}
"""


EVENT = 0.02  # CPU seconds, as in CODE


def processes(mark: str) -> dict[int, tuple[float, bool]]:
    """CPU seconds so far of each process of a run, and whether it is a stage-out process."""
    out = {}
    for pid in runs.marked(mark):
        with contextlib.suppress(OSError):
            stager = b"stageout.stager" in Path(f"/proc/{pid}/cmdline").read_bytes()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            out[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), stager
    return out


def cpu(server: servers.Server) -> float:
    """CPU seconds of the server's processes."""
    total = 0
    for process in server.processes.values():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def measure(kind: str, seconds: float, rounds: int) -> dict[str, object]:
    """Median wall seconds with and without stage-out."""
    mpi = runs.here()
    if mpi is None:
        raise SystemExit("no mpiexec in this environment")
    workers = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(servers.running(kind, folder / "server"))
        os.environ |= {"AWS_ACCESS_KEY_ID": servers.ACCESS, "AWS_SECRET_ACCESS_KEY": servers.SECRET}
        import boto3

        boto3.client("s3", endpoint_url=server.url, region_name="us-east-1").create_bucket(Bucket="bench")
        walls: dict[str, list[float]] = {"with": [], "without": []}
        spent: dict[str, list[float]] = {"with": [], "without": []}
        stager: list[float] = []
        used, size = 0.0, 0
        place = stack.enter_context(runs.place(mpi, folder / "place"))
        events = int(seconds * workers / EVENT)
        place.job(CODE, "spin", inputs={"format": "generate", "events": events}, output={"merge": False})
        storage = [{"name": "primary", "url": "s3://bench/x", "endpoint_url": server.url}]
        for turn in range(rounds):
            for who in ("with", "without") if turn % 2 else ("without", "with"):
                place.site(segments={"max_bytes": "1MiB"}, stageout=storage if who == "with" else [])
                before, task = cpu(server), f"{who}{turn}"
                run = place.start(task=task, workers=workers)
                seen: dict[int, tuple[float, bool]] = {}
                while run.process.poll() is None:
                    seen |= processes(run.mark)
                    time.sleep(0.25)
                done = run.wait()
                spent[who].append(sum(used for used, _ in seen.values()))
                assert done.code == 0, done.text
                if who == "with":
                    stager.append(sum(used for used, is_stager in seen.values() if is_stager))
                used += cpu(server) - before
                rows = [r for _, r in place.story(task)]
                ends = [float((r["time"] + r["wall"])[r["kind"] == 2].max()) for r in rows if (r["kind"] == 2).any()]
                begins = [float(r["time"][r["kind"] == 2].min()) for r in rows if (r["kind"] == 2).any()]
                walls[who].append(max(ends) - min(begins))
                size += sum(note["size"] for note in place.notes("staged", task))
                time.sleep(0.2)
    median = {who: round(statistics.median(values), 2) for who, values in walls.items()}
    ratio, cpu_ratio = (
        round(statistics.median(a / b for a, b in zip(one["with"], one["without"], strict=True)), 4)
        for one in (walls, spent)
    )
    extra: dict[str, object] = {
        "cpu_ratio": cpu_ratio,
        "staged_mb": round(size / rounds / 1e6, 1),
        "server_cpu_s": round(used / rounds, 2),
    }
    cost = statistics.median(stager)
    extra |= {"stager_cpu_s": round(cost, 2), "stager_share": round(cost / (events * EVENT), 4)}
    return {"server": kind, "events": events, **median, "ratio": ratio, "all": walls, **extra}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", default="rclone")
    values = parser.parse_args()
    print(json.dumps(measure(values.server, values.seconds, values.rounds)), flush=True)


if __name__ == "__main__":
    main()
