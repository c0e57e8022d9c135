"""Memory and descriptors over a long run: `python tests/crash/soak_memory.py --minutes 12 [--mpi mpich] [--json FILE]`.

A real run of many small ranges, with images, seals, and a worker shot now and then; meanwhile the memory and the open
descriptors of every process are sampled. What is reported, by role: the median and the largest after warm-up, and the
slope of a straight line through the samples. Memory is flat if the line gains less than `FLAT` of the memory in an
hour; descriptors if in the last third there were not always more than the most of the first third.

Memory that may grow is anonymous memory; its slope is what counts. The proportional share of all memory (PSS) is given
beside it: that one also changes when other programs that use the same libraries come and go.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "mpi"))
import runs

FLAT = 0.05  #: growth in an hour, of what there is, that counts as none
WARM = 1 / 3  #: of the run before anything counts
ROLES = ("yoda", "droid", "guardian", "zygote", "worker")

PAYLOAD = '''
import time

def nap(event, random):
    """A few numbers, a few milliseconds later."""
    time.sleep(0.008)
    return {"x": random.normal(size=8), "hits": random.exponential(size=random.integers(0, 20))}
'''


def memory(pid: int) -> tuple[float, float]:
    """(anonymous memory, PSS) of a process, megabytes; zeros if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith(" kB")}
    return sizes.get("Anonymous", 0.0), sizes.get("Pss", 0.0)


def descriptors(pid: int) -> int:
    """Open descriptors of a process; -1 if it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return -1


@dataclass
class Samples:
    """What was seen of the processes of one run, by role."""

    mark: str
    begun: float = field(default_factory=time.monotonic)
    taken: dict[str, list[tuple[float, float, float, int]]] = field(default_factory=dict)
    """role -> (seconds, mean anonymous MB, mean PSS in MB, most descriptors) of its processes"""

    def take(self) -> None:
        """One sample. Processes that come or go meanwhile are left out."""
        now = time.monotonic() - self.begun
        found = runs.processes(self.mark)
        for role in ROLES:
            pids = [p.pid for p in found if p.role == role]
            whole = [(*memory(pid), descriptors(pid)) for pid in pids]
            whole = [entry for entry in whole if entry[0] > 0 and entry[2] > 0]
            if whole:
                anonymous, share, fds = np.array(whole).T
                entry = (now, float(anonymous.mean()), float(share.mean()), int(fds.max()))
                self.taken.setdefault(role, []).append(entry)

    def report(self) -> dict[str, dict[str, Any]]:
        """By role: megabytes of one process, slope, descriptors, and whether both stay."""
        out = {}
        for role, samples in self.taken.items():
            times, anonymous, share, fds = np.array(samples).T
            warm = times > WARM * times[-1]
            slope = 3600 * float(np.polyfit(times[warm], anonymous[warm], 1)[0])
            third = max(1, len(fds) // 3)
            # What is open for a moment only, while a worker is replaced or a segment sealed, is no leak.
            before, after = int(fds[:third].max()), int(fds[-third:].min())
            out[role] = {
                "anonymous_mb": round(float(np.median(anonymous[warm])), 2),
                "anonymous_mb_largest": round(float(anonymous[warm].max()), 2),
                "anonymous_mb_per_hour": round(slope, 3),
                "pss_mb": round(float(np.median(share[warm])), 2),
                "descriptors": [before, after],
                "memory_flat": bool(slope < FLAT * float(np.median(anonymous[warm]))),
                "descriptors_flat": after <= before,
            }
        return out


def soak(
    place: runs.Place, seconds: float, every: float, shots: float, max_age: str = "20s"
) -> tuple[dict[str, Any], int]:
    """Run for `seconds`, sample `every` so many, shoot a worker every `shots`; (report, events done). Segments are
    sealed at `max_age`."""
    place.job(PAYLOAD, "nap", inputs={"format": "generate", "events": 10**8}, ranges={"events": 1})
    place.site(segments={"max_bytes": "8MiB", "max_age": max_age})
    run = place.start(ranks=3, workers=2)
    run.until(lambda: place.done() > 100, "events done")
    samples, chance = Samples(run.mark), random.Random(1)
    until, shoot = time.monotonic() + seconds, time.monotonic() + shots
    while time.monotonic() < until and run.process.poll() is None:
        samples.take()
        time.sleep(every)
        if time.monotonic() > shoot:
            shoot += shots
            run.signal(chance.choice(run.find("worker")).pid)
    for process in run.find("yoda"):
        run.signal(process.pid, signal.SIGTERM)
    ended = run.wait()
    assert ended.code == 75, ended.text
    return samples.report(), place.done()


def simulated(hours: int, workers: int, folder: str) -> list[dict[str, int]]:
    """Bytes of dispatcher and ledger, and of the Droid's core, and events done, after each simulated hour of events of
    six seconds."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from bench_scale import deep_size
    from bench_wall import _World, event_times

    seconds = event_times(int(1.2 * hours * workers * 600 / 100), 100, 600.0, 1).ravel().tolist()
    world = _World(os.path.join(folder, "simulated"), seconds, startup=5.0)
    found: list[dict[str, int]] = []

    def look() -> None:
        dispatcher = world.yoda.dispatcher
        sizes = {"yoda": deep_size(dispatcher), "droid": deep_size(world.droids[1].core)}
        found.append({**sizes, "done": dispatcher.ledger.done})

    world.allocate("a000", workers, (hours + 1) * 3600.0, hours * 3600.0 + 60.0, look)
    return found


def main() -> int:
    """1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--mpi", choices=["openmpi", "mpich"])
    parser.add_argument("--simulated-hours", type=int, help="no real run: so many hours of a node, simulated")
    parser.add_argument("--json", type=Path, help="write the report there, too")
    args = parser.parse_args()
    if args.simulated_hours:
        with tempfile.TemporaryDirectory(prefix="yoda-soak-") as folder:
            for hour, sizes in enumerate(simulated(args.simulated_hours, 16, folder), 1):
                print(f"after {hour:3d} h: dispatcher {sizes['yoda']:,} bytes, Droid core {sizes['droid']:,} bytes")
        return 0
    mpi = runs.get(args.mpi) if args.mpi else runs.here()
    assert mpi is not None, "no mpiexec in this environment"
    with tempfile.TemporaryDirectory(prefix="yoda-soak-") as folder, runs.place(mpi, Path(folder)) as place:
        report, events = soak(place, 60 * args.minutes, 2.0, 15.0)
    flat = all(found["memory_flat"] and found["descriptors_flat"] for found in report.values())
    document = {"mpi": mpi.name, "minutes": args.minutes, "ranges": events, "flat": flat, "roles": report}
    print(json.dumps(document, indent=1))
    if args.json:
        args.json.write_text(json.dumps(document, indent=1))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
