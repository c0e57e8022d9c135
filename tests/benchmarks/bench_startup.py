"""Start-up: file-system calls of a node's first process and of each further worker (by strace), and time to the first
event.

A file-system call is one that names a file (`strace -e trace=%file`) or lists a folder: what a metadata server sees.
An fstat of an open file names none and is not counted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchlib import CORES, Figure, alternate, command, empty, journal, median, workspace, write_job, yoda

from eventrange.taskdir import TaskDir

FIRST, FURTHER = 3000, 150


def run(quick: bool = False) -> dict[str, Any]:
    """Calls by role (empty without strace); seconds to the first event and to MPI_Init of an empty program, all
    rounds."""
    rounds = 1 if quick else 5
    with workspace() as folder:
        job = write_job(folder, "start", "small", 200, ranges={"events": 10})
        calls = _calls(job, folder) if shutil.which("strace") else {}
        alone = _python_calls(folder) if calls else 0
        found = alternate({"yoda": lambda: _first_event(job), "empty": lambda: empty(folder)}, rounds)
    return {"file_calls": calls, "python_file_calls": alone, "seconds": found}


def _first_event(job: Path) -> float:
    outcome = yoda(job)
    return outcome.window[0] - outcome.launched


def _strace(prefix: Path, *what: str) -> list[str]:
    return ["strace", "-ff", "-qq", "-o", str(prefix), "-e", "trace=%file,getdents64", *what]


def _count(path: Path) -> int:
    """Calls in one trace, without the lines about signals and exits."""
    lines = path.read_text(errors="replace").splitlines()
    return sum(1 for line in lines if re.match(r"\w+\((?!\d+, \"\", )", line))


def _python_calls(folder: Path) -> int:
    subprocess.run(_strace(folder / "alone", sys.executable, "-c", "import mpi4py.MPI, h5py"), check=True)
    return sum(_count(path) for path in folder.glob("alone.*"))


def _calls(job: Path, folder: Path) -> dict[str, Any]:
    """Calls of rank 0, of the Droid with guardian and zygote, and of each worker."""
    task = folder / "traced.task"
    start = command(job, "--task", str(task), "--workers", str(CORES))
    subprocess.run(_strace(folder / "trace", *start), check=True, capture_output=True)
    _, notes = journal(TaskDir(str(task)))
    pids = {note["note"]: note["pid"] for note in notes if note["note"] in ("journal", "joined")}
    traces = {int(path.suffix[1:]): path for path in folder.glob("trace.*")}
    workers, node = [], _count(traces[pids["joined"]])
    for pid, path in traces.items():
        text = path.read_text(errors="replace")
        if pid in pids.values():
            continue
        if re.search(r"/worker-\d+\.out", text):
            workers.append(_count(path))
        elif "/zygote.out" in text:
            node += _count(path)
    return {"rank 0": _count(traces[pids["journal"]]), "node": node, "workers": workers}


def figures(result: dict[str, Any]) -> list[Figure]:
    """File calls against their budgets, then times."""
    out = []
    calls = result["file_calls"]
    if calls:
        alone = result["python_file_calls"]
        who = "import mpi4py.MPI, h5py alone"
        node, rank0, most = calls["node"], calls["rank 0"], max(calls["workers"])
        out = [
            Figure("file calls, first of a node", node, "", who, alone, f"<= {FIRST:,}", node <= FIRST),
            Figure("file calls, rank 0", rank0, "", who, alone, f"<= {FIRST:,}", rank0 <= FIRST),
            Figure("file calls, further worker", most, "", who, alone, f"<= {FURTHER}", most <= FURTHER),
        ]
    ours, empty = median(result["seconds"]["yoda"]), median(result["seconds"]["empty"])
    return [*out, Figure("time to the first event", ours, "s", "empty mpi4py program, to MPI_Init", empty)]
