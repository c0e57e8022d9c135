"""Real runs for tests: an MPI and its Python, task folders, started runs, their processes, and what their journals say.

Every process of a run carries an environment marker, so a test finds exactly its own processes, whatever became of
their parents, and ends nothing else. Nothing here asserts how long something takes: waits are bounded, and a bound
that is hit fails with what was printed.
"""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import eventrange.entry
from eventrange.history import Progress, Story, read_progress
from eventrange.intervals import IntervalSet
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir

ENTRY = os.path.abspath(eventrange.entry.__file__)
REPOSITORY = Path(__file__).parents[2]
MARK = "YODA_TEST_MARK"
PATIENCE = float(
    os.environ.get("YODA_TEST_PATIENCE", "120")
)  #: seconds after which a run that should have ended is a failure

# -- MPI ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mpi:
    """An MPI and the Python environment it is in."""

    name: str  #: openmpi or mpich
    python: str
    mpiexec: str

    @property
    def ulfm(self) -> bool:
        """Whether a run survives the death of a Droid."""
        return self.name == "openmpi"

    def command(self, ranks: int, ft: bool = True) -> list[str]:
        """The launcher as a user would write it."""
        if self.name == "openmpi":
            flags = ["--oversubscribe", "--bind-to", "none", *(["--with-ft", "ulfm"] if ft else [])]
            return [self.mpiexec, *flags, "-n", str(ranks)]
        return [self.mpiexec, "-n", str(ranks)]

    def environment(self) -> dict[str, str]:
        """The environment of a shell in which this MPI is the one that is found."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "PMIX_", "SLURM_", "YODA_"))}
        env["PATH"] = os.path.dirname(self.python) + os.pathsep + env.get("PATH", "")
        env["OMPI_MCA_btl"] = "self,sm"  # one machine: spares Open MPI a second's search for networks
        if os.getuid() == 0:
            env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return env


def kind_of(mpiexec: str) -> str:
    """openmpi, mpich, or an empty string for anything else."""
    said = subprocess.run([mpiexec, "--version"], capture_output=True, text=True)
    text = said.stdout + said.stderr
    if "Open MPI" in text or "OpenRTE" in text:
        return "openmpi"
    return "mpich" if "HYDRA" in text or "MPICH" in text else ""


def here() -> Mpi | None:
    """The MPI of the environment these tests run in."""
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    found = beside if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    name = kind_of(found) if found else ""
    return Mpi(name, sys.executable, found) if found and name else None


class Unavailable(Exception):
    """An MPI that cannot be had, and why."""


def get(name: str) -> Mpi:
    """The MPI of that name: this environment's, or one in a virtual environment that is made once and kept."""
    mine = here()
    if mine is not None and mine.name == name:
        return mine
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    needs = [*setup["options"]["install_requires"].split(), name]
    digest = hashlib.sha256(repr((sys.version, needs)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("YODA_TEST_CACHE") or Path.home() / ".cache" / "yoda-tests")
    folder = cache / f"{name}-{digest}"
    python = folder / "bin" / "python"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / f"{name}-{digest}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "complete").exists():
                shutil.rmtree(folder, ignore_errors=True)
                venv.create(folder, with_pip=True)
                subprocess.run(
                    [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *needs],
                    check=True,
                    capture_output=True,
                    text=True,
                    timeout=600,
                )
                (folder / "complete").touch()
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"no {name}: pip install {' '.join(needs)}: {error.stderr.strip()[-300:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"no {name}: {error}") from error
    return Mpi(name, str(python), str(folder / "bin" / "mpiexec"))


# -- processes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """One living process of a run."""

    pid: int
    parent: int
    rank: int | None  #: of the MPI process it is or comes from; None for launchers
    role: str  #: yoda, droid, guardian, zygote, worker, other (below a worker), launcher
    state: str


def _stat(pid: int) -> tuple[int, str] | None:
    """(parent, state) of a process, or None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), fields[0]


def marked(mark: str) -> dict[int, dict[str, str]]:
    """Processes that carry `mark`, with their environment. Zombies carry nothing."""
    needle = f"{MARK}={mark}".encode()
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            data = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        pairs = data.split(b"\0")
        if needle in pairs:
            items = (pair.decode(errors="replace").partition("=") for pair in pairs if pair)
            found[int(name)] = {key: value for key, _, value in items}
    return found


def processes(mark: str) -> list[Process]:
    """All processes of a run and what they are. The ranks are Python processes whose parent is no rank."""
    found = marked(mark)
    place: dict[int, tuple[int, str]] = {}
    for pid in found:
        stat = _stat(pid)
        if stat is not None and stat[1] not in "ZX":
            place[pid] = stat
    out = {}

    def look(pid: int) -> Process:
        if pid in out:
            return out[pid]
        parent, state = place[pid]
        text = found[pid].get("OMPI_COMM_WORLD_RANK", found[pid].get("PMI_RANK"))
        rank = int(text) if text is not None else None
        above = look(parent) if parent in place else None
        if rank is None:
            role = "launcher"
        elif above is None or above.rank is None:
            role = "yoda" if rank == 0 else "droid"
        else:
            role = {"droid": "guardian", "guardian": "zygote", "zygote": "worker"}.get(above.role, "other")
        out[pid] = Process(pid, parent, rank, role, state)
        return out[pid]

    return [look(pid) for pid in place]


def end_all(mark: str) -> int:
    """SIGKILL whatever is left of a run; returns how many processes there were."""
    ended: set[int] = set()
    for _ in range(100):
        left = [p.pid for p in processes(mark)]
        if not left:
            break
        for pid in left:
            ended.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    return len(ended)


# -- runs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """How a run ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return f"exit {self.code} after {self.seconds:.1f} s\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


@dataclass
class Running:
    """A run that was started; `mark` finds its processes."""

    process: subprocess.Popen[bytes]
    mark: str
    out: Path
    err: Path
    begun: float = field(default_factory=time.monotonic)

    def find(self, role: str) -> list[Process]:
        return [p for p in processes(self.mark) if p.role == role]

    def until(self, true: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
        """Wait until `true()` is, and return its value; fails if the run ends before, or patience does."""
        until = time.monotonic() + patience
        while True:
            value = true()
            if value:
                return value
            if self.process.poll() is not None:
                value = true()
                if value:
                    return value
                raise AssertionError(f"the run ended before {what}\n{self.said()}")
            if time.monotonic() > until:
                said = self.said()
                end_all(self.mark)
                raise AssertionError(f"not within {patience:.0f} s: {what}\n{said}")
            time.sleep(0.01)

    def until_role(self, role: str, count: int = 1) -> list[Process]:
        return self.until(lambda: found if len(found := self.find(role)) >= count else None, f"{count} {role} there")

    def said(self) -> str:
        out = self.out.read_text(errors="replace")
        return f"--- stdout\n{out[-4000:]}\n--- stderr\n{self.err.read_text(errors='replace')[-8000:]}"

    def signal(self, pid: int, number: int = signal.SIGKILL) -> None:
        """To one process of this run."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    def kill_launcher(self) -> None:
        """SIGKILL the mpiexec that `yoda run` has started."""
        (launcher,) = [p for p in self.find("launcher") if p.parent == self.process.pid]
        self.signal(launcher.pid)

    def kill_everything(self) -> None:
        end_all(self.mark)
        self.process.wait()

    def wait(self, patience: float = PATIENCE) -> Finished:
        """Wait for the end; then no process of the run may be left, but for a moment the kernel needs."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            here = "\n".join(map(str, processes(self.mark)))
            said = self.said()
            end_all(self.mark)
            self.process.wait()
            raise AssertionError(f"still running after {patience:.0f} s\n{here}\n{said}") from None
        until = time.monotonic() + 10.0
        while (left := processes(self.mark)) and time.monotonic() < until:
            time.sleep(0.02)
        done = Finished(
            code,
            self.out.read_text(errors="replace"),
            self.err.read_text(errors="replace"),
            time.monotonic() - self.begun,
        )
        if left:
            end_all(self.mark)
            raise AssertionError(f"processes are left: {left}\n{done.text}")
        return done


LIGHT = '''
import numpy as np

def light(event, random):
    """A few numbers of every kind: fixed and varying length, integers and floats."""
    n = int(random.integers(0, 4))
    return {"x": random.normal(size=3), "pt": random.exponential(size=n), "n": np.int32(n)}
'''


class Place:
    """A folder with a job, a payload and task directories, and the runs made in it."""

    def __init__(self, mpi: Mpi, folder: Path) -> None:
        self.mpi, self.folder = mpi, folder
        self.runs: list[Running] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def job_file(self) -> Path:
        return self.folder / "job.yaml"

    def job(self, code: str = LIGHT, name: str = "light", **keys: Any) -> Path:
        """Write payload.py and job.yaml; keys given replace sections of the job file."""
        (self.folder / "payload.py").write_text(code)
        job: dict[str, Any] = {
            "task": "test",
            "seed": 7,
            "inputs": {"format": "generate", "events": 1000},
            "payload": {"python": f"payload.py:{name}"},
            "output": {"merge": True},
        }
        for key, value in keys.items():
            if key == "payload" and "command" not in value:
                value = {**job[key], **value}
            job[key] = value
        self.job_file.write_text(yaml.safe_dump(job))
        return self.job_file

    def site(self, **keys: Any) -> None:
        """A site file beside the job; runs use it from then on."""
        (self.folder / "site.yaml").write_text(yaml.safe_dump({"site": "test", **keys}))

    def task(self, name: str = "task") -> TaskDir:
        return TaskDir(str(self.folder / name))

    def start(
        self,
        *arguments: str,
        task: str = "task",
        ranks: int | None = None,
        workers: int | None = 2,
        command: str = "run",
        ft: bool = True,
        env: dict[str, str] | None = None,
    ) -> Running:
        """Start `yoda run job.yaml`; under the launcher with `ranks` processes, or else on its own."""
        words = [*(self.mpi.command(ranks, ft) if ranks else ()), self.mpi.python, ENTRY, command]
        words.append(str(self.job_file) if command in ("run", "plan", "config") else str(self.folder / task))
        if command == "run":
            words += ["--task", str(self.folder / task)]
            if workers:
                words += ["--workers", str(workers)]
            if (self.folder / "site.yaml").exists():
                words += ["--site", str(self.folder / "site.yaml")]
        words += arguments
        mark = uuid.uuid4().hex
        out, err = self.folder / f"out-{len(self.runs)}", self.folder / f"err-{len(self.runs)}"
        # Session folders of a launcher that was killed stay behind: they go with this one.
        temporary = tempfile.mkdtemp(prefix="yt", dir="/tmp")
        environment = {**self.mpi.environment(), MARK: mark, "TMPDIR": temporary, **(env or {})}
        with open(out, "wb") as o, open(err, "wb") as e:
            process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=o, stderr=e, start_new_session=True
            )
        running = Running(process, mark, out, err)
        running.temporary = temporary  # type: ignore[attr-defined]
        self.runs.append(running)
        return running

    def run(self, *arguments: str, **how: Any) -> Finished:
        return self.start(*arguments, **how).wait()

    def close(self) -> None:
        """End what is left of any run."""
        for run in self.runs:
            end_all(run.mark)
            run.process.wait()
            shutil.rmtree(run.temporary, ignore_errors=True)  # type: ignore[attr-defined]

    # -- what the task directory says ----------------------------------------------------------------------------------

    def fingerprint(self, task: str = "task") -> str:
        from yoda.task import need_task

        return need_task(self.task(task)).fingerprint

    def progress(self, task: str = "task") -> Progress:
        return read_progress(self.task(task), self.fingerprint(task))

    def done(self, task: str = "task") -> int:
        """Events that are durable now; 0 while there is no task yet."""
        if not os.path.exists(self.task(task).task_file):
            return 0
        return self.progress(task).done.total

    def notes(self, name: str, task: str = "task") -> list[dict[str, Any]]:
        """All notes of that name in all journals, in order."""
        story = Story(self.task(task), self.fingerprint(task))
        return [entry for _, entry in story.whole() if isinstance(entry, dict) and entry.get("note") == name]

    def sha256(self, task: str = "task") -> str:
        """Of the merged file, or of all of them."""
        files = sorted(Path(self.task(task).merged).glob("*.h5"))
        assert files, f"no merged file in {self.task(task).merged}"
        return "-".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)

    def story(self, task: str = "task") -> list[tuple[str, np.ndarray[Any, Any]]]:
        """All records of all journals as (allocation, rows), in journal order."""
        found = Story(self.task(task), self.fingerprint(task))
        return [(name, entry) for name, entry in found.whole() if not isinstance(entry, dict)]


