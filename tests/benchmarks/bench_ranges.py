"""Ten million ranges that someone else named: laying them down, opening them, looking one up; beside json.load."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from yoda.bench import Figure

RANGES = 10_000_000
PLAIN = 1_000_000  #: for json.load: all of them would need 10 GiB

_PEAK = """
import gc, json, os, sys, time
def peak():  # not ru_maxrss, which begins with what the parent had
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""
_BUILD = """
from eventrange.axis import Axis
from yoda.sources import named_axis
begun = time.perf_counter()
axis = named_axis(Axis.generate(int(sys.argv[3])), sys.argv[1], sys.argv[2])
print(json.dumps({"seconds": time.perf_counter() - begun, "peak_mib": peak(), "plain": axis.to_dict()}))
"""
_OPEN = """
from eventrange.axis import Axis
from yoda.allot import Allotment
from yoda.droids import Droid
from yoda.leases import divide
from eventrange.ledger import Ledger
plain, names = json.load(open(sys.argv[1]))
def own():  # what is mapped from the file belongs to the page cache
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = own()
begun = time.perf_counter()
axis = Axis.from_dict(plain)
ledger = Ledger(axis.total)
ledger.pending.add(0, axis.total)
parts = divide(axis.cuts, axis.total, whole=True)
allot = Allotment(ledger, axis.cuts, 1, axis.total, whole=True)
opened = time.perf_counter() - begun
begun = time.perf_counter()
for name in names:
    axis.parse(name)
found = time.perf_counter() - begun
droid = Droid(1, "host", 8, 0, state="active", heard=0.0)
begun = time.perf_counter()
granted = 0
while ledger.pending and granted < 1_000_000:
    droid.want = 1000
    granted += sum(stop - start for start, stop, _ in allot.take(droid, 0, 8))
print(json.dumps({"open_seconds": opened, "lookup_seconds": found / len(names), "memory_mib": own() - before,
                  "grants_per_second": granted / (time.perf_counter() - begun)}))
"""
_LOAD = """
begun = time.perf_counter()
found = json.load(open(sys.argv[1]))
print(json.dumps({"seconds": time.perf_counter() - begun, "peak_mib": peak(), "ranges": len(found)}))
"""


def write(path: Path, count: int, shuffled: bool) -> list[str]:
    """A list as PanDA writes it, of ranges of one event; returns some of its names."""
    form = (
        '{"eventRangeID": "8848710-3005316503-6391858827-%d-10", "LFN": "generate", "GUID": '
        '"63A015D3-789D-E74D-BAA9-9F95DB068EE9", "scope": "mc15_13TeV", "startEvent": %d, "lastEvent": %d}'
    )
    step = 1_000_003  # a prime: goes through all blocks in a strange order
    blocks = range(0, count, 1000)
    with open(path, "w") as file:
        for number, block in enumerate(blocks):
            begin = (block // 1000 * step % len(blocks)) * 1000 if shuffled else block
            text = ", ".join(form % (i, i, i) for i in range(begin + 1, min(begin + 1000, count) + 1))
            file.write(("[" if number == 0 else ", ") + text)
        file.write("]")
    chance = random.Random(1)
    return [f"8848710-3005316503-6391858827-{chance.randrange(1, count + 1)}-10" for _ in range(1000)]


def _run(code: str, *arguments: object) -> dict[str, Any]:
    words = [sys.executable, "-c", _PEAK + code, *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return found


def measure(count: int, shuffled: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("YODA_BENCH_DIR")) as folder:
        root = Path(folder)
        names = write(root / "ranges.json", count, shuffled)
        size = os.path.getsize(root / "ranges.json")
        built = _run(_BUILD, root / "ranges.json", root, count)
        (root / "plain.json").write_text(json.dumps([built.pop("plain"), names]))
        kept = sum(path.stat().st_size for path in root.glob("ranges-*.bin"))
        return {"shuffled": shuffled, "ranges": count, "bytes": size, "kept_bytes": kept, **built} | _run(
            _OPEN, root / "plain.json"
        )


def run(quick: bool = False, count: int = RANGES) -> dict[str, Any]:
    count = min(count, 20_000) if quick else count
    cases = [measure(count, shuffled) for shuffled in (False, True)]
    with tempfile.TemporaryDirectory(dir=os.environ.get("YODA_BENCH_DIR")) as folder:
        plain = min(count, PLAIN)
        write(Path(folder) / "ranges.json", plain, False)
        peer = _run(_LOAD, Path(folder) / "ranges.json")
    return {"name": "ranges", "cases": cases, "json_load": peer}


def figures(result: dict[str, Any]) -> list[Figure]:
    """The peer reads the same list with json.load and keeps it; what it takes per range is scaled up."""
    out = []
    peer = result["json_load"]
    for case in result["cases"]:
        scale = case["ranges"] / peer["ranges"]
        what = f"{case['ranges']:,} named ranges{', shuffled' if case['shuffled'] else ''}"
        peak = case["peak_mib"]
        out.append(Figure(f"{what}: laid down in", case["seconds"], "s", "json.load", peer["seconds"] * scale))
        met = peak <= 1024
        out.append(Figure("its peak memory", peak, "MiB", "json.load", peer["peak_mib"] * scale, "<= 1 GiB", met))
        out.append(Figure("opened and divided in", case["open_seconds"], "s"))
        out.append(Figure("memory of rank 0 and 1,000 look-ups", case["memory_mib"], "MiB"))
        out.append(Figure("one looked up by name", 1e6 * case["lookup_seconds"], "µs"))
        out.append(Figure("granted", case["grants_per_second"], "ranges/s"))
    return out


if __name__ == "__main__":
    print(json.dumps(run(count=int(sys.argv[1]) if len(sys.argv) > 1 else RANGES), indent=2))
