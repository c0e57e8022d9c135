"""A task that is ready to be worked on: its directory made or opened, its inputs counted, its journals folded."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from eventrange.errors import BAD_DATA, OK, RangesDamaged
from eventrange.taskdir import TaskDir
from yoda.frozen import Frozen
from yoda.setting import Setting

if TYPE_CHECKING:  # our launcher does without them, and without numpy, unless a task may be complete
    from eventrange.axis import Axis
    from eventrange.history import Progress
    from eventrange.ledger import Ledger
    from yoda.keeper import Presence

END_NOTE = 4096  #: bytes at the end of a journal that hold its `end` note
_LEFT = re.compile(rb'\{"note":"end",.*"done":(\d+),"quarantined":(\d+),"total":(\d+)')


@dataclass(frozen=True)
class Prepared:
    """A task that is ready to be worked on."""

    setting: Setting
    frozen: Frozen

    @cached_property
    def axis(self) -> Axis:
        from eventrange.axis import Axis

        return Axis.from_dict(self.frozen.axis)

    @property
    def total(self) -> int:
        return self.axis.total


def prepare(setting: Setting) -> Prepared:
    """Open or make the task directory; count and index the inputs if that has not been done."""
    if setting.frozen is not None:
        return Prepared(setting, msgspec.msgpack.decode(setting.frozen, type=Frozen))
    from yoda.task import open_task

    def plan() -> dict[str, Any]:
        from yoda.sources import axis_of

        cores = len(os.sched_getaffinity(0))
        return axis_of(setting.job, setting.taskdir.indexes, cores, refuse_changed=False).to_dict()

    frozen = open_task(setting.taskdir, setting.job, plan)
    prepared = Prepared(setting, frozen)
    if frozen.axis.get("ranges") is not None:  # the rest of the axis needs no file of its own
        try:
            _ = prepared.axis
        except RangesDamaged:  # it can be made again, from a file that has not changed
            if plan()["ranges"] != frozen.axis["ranges"]:
                raise
    return prepared


def ledger_of(total: int, known: Progress) -> Ledger:
    """The ledger of a task of `total` events of which the journals know `known`."""
    from eventrange.intervals import IntervalSet
    from eventrange.ledger import Ledger, Retry

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
    from eventrange.history import read_progress

    known = read_progress(prepared.setting.taskdir, prepared.frozen.fingerprint)
    if ledger_of(prepared.total, known).open:
        return None
    if known.quarantined:
        return None if prepared.setting.request.retry_quarantined else BAD_DATA
    return OK


def may_be_finished(taskdir: TaskDir) -> bool:
    """Whether some allocation said at its end that all events were done or given up. If all were killed or drained
    before, folding their journals can wait for rank 0, which does it anyway: this costs no numpy."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = taskdir.allocations()
    for name in reversed(names):
        with contextlib.suppress(OSError), open(taskdir.journal(name), "rb", opener=_at_once) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - END_NOTE))
            tail = file.read()
            left = _LEFT.search(tail)
            if left is not None and int(left[1]) + int(left[2]) >= int(left[3]):
                return True
            if b'{"note":"merg' in tail:  # `merging` and `merged` follow the end; a long merge writes many
                return True
    return False


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for somebody at the other end, should `path` be a pipe (seeking in it is refused then)."""
    return os.open(path, flags | os.O_NONBLOCK)


def presence(prepared: Prepared, environ: Mapping[str, str]) -> AbstractContextManager[Presence]:
    """Read what this allocation is, and be seen by others. Before MPI starts: it may ask Slurm."""
    from slurm.commands import run_command
    from slurm.environment import read_allocation
    from yoda.keeper import present

    taskdir, timeout = prepared.setting.taskdir, prepared.setting.site.lease_timeout
    allocation = read_allocation(environ, taskdir.after(time.time()), socket.gethostname(), os.getpid())
    return present(taskdir, prepared.frozen.fingerprint, allocation, timeout, run_command)
