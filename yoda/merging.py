"""`yoda merge`: from what the journals of a task say to its final files."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eventrange.axis import Axis
from eventrange.errors import ConfigError, MergeIncomplete, StorageOffline
from eventrange.history import Story, done_records, read_progress
from eventrange.memory import keep_freed
from eventrange.taskdir import TaskDir
from stageout.catalogue import Catalogue, SegmentId
from stageout.merge import Merged, merge
from stageout.source import Images
from stageout.winners import instead, winners
from yoda.frozen import Frozen
from yoda.salvage import salvage
from yoda.stageout import storage_of

if TYPE_CHECKING:
    from stageout.endpoint import Endpoint

FIRST_PAUSE, LAST_PAUSE = 5.0, 300.0  #: seconds between tries while storage is down
READERS = 8  #: threads that read images where they come over the network


@dataclass(frozen=True)
class MergeChoices:
    """Keys of the job that decide the final files."""

    compression: str = "gzip"
    events_per_file: int | None = None
    partial: bool = False
    output: str | None = None  #: file to write, or a folder there is; None: `merged` in the task directory
    wait: float = 0.0  #: seconds to go on trying while storage is down


def read_notes(taskdir: TaskDir, fingerprint: str) -> tuple[dict[str, Any], Catalogue]:
    """What the Droids said of the payload, `jagged` fields and `versions` of what it ran on (of the first to say); and
    where the segments are."""
    found: dict[str, Any] = {}
    catalogue = Catalogue()
    for name, entry in Story(taskdir, fingerprint):
        if isinstance(entry, dict):
            catalogue.add(name, entry)
            if entry.get("note") == "payload" and not found:
                found = entry
    return found, catalogue


def merge_task(
    taskdir: TaskDir,
    frozen: Frozen,
    choices: MergeChoices,
    progress: Callable[[int, int], None] | None = None,
    site: Any = None,
    say: Callable[[str], None] = lambda text: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Merged:
    """Merge a task from wherever its images are; `site` (yoda.schema.Site) tells of endpoints, else the last run does.

    Images that no place has whole are made pending again, their neighbours are moved (yoda/salvage.py), then
    MergeIncomplete is raised: `yoda run` processes just those events, and the next merge completes. Where storage is
    down it is tried again for `choices.wait` seconds, with back-off, then StorageOffline is raised; nothing becomes
    pending for that, nor because a stage-out beside the merge has moved images.
    """
    keep_freed()
    until, pause = time.monotonic() + choices.wait, FIRST_PAUSE
    while True:
        try:
            merged = _merge_once(taskdir, frozen, choices, progress, site, say)
            if merged is not None:
                return merged
        except StorageOffline as error:
            left = until - time.monotonic()
            if left <= 0:
                raise
            wait = min(pause * random.uniform(0.75, 1.25), left)
            say(f"{str(error).splitlines()[0]}; trying again in {wait:.0f} s")
            sleep(wait)
            pause = min(2 * pause, LAST_PAUSE)


def where(output: str | None, taskdir: TaskDir, task: str) -> tuple[str, str | None]:
    """(folder, name of the file in it) that `yoda merge -o` names; None is the name in the task's own folder."""
    if output is None:
        return taskdir.merged, None
    if os.path.isdir(output) or output.endswith(os.sep):
        return output, f"{task}.h5"
    folder, file = os.path.split(output)
    return folder or os.curdir, file


def open_images(
    taskdir: TaskDir, names: list[str], placed: NDArray[Any], catalogue: Catalogue, site: Any = None
) -> Images:
    """The images of a task; endpoints are opened when something is not in the task directory."""

    def endpoints() -> list[Endpoint]:
        from stageout.opening import open_endpoint

        try:
            return [open_endpoint(one) for one in storage_of(taskdir, catalogue, site).endpoints]
        except ConfigError:
            return []

    return Images(taskdir, names, placed, catalogue, endpoints)


