"""What the benchmarks share: real runs of Yoda and of peers on the same work, taken in turns, and how much of the
machine was theirs.

Other processes may use the machine at the same time. So nothing is compared with a number from another day: every
figure stands beside a peer's from the same run, taken in turns, and CPU time that other processes took is not counted
as ours to use.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import eventrange.entry
from eventrange.entry import PACKAGES
from eventrange.history import Story
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from yoda.bench import Figure
from yoda.placing import launcher

__all__ = [
    "CORES",
    "Figure",
    "Outcome",
    "Sampler",
    "alternate",
    "empty",
    "median",
    "peer",
    "peer_python",
    "workspace",
    "yoda",
]

HERE = Path(__file__).resolve().parent
# Processes find compiled modules, as those of an installation do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
for _name in PACKAGES:
    compileall.compile_dir(HERE.parent.parent / _name, quiet=2)
ENTRY = os.path.abspath(eventrange.entry.__file__)
CORES = len(os.sched_getaffinity(0))
_TICKS = os.sysconf("SC_CLK_TCK")
GONE = 0.1  #: CPU seconds that cannot be missing from a tree unless processes have ended


def median(values: list[float]) -> float:
    return float(statistics.median(values))


def alternate(cases: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Run every case once per round, each round in the opposite order of the last, so that drifts hit all alike."""
    out: dict[str, list[Any]] = {name: [] for name in cases}
    for turn in range(rounds):
        for name in cases if turn % 2 == 0 else reversed(list(cases)):
            out[name].append(cases[name]())
    return out


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder for one benchmark, with the payloads beside the job files."""
    with tempfile.TemporaryDirectory(prefix="yoda-bench-") as name:
        folder = Path(name)
        shutil.copy(HERE / "payloads.py", folder)
        yield folder


# -- our runs ----------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """A finished run, from its journal. Times are unix seconds."""

    launched: float  #: when the command was started
    ended: float
    rows: NDArray[Any]
    notes: list[dict[str, Any]]
    sampler: Sampler
    taskdir: TaskDir

    @property
    def done(self) -> NDArray[Any]:
        return self.rows[self.rows["kind"] == Kind.DONE]

    @property
    def first_grant(self) -> float:
        return float(self.rows["time"][self.rows["kind"] == Kind.GRANTED].min())

    @property
    def end_note(self) -> float:
        """When everything was durable and every Droid had sealed: the last thing in the journal."""
        return float(next(note["time"] for note in self.notes if note["note"] == "end"))

    @property
    def window(self) -> tuple[float, float]:
        """From the start of the first range to the end of the last."""
        return float(self.done["time"].min()), float((self.done["time"] + self.done["wall"]).max())


def write_job(folder: Path, name: str, payload: str, events: int, **keys: Any) -> Path:
    """A job file over `events` generated events; `payload` is a name in payloads.py, `keys` more of the job file."""
    job: dict[str, Any] = {
        "task": name,
        "seed": 1,
        "inputs": {"format": "generate", "events": events},
        "payload": {"python": f"payloads.py:{payload}", "options": keys.pop("options", {})},
        "output": {"merge": False},
        **keys,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def command(job: Path, *flags: str) -> list[str]:
    return [sys.executable, ENTRY, "run", str(job), *flags]


_counter = iter(range(10**9))


def yoda(job: Path, *flags: str, workers: int = CORES, watch: Callable[[TaskDir, int], None] | None = None) -> Outcome:
    """Run a job in a new task directory to its end. `watch` is called meanwhile with the task directory and the
    launcher's pid."""
    task = job.parent / f"{job.stem}-{next(_counter)}.task"
    launched = time.time()
    with open(job.parent / "output", "w+") as output:
        child = subprocess.Popen(
            command(job, "--task", str(task), "--workers", str(workers), *flags), stdout=output, stderr=output
        )
        with Sampler(child.pid) as sampler:
            try:
                if watch is not None:
                    watch(TaskDir(str(task)), child.pid)
                code = child.wait(600)
            except BaseException:
                for pid in tree(child.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise
        ended = time.time()
        output.seek(0)
        if code != 0:
            raise RuntimeError(f"yoda run ended with {code}:\n{output.read()[-2000:]}")
    rows, notes = journal(TaskDir(str(task)))
    return Outcome(launched, ended, rows, notes, sampler, TaskDir(str(task)))


def journal(taskdir: TaskDir) -> tuple[NDArray[Any], list[dict[str, Any]]]:
    """(records, notes) of a task."""
    with open(taskdir.task_file) as file:
        fingerprint = yaml.safe_load(file)["fingerprint"]
    rows, notes = [], []
    for _, entry in Story(taskdir, fingerprint):
        if isinstance(entry, dict):
            notes.append(entry)
        else:
            rows.append(entry)
    return np.concatenate(rows), notes


# -- peers -------------------------------------------------------------------------------------------------------------


#: what the peers import that is not in our own environment
MODULES = {"dask": "distributed", "ray": "ray", "parsl": "parsl", "hyperqueue": "hyperqueue"}


def peer_python(module: str) -> str | None:
    """A Python that has `module`: ours, or the one named by `yoda bench --peers`; None if neither has."""
    for python in dict.fromkeys((sys.executable, os.environ.get("YODA_BENCH_PEERS", sys.executable))):
        if not subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
            return python
    return None


def mpiexec(ranks: int) -> tuple[list[str], dict[str, str]]:
    """(command, environment) that starts `ranks` processes as `yoda run` would, without fault tolerance, which peers
    do not use."""
    parts, extra = launcher(None, ranks, os.environ)
    if "--with-ft" in parts:
        at = parts.index("--with-ft")
        del parts[at : at + 2]
    return parts, {**os.environ, **extra}


_EMPTY = "from mpi4py import MPI\nimport time\nif MPI.COMM_WORLD.Get_rank(): print(time.time(), flush=True)\n"


def empty(folder: Path) -> float:
    """Seconds from starting the launcher until MPI has started in a program that does nothing else: what no runner on
    MPI can beat."""
    (folder / "empty.py").write_text(_EMPTY)
    parts, environment = mpiexec(2)
    begin = time.time()
    answer = subprocess.run(
        [*parts, sys.executable, str(folder / "empty.py")], env=environment, capture_output=True, text=True, check=True
    )
    return float(answer.stdout.split()[0]) - begin


def peer(folder: Path, kind: str, work: str, events: int, chunk: int, **options: Any) -> dict[str, Any]:
    """Have a peer do `events` calls of payloads.WORK with CORES workers; what peers.py prints, and the Sampler."""
    request = json.dumps({"kind": kind, "work": work, "events": events, "chunk": chunk, "workers": CORES, **options})
    script, environment = [str(HERE / "peers.py"), request], dict(os.environ)
    python = sys.executable
    module = MODULES.get(kind)
    if module:
        python = peer_python(module) or ""
        environment["PATH"] = os.path.dirname(python) + os.pathsep + environment["PATH"]
    start = [python, *script]
    if kind == "mpi4py.futures":
        parts, environment = mpiexec(CORES + 1)
        start = [*parts, python, "-m", "mpi4py.futures", *script]
    environment["PYTHONPATH"] = str(folder)
    child = subprocess.Popen(
        start,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
    with Sampler(child.pid) as sampler:
        try:
            out, err = child.communicate(timeout=600)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode:
        raise RuntimeError(f"{kind} ended with {child.returncode}:\n{err[-2000:]}")
    return {**json.loads(out.splitlines()[-1]), "sampler": sampler}


# -- whose CPU ---------------------------------------------------------------------------------------------------------


@dataclass
class Sampler:
    """Watches, while a process tree runs, how much CPU time processes outside of it take."""

    root: int
    samples: list[tuple[float, float, float]] = field(default_factory=list)  #: unix time, all CPU seconds, the tree's

    def __enter__(self) -> Sampler:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.samples.append((time.time(), machine_cpu(), tree_cpu(self.root)))
            if self._stop.wait(0.25):
                return

    def others(self, begin: float, end: float) -> float:
        """CPU seconds that other processes, and the hypervisor, took between two unix times."""
        times, total, tree = np.array(self.samples).T
        # Once processes of the tree have ended, what they used since the last sample is nobody's: it must not count as
        # that of others. So what comes then is taken to be as what was before.
        whole = end
        gone = np.flatnonzero((times > begin) & (tree < np.maximum.accumulate(tree) - GONE))
        if len(gone) and times[gone[0]] > begin + 1.0:
            whole = min(end, float(times[gone[0] - 1]))
        elsewhere = np.maximum.accumulate(total - np.maximum.accumulate(tree))
        found = float(np.diff(np.interp([begin, whole], times, elsewhere))[0])
        return found * (end - begin) / (whole - begin)

    def tree_used(self, begin: float, end: float) -> float:
        """CPU seconds the tree itself used between two unix times."""
        times, _, tree = np.array(self.samples).T
        return float(np.diff(np.interp([begin, end], times, np.maximum.accumulate(tree)))[0])

    def capacity(self, begin: float, end: float) -> float:
        """CPU seconds this machine could give between two unix times."""
        return CORES * (end - begin) - self.others(begin, end)


def machine_cpu() -> float:
    """CPU seconds all cores have spent on anything but idling, steal included."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq, steal = (int(x) for x in file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def process_cpu(pid: int, children: bool = False) -> float:
    """CPU seconds of a process, with those of its reaped children if asked; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            parts = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(x) for x in parts[11 : 15 if children else 13]) / _TICKS


def precise_cpu(pid: int) -> float:
    """CPU seconds of the living threads of a process, to the nanosecond where the kernel keeps that."""
    try:
        total = 0
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                total += int(file.read().split()[0])
        return total / 1e9
    except (OSError, ValueError, IndexError):
        return process_cpu(pid)


def children(pid: int) -> list[int]:
    """Direct children of all threads of a process."""
    out: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                out += [int(child) for child in file.read().split()]
    except OSError:
        pass
    return out


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for one in found:
        found += children(one)
    return found


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process and its descendants, reaped ones included."""
    return sum(process_cpu(one, children=True) for one in tree(pid))
