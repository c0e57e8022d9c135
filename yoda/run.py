"""`yoda run`: this rank's part of an allocation, or, without a launcher, starting one.

Order matters and is the point of this module (L11): read the configuration, start the zygote, and only then import MPI.
While MPI starts, the zygote already loads the payload.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventrange.errors import OK, RUN_AGAIN, LauncherMissing, YodaError
from eventrange.taskdir import TaskDir
from yoda.config import Job, Site, default_task_dir, load_job, load_site

EXIT_FILE = "YODA_EXIT_FILE"
HURRY = 2.0  #: seconds a launcher may take to end its ranks when the user interrupts twice
INDEXING = 6  #: times longer a Droid waits for MPI to start than rank 0, which may be busy with the inputs
ALONE = 15.0  #: seconds after which an error that all ranks should see is this rank's alone
MEET = 60.0  #: seconds a Droid waits for the others before MPI_Finalize
LATE = 30  #: seconds a launcher may take to end after rank 0 has
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGINT, signal.SIGHUP)
#: One thread per worker: there is a worker per core already.
_ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
}


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    job: str
    site: str | None = None
    task: str | None = None
    droids: int | None = None
    workers: int | None = None
    sets: tuple[str, ...] = ()
    time: float | None = None  #: seconds this allocation has from now
    retry_quarantined: bool = False
    images: bool = True

    def arguments(self) -> list[str]:
        """The command line that asks a rank for the same; without what only the launcher needs."""
        out = ["run", self.job]
        for flag, value in (("--site", self.site), ("--task", self.task), ("--workers", self.workers)):
            if value is not None:
                out += [flag, str(value)]
        for value in self.sets:
            out += ["--set", value]
        if self.time is not None:
            out += ["--time", str(self.time)]
        if self.retry_quarantined:
            out.append("--retry-quarantined")
        if not self.images:
            out.append("--no-images")
        return out


@dataclass(frozen=True)
class Setting:
    """Configuration of one run, read."""

    request: Request
    job: Job
    site: Site
    taskdir: TaskDir


def read(request: Request) -> Setting:
    """Read and check job and site."""
    job = load_job(request.job, request.sets)
    site = load_site(request.site, request.sets)
    root = os.path.abspath(request.task or default_task_dir(job))
    return Setting(request, job, site, TaskDir(root))


def run(request: Request, environ: Mapping[str, str] = os.environ) -> int:
    """Run this process's part; returns the exit code."""
    from slurm.environment import launched_rank

    begun = time.monotonic()
    place = launched_rank(environ)
    if place is None:
        return launch(read(request), environ)
    rank = place[0]
    if rank == 0:
        from yoda.rank0 import rank0

        return rank0(request, environ, begun)
    try:
        setting = read(request)
    except YodaError as error:
        return _cannot_begin(error)
    return droid_rank(setting, begun)


# -- a Droid's rank ----------------------------------------------------------------------------------------------------


def droid_rank(setting: Setting, begun: float) -> int:
    """Rank 1 and up: zygote first, then MPI, then the Droid until Yoda says Stop."""
    from droid import zygote
    from droid.scratch import make as make_scratch
    from droid.slots import Slots

    job, site = setting.job, setting.site
    cores = len(os.sched_getaffinity(0))
    slots = Slots(setting.request.workers or site.workers or cores)
    scratch = make_scratch(site.scratch)
    try:
        blueprint = zygote.Blueprint(
            load=lambda: load_payload(job),
            scratch=scratch,
            imports=("h5py", "eventrange.image", "droid.inputs"),
            memory=job.payload.memory,
            environment={k: v for k, v in _ONE_THREAD.items() if k not in os.environ},
        )
        control = zygote.start(blueprint, slots)
        return _droid_with_mpi(setting, begun, control, slots, scratch, start_uploads(setting))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def start_uploads(setting: Setting) -> Any:
    """The Droid's end of stage-out (droid.stageout.Uploads) if the site has endpoints; its process is started here,
    before MPI, and after the zygote, which must not hold its pipes."""
    if not setting.site.stageout:
        return None
    from droid.stageout import Uploads

    return Uploads(setting.site.stageout, setting.site.stageout_rules, setting.taskdir)