def moved_meanwhile(images: Images, fingerprint: str, rows: NDArray[Any]) -> bool:
    """Whether copies of the segments of `rows` (PLACED) have been made or given up since the catalogue was read. Who
    deletes one, beside us, has noted before where the others are: what cannot be read is lost only if this is False."""
    if not len(rows):
        return False

    def copies(catalogue: Catalogue, id: SegmentId) -> Any:
        known = catalogue.segments.get(id)
        return known and (known.copies, known.partial, known.file)

    now = read_notes(images.taskdir, fingerprint)[1]
    return any(copies(now, id) != copies(images.catalogue, id) for id in {images.id_of(row) for row in rows})


def may_be_away(images: Images, spoilt: NDArray[Any], damaged: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of `damaged` share events with an image that may be whole where we cannot look now; `spoilt` are all that
    could not be read."""
    near = spoilt[_touch(spoilt, damaged)]
    away = near[[(images.id_of(row), int(row["offset"])) in images.away for row in near]]
    return _touch(damaged, away)


def _merge_once(
    taskdir: TaskDir,
    frozen: Frozen,
    choices: MergeChoices,
    progress: Callable[[int, int], None] | None,
    site: Any,
    say: Callable[[str], None],
) -> Merged | None:
    """None: to be done again, since images were moved meanwhile."""
    fingerprint = frozen.fingerprint
    rows, allocation, names = done_records(taskdir, fingerprint)
    placed = winners(rows, allocation)
    known = read_progress(taskdir, fingerprint)
    total = sum(file["events"] for file in frozen.axis["files"])
    payload, catalogue = read_notes(taskdir, fingerprint)
    folder, file = where(choices.output, taskdir, frozen.task)
    quarantined = np.array(list(known.quarantined), np.int64).reshape(-1, 2)
    far = any(known.copies and not known.local for known in catalogue.segments.values())
    with closing(open_images(taskdir, names, placed, catalogue, site)) as images:

        def once(placed: NDArray[Any]) -> Merged:
            return merge(
                placed,
                images.fetch,
                folder,
                frozen.task,
                total,
                fetch_many=images.fetch_many,
                file=file,
                fingerprint=fingerprint,
                attributes={"task": frozen.task, "fingerprint": fingerprint, "seed": frozen.seed},
                quarantined=quarantined,
                compression=choices.compression,
                events_per_file=choices.events_per_file,
                jagged=payload.get("jagged", ()),
                partial=choices.partial,
                readers=READERS if far else 1,
                progress=progress,
            )

        spoilt = placed[:0]
        while True:
            failure: MergeIncomplete | None = None
            try:
                merged = once(placed)
                damaged = merged.damaged
            except MergeIncomplete as error:
                failure, damaged = error, error.values.get("damaged", placed[:0])
            if moved_meanwhile(images, fingerprint, damaged):
                say(f"{len(damaged)} images were moved while they were merged; reading them where they are now")
                return None
            spoilt = np.concatenate((spoilt, damaged))
            others = instead(rows, allocation, placed, spoilt) if len(damaged) else None
            if others is None:
                break
            say(f"{len(damaged)} images cannot be used; there are others of the same events")
            images.replace(placed := others)
        if failure is None:
            for name, why in sorted(images.offline.items()):
                say(f"storage {name} cannot be used: {why}")
            return merged
        if not len(damaged):
            raise failure
        there = damaged[may_be_away(images, spoilt, damaged)]
        if len(there):
            count = int((there["keep_stop"] - there["keep_start"]).sum())
            detail = "; ".join(f"{name}: {why}" for name, why in sorted(images.offline.items()))
            raise StorageOffline(events=total, missing=count, detail=detail) from failure
        moved = salvage(images, frozen.task, fingerprint, damaged, Axis.from_dict(frozen.axis))
        if moved.images:
            say(f"{moved.images} images beside the damaged ones are moved to segments/{moved.allocation}")
        raise failure


def _touch(rows: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of `rows` share events with any of `others`."""
    found = np.zeros(len(rows), np.bool_)
    for first, stop in others[["keep_start", "keep_stop"]].tolist():
        found |= (rows["keep_start"] < stop) & (rows["keep_stop"] > first)
    return found
