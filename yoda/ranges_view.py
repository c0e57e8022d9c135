"""`yoda ranges`: what has become of every range that someone else named, for them to take up.

One row per range, in axis order: its name, where its events are, how many are done, and in which members of which
segments their images lie. A range that was finished in one go is one member, `TASK.<name>`, also where parts of it were
done elsewhere at the same time; one that was interrupted is several, `TASK.<name>.FIRST-LAST`.

Rows are made while they are written: ten million need no more memory than the journals' records of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange.axis import Axis
from eventrange.errors import ConfigError
from eventrange.history import done_records, read_progress
from eventrange.interval_arrays import covered
from eventrange.named import NamedRanges
from eventrange.taskdir import TaskDir
from stageout.catalogue import Catalogue, SegmentId
from stageout.winners import winners
from yoda.frozen import Frozen
from yoda.merging import read_notes

VERSION = 1
COLUMNS = {
    "range": "what it was called",
    "group": "the PandaID under which it stood; empty if under none",
    "file": "the input file",
    "first": "first event in that file, counted from 1",
    "last": "last event, included",
    "events": "how many",
    "done": "how many of them are done",
    "state": "done; failed: some are quarantined, and all others done; begun; open",
    "members": "its images: name in the archive, archive, whether that is sealed, offset, size and crc32 of the image",
}
_SLICE = 1 << 14  # ranges looked at together


class RangesView:
    """The ranges of one task as its journals know them. Raises ConfigError where nobody named any."""

    def __init__(self, taskdir: TaskDir, frozen: Frozen) -> None:
        self.taskdir, self.task = taskdir, frozen.task
        self.axis = Axis.from_dict(frozen.axis)
        if self.axis.ranges is None:
            hint = "yoda status, yoda explain and yoda journal tell of the ranges that Yoda made itself"
            raise ConfigError(
                file=taskdir.root, key="ranges.file", detail="nobody named ranges for this task", hint=hint
            )
        self.ranges: NamedRanges = self.axis.ranges
        self.fingerprint = frozen.fingerprint
        self.done, self.allocation, self.names = done_records(taskdir, frozen.fingerprint)
        self.placed = winners(self.done, self.allocation)
        quarantined = read_progress(taskdir, frozen.fingerprint).quarantined
        self._bad = np.array(quarantined.starts, np.int64), np.array(quarantined.stops, np.int64)
        self.catalogue: Catalogue = read_notes(taskdir, frozen.fingerprint)[1]
        self._sealed = {known.path(taskdir): known for known in self.catalogue.segments.values() if known.sealed}

    def rows(self, numbers: NDArray[Any] | None = None) -> Iterator[dict[str, Any]]:
        """One dict per range with the keys of COLUMNS: all in axis order, or those of `numbers`."""
        chosen = np.arange(self.ranges.count) if numbers is None else numbers
        for at in range(0, len(chosen), _SLICE):
            some = chosen[at : at + _SLICE]
            starts, stops = self.ranges.at[some], self.ranges.at[some + 1]
            low = np.searchsorted(self.placed["keep_start"], starts).tolist()
            high = np.searchsorted(self.placed["keep_start"], stops).tolist()
            bad = covered(starts, stops, *self._bad).tolist()
            for number, start, stop, first, last, lost in zip(
                some.tolist(), starts.tolist(), stops.tolist(), low, high, bad, strict=True
            ):
                yield self._row(number, start, stop, self.placed[first:last], lost)

    def _row(self, number: int, start: int, stop: int, images: NDArray[Any], lost: int) -> dict[str, Any]:
        done = int((images["keep_stop"] - images["keep_start"]).sum())
        ((file, low, high),) = self.axis.pieces(start, stop)
        members = _fewest(images, start, stop)
        states = {stop - start: "done", 0: "open"}
        return {
            "range": self.ranges.name(number),
            "group": self.ranges.group(number),
            "file": self.axis.files[file].name,
            "first": low + 1,
            "last": high,
            "events": stop - start,
            "done": done,
            "state": "failed" if lost and done + lost == stop - start else states.get(done, "begun"),
            "members": [self._member(image) for image in members[members["size"] > 0]],
        }

    def pieces(self, start: int, stop: int) -> NDArray[Any]:
        """Rows of PLACED that hold the events of a range."""
        low, high = np.searchsorted(self.placed["keep_start"], (start, stop))
        return self.placed[low:high]

    def images(self, start: int, stop: int) -> NDArray[Any]:
        """Rows of PLACED that together are the image of a range: one where one has all of it."""
        return _fewest(self.pieces(start, stop), start, stop)

    def whole_archive(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """What Harvester is told of the archive with the image of a range; None where it is not one member of a sealed
        archive that is here, and stays here: Harvester comes for it minutes later."""
        if self.catalogue.rules.get("delete_local"):
            return None
        if len(row["members"]) != 1 or not row["members"][0]["sealed"]:
            return None
        path = row["members"][0]["archive"]
        known = self._sealed.get(path)
        if known is None or not os.path.exists(path):
            return None
        return {"path": path, "type": "zip_output", "fsize": known.size, "chksum": f"{known.adler32:08x}"}

    def _member(self, image: Any) -> dict[str, Any]:
        id = self.segment(image)
        known = self.catalogue.segments.get(id)
        return {
            "member": self.axis.member(self.task, int(image["start"]), int(image["stop"])),
            "archive": known.path(self.taskdir) if known is not None else self.taskdir.segment(*id),
            "sealed": known is not None and known.sealed,
            "offset": int(image["offset"]),
            "size": int(image["size"]),
            "checksum": f"{int(image['checksum']):08x}",
        }

    def segment(self, image: Any) -> SegmentId:
        """Where a row of PLACED lies."""
        return SegmentId(self.names[int(image["allocation"])], int(image["droid"]), int(image["segment"]))


def _fewest(images: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """Of the images that hold the events of a range: the one that has all, where there is one (L3: any will do)."""
    whole = images[(images["start"] == start) & (images["stop"] == stop)][:1].copy()
    whole["keep_start"], whole["keep_stop"] = start, stop
    return whole if len(whole) else images


def json_lines(view: RangesView) -> Iterator[str]:
    """One JSON object per line; first one with `version` and the meaning of every key."""
    yield json.dumps({"version": VERSION, "columns": COLUMNS})
    yield from map(json.dumps, view.rows())


def text_lines(view: RangesView) -> Iterator[str]:
    """One line per range for people."""
    for row in view.rows():
        line = f"{row['range']}  {row['file']}:{row['first']}-{row['last']}  {row['state']}"
        if row["state"] in ("begun", "failed"):
            line += f", {row['done']} of {row['events']} events done"
        if len(row["members"]) > 1:
            line += f", in {len(row['members'])} parts"
        yield line
