"""Chaos by hand, for hours: `python tests/crash/soak.py --kills 3000 [--seed S] [--mpi mpich] [--folder DIR]`.

Batches of a hundred hits, each with a seed of its own and its own line, and a sum after each. Stops at the first law
that was broken, and then keeps the folder.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from chaos import Chaos, runs

BATCH = 100


def main() -> int:
    """1 if a law was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--mpi", choices=["openmpi", "mpich"])
    parser.add_argument("--events", type=int, default=6000)
    parser.add_argument("--droids", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where to work; a temporary folder by default")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    mpi = runs.get(args.mpi) if args.mpi else runs.here()
    assert mpi is not None, "no mpiexec in this environment"
    folder = Path(args.folder or tempfile.mkdtemp(prefix="yoda-soak-"))
    total: Counter[str] = Counter()
    while total["hits"] < args.kills:
        batch = folder / f"batch-{seed}"
        with runs.place(mpi, batch) as place:
            kills = min(BATCH, args.kills - total["hits"])
            outcome = Chaos(place, seed, kills, args.events, args.droids, args.workers).run()
        print(outcome, flush=True)
        if outcome.wrong:
            print(f"kept in {batch}")
            return 1
        total["hits"] += sum(outcome.kills.values())
        for name in ("allocations", "finished_twice", "done_twice", "granted_again"):
            total[name] += getattr(outcome, name)
        print("sum so far:", dict(total), flush=True)
        runs.shutil.rmtree(batch, ignore_errors=True)
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
