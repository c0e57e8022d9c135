"""Simulate many seeds, by hand: `python tests/crash/soak_simulation.py --seeds 10000 [--first 0] [--processes 2]`.

Prints a line for every failing seed (replay: `python tests/property/simulator.py SEED --verbose`) and figures at the
end; exits 1 if a seed failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "property"))
import simulator


def one(seed: int) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        out = simulator.run(seed)
    except Exception as error:
        out = {"seed": seed, "failed": f"{type(error).__name__}: {error}"}
    out["seconds"] = time.perf_counter() - begun
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    begun, sums, failed, slowest = time.perf_counter(), Counter[str](), [], (0.0, -1)
    with multiprocessing.Pool(options.processes) as pool:
        seeds = range(options.first, options.first + options.seeds)
        for number, got in enumerate(pool.imap_unordered(one, seeds, chunksize=10), 1):
            seed = got.pop("seed")
            slowest = max(slowest, (got.pop("seconds"), seed))
            if "failed" in got:
                failed.append(seed)
                print(got["failed"], flush=True)
            else:
                sums.update(got)
            if number % 1000 == 0:
                print(f"{number} seeds, {len(failed)} failed, {time.perf_counter() - begun:.0f} s", flush=True)
    wall = time.perf_counter() - begun
    figures = {
        "seeds": options.seeds,
        "failed": failed,
        "wall": round(wall, 1),
        "slowest": slowest,
        "simulated_seconds_per_second": round(sums["simulated"] / wall, 1),
        **sums,
    }
    print(json.dumps(figures))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
