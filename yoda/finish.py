"""What follows a run that completed its task: the merge, by one of those who could do it; and `yoda merge` by hand."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from eventrange.errors import BAD_DATA, OK, MergeBusy, MergeIncomplete, StorageOffline
from eventrange.taskdir import TaskDir
from yoda.prepared import Prepared, presence

if TYPE_CHECKING:
    from eventrange.journal import JournalWriter
    from stageout.merge import Merged
    from yoda.frozen import Frozen
    from yoda.keeper import Presence
    from yoda.merging import MergeChoices
    from yoda.schema import Site


def after(prepared: Prepared, code: int, here: Presence | None = None, journal: JournalWriter | None = None) -> int:
    """What follows a run that completed its task: the merge, if the job asks for it and nobody else is at it.

    `journal` is the allocation's own, if it has one: it is told of the merge.
    """
    if code not in (OK, BAD_DATA):
        return code
    if here is None:
        with presence(prepared, os.environ) as here:
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
        code = _merge(prepared, code, journal)
    here.room.sweep()
    return code


def _merge(prepared: Prepared, code: int, journal: JournalWriter | None) -> int:
    from yoda.merge_notes import MergeNotes
    from yoda.merging import MergeChoices, merge_task

    output = prepared.setting.job.output
    try:
        with MergeNotes(journal) as notes:
            merged = merge_task(
                prepared.setting.taskdir,
                prepared.frozen,
                MergeChoices(output.compression, output.events_per_file),
                notes.progress,
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


def by_hand(
    taskdir: TaskDir,
    frozen: Frozen,
    choices: MergeChoices,
    environ: Mapping[str, str],
    site: Site | None,
    say: Callable[[str], None],
) -> Merged:
    """`yoda merge`: into the task's own folder only if nobody else is at it, into another file at any time.

    Raises MergeBusy if somebody is, what `merge_task` raises, and StorageOffline. Where nobody can tell at once whether
    the owner of the right to merge lives, it is watched for `lease_timeout` of the site, a minute by default.
    """
    from slurm.commands import run_command
    from slurm.environment import read_allocation
    from yoda.keeper import present
    from yoda.merging import merge_task
    from yoda.schema import Site

    if choices.output is not None:
        return merge_task(taskdir, frozen, choices, site=site, say=say)
    timeout = (site or Site()).lease_timeout
    me = read_allocation(environ, time.time(), socket.gethostname(), os.getpid())
    with present(taskdir, frozen.fingerprint, me, timeout, run_command) as here:
        here.heart.forget = True
        here.heart.rest("merging")
        with here.room.merging(timeout) as other:
            if other is not None:
                who = here.room.identity(other)
                pid, host = (who.pid, who.host) if who else ("unknown", "another machine")
                raise MergeBusy(task=taskdir.root, allocation=other, pid=pid, host=host)
            return merge_task(taskdir, frozen, choices, site=site, say=say)
