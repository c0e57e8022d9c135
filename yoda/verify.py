"""`yoda verify`: is everything the journals promise really there? Reads only; `yoda merge` and `yoda run` repair."""

from __future__ import annotations

import json
import os
from contextlib import closing
from typing import Any

import numpy as np

from eventrange.axis import Axis
from eventrange.errors import ImageDamaged
from eventrange.history import done_records, read_progress
from eventrange.segment import digest
from eventrange.taskdir import TaskDir
from stageout.catalogue import Catalogue, SegmentId
from stageout.winners import winners
from yoda.frozen import Frozen
from yoda.merging import moved_meanwhile, open_images, read_notes
from yoda.prepared import ledger_of

VERSION = 1


def verify(taskdir: TaskDir, frozen: Frozen) -> dict[str, Any]:
    """Check journals, every image that counts (on storage, where it is nowhere else), the sealed segments that hold
    any, and merged files; `sound` says whether all is well.

    Damage in a journal has already cost what it costs: those events are pending. Damaged images become pending when a
    merge meets them. Raises RangesDamaged, since then nothing could be said.
    """
    fingerprint = frozen.fingerprint
    axis = Axis.from_dict(frozen.axis)
    if axis.ranges is not None:
        axis.ranges.check()  # else nothing that follows could be trusted
    known = read_progress(taskdir, fingerprint)
    ledger = ledger_of(axis.total, known)
    rows, allocation, names = done_records(taskdir, fingerprint)
    placed = winners(rows, allocation)
    todo = placed[placed["size"] > 0]
    checked = len(todo)
    counting: set[SegmentId] = set()
    while True:  # until nobody has moved what cannot be read
        bad: list[dict[str, Any]] = []
        damaged: list[int] = []
        catalogue = read_notes(taskdir, fingerprint)[1]
        with closing(open_images(taskdir, names, todo, catalogue)) as images:
            for number, row in enumerate(todo):
                counting.add(images.id_of(row))
                try:
                    images.fetch(row)
                except ImageDamaged as error:
                    start, stop, why = int(row["keep_start"]), int(row["keep_stop"]), _first_line(error)
                    bad.append({"range": axis.name(start, stop), "start": start, "stop": stop, "why": why})
                    damaged.append(number)
            todo = todo[damaged]
            if not moved_meanwhile(images, fingerprint, todo):
                break
    sealed, broken = _segments(taskdir, catalogue, counting)
    merged, altered = _merged(taskdir)
    return {
        "version": VERSION,
        "task": frozen.task,
        "sound": not (known.damage or bad or broken or altered),
        "events": {"total": axis.total, "done": ledger.done, "quarantined": ledger.quarantined.total},
        "journals": {"read": len(known.journals), "records": known.records, "damaged": known.damage},
        "images": {"checked": checked, "damaged": bad},
        "segments": {"checked": sealed, "damaged": broken},
        "merged": {"checked": merged, "damaged": altered},
    }


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _segments(taskdir: TaskDir, catalogue: Catalogue, counting: set[SegmentId]) -> tuple[int, list[dict[str, str]]]:
    """Sealed segments that are still here and count, against the checksums noted when they were sealed."""
    checked, broken = 0, []
    for id, known in sorted(catalogue.segments.items()):
        path = known.path(taskdir)
        if not known.sealed or id not in counting:
            continue
        why = "it is not as it was sealed"
        try:
            found = digest(path)
        except FileNotFoundError:
            continue  # a staged copy may be all there is
        except OSError as error:
            found, why = (0, 0, ""), error.strerror or str(error)
        checked += 1
        if found != (known.size, known.adler32, known.sha256):
            broken.append({"segment": path, "why": why})
    return checked, broken


def _merged(taskdir: TaskDir) -> tuple[int, list[dict[str, str]]]:
    try:
        with open(os.path.join(taskdir.merged, "merge.json")) as file:
            notes = json.load(file)
        files = [(entry["name"], entry["size"], entry["sha256"]) for entry in notes["files"]]
    except FileNotFoundError:
        return 0, []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return 0, [{"file": "merge.json", "why": str(error)}]
    altered = []
    for name, size, sha in files:
        try:
            found = digest(os.path.join(taskdir.merged, name))
        except OSError as error:
            altered.append({"file": name, "why": error.strerror or str(error)})
            continue
        if (found[0], found[2]) != (size, sha):
            altered.append({"file": name, "why": "it is not as it was merged"})
    return len(files), altered


def render(found: dict[str, Any]) -> str:
    """The findings for people."""
    events, journals, images = found["events"], found["journals"], found["images"]
    lines = [
        f"task      {found['task']}: {events['done']} of {events['total']} events done, "
        f"{events['quarantined']} quarantined",
        f"journals  {journals['read']} read, {journals['records']} records, {len(journals['damaged'])} damaged",
    ]
    lines += [f"          {name}: {what}" for name, what in journals["damaged"].items()]
    lines.append(f"images    {images['checked']} checked, {len(images['damaged'])} damaged")
    lines += [f"          {entry['range']}: {entry['why']}" for entry in images["damaged"][:20]]
    for part, key in (("segments", "segment"), ("merged", "file")):
        lines.append(f"{part:9} {found[part]['checked']} checked, {len(found[part]['damaged'])} damaged")
        lines += [f"          {entry[key]}: {entry['why']}" for entry in found[part]["damaged"][:20]]
    lines.append(
        "all sound" if found["sound"] else "damage found: `yoda merge` and then `yoda run` make good what it hit"
    )
    return "\n".join(lines)


def recompute(taskdir: TaskDir, frozen: Frozen, payload: Any, count: int, seed: int = 0) -> list[str]:
    """Process up to `count` events again, one at a time, and compare with what is stored; sentences about what differs.

    Finds payloads whose result depends on how events are grouped, on the worker, or on a clock (L3).
    """
    from droid.inputs import InputSet
    from eventrange import image

    axis = Axis.from_dict(frozen.axis)
    rows, allocation, names = done_records(taskdir, frozen.fingerprint)
    placed = winners(rows, allocation)
    placed = placed[placed["size"] > 0]
    if not len(placed):
        return []
    chosen = np.random.default_rng(seed).choice(len(placed), min(count, len(placed)), replace=False)
    events: Any = InputSet(frozen.inputs.format, axis, taskdir.indexes, frozen.inputs.options)
    if not payload.needs_events:
        payload.axis = axis
    elif axis.ranges is not None:
        payload.origin = axis.origin
    differing = []
    catalogue = read_notes(taskdir, frozen.fingerprint)[1]
    with closing(open_images(taskdir, names, placed, catalogue)) as images:
        for row in placed[np.sort(chosen)]:
            stored = image.read(images.fetch(row))
            position = int(row["keep_start"])
            at = position - int(row["start"])
            again = image.read(
                image.build(position, None, payload.process_events(_read(payload, events, position), [position]))
            )
            for name, column in stored.select(slice(at, at + 1)).fields.items():
                if not _same(column, again.fields.get(name)):
                    differing.append(f"event {axis.name(position, position + 1)}: field {name} is not what was stored")
    return differing


def _read(payload: Any, events: Any, position: int) -> Any:
    return events.read(position, position + 1) if payload.needs_events else (position,)


def _same(stored: Any, again: Any) -> bool:
    """Equal values; a single event has no counts, so those need not be compared."""
    if again is None:
        return False
    left, right = np.asarray(stored.values), np.asarray(again.values)
    return left.dtype == right.dtype and left.size == right.size and left.tobytes() == right.tobytes()
