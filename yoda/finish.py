"""What follows a run that completed its task: the merge, by one of those who could do it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from eventrange.errors import BAD_DATA, OK, MergeIncomplete, StorageOffline
from yoda.prepared import Prepared, presence

if TYPE_CHECKING:
    from eventrange.journal import JournalWriter
    from yoda.keeper import Presence


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
