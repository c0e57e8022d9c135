"""Rank 0 of an allocation: open the task, fold its journals, run Yoda, merge at the end."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from eventrange.durable import explain
from eventrange.errors import BAD_DATA, BUG, OK, YodaError
from eventrange.history import Progress
from eventrange.intervals import IntervalSet
from yoda.finish import after
from yoda.prepared import Prepared, ledger_of, prepare, presence
from yoda.setting import EXIT_FILE, Request, handed, report_error
from yoda.story import plain_progress, sayer, told_when_moved

if TYPE_CHECKING:
    from eventrange.journal import JournalWriter
    from yoda.beside import Beside
    from yoda.keeper import Presence
    from yoda.master import MasterShell
    from yoda.nodefile import NodeFile


def rank0(request: Request, environ: Mapping[str, str], begun: float) -> int:
    """Run rank 0. Whatever happens, all ranks are ended and the exit code is left where the launcher looks for it."""
    from droid import signals
    from droid.transport import start_mpi
    from yoda.doctor import offered_types, singletons
    from yoda.nodefile import NodeFile, alerts

    mpi: Any = None
    shell: MasterShell | None = None
    try:
        setting = handed(request, environ)
        prepared = prepare(setting)
        offered = offered_types(environ)
        with (
            presence(prepared, environ) as here,
            _stageout_beside(prepared, here) as others,
            alerts(setting) as people,
        ):
            mpi = start_mpi(setting.site.starting)
            signals.listen()  # MPI may have put handlers of its own in place
            singletons(environ, mpi.COMM_WORLD.Get_size(), mpi.Get_library_version(), offered)
            nodes = NodeFile(setting, people)
            code, shell = _yoda(prepared, here, nodes, mpi, environ, begun)
            if code in (OK, BAD_DATA):
                others.wait(setting.site.stageout_rules.wait)
            # The Droids wait, asleep: MPI_Finalize could hang, and cost the merge.
            code = after(prepared, code, here, shell.journal)
            shell.journal.file.close()
    except YodaError as error:
        code = report_error(error)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = BUG
    exit_file = environ.get(EXIT_FILE)
    if exit_file:
        from eventrange.durable import write_file

        with contextlib.suppress(YodaError):
            write_file(exit_file, str(code).encode())
    if mpi is None:
        mpi = start_mpi(60.0)
    from yoda.leaving import leave

    leave(mpi, shell, code, environ, code_counts=not exit_file)
    return 0 if exit_file else code


def _stageout_beside(prepared: Prepared, here: Presence) -> AbstractContextManager[Beside]:
    """What dead allocations left is staged out meanwhile, in a process that is started before MPI."""
    from yoda.beside import beside

    folder = prepared.setting.taskdir.logs(here.allocation.name)
    return beside(prepared.setting, os.path.join(folder, "stageout.log"))


def _yoda(
    prepared: Prepared, here: Presence, nodes: NodeFile, mpi: Any, environ: Mapping[str, str], begun: float
) -> tuple[int, MasterShell]:
    """Run the master to its end; returns (exit code, the master, which can end the other ranks)."""
    from droid.transport import Transport
    from eventrange.journal import JournalWriter
    from slurm.environment import DONE_FILE, EndTime
    from yoda.dispatcher import Dispatcher, Settings
    from yoda.doctor import at_start
    from yoda.keeper import Keeper
    from yoda.leases import Leases, divide
    from yoda.master import MasterShell, Run, task_message
    from yoda.metrics import Metrics
    from yoda.orphan import DEAD, GONE, PARENT, orphaned
    from yoda.progress import SHOWN
    from yoda.rangelength import Past
    from yoda.tally import Tally

    allocation = here.allocation
    setting, frozen, axis = prepared.setting, prepared.frozen, prepared.axis
    job, site, taskdir = setting.job, setting.site, setting.taskdir
    log = taskdir.log(allocation.name, 0)
    say = sayer(log)
    transport = Transport(mpi, mpi.COMM_WORLD)
    transport.neighbours()
    named = axis.ranges
    parts = divide(axis.cuts, axis.total, job.ranges.events or 0, whole=named is not None)
    leases = Leases(allocation.name, parts, site.lease_timeout)
    leases.begin(time.monotonic(), here.room)
    known = here.follower.progress()
    for name, what in known.damage.items():
        if name in leases.living():
            continue  # it is being written
        say(f"journal {name} is damaged: {what}; what it hit is processed again")
    for warning in [*frozen.warnings, *at_start(setting, environ)]:
        say(warning)
    batch = site.slurm if allocation.jobid is not None else None
    settings = Settings(
        size=job.ranges.events or 0 if named is None else -(-axis.total // named.count),
        whole=named is not None,
        range_seconds=job.ranges.seconds,
        past=Past.of(known.lives, known.ended, leases.living()),
        max_attempts=job.ranges.max_attempts,
        grace=site.grace,
        margin=site.margin,
        silent=site.silent,
        lead=batch.lead if batch is not None else 0.0,
        patience=batch.patience if batch is not None else 0.0,
    )
    try:
        os.makedirs(taskdir.journals, exist_ok=True)
    except OSError as error:
        raise explain(error, taskdir.journals) from error
    journal = JournalWriter(
        taskdir.journal(allocation.name),
        frozen.fingerprint,
        allocation.name,
        created=time.time(),
        started=time.time() - (time.monotonic() - begun),
        host=socket.gethostname(),
        pid=os.getpid(),
        jobid=allocation.jobid,
        restart=allocation.restart,
        nodes=list(allocation.nodes),
        mpi=mpi.Get_library_version().split("\n")[0][:80],
    )
    if site.stageout:
        from yoda.stageout import endpoints_note

        journal.note("endpoints", time=time.time(), **endpoints_note(site.stageout, site.stageout_rules))
    if setting.request.retry_quarantined:
        here.follower.retry(known.quarantined)
        leases.learn(time.monotonic(), here.follower.known())
        _take_up(journal, known, say)
    ledger = ledger_of(axis.total, known)
    dispatcher = Dispatcher(ledger, axis.cuts, settings, axis.total, nodes.nodes)
    dispatcher.schema = known.schema
    # the file our batch script keeps is cheap to look at; asking Slurm itself would fork
    slurm_end = told_when_moved(EndTime(allocation, environ, time.time, interval=10.0), say)
    own_end = time.time() + setting.request.time if setting.request.time is not None else None

    def deadline() -> float | None:
        return min((t for t in (own_end, slurm_end()) if t is not None), default=None)

    if transport.size == 1 and not dispatcher.complete:
        say("this is the only rank: a run needs one Yoda and at least one Droid (mpiexec -n 2 or more)")
    metrics = Metrics(taskdir.metrics, frozen.task, allocation.name)
    tally = Tally(environ.get(DONE_FILE))
    run = Run(
        allocation.name,
        task_message(frozen, taskdir.indexes, setting.request.images),
        site.commit.yoda_seconds,
        deadline,
        say,
        _each(plain_progress(sayer(log, SHOWN not in environ)), metrics, tally),
    )
    if site.stageout:
        run.closing += site.stageout_rules.wait
    done = ledger.done
    keeper = Keeper(leases, here.room, here.heart, ledger)
    run.gap = min(run.gap, site.lease_timeout / 2)
    run.on_wake.append(lambda now: keeper.woken(now, dispatcher))
    run.every_tick.append(lambda now: keeper.tick(now, dispatcher))
    run.urgent = lambda: keeper.urgent
    gone = orphaned(environ)
    run.every_tick.append(lambda now: dispatcher.signalled(now, GONE) if not dispatcher.draining and gone() else [])
    # Without the launcher's process on this node its Droids end at once, and nobody would tell us.
    run.every_tick.append(lambda now: dispatcher.drain(now, DEAD, 0.0) if os.getppid() != PARENT else [])
    run.every_tick.append(nodes.tick)
    for step in keeper.first():
        journal.note(step.name, time=time.time(), **step.values)
    here.heart.set("working")
    count = transport.size - 1
    say(
        f"task {frozen.task}: {axis.total} events, {done} done, {ledger.quarantined.total} quarantined, "
        f"{ledger.open} to do; allocation {allocation.name}, {count} Droid{'s' * (count != 1)}"
    )
    for name in leases.living():
        say(f"allocation {name} is at work on this task too")
    shell = MasterShell(transport, dispatcher, journal, run)
    keeper.start(shell.ring)
    try:
        code, reason = shell.run()
        tally.write(dispatcher)
        metrics.write(dispatcher, 0.0)
        nodes.tick(time.monotonic())
    finally:
        keeper.stop()
    here.heart.rest("merging" if code in (OK, BAD_DATA) else "ended")
    ledger = dispatcher.ledger
    say(f"{reason}: {ledger.done} of {ledger.total} events done, {ledger.done - done} of them now")
    return code, shell


def _take_up(journal: JournalWriter, known: Progress, say: Callable[[str], None]) -> None:
    """Make quarantined events pending again (`--retry-quarantined`).

    The records go into this allocation's own journal: in a later one they would void a quarantine of this one. They are
    on the disk before anything is claimed, for others that do the same now.
    """
    from eventrange import records
    from eventrange.records import Code, Kind

    pairs = list(known.quarantined)
    if not pairs:
        return
    rows = records.new(len(pairs), kind=Kind.PENDING, code=Code.RETRY, time=time.time())
    rows["start"], rows["stop"] = [start for start, _ in pairs], [stop for _, stop in pairs]
    journal.append(rows)
    journal.flush()
    journal.file.sync()
    say(f"{known.quarantined.total} quarantined events are taken up again")
    known.quarantined = IntervalSet()


def _each(*steps: Callable[[Any, float], None]) -> Callable[[Any, float], None]:
    def progress(dispatcher: Any, lag: float) -> None:
        for step in steps:
            step(dispatcher, lag)

    return progress