@contextmanager
def place(mpi: Mpi, folder: Path) -> Iterator[Place]:
    made = Place(mpi, folder)
    try:
        yield made
    finally:
        made.close()


def granted_again(story: list[tuple[str, np.ndarray[Any, Any]]]) -> list[tuple[str, int, int]]:
    """Pieces that were granted although an earlier record says that they are done (against L4): must be empty."""
    done = IntervalSet()
    wrong = []
    for name, rows in story:
        for kind, code, start, stop in rows[["kind", "code", "start", "stop"]].tolist():
            if kind == Kind.GRANTED and code != Code.REVOKED:  # that one is of what a Droid had done unasked
                wrong += [(name, *pair) for pair in done.overlap(start, stop)]
            elif kind == Kind.DONE:
                done.add(start, stop)
            elif kind == Kind.PENDING and code != Code.RETRY:
                done.remove(start, stop)
    return wrong


def done_twice(story: list[tuple[str, np.ndarray[Any, Any]]]) -> int:
    """Events with more than one DONE record."""
    done, twice = IntervalSet(), 0
    for _, rows in story:
        for start, stop in rows[rows["kind"] == Kind.DONE][["start", "stop"]].tolist():
            twice += sum(b - a for a, b in done.overlap(start, stop))
            done.add(start, stop)
    return twice


def data_folder() -> Path | None:
    """Real input files for tests, where there are any."""
    given = os.environ.get("YODA_TEST_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def pids_in(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\bpid (\d+)\b", text)]
