"""What dead allocations left open: segment files that were never sealed, and the records of the images in them.

And which segments matter at all.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange import records
from eventrange.history import Story, done_records
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from stageout.catalogue import Catalogue, SegmentId
from stageout.winners import winners


def left_open(taskdir: TaskDir, allocation: str, catalogue: Catalogue) -> dict[SegmentId, str]:
    """The segment files of an allocation that were never sealed, nor staged."""
    try:
        names = sorted(os.listdir(taskdir.segments(allocation)))
    except OSError:
        return {}
    out = {}
    for name in names:
        root, extension = os.path.splitext(name)
        droid, _, number = root.partition("-")
        if extension not in (".tar", ".zip") or not (droid.isdigit() and number.isdigit()):
            continue
        id = SegmentId(allocation, int(droid), int(number))
        known = catalogue.segments.get(id)
        if known is None or not known.sealed:
            out[id] = os.path.join(taskdir.segments(allocation), name)
    return out


def done_rows(taskdir: TaskDir, fingerprint: str, allocation: str) -> dict[tuple[int, int], NDArray[Any]]:
    """DONE records that have an image, of one allocation, by Droid and segment.

    None while its journal cannot be read to the end, lest a part be sealed as all there is.
    """
    found, story = [], Story(taskdir, fingerprint, {allocation})
    for _, entry in story.whole():
        if not isinstance(entry, dict):
            found.append(entry[(entry["kind"] == Kind.DONE) & (entry["size"] > 0)])
    if any(state.error for state in story.journals.values()):
        return {}
    rows: NDArray[Any] = np.concatenate(found) if found else records.new(0)
    keys = np.unique(rows[["droid", "segment"]])
    return {
        (int(droid), int(number)): rows[(rows["droid"] == droid) & (rows["segment"] == number)]
        for droid, number in keys.tolist()
    }


def counting(taskdir: TaskDir, fingerprint: str) -> set[SegmentId]:
    """The segments with images that a merge takes; the others have been superseded."""
    rows, allocation, names = done_records(taskdir, fingerprint)
    placed = winners(rows, allocation)
    keys = np.unique(placed[placed["size"] > 0][["allocation", "droid", "segment"]])
    return {SegmentId(names[number], droid, segment) for number, droid, segment in keys.tolist()}
