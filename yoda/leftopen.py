"""What dead allocations left: which they are, segment files that were never sealed, and the records of the images.

And which segments matter at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange import records
from eventrange.history import JournalState, Story, done_records
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from stageout.catalogue import Catalogue, SegmentId, read_catalogue
from stageout.winners import winners
from yoda.leasedir import alive_files, overview

SILENT = 600.0  #: seconds without a heartbeat after which an allocation on another machine is taken to be dead here


@dataclass(frozen=True)
class Reading:
    """What the journals say now."""

    catalogue: Catalogue
    dead: set[str]  #: allocations nobody writes for any more, as far as can be told from here
    over: set[str]  #: those of which that is beyond doubt
    journals: dict[str, JournalState]
    ends: dict[SegmentId, int]  #: where the last image that has a record ends


def read(taskdir: TaskDir, fingerprint: str) -> Reading:
    """The catalogue, and whose notes will be no more."""
    names = set(taskdir.allocations())
    # Names before pulses, for an allocation has its pulse before its journal; pulses before journals, so that what we
    # read of a dead one is all there is.
    pulses = overview(taskdir)
    ended = {seen.allocation for seen in pulses if seen.state in ("ended", "dead")}
    silent = {seen.allocation for seen in pulses if seen.state == "silent" and seen.beat_age > SILENT}
    alive = {seen.allocation for seen in pulses} - ended - silent
    doubtful = (alive_files(taskdir) or set()) - ended  # one whose file cannot be read may live, too
    story = Story(taskdir, fingerprint)
    ends: dict[SegmentId, int] = {}
    catalogue = read_catalogue(_measured(story.whole(), ends))
    return Reading(catalogue, names - alive, names - silent - alive - doubtful, story.journals, ends)


def _measured(story: Iterable[tuple[str, Any]], ends: dict[SegmentId, int]) -> Iterator[tuple[str, Any]]:
    """The same story; `ends` takes how far images reach in each segment."""
    for allocation, entry in story:
        if not isinstance(entry, dict):
            rows = entry[(entry["kind"] == Kind.DONE) & (entry["size"] > 0)]
            keys, which = np.unique(rows["droid"].astype(np.uint64) << 32 | rows["segment"], return_inverse=True)
            last = np.zeros(len(keys), np.uint64)
            np.maximum.at(last, which, rows["offset"] + rows["size"])
            for key, end in zip(keys.tolist(), last.tolist(), strict=True):
                id = SegmentId(allocation, key >> 32, key & 0xFFFFFFFF)
                ends[id] = max(end, ends.get(id, 0))
        yield allocation, entry


def left_open(
    taskdir: TaskDir, allocation: str, catalogue: Catalogue, ends: Mapping[SegmentId, int]
) -> dict[SegmentId, str]:
    """The segment files of an allocation that were never sealed, nor staged, or in which there is more by now."""
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
        if known is None or not known.sealed or ends.get(id, 0) > known.end:
            out[id] = os.path.join(taskdir.segments(allocation), name)
    return out


def done_rows(taskdir: TaskDir, fingerprint: str, allocation: str) -> dict[tuple[int, int], NDArray[Any]]:
    """DONE records that have an image, of one allocation, by Droid and segment.

    Nothing while its journal cannot be read to the end, lest a part be sealed as all there is.
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
