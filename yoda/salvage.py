"""What becomes of a segment with images that no place has whole: the others move, the lost ones are made again.

A journal of its own says it all, in this order: PENDING for every event of the damaged segments that counted until now,
then DONE, at their new place, for those whose image could be read. The new segment is on disk before the journal is.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange import records
from eventrange.axis import Axis
from eventrange.durable import explain
from eventrange.errors import ImageDamaged
from eventrange.records import Kind
from eventrange.segment import SegmentWriter, member_name, writer
from stageout.source import Images
from yoda.stageout import command_journal, command_name

LARGEST = 1 << 30  # bytes of a new segment


@dataclass(frozen=True)
class Salvaged:
    """`allocation` names the journal; events and images that moved, events that are pending now."""

    allocation: str
    images: int
    events: int
    pending: int


def salvage(
    images: Images, task: str, fingerprint: str, bad: NDArray[Any], axis: Axis | None = None, move: bool = True
) -> Salvaged:
    """`bad` are rows of PLACED that could not be read anywhere; the others of their segments are moved, but not with
    `move` False, since nobody has looked at them. `axis` knows what images are called where someone else named ranges.

    Raises CannotWrite; then nothing has changed.
    """
    placed = images.placed
    same = np.zeros(len(placed), np.bool_)
    for allocation, droid, segment in np.unique(bad[["allocation", "droid", "segment"]]).tolist() if move else ():
        same |= (placed["allocation"] == allocation) & (placed["droid"] == droid) & (placed["segment"] == segment)
    wanted = placed[same & (placed["size"] > 0) & ~np.isin(placed["keep_start"], bad["keep_start"])]
    wanted = wanted[np.argsort(wanted["start"], kind="stable")]
    taskdir, now = images.taskdir, time.time()
    name = command_name(taskdir, "salvage")
    folder = taskdir.segments(name)
    lost, moved, notes = [bad], [], []
    out: SegmentWriter | None = None
    number = -1
    for row in wanted:
        try:
            data = images.fetch(row)
        except ImageDamaged:
            lost.append(row.reshape(1))
            continue
        if out is None or out.size > LARGEST:
            if out is not None:
                notes.append(_seal(out, number))
            number += 1
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                raise explain(error, folder) from error
            out = writer(taskdir.segment(name, 0, number, "tar"))
        new = records.new(1, kind=Kind.DONE, droid=0, segment=number, time=now, size=row["size"])
        new["start"], new["stop"], new["checksum"] = row["start"], row["stop"], row["checksum"]
        start, stop = int(row["start"]), int(row["stop"])
        called = member_name(task, start + 1, stop) if axis is None else axis.member(task, start, stop)
        new["offset"] = out.append(called, data, int(row["checksum"]))
        moved.append((row, new))
    if out is not None:
        notes.append(_seal(out, number))
    gone = np.concatenate(lost)
    voided = np.concatenate((gone, *(row.reshape(1) for row, _ in moved)))
    pending = records.new(len(voided), kind=Kind.PENDING, time=now)
    pending["start"], pending["stop"] = voided["keep_start"], voided["keep_stop"]
    journal = command_journal(taskdir, fingerprint, name)
    journal.append(pending)
    if moved:
        journal.append(np.concatenate([new for _, new in moved]))
    for note in notes:
        journal.note("sealed", time=now, **note)
    count = int((gone["keep_stop"] - gone["keep_start"]).sum())
    events = sum(int(row["keep_stop"] - row["keep_start"]) for row, _ in moved)
    journal.note("salvaged", time=now, pending=count, images=len(moved), events=events)
    journal.flush()
    journal.file.sync()
    journal.file.close()
    return Salvaged(name, len(moved), events, count)


def _seal(out: SegmentWriter, number: int) -> dict[str, Any]:
    done = out.seal()
    sums = {"size": done.size, "adler32": f"{done.adler32:08x}", "sha256": done.sha256}
    return {"droid": 0, "segment": number, **sums, "members": done.members}
