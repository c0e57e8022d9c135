"""What ranks see of each other and of their node: a tiny MPI program, started as a site starts Yoda, for the doctor.

`look` starts it and gathers what came of it; `main` is the program, one rank of it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slurm.doctor import reach

MARK = "YODA-RANKS "
SECONDS = 60.0  #: that the ranks have to start and say how they are
PATIENCE = 10.0  #: seconds after which a file that another node made should be seen, on NFS too
_START = "import sys; sys.path.insert(0, {home!r}); from yoda.ranks import main; main({folder!r})"


@dataclass(frozen=True)
class Rank:
    """One rank: where it is, and what it may use there."""

    rank: int
    host: str
    cpus: int
    """CPUs in its affinity mask."""
    reach: int
    """The same and the other threads of these cores."""
    sees: bool
    """Whether it sees a file that rank 0 has made."""


@dataclass(frozen=True)
class Ranks:
    """What came of starting ranks: nothing, with `failure`; one that speaks for all; or several that are alone."""

    failure: str = ""
    spoke: int = 0
    """How many believed to be rank 0."""
    size: int = 0
    library: str = ""
    """Version text of the MPI."""
    ranks: Sequence[Rank] = ()
    ahead: Mapping[str, float] = field(default_factory=dict)
    """Seconds by which the clock of each host is ahead of rank 0's, to within `uncertain`."""
    uncertain: float = 0.0


def look(command: Sequence[str], environ: Mapping[str, str], folder: str = "", seconds: float = SECONDS) -> Ranks:
    """Start the program with the launcher `command`; it has ended when this returns, whatever it did. `folder` is where
    rank 0 makes a file for the others to see; it is removed again."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    argv = [*command, sys.executable, "-c", _START.format(home=home, folder=folder)]
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=dict(environ), start_new_session=True)
    except OSError as error:
        return Ranks(f"{command[0]}: {error.strerror}")
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            child.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.communicate()
        return Ranks(f"no answer within {seconds:.0f} s")
    said = [json.loads(line.split(MARK, 1)[1]) for line in out.splitlines() if MARK in line]
    if not said:
        return Ranks((err.strip() or f"exit code {child.returncode}").splitlines()[-1])
    return read(said)


def read(said: Sequence[Mapping[str, Any]]) -> Ranks:
    """The answers of all ranks 0."""
    first = said[0]
    rows = first["rows"]
    ahead: dict[str, float] = {}
    for row in rows:
        # another rank looked at its clock between these two moments of rank 0
        ahead.setdefault(row["host"], row["clock"] - (first["before"] + first["after"]) / 2)
    ahead[rows[0]["host"]] = 0.0
    ranks = [Rank(number, row["host"], row["cpus"], row["reach"], row["sees"]) for number, row in enumerate(rows)]
    uncertain = (first["after"] - first["before"]) / 2
    return Ranks("", len(said), first["size"], first["library"], ranks, ahead, uncertain)


def main(folder: str = "") -> None:
    """One rank of the program. Rank 0 prints one line."""
    from droid.transport import start_mpi

    MPI = start_mpi(SECONDS)
    world = MPI.COMM_WORLD
    cpus = sorted(os.sched_getaffinity(0))
    row: dict[str, Any] = {"host": socket.gethostname(), "cpus": len(cpus), "reach": len(reach(cpus))}
    mark = world.bcast(_make_mark(folder) if world.Get_rank() == 0 else None)
    row["sees"] = not mark or _seen(mark)
    world.Barrier()
    before = time.time()
    world.Barrier()  # nobody comes out before rank 0 has come in
    row["clock"] = time.time()
    rows = world.gather(row)
    if world.Get_rank() == 0:
        said = {"size": world.Get_size(), "library": MPI.Get_library_version(), "rows": rows}
        print(MARK + json.dumps({**said, "before": before, "after": time.time()}), flush=True)
        if mark:
            os.unlink(mark)


def _make_mark(folder: str) -> str:
    """A new file in `folder`; empty if none can be made, which other checks tell."""
    if not folder:
        return ""
    path = os.path.join(folder, f".doctor-ranks-{socket.gethostname()}-{os.getpid()}")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:
        return ""
    return path


def _seen(path: str) -> bool:
    until = time.monotonic() + PATIENCE
    while not os.path.exists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
