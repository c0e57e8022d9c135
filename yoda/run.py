"""`yoda run`: this rank's part of an allocation, or, without a launcher, starting one.

Order matters and is the point of this module (L11): read the configuration, start the zygote, and only then import MPI.
While MPI starts, the zygote already loads the payload.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from eventrange.errors import YodaError
from yoda.orphan import PARENT
from yoda.setting import EXIT_FILE, Request, Setting, handed, load_payload, read, report_error

INDEXING = 6  #: times longer a Droid waits for MPI to start than rank 0, which may be busy with the inputs
ALONE = 15.0  #: seconds after which an error that all ranks should see is this rank's alone
COMMITS_PER_SECOND = 2000.0  #: of all Droids of an allocation, where none needs to wait for `commit.seconds`
MEET = 60.0  #: seconds a Droid waits for the others before MPI_Finalize


def run(request: Request, environ: Mapping[str, str] = os.environ) -> int:
    """Run this process's part; returns the exit code."""
    from slurm.environment import launched_rank

    begun = time.monotonic()
    place = launched_rank(environ)
    if place is None:
        from yoda.launch import launch

        return launch(read(request), environ)
    rank = place[0]
    if rank == 0:
        if EXIT_FILE in environ:
            with contextlib.suppress(OSError), open(environ[EXIT_FILE], "w"):
                pass  # the launcher is to know that we have begun
        from yoda.rank0 import rank0

        return rank0(request, environ, begun)
    try:
        setting = handed(request, environ)
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
        )
        control = zygote.start(blueprint, slots, PARENT)
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

    # Before MPI, which starts when the last rank is there: that is rank 0, so meanwhile this costs no time.
    from droid.rank import HEARTBEAT, DroidShell, Options
    from droid.scratch import note_shared
    from droid.store import Choices
    from droid.transport import Transport, start_mpi

    # Rank 0 may index the inputs first, unless the launcher is ours and has done so.
    MPI = start_mpi(setting.site.starting * (1 if EXIT_FILE in os.environ else INDEXING))
    signals.listen()  # MPI may have put handlers of its own in place
    _not_alone(MPI)
    job, site = setting.job, setting.site
    comm = MPI.COMM_WORLD
    transport = Transport(MPI, comm)
    shared = transport.neighbours()
    note_shared(scratch)
    workers = setting.request.workers or site.workers or max(1, len(slots.table) // shared)
    options = Options(
        workers=min(workers, len(slots.table)),
        timeout=job.ranges.timeout,
        grace=site.grace,
        heartbeat=min(HEARTBEAT, site.silent / 4),
        parent=PARENT,
        store=Choices(
            segment_bytes=site.segments.max_bytes,
            segment_seconds=site.segments.max_age,
            segment_format=site.segments.format,
            commit_seconds=site.commit.droid_seconds,
            commit_least=transport.size / COMMITS_PER_SECOND,
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

    size = mpi.COMM_WORLD.Get_size()
    if size != (launched_rank(os.environ) or (0, size))[1]:
        from yoda.doctor import singletons

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
