"""`yoda merge`: from what the journals of a task say to its final files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange import records
from eventrange.errors import MergeIncomplete
from eventrange.history import Story, done_records, read_progress
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.segment import SegmentReader
from eventrange.taskdir import TaskDir
from stageout.merge import Merged, merge
from stageout.winners import winners
from yoda.task import Frozen


@dataclass(frozen=True)
class MergeChoices:
    """Keys of the job that decide the final files."""

    compression: str = "gzip"
    events_per_file: int | None = None
    partial: bool = False
    folder: str | None = None  #: None: `merged` in the task directory


def payload_notes(taskdir: TaskDir, fingerprint: str) -> dict[str, Any]:
    """What the Droids said of the payload: `jagged` fields and `versions` of what it ran on (of the first to say)."""
    found: dict[str, Any] = {}
    for _, entry in Story(taskdir, fingerprint):
        if isinstance(entry, dict) and entry.get("note") == "payload" and not found:
            found = entry
    return found


def merge_task(
    taskdir: TaskDir,
    frozen: Frozen,
    choices: MergeChoices,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Merge a task. Images that turn out damaged or missing are made pending again in a journal of their own, then
    MergeIncomplete is raised: `yoda run` processes just those events, and the next merge completes."""
    fingerprint = frozen.fingerprint
    rows, allocation, names = done_records(taskdir, fingerprint)
    placed = winners(rows, allocation)
    known = read_progress(taskdir, fingerprint)
    total = sum(file.events for file in frozen.inputs.files) if frozen.inputs.files else int(frozen.inputs.events or 0)
    payload = payload_notes(taskdir, fingerprint)
    reader = SegmentReader()
    quarantined = np.array(list(known.quarantined), np.int64).reshape(-1, 2)

    def fetch(row: Any) -> bytes:
        path = taskdir.segment(names[int(row["allocation"])], int(row["droid"]), int(row["segment"]))
        return reader.read(path, int(row["offset"]), int(row["size"]), int(row["checksum"]))

    try:
        return merge(
            placed,
            fetch,
            choices.folder or taskdir.merged,
            frozen.task,
            total,
            fingerprint=fingerprint,
            attributes={"task": frozen.task, "fingerprint": fingerprint, "seed": frozen.seed},
            quarantined=quarantined,
            compression=choices.compression,
            events_per_file=choices.events_per_file,
            jagged=payload.get("jagged", ()),
            partial=choices.partial,
            progress=progress,
        )
    except MergeIncomplete as error:
        damaged = error.values.get("damaged")
        if damaged is not None and len(damaged):
            make_pending(taskdir, fingerprint, damaged["keep_start"], damaged["keep_stop"], "images damaged or missing")
        raise


def make_pending(taskdir: TaskDir, fingerprint: str, starts: NDArray[Any], stops: NDArray[Any], reason: str) -> str:
    """Write a journal that takes [starts, stops) up again; returns its allocation name."""
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"{int(now * 1000) % 1000:03d}Z"
    name = f"{stamp}-pending-{os.getpid()}"
    journal = JournalWriter(taskdir.journal(name), fingerprint, name, created=now)
    rows = records.new(len(starts), kind=Kind.PENDING, time=now)
    rows["start"], rows["stop"] = starts, stops
    journal.append(rows)
    journal.note("pending", time=now, reason=reason, events=int((stops - starts).sum()))
    journal.flush()
    journal.file.sync()
    journal.file.close()
    return name