def _droid_with_mpi(
    setting: Setting, begun: float, control: socket.socket, slots: Any, scratch: str, uploads: Any = None
) -> int:
    from droid import signals
    from droid.transport import start_mpi

    # Rank 0 may index the inputs first, unless the launcher is ours and has done so.
    MPI = start_mpi(setting.site.starting * (1 if EXIT_FILE in os.environ else INDEXING))
    signals.listen()  # MPI may have put handlers of its own in place
    _not_alone(MPI)
    from droid.rank import HEARTBEAT, DroidShell, Options
    from droid.store import Choices
    from droid.transport import Transport, sharing

    job, site = setting.job, setting.site
    comm = MPI.COMM_WORLD
    transport = Transport(MPI, comm)
    shared = sharing(MPI, comm)
    workers = setting.request.workers or site.workers or max(1, len(slots.table) // shared)
    options = Options(
        workers=min(workers, len(slots.table)),
        timeout=job.ranges.timeout,
        grace=site.grace,
        heartbeat=min(HEARTBEAT, site.silent / 4),
        store=Choices(
            segment_bytes=site.segments.max_bytes,
            segment_seconds=site.segments.max_age,
            segment_format=site.segments.format,
            commit_seconds=site.commit.seconds / 2,  # half here, half at Yoda
            commit_bytes=site.commit.bytes,
        ),
        uploads=uploads,
    )
    try:
        shell = DroidShell(transport, setting.taskdir, options, control, slots, scratch, begun)
        code = shell.run()
    except BaseException:
        # A fault-tolerant MPI tells the others of a rank that was killed, not of one that exits with an error.
        traceback.print_exc()
        sys.stderr.flush()
        shutil.rmtree(scratch, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGKILL)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    finalize(MPI, transport, shell.together)
    return code


def _not_alone(mpi: Any) -> None:
    """End this process, with rank 0's exit code for it, if MPI does not know of the ranks that were started with it."""
    from slurm.environment import launched_rank
    from yoda.doctor import singletons

    size = mpi.COMM_WORLD.Get_size()
    if size != (launched_rank(os.environ) or (0, size))[1]:
        singletons(os.environ, size, mpi.Get_library_version())


def finalize(mpi: Any, transport: Any, together: bool) -> None:
    """End MPI in good order where all ranks do; otherwise leave without it, since Finalize would wait for the dead."""
    if transport.gone or not together or not transport.meet(MEET):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    mpi.Finalize()


def _cannot_begin(error: YodaError) -> int:
    """A rank that cannot read job or site. Rank 0 most likely cannot either: it says so, once, and ends all ranks,
    which takes that they all start MPI. If it does not, the trouble is this node's."""
    from droid.transport import Transport, start_mpi

    MPI = start_mpi(ALONE)
    transport = Transport(MPI, MPI.COMM_WORLD)
    until = time.monotonic() + ALONE
    while time.monotonic() < until:
        transport.receive()  # nothing comes; it is what makes MPI look
        if 0 in transport.failed():  # a fault-tolerant Open MPI leaves us alive when rank 0 aborts
            os._exit(error.exit_code)
        time.sleep(0.05)
    code = report_error(error)
    MPI.COMM_WORLD.Abort(code)
    return code


def load_payload(job: Job) -> Any:
    """The payload of `job`, Python or program. Runs in the zygote."""
    return _load(job.payload.python, job.payload.command, job.payload.options, job.folder)


def load_frozen_payload(frozen: Any) -> Any:
    """The payload of a task directory (yoda.task.Frozen)."""
    chosen = frozen.payload
    return _load(chosen.python, chosen.command, chosen.options, os.path.dirname(frozen.job_file))


def _load(python: str | None, command: Sequence[str] | None, options: dict[str, Any], folder: str) -> Any:
    if command is not None:
        from droid.channel import CommandPayload

        return CommandPayload(command, folder, options)
    from droid.payload import load

    place, _, name = (python or "").rpartition(":")
    if place.endswith(".py"):
        place = os.path.join(folder, os.path.expanduser(place))
    return load(f"{place}:{name}", options)


# -- without a launcher ------------------------------------------------------------------------------------------------


def launch(setting: Setting, environ: Mapping[str, str]) -> int:
    """Start our own mpiexec, with N Droids on this machine or one per node of a batch allocation, and see it
    through."""
    from yoda.placing import allocation_launcher, nodes_here
    from yoda.progress import shown
    from yoda.rank0 import after, finished, prepare

    request, site = setting.request, setting.site
    prepared = prepare(setting)  # what is wrong is said here, once, and before any MPI
    code = finished(prepared)
    if code is not None:
        from yoda.beside import stage_out_rest

        stage_out_rest(setting, prepared.frozen)
        return after(prepared, code)
    nodes = nodes_here(environ) if request.droids is None else 1
    ranks = (request.droids or nodes) + 1
    with tempfile.TemporaryDirectory(prefix="yoda-run-") as folder, shown(prepared) as line:
        exit_file = os.path.join(folder, "exit")
        if nodes > 1:
            command, extra = allocation_launcher(site.launcher, nodes)
        else:
            command, extra = launcher(site.launcher, ranks, environ)
        arguments = [*command, sys.executable, _entry(), *request.arguments()]
        env = {**environ, **extra, **line.environment, EXIT_FILE: exit_file}
        child = subprocess.Popen(
            arguments, env=env, start_new_session=True, preexec_fn=_end_with(os.getpid()), **line.pipes
        )
        line.attach(child)
        stops: list[float] = []
        hurry: list[float] = []  # when the user did not want to wait for the drain

        def forward(number: int, _: Any) -> None:
            # Launchers answer SIGTERM and SIGINT by killing the ranks; the user signals they pass on.
            stops.append(time.monotonic())
            if number == signal.SIGINT and len(stops) > 1:
                hurry.append(stops[-1])
                child.send_signal(signal.SIGTERM)
            else:
                child.send_signal(number if number == signal.SIGUSR2 else signal.SIGUSR1)

        for number in _FORWARDED:
            signal.signal(number, forward)
        status = _see_through(child, exit_file, hurry)
        line.close()
        for number in _FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        try:
            with open(exit_file) as file:
                return int(file.read())
        except (OSError, ValueError):
            # The launcher's own status means nothing: it is 0 for some ways of losing everything.
            print(
                f"the run ended without a result (launcher status {status}); run the same command again to go on",
                file=sys.stderr,
            )
            return RUN_AGAIN


def _see_through(child: subprocess.Popen[bytes], exit_file: str, hurry: list[float]) -> int:
    """Wait for the launcher. One that stays although rank 0 has left its result is ended: some rank is stuck in it.

    MPICH's passes SIGTERM on to the ranks and waits for them, which is another drain: in a hurry it is killed.
    """
    late = 0
    while True:
        try:
            return child.wait(1.0)
        except subprocess.TimeoutExpired:
            if hurry and time.monotonic() - hurry[0] > HURRY:
                child.kill()
            late += os.path.exists(exit_file)
            if late == LATE:
                child.terminate()
            elif late == 2 * LATE:
                child.kill()


def _end_with(parent: int) -> Callable[[], None]:
    """For the launcher: be told (SIGTERM) when `parent` is killed, so that no run goes on that nobody started."""
    import ctypes

    libc = ctypes.CDLL(None)  # now: nothing is loaded between fork and exec

    def prepare() -> None:
        libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def launcher(template: str | None, ranks: int, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """(command, environment to add) that starts `ranks` processes.

    By default the mpiexec of this Python environment, or of the PATH. An Open MPI is asked for fault tolerance (ULFM),
    so that the loss of one Droid does not end the job, and to allow more ranks than cores: Yoda sleeps nearly always.
    All ranks are on this machine, so Open MPI 5 is spared the search for networks, which takes it a second.
    """
    if template is not None:
        return shlex.split(template.format(ranks=ranks, nodes=1)), {}
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    found = beside if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise LauncherMissing(python=sys.executable)
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    path = {"PATH": os.path.dirname(found) + os.pathsep + environ.get("PATH", "")}
    if "Open MPI" in version or "OpenRTE" in version or "prte" in version.lower():
        ulfm = ["--with-ft", "ulfm"] if " 4." not in version.splitlines()[0] else []
        if ulfm and "OMPI_MCA_btl" not in environ:
            ulfm += ["--mca", "btl", "self,sm"]
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
        flags = ["--oversubscribe", "--bind-to", "none", *ulfm]
        return [found, *flags, "-n", str(ranks)], {**path, **root}
    return [found, "-n", str(ranks)], path


def _entry() -> str:
    import eventrange.entry

    return os.path.abspath(eventrange.entry.__file__)


def report_error(error: YodaError) -> int:
    """Print an error for people; returns its exit code."""
    print(f"yoda: {error}", file=sys.stderr, flush=True)
    return error.exit_code


__all__ = ["OK", "Request", "Setting", "finalize", "launch", "launcher", "load_payload", "read", "report_error", "run"]
