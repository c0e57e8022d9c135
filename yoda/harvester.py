"""`yoda ranges TASK --harvester FILE`: the ranges that are done and have failed, for PanDA's Harvester to take up.

FILE is `event_status.dump.json` in the worker's access point, as Harvester's shared-file messenger reads it:

    {"<PandaID>": [{"eventRangeID", "eventStatus": "finished", "path", "type": "zip_output", "fsize", "chksum"},
                   {"eventRangeID", "eventStatus": "failed"}]}

Harvester wants one member `<anything>.<eventRangeID>` in one archive for each range. Most images are that already, in a
sealed segment. The others (parts of ranges that were interrupted, images in a segment that was never sealed, is only
on storage any more, or is deleted once it is there) are gathered, parts joined, in an archive beside FILE, and go with
the access point.

Harvester renames what it has taken to FILE.read and FILE.read.<time>. These are the only book that is kept: what stands
there is not reported again, and while FILE itself is there, nothing is.

A range whose image has to be gathered and cannot be read is left out, and holds nobody else up. If no place has the
image whole, its events become pending: the next run makes them again, and then it is reported.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from eventrange import image
from eventrange.durable import explain, write_file
from eventrange.errors import ConfigError, HarvesterBusy, ImageDamaged
from eventrange.segment import Sealed, SegmentWriter, checksum, writer
from stageout.layout import joined_images, layouts_of
from stageout.source import Images
from stageout.winners import instead
from yoda.merging import may_be_away, moved_meanwhile, open_images
from yoda.ranges_view import RangesView
from yoda.salvage import salvage

FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class Dumped:
    """What was reported: ranges finished, failed, and how many of the finished are in an archive beside the dump. What
    was not: ranges left out since their images cannot be read, `why`, and how many events are pending for that."""

    finished: int
    failed: int
    gathered: int
    left_out: int = 0
    pending: int = 0
    why: str = ""

    def __str__(self) -> str:
        text = f"{self.finished} ranges finished ({self.gathered} gathered beside the report), {self.failed} failed"
        if self.left_out:
            then = f"{self.pending} events are pending again" if self.pending else "run the same command again"
            text += f"; {self.left_out} cannot be read and are left out ({self.why}): {then}"
        return text


def dump(view: RangesView, path: str, attributes: dict[str, Any], panda_id: str = "") -> Dumped:
    """Report what Harvester does not know yet in the file at `path`; writes none where there is nothing.

    `attributes` are those of the task's images; `panda_id` stands for ranges that were listed under none. Raises
    HarvesterBusy where the last report has not been taken, ConfigError, CannotWrite.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path):
        raise HarvesterBusy(path=path)
    known = _reported(path)
    found: dict[str, list[dict[str, Any]]] = {}
    archive = f"{path.removesuffix('.json')}.{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.tar"
    gatherer = _Gatherer(view, archive, attributes)
    count = {FINISHED: 0, FAILED: 0}

    def told(number: int, row: dict[str, Any]) -> bool:
        """Add a range to the report; False if its image cannot be read."""
        entry = {"eventRangeID": row["range"], "eventStatus": FINISHED if row["state"] == "done" else FAILED}
        if row["state"] == "done" and row["members"]:
            where = view.whole_archive(row) or gatherer.take(number)
            if where is None:
                return False
            entry |= where
        group = row["group"] or panda_id
        if not group:
            hint = "give the PandaID with --panda-id, or list the ranges as {PandaID: [...]}"
            detail = f"{row['range']} was listed under no PandaID"
            raise ConfigError(file=view.taskdir.root, key="ranges.file", detail=detail, hint=hint)
        count[entry["eventStatus"]] += 1
        found.setdefault(group, []).append(entry)
        return True

    with closing(gatherer):
        new = ((n, row) for n, row in enumerate(view.rows()) if row["state"] in ("done", "failed"))
        left = [(number, row) for number, row in new if row["range"] not in known and not told(number, row)]
        while left and gatherer.others():
            left = [(number, row) for number, row in left if not told(number, row)]
        sealed = gatherer.seal()
        if sealed is not None:
            about = {"fsize": sealed.size, "chksum": f"{sealed.adler32:08x}"}
            for entry in (entry for entries in found.values() for entry in entries if entry.get("path") == archive):
                entry |= about
        if found:
            write_file(path, json.dumps(found).encode())
        pending = gatherer.give_up() if left else 0
    return Dumped(count[FINISHED], count[FAILED], gatherer.count, len(left), pending, gatherer.why)


