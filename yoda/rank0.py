"""Rank 0 of an allocation: open the task, fold its journals, run Yoda, merge at the end."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventrange.durable import explain
from eventrange.errors import BAD_DATA, BUG, OK, MergeIncomplete, StorageOffline, YodaError
from eventrange.history import Progress, read_progress
from eventrange.intervals import IntervalSet
from eventrange.ledger import Ledger, Retry
from yoda.task import Frozen, open_task

if TYPE_CHECKING:
    from eventrange.axis import Axis
    from eventrange.journal import JournalWriter
    from yoda.beside import Beside
    from yoda.keeper import Presence
    from yoda.master import MasterShell
    from yoda.run import Request, Setting


@dataclass(frozen=True)
class Prepared:
    """A task that is ready to be worked on."""

    setting: Setting
    frozen: Frozen
    axis: Axis

    @property
    def total(self) -> int:
        return self.axis.total


def prepare(setting: Setting) -> Prepared:
    """Open or make the task directory; count and index the inputs if that has not been done."""
    from eventrange.axis import Axis

    job = setting.job

    def plan() -> dict[str, Any]:
        from droid.inputs import plan_axis

        return plan_axis(
            job.inputs.format,
            job.inputs.files,
            job.inputs.events,
            job.inputs.options,
            setting.taskdir.indexes,
            len(os.sched_getaffinity(0)),
            refuse_changed=False,
            where=job.path,
        ).to_dict()

    frozen = open_task(setting.taskdir, job, plan)
    return Prepared(setting, frozen, Axis.from_dict(frozen.axis))


def ledger_of(total: int, known: Progress) -> Ledger:
    """The ledger of a task of `total` events of which the journals know `known`."""
    ledger = Ledger(total)
    ledger.quarantined = known.quarantined
    busy = IntervalSet(known.done)
    for start, stop in known.quarantined:
        busy.add(start, stop)
    for event, tried in known.attempts.items():
        ledger.retries[event] = Retry(tried.attempts)
        busy.add(event, event + 1)
    ledger.pending = IntervalSet(busy.gaps(0, total))
    return ledger


def finished(prepared: Prepared) -> int | None:
    """The exit code if there is nothing left to do; None if there is."""
    known = read_progress(prepared.setting.taskdir, prepared.frozen.fingerprint)
    if ledger_of(prepared.total, known).open:
        return None
    if known.quarantined:
        return None if prepared.setting.request.retry_quarantined else BAD_DATA
    return OK


def rank0(request: Request, environ: Mapping[str, str], begun: float) -> int:
    """Run rank 0. Whatever happens, all ranks are ended and the exit code is left where the launcher looks for it."""
    from droid import signals
    from droid.transport import start_mpi
    from yoda.doctor import offered_types, singletons
    from yoda.run import EXIT_FILE, read, report_error

    mpi: Any = None
    shell: MasterShell | None = None
    try:
        setting = read(request)
        prepared = prepare(setting)
        offered = offered_types(environ)
        with _presence(prepared, environ) as here, _stageout_beside(prepared, here) as others:
            mpi = start_mpi(setting.site.starting)
            signals.listen()  # MPI may have put handlers of its own in place
            singletons(environ, mpi.COMM_WORLD.Get_size(), mpi.Get_library_version(), offered)
            code, shell = _yoda(prepared, here, mpi, environ, begun)
            if code in (OK, BAD_DATA):
                others.wait(setting.site.stageout_rules.wait)
            code = after(prepared, code, here)  # the Droids wait, asleep: MPI_Finalize could hang, and cost the merge
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


def _presence(prepared: Prepared, environ: Mapping[str, str]) -> AbstractContextManager[Presence]:
    """Read what this allocation is, and be seen by others. Before MPI starts: it may ask Slurm."""
    from slurm.commands import run_command
    from slurm.environment import read_allocation
    from yoda.keeper import present

    allocation = read_allocation(environ, time.time(), socket.gethostname(), os.getpid())
    taskdir, timeout = prepared.setting.taskdir, prepared.setting.site.lease_timeout
    return present(taskdir, prepared.frozen.fingerprint, allocation, timeout, run_command)


def _yoda(
    prepared: Prepared, here: Presence, mpi: Any, environ: Mapping[str, str], begun: float
) -> tuple[int, MasterShell]:
    """Run the master to its end; returns (exit code, the master, which can end the other ranks)."""
    from droid.transport import Transport, sharing
    from eventrange.journal import JournalWriter
    from slurm.environment import EndTime
    from yoda.dispatcher import Dispatcher, Settings
    from yoda.doctor import at_start
    from yoda.keeper import Keeper
    from yoda.leases import Leases, divide
    from yoda.master import MasterShell, Run, task_message
    from yoda.metrics import Metrics
    from yoda.progress import SHOWN

    allocation = here.allocation
    setting, frozen, axis = prepared.setting, prepared.frozen, prepared.axis
    job, site, taskdir = setting.job, setting.site, setting.taskdir
    log = taskdir.log(allocation.name, 0)
    say = sayer(log)
    transport = Transport(mpi, mpi.COMM_WORLD)
    sharing(mpi, mpi.COMM_WORLD)  # the Droids want to know; it takes all ranks
    leases = Leases(
        allocation.name, divide(axis.cuts.tolist(), axis.total, job.ranges.events or 0), site.lease_timeout
    )
    leases.begin(time.monotonic(), here.room)
    known = here.follower.progress()
    for name, what in known.damage.items():
        if name in leases.living():
            continue  # it is being written
        say(f"journal {name} is damaged: {what}; what it hit is processed again")
    for warning in [*frozen.warnings, *at_start(setting, environ)]:
        say(warning)
    settings = Settings(
        size=job.ranges.events or 0,
        range_seconds=job.ranges.seconds,
        max_attempts=job.ranges.max_attempts,
        grace=site.grace,
        margin=site.margin,
        silent=site.silent,
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
    dispatcher = Dispatcher(ledger, [file.start for file in axis.files], settings, axis.total)
    dispatcher.schema = known.schema
    # the file our batch script keeps is cheap to look at; asking Slurm itself would fork
    slurm_end = told_when_moved(EndTime(allocation, environ, time.time, interval=10.0), say)
    own_end = time.time() + setting.request.time if setting.request.time is not None else None

    def deadline() -> float | None:
        return min((t for t in (own_end, slurm_end()) if t is not None), default=None)

    if transport.size == 1 and not dispatcher.complete:
        say("this is the only rank: a run needs one Yoda and at least one Droid (mpiexec -n 2 or more)")
    metrics = Metrics(taskdir.metrics, frozen.task, allocation.name)
    run = Run(
        allocation.name,
        task_message(frozen, taskdir.indexes, setting.request.images),
        site.commit.seconds / 2,
        deadline,
        say,
        _each(plain_progress(sayer(log, SHOWN not in environ)), metrics),
    )
    if site.stageout:
        run.closing += site.stageout_rules.wait
    done = ledger.done
    keeper = Keeper(leases, here.room, here.heart, ledger)
    run.gap = min(run.gap, site.lease_timeout / 2)
    run.on_wake.append(lambda now: keeper.woken(now, dispatcher))
    run.every_tick.append(lambda now: keeper.tick(now, dispatcher))
    for step in keeper.first():
        journal.note(step.name, time=time.time(), **step.values)
    here.heart.set("working")
    say(
        f"task {frozen.task}: {axis.total} events, {done} done, {ledger.quarantined.total} quarantined, "
        f"{ledger.open} to do; allocation {allocation.name}, {transport.size - 1} Droids"
    )
    for name in leases.living():
        say(f"allocation {name} is at work on this task too")
    keeper.start()
    try:
        shell = MasterShell(transport, dispatcher, journal, run)
        code, reason = shell.run()
        metrics.write(dispatcher, 0.0)
    finally:
        keeper.stop()
    here.heart.rest("merging" if code in (OK, BAD_DATA) else "ended")
    ledger = dispatcher.ledger
    say(f"{reason}: {ledger.done} of {ledger.total} events done, {ledger.done - done} of them now")
    return code, shell


def _take_up(journal: JournalWriter, known: Progress, say: Callable[[str], None]) -> None:
    """Make quarantined events pending again (`--retry-quarantined`).

    The records go into this allocation's own journal: in a later one they would void what this one is going to do.
    """
    from eventrange import records
    from eventrange.records import Kind

    pairs = list(known.quarantined)
    if not pairs:
        return
    rows = records.new(len(pairs), kind=Kind.PENDING, time=time.time())
    rows["start"], rows["stop"] = [start for start, _ in pairs], [stop for _, stop in pairs]
    journal.append(rows)
    say(f"{known.quarantined.total} quarantined events are taken up again")
    known.quarantined = IntervalSet()


def after(prepared: Prepared, code: int, here: Presence | None = None) -> int:
    """What follows a run that completed its task: the merge, if the job asks for it and nobody else is at it."""
    if code not in (OK, BAD_DATA):
        return code
    if here is None:
        with _presence(prepared, os.environ) as here:
            return after(prepared, code, here)
    here.heart.forget = True
    if not prepared.setting.job.output.merge:
        here.room.sweep()
        return code
    here.heart.rest("merging")
    with here.room.merging(prepared.setting.site.lease_timeout) as other:
        if other is not None:
            print(f"task {prepared.frozen.task} is complete; allocation {other} merges it", flush=True)
            return code
        code = _merge(prepared, code)
    here.room.sweep()
    return code


def _merge(prepared: Prepared, code: int) -> int:
    from yoda.merging import MergeChoices, merge_task

    output = prepared.setting.job.output
    try:
        merged = merge_task(
            prepared.setting.taskdir,
            prepared.frozen,
            MergeChoices(output.compression, output.events_per_file),
            site=prepared.setting.site,
        )
    except (MergeIncomplete, StorageOffline) as error:
        print(f"yoda: {error}", file=sys.stderr)
        return error.exit_code
    folder = prepared.setting.taskdir.merged
    files = ", ".join(os.path.join(folder, name) for name in merged.files[:3])
    more = f" and {len(merged.files) - 3} more" if len(merged.files) > 3 else ""
    print(f"{merged.events} events of task {prepared.frozen.task} are in {files}{more}", flush=True)
    return code


def told_when_moved(end: Callable[[], float | None], say: Callable[[str], None]) -> Callable[[], float | None]:
    """The end of the allocation, which is told when it is first known and when it moved by more than a few seconds."""
    last: list[float] = []

    def look() -> float | None:
        now = end()
        if now is not None and not (last and abs(now - last[0]) < 10.0):
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
            say(f"this allocation ends at {when}" + (", not as was told before" if last else ""))
            last[:] = [now]
        return now

    return look


def _each(*steps: Callable[[Any, float], None]) -> Callable[[Any, float], None]:
    def progress(dispatcher: Any, lag: float) -> None:
        for step in steps:
            step(dispatcher, lag)

    return progress


def sayer(path: str, aloud: bool = True) -> Callable[[str], None]:
    """A function that logs a sentence, with the time, to the allocation's story and, if `aloud`, to stderr."""

    def say(text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {text}"
        if aloud:
            print(line, file=sys.stderr, flush=True)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "a") as file:
                file.write(line + "\n")
        except OSError:
            pass  # a full disk must not end the run that is trying to say so

    return say


def plain_progress(say: Callable[[str], None], every: float = 60.0) -> Callable[[Any, float], None]:
    """One plain line a minute."""
    state = {"next": time.monotonic() + every, "done": -1, "at": time.monotonic()}

    def progress(dispatcher: Any, lag: float) -> None:
        now = time.monotonic()
        ledger = dispatcher.ledger
        if state["done"] < 0:
            state["done"], state["at"] = ledger.done, now
        if now < state["next"]:
            return
        rate = (ledger.done - state["done"]) / (now - state["at"])
        workers = sum(d.workers for d in dispatcher.at_work)
        busy = sum(d.busy for d in dispatcher.at_work)
        eta = f"{ledger.open / rate:.0f} s" if rate > 0 else "unknown"
        say(
            f"{ledger.done}/{ledger.total} events, {rate:.1f} events/s, ETA {eta}, "
            f"{busy} of {workers} workers busy, commit lag {lag:.1f} s"
        )
        state.update(next=now + every, done=ledger.done, at=now)

    return progress
