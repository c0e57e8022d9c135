"""Start-up in an allocation of a real Slurm: seconds until the first event starts, beside an empty mpi4py program.

Both are started by turns in one allocation of two nodes, by the launcher and with the placement of `yoda submit`.
The empty program's time is until MPI is up on its last rank. Where no test cluster can be started, the same script runs
without Slurm, and the figure says so.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchlib import Figure, journal, median, workspace, write_job

from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from yoda.submit import script_launcher, yoda_command

sys.path.append(str(Path(__file__).resolve().parents[1] / "slurm"))
from cluster import Options, running, why_not

BEYOND = 2.0
NODES = 2

_EMPTY = "from mpi4py import MPI\nimport time\nMPI.COMM_WORLD.Barrier()\nprint(f'{time.time():.6f}', flush=True)\n"

_SCRIPT = """\
#!/bin/bash
cd {folder}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_MCA_rmaps_default_mapping_policy=node:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
export SLURM_OVERCOMMIT=1 SLURM_CPU_BIND=none
empty() {{ date +%s.%N > empty-$1.begin; {launcher} {python} empty.py > empty-$1.out; }}
ours() {{
    date +%s.%N > yoda-$1.begin
    YODA_EXIT_FILE=$PWD/yoda-$1.exit {launcher} {yoda} run start.yaml --task task-$1 --workers 1
}}
for round in {{1..{rounds}}}; do
    if ((round % 2)); then empty $round; ours $round; else ours $round; empty $round; fi
done
echo done > finished
"""


def run(quick: bool = False) -> dict[str, Any]:
    """Seconds of each round, ours and the empty program's."""
    rounds = 1 if quick else 7
    with workspace() as folder:
        write_job(folder, "start", "small", 40, ranges={"events": 10})
        (folder / "empty.py").write_text(_EMPTY)
        words = {"folder": folder, "rounds": rounds, "python": sys.executable, "yoda": shlex.join(yoda_command())}
        words["launcher"] = script_launcher(None).replace("{ranks}", str(NODES + 1))
        script = _SCRIPT.format(**words)
        reason = why_not(netns=False)
        if reason is None:
            with running(Options(nodes=NODES)) as cluster:
                log = f"--output={folder}/log"
                job = cluster.sbatch(script, f"-N{NODES}", "--ntasks-per-node=1", "--exclusive", "-t10", log)
                cluster.wait(job, "COMPLETED", "FAILED", timeout=400)
        else:
            environ = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
            with open(folder / "log", "w") as log_file:
                subprocess.run(["bash", "-c", script], env=environ, stdout=log_file, stderr=log_file, timeout=400)
        if not (folder / "finished").exists():
            raise RuntimeError(f"the script did not end:\n{(folder / 'log').read_text()[-2000:]}")
        found = [(_ours(folder, i), _empty(folder, i)) for i in range(1, rounds + 1)]
    return {"slurm": reason is None, "yoda": [a for a, _ in found], "empty": [b for _, b in found]}


def _begin(folder: Path, name: str) -> float:
    return float((folder / f"{name}.begin").read_text())


def _ours(folder: Path, number: int) -> float:
    rows, _ = journal(TaskDir(str(folder / f"task-{number}")))
    return float(rows["time"][rows["kind"] == Kind.DONE].min()) - _begin(folder, f"yoda-{number}")


def _empty(folder: Path, number: int) -> float:
    # launchers may run the lines of two ranks together
    up = [float(one) for one in re.findall(r"\d+\.\d{6}", (folder / f"empty-{number}.out").read_text())]
    return max(up) - _begin(folder, f"empty-{number}")


def figures(result: dict[str, Any]) -> list[Figure]:
    """How much later than MPI in an empty program the first event starts."""
    beyond = median([ours - empty for ours, empty in zip(result["yoda"], result["empty"], strict=True)])
    place = "in an allocation" if result["slurm"] else "without Slurm"
    ours, empty = median(result["yoda"]), median(result["empty"])
    return [
        Figure(f"first event {place}", ours, "s", "empty mpi4py program, MPI up", empty),
        Figure("first event, beyond the empty program", beyond, "s", budget=f"<= {BEYOND:g} s", met=beyond <= BEYOND),
    ]
