"""Real tasks of real Yoda on a test cluster: submitted with `yoda submit`, looked at through `yoda status --json`.

The payload's results depend on the event alone; how long it takes is told by YODA_TEST_PACE, which the site's set-up
lines export, so that every task of these tests has the same merged bytes.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml
from cluster import Cluster, until

from slurm.ending import Ended, why_ended

EVENTS = 240

PAYLOAD = '''
import os, time
import numpy as np

PACE = float(os.environ.get("YODA_TEST_PACE", "0"))

def light(event, random):
    """A few numbers; how long it takes changes nothing of them."""
    time.sleep(PACE)
    n = int(random.integers(0, 4))
    return {"x": random.normal(size=3), "pt": random.exponential(size=n), "n": np.int32(n)}
'''


def setup(pace: float) -> list[str]:
    """Shell lines before a launcher on a test cluster."""
    # as root in a container Open MPI wants to be asked twice; MPICH takes nodes that share /tmp for one machine
    return [
        f"export YODA_TEST_PACE={pace}",
        "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        "export MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp",
    ]


@dataclass
class Task:
    """One task in a folder of its own; `mpi` says whose Python and mpiexec works on it."""

    cluster: Cluster
    folder: Path
    mpi: runs.Mpi
    pace: float = 0.05
    events: int = EVENTS
    launcher: str | None = None
    slurm: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=dict)
    name: str = "test"
    jobs: list[int] = field(default_factory=list)

    def write(self) -> None:
        """Payload, job and site file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "payload.py").write_text(PAYLOAD)
        job = {
            "task": self.name,
            "seed": 7,
            "inputs": {"format": "generate", "events": self.events},
            "payload": {"python": "payload.py:light"},
            "output": {"merge": True},
        }
        (self.folder / "job.yaml").write_text(yaml.safe_dump(job))
        words = setup(self.pace)
        asked = {"partition": "low", "nodes": 2, "time": "10min", "signal_before_end": "60s", "setup": words}
        site = {"site": "test", "workers": 2, "grace": "5s", "slurm": {**asked, **self.slurm}, **self.site}
        if self.launcher is not None:
            site["launcher"] = self.launcher
        (self.folder / "site.yaml").write_text(yaml.safe_dump(site))

    @property
    def root(self) -> Path:
        return self.folder / "task"

    def yoda(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A yoda command on the cluster's head, as on a login node."""
        done = self.cluster.run([self.mpi.python, runs.ENTRY, *words], timeout=120)
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def submit(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`yoda submit` on this task; the job ids it tells are kept."""
        self.write()
        place = ["--site", str(self.folder / "site.yaml"), "--task", str(self.root)]
        done = self.yoda("submit", str(self.folder / "job.yaml"), *place, *words, check=check)
        self.jobs += [int(number) for number in re.findall(r"submitted  job (\d+)", done.stdout)]
        return done

    # -- what became of it ---------------------------------------------------------------------------------------------

    @property
    def job(self) -> int:
        return self.jobs[-1]

    def output(self, job: int | None = None) -> str:
        path = self.root / "slurm" / f"slurm-{job or self.job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.yoda("status", str(self.root), "--json").stdout)
        return found

    def place(self) -> runs.Place:
        """The task as tests/mpi looks at one."""
        return runs.Place(self.mpi, self.folder)

    def done(self) -> int:
        """Events that are durable now."""
        return self.place().done()

    def until_done(self, more_than: int, timeout: float = 90) -> int:
        """Wait until more events are durable; returns how many."""
        until(lambda: self.done() > more_than, timeout, lambda: f"no more than {more_than} done: {self.said()}")
        return self.done()

    def until_output(self, pattern: str, timeout: float = 90) -> str:
        """Wait until the job's output matches; returns the match."""
        until(lambda: bool(re.search(pattern, self.output())), timeout, lambda: f"no {pattern!r}: {self.said()}")
        found = re.search(pattern, self.output())
        assert found
        return found[0]

    def until_over(self, timeout: float = 120, job: int | None = None) -> dict[str, str]:
        """Wait until Slurm calls the job ended for good."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        number = job or self.job
        until(lambda: self.cluster.state(number) in over, timeout, lambda: f"job {number} not over: {self.said()}")
        return self.cluster.job(number)

    def said(self) -> str:
        parts = [self.cluster.story(self.job if self.jobs else None)]
        parts += [f"--- {job}\n{self.output(job)[-6000:]}" for job in self.jobs]
        return "\n".join(parts)

    def preempt(self, nodes: int = 3) -> int:
        """A job of higher priority takes every node for a moment."""
        return self.cluster.sbatch("#!/bin/sh\nsleep 1\n", "-p", "high", f"-N{nodes}", "--exclusive", "-t1")

    def why(self, restart: int) -> Ended:
        return why_ended(self.job, restart, self.cluster.runner, self.output())

    def check_complete(self, reference: str) -> dict[str, Any]:
        """All there, the right bytes, nothing that was durable done again, nothing counted as a failure."""
        status = self.status()
        assert status["complete"], self.said()
        assert (status["events"]["done"], status["events"]["quarantined"]) == (self.events, 0)
        assert status["events"]["failed_before"] == 0, "an interruption was counted as an attempt"
        assert self.place().sha256() == reference, self.said()
        return status


def mpi_named(name: str) -> runs.Mpi:
    """That MPI, or the test is skipped and says why."""
    try:
        return runs.get(name)
    except runs.Unavailable as error:
        pytest.skip(str(error))


def reference(folder: Path, mpi: runs.Mpi) -> str:
    """sha256 of the merged file of an undisturbed run of one worker, without Slurm."""
    task = Task(None, folder, mpi, 0.0)  # type: ignore[arg-type]
    task.write()
    words = ["run", str(folder / "job.yaml"), "--task", str(task.root), "--workers", "1"]
    environ = {k: v for k, v in mpi.environment().items() if k != "YODA_TEST_PACE"}
    done = subprocess.run([mpi.python, runs.ENTRY, *words], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return task.place().sha256()
