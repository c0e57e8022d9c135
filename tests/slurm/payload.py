"""A stand-in for `yoda run`: no MPI, works for a while, drains when warned, leaves its exit code as rank 0 does.

Arguments: FOLDER SECONDS [stubborn | idle]. Progress is kept in FOLDER/done.RANK (one line per tenth of a second of
work), so that a restart goes on where the last one was cut; the story of signals is in FOLDER/story. `stubborn` ignores
every warning, `idle` ends at once and does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    folder, tenths, stubborn = Path(sys.argv[1]), round(10 * float(sys.argv[2])), "stubborn" in sys.argv
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or os.environ.get("SLURM_PROCID") or "0"
    warned: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda received, _: warned.append(received))
    tell(folder / "story", f"rank {rank} starts {os.environ.get('SLURM_RESTART_COUNT', '0')}")
    done = folder / f"done.{rank}"
    done.touch()
    while done.read_text().count("\n") < tenths and (stubborn or not warned) and "idle" not in sys.argv:
        time.sleep(0.1)
        tell(done, "x")
        if rank == "0":
            Path(os.environ["YODA_DONE_FILE"]).write_text(str(done.read_text().count("\n")))
    code = 0 if done.read_text().count("\n") >= tenths else 75
    tell(folder / "story", f"rank {rank} ends {code} warned {warned}")
    if rank == "0":
        new = Path(os.environ["YODA_EXIT_FILE"] + ".new")
        new.write_text(f"{code}\n")
        new.rename(os.environ["YODA_EXIT_FILE"])
    # as with a real MPI, what the launcher makes of this is nobody's business
    return 0


def tell(path: Path, line: str) -> None:
    with path.open("a") as out:
        out.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