def _reported(path: str) -> set[str]:
    """Names of the ranges in what Harvester has taken."""
    found: set[str] = set()
    for name in glob.glob(glob.escape(path) + ".read*"):
        with suppress(OSError, msgspec.MsgspecError, AttributeError, TypeError, KeyError), open(name, "rb") as file:
            for entries in msgspec.json.decode(file.read()).values():
                found |= {entry["eventRangeID"] for entry in entries}
    return found


class _Gatherer:
    """An archive of images that are no member of a sealed one, made when there is the first. `why` says what is wrong
    with the first that could not be read."""

    def __init__(self, view: RangesView, path: str, attributes: dict[str, Any]) -> None:
        self.view, self.path, self.attributes = view, path, attributes
        self.count = 0
        self.why = ""
        self._out: SegmentWriter | None = None
        self._images: Images | None = None
        self._bad: list[NDArray[Any]] = []  # rows of PLACED that could not be read since `others` was asked
        self._spoilt = view.placed[:0]  # those before

    @property
    def images(self) -> Images:
        if self._images is None:
            view = self.view
            self._images = open_images(view.taskdir, view.names, view.placed, view.catalogue)
        return self._images

    def take(self, number: int) -> dict[str, Any] | None:
        """Add the image of a range; returns what the dump says of it, but for size and checksum of the archive. None if
        it cannot be read."""
        view = self.view
        start, stop = view.ranges.bounds(number)
        try:
            data = _whole(self.images, view, start, stop, self.attributes)
        except ImageDamaged as error:
            self.why = self.why or str(error).splitlines()[0]
            pieces = view.pieces(start, stop)
            self._bad.append(pieces[[not _readable(self.images, row) for row in pieces]])
            return None
        if self._out is None:
            try:
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
            except OSError as error:
                raise explain(error, os.path.dirname(self.path)) from error
            self._out = writer(self.path)
        self._out.append(view.axis.member(view.task, start, stop), data, checksum(data))
        self.count += 1
        return {"path": self.path, "type": "zip_output"}

    def others(self) -> bool:
        """Whether there are other images of the events of those that could not be read: they are used from now on."""
        if not any(map(len, self._bad)):
            return False
        self._spoilt = np.concatenate((self._spoilt, *self._bad))
        found = instead(self.view.done, self.view.allocation, self.view.placed, self._spoilt)
        if found is None:
            return False
        self._bad = []
        self.view.placed = found
        self.images.replace(found)
        return True

    def give_up(self) -> int:
        """Make pending the events whose images no place has whole; returns how many."""
        bad = np.concatenate(self._bad)
        lost = bad[~may_be_away(self.images, self._spoilt, bad)]
        if not len(lost) or moved_meanwhile(self.images, self.view.fingerprint, lost):
            return 0
        return salvage(self.images, self.view.task, self.view.fingerprint, lost, move=False).pending

    def seal(self) -> Sealed | None:
        """Finish the archive, if there is one."""
        out, self._out = self._out, None
        return out.seal() if out is not None else None

    def close(self) -> None:
        if self._out is not None:  # broken off: nobody will hear of it
            self._out.close()
            os.unlink(self.path)
        if self._images is not None:
            self._images.close()


def _whole(images: Images, view: RangesView, start: int, stop: int, attributes: dict[str, Any]) -> bytes:
    """The image of a range, as if it had been done in one go."""
    rows = view.images(start, stop)
    if len(rows) == 1 and (rows[0]["start"], rows[0]["stop"]) == (start, stop):
        return images.fetch(rows[0])
    parts = list(_kept(images, rows))
    names = frozenset(name for part in parts for name in part.fields)
    schema = image.schema_of_image(parts[0])
    one = joined_images(layouts_of(parts[0], names), schema, parts)
    return image.build_columns(one.positions, one.fields, attributes)


def _readable(images: Images, row: Any) -> bool:
    try:
        image.read(images.fetch(row))
    except ImageDamaged:
        return False
    return True


def _kept(images: Images, rows: Any) -> Iterator[image.Image]:
    for row in rows:
        found = image.read(images.fetch(row))
        first = int(row["start"])
        yield found.select(slice(int(row["keep_start"]) - first, int(row["keep_stop"]) - first))
