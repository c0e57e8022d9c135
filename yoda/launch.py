"""`yoda run` without a launcher: start our own, and see it through."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from eventrange.errors import RUN_AGAIN, LauncherEnded
from yoda.orphan import STARTER
from yoda.setting import EXIT_FILE, Setting, hand_on

if TYPE_CHECKING:
    from yoda.prepared import Prepared

HURRY = 2.0  #: seconds a launcher may take to end its ranks when the user interrupts twice
LATE = 30  #: seconds a launcher may take to end after rank 0 has
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGINT, signal.SIGHUP)


def launch(setting: Setting, environ: Mapping[str, str]) -> int:
    """Start our own mpiexec, with N Droids on this machine or one per node of a batch allocation, and see it
    through."""
    from yoda.finish import after
    from yoda.placing import allocation_launcher, launcher, nodes_here
    from yoda.prepared import finished, may_be_finished, prepare
    from yoda.progress import shown

    request, site = setting.request, setting.site
    prepared = prepare(setting)  # what is wrong is said here, once, and before any MPI
    code = finished(prepared) if may_be_finished(setting.taskdir) else None
    if code is not None:
        _warn(prepared)
        from yoda.beside import stage_out_rest

        stage_out_rest(setting, prepared.frozen)
        return after(prepared, code)
    nodes = nodes_here(environ) if request.droids is None else 1
    ranks = (request.droids or nodes) + 1
    with tempfile.TemporaryDirectory(prefix="yoda-run-") as folder, shown(prepared) as line:
        exit_file = os.path.join(folder, "exit")
        if nodes > 1 or (site.launcher is not None and request.droids is None and "SLURM_JOB_ID" in environ):
            command, extra = allocation_launcher(site.launcher, nodes)
        else:
            command, extra = launcher(site.launcher, ranks, environ)
        arguments = [*command, sys.executable, _entry(), *request.arguments()]
        # Open MPI keeps a folder named after its process id in /tmp; one that was killed leaves it there, and whoever
        # gets that id next does not start. So it gets a place of its own, unless it was given one.
        own = {"PRTE_MCA_prte_tmpdir_base": folder} if nodes == 1 else {}
        handed: dict[str, str] = {}
        if nodes == 1:
            handed = hand_on(setting, prepared.frozen, f"{folder}/setting")
            extra = {**extra, STARTER: str(os.getpid()), **handed}
        if not handed:  # else rank 0 says them: when it opens the task itself, there are none any more
            _warn(prepared)
        env = {**own, **environ, **extra, **line.environment, EXIT_FILE: exit_file}
        child = subprocess.Popen(
            arguments, env=env, start_new_session=True, preexec_fn=_end_with(os.getpid()), **line.pipes
        )
        line.attach(child)
        stops: list[float] = []
        hurry: list[float] = []  # when the user did not want to wait for the drain

        def forward(number: int, _: Any) -> None:
            # Launchers answer SIGTERM and SIGINT by killing the ranks, MPICH's dies of SIGUSR2; SIGUSR1 all pass on.
            stops.append(time.monotonic())
            if number == signal.SIGINT and len(stops) > 1:
                hurry.append(stops[-1])
                child.send_signal(signal.SIGTERM)
            else:
                child.send_signal(signal.SIGUSR1)

        for number in _FORWARDED:
            signal.signal(number, forward)
        status = _see_through(child, exit_file, hurry)
        line.close()
        for number in _FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        if not os.path.exists(exit_file):
            raise LauncherEnded(program=command[0], status=status, trial=shlex.join([*command, "true"]))
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


def _warn(prepared: Prepared) -> None:
    for warning in prepared.frozen.warnings:
        print(f"yoda: {warning}", file=sys.stderr, flush=True)


def _see_through(child: subprocess.Popen[bytes], exit_file: str, hurry: list[float]) -> int:
    """Wait for the launcher. One that stays although rank 0 has left its result is ended: some rank is stuck in it.

    MPICH's passes SIGTERM on to the ranks and waits for them, which is another drain: in a hurry it is killed.
    """
    late = 0
    with _ended(child) as ended:
        while not ended(1.0):
            if hurry and time.monotonic() - hurry[0] > HURRY:
                child.kill()
            late += os.path.exists(exit_file) and os.path.getsize(exit_file) > 0
            if late == LATE:
                child.terminate()
            elif late == 2 * LATE:
                child.kill()
    return child.wait()


@contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[Callable[[float], bool]]:
    """Whether `child` ends within so many seconds, asleep: `child.wait` looks twenty times a second, on a core that
    belongs to payloads."""
    try:
        fd = os.pidfd_open(child.pid)
    except OSError:  # an old kernel, or no descriptor left

        def polled(seconds: float) -> bool:
            with suppress(subprocess.TimeoutExpired):
                child.wait(seconds)
            return child.returncode is not None

        yield polled
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        yield lambda seconds: bool(poll.poll(1000 * seconds))
    finally:
        os.close(fd)


def _end_with(parent: int) -> Callable[[], None]:
    """For the launcher: be told (SIGTERM) when `parent` is killed, so that no run goes on that nobody started."""
    import ctypes

    libc = ctypes.CDLL(None)  # now: nothing is loaded between fork and exec

    def prepare() -> None:
        libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _entry() -> str:
    import eventrange.entry

    return os.path.abspath(eventrange.entry.__file__)
