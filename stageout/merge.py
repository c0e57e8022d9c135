"""Images from anywhere -> the final files, every event exactly once, the same bytes from any history.

The layout is decided over the whole task: a field whose first axis has the same length in every event is stored fixed,
any other one with its counts. That is known only at the end, so the merge begins with what a few images spread over the
axis say, and starts again with one more field jagged when an event contradicts. Nothing is at its final name before all
files are complete and durable; `merge.json` comes last and is what says that a merge happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange.durable import FILES, Files, explain, write_file
from eventrange.errors import ImageDamaged, MergeIncomplete
from eventrange.fields import Image
from stageout.finalfile import FinalFile, Layout, sha256_of
from stageout.layout import FieldVaries
from stageout.reading import Fetch, FetchMany, Plan, batches, first_layouts, sample
from stageout.winners import PLACED, common, gaps, joined, winners

__all__ = ["PLACED", "Merged", "gaps", "merge", "winners"]

VERSION = 1
STALE = 86400.0  #: seconds after which a half-written file that nobody writes to is taken to be left over


@dataclass(frozen=True)
class Merged:
    """What a merge made. Intervals are [start, stop) pairs (k, 2) on the axis; `damaged` are rows of PLACED."""

    files: list[str]
    events: int  #: in the files
    missing: NDArray[np.int64]  #: in no file though not quarantined (only with `partial`)
    quarantined: NDArray[np.int64]  #: in no file because they were given up
    damaged: NDArray[Any]  #: images that could not be used: their events should become pending
    jagged: frozenset[str]
    fresh: bool  #: False: everything was there already and intact


def merge(
    placed: NDArray[Any],
    fetch: Fetch,
    folder: str,
    name: str,
    events: int,
    *,
    fetch_many: FetchMany | None = None,
    file: str | None = None,
    fingerprint: str = "",
    attributes: Mapping[str, Any] | None = None,
    quarantined: NDArray[np.int64] | None = None,
    compression: str = "gzip",
    level: int = 4,
    events_per_file: int | None = None,
    jagged: Collection[str] = (),
    partial: bool = False,
    threads: int | None = None,
    readers: int = 1,
    files: Files = FILES,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Write `folder`/`name`.h5 (`name`-00000.h5 ... with `events_per_file` positions of the axis each) and merge.json.

    `file`, if given, is the name in `folder` instead; then what was made is told in NAME.merge.json, NAME without its
    suffix, since the folder may be home to other files and tasks.
    `placed` (k,) of PLACED as `winners` gives it, of a task of `events` events; `fetch` reads the image of a row, and
    `fetch_many` those of many rows in fewer reads. `quarantined` (m, 2) intervals that
    need not be there. `jagged` fields get counts even if they do not vary. `attributes` go on every file.
    `progress(done, all)` counts events. Bytes do not depend on `threads` (compressing) or `readers`.

    Raises MergeIncomplete when events are missing or images damaged and not `partial`; its `values["damaged"]` are the
    rows of `placed` that could not be used, after looking at every image. CannotWrite leaves the old files as they
    were; FieldsChanged names the event that does not fit.
    """
    lost = gaps(np.stack((placed["keep_start"], placed["keep_stop"]), axis=1), 0, events)
    given_up = common(lost, quarantined)
    missing = common(lost, gaps(given_up, 0, events))
    if len(missing) and not partial:
        raise _incomplete(missing, events, placed[:0])
    request = {
        "version": VERSION,
        "task": name,
        "fingerprint": fingerprint,
        "attributes": {key: str(value) for key, value in sorted((attributes or {}).items())},
        "axis": events,
        "quarantined": given_up.tolist(),
        "missing": missing.tolist(),
        "compression": [compression, level],
        "events_per_file": events_per_file,
        "jagged": sorted(jagged),
    }
    stem, suffix = os.path.splitext(file) if file else (name, ".h5")
    notes = os.path.join(folder, f"{stem}.merge.json" if file else "merge.json")
    old = _load(notes)
    if old.get("request") == request and _current(folder, old):
        return Merged(
            [entry["name"] for entry in old["files"]],
            old["events"],
            missing,
            given_up,
            placed[:0],
            frozenset(old["jagged"]),
            False,
        )
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise explain(error, folder) from error
    plan = Plan(placed, fetch, fetch_many, max(1, readers), frozenset(jagged), partial)
    threads = min(4, len(os.sched_getaffinity(0))) if threads is None else threads
    names = [stem + suffix]
    if events_per_file is not None:
        names = [f"{stem}-{number:05d}{suffix}" for number in range(max(1, -(-events // events_per_file)))]
    paths = [os.path.join(folder, entry) for entry in names]
    step = events_per_file or max(events, 1)
    extra = dict(attributes or {}) | {"task": name, "fingerprint": fingerprint}
    # Names of their own: one that was taken for dead and wakes up must not write into the file of another.
    token = os.urandom(4).hex()
    temporaries = [f"{path}.{token}.tmp" for path in paths]
    try:
        _tidy(folder, stem, suffix, file is None)
        sample(plan)
        while True:
            try:
                layouts = first_layouts(plan)
                written = _write(
                    plan, layouts, temporaries, step, events, extra, compression, level, threads, files, progress
                )
                break
            except FieldVaries as found:
                plan.jagged |= found.names
        bad = placed[sorted(plan.damaged)]
        if len(bad):
            pieces = np.stack((bad["keep_start"], bad["keep_stop"]), axis=1)
            missing = joined(np.concatenate((missing, pieces)))
            if not partial:
                raise _incomplete(missing, events, bad, plan.damaged[min(plan.damaged)])
        described = [
            {"name": entry, "events": count, "size": size, "sha256": sha256}
            for entry, (count, size, sha256) in zip(names, written, strict=True)
        ]
        _publish(temporaries, paths, folder, files)
    except OSError as error:
        raise explain(error, folder) from error
    finally:
        for temporary in temporaries:
            if os.path.exists(temporary):
                os.unlink(temporary)
    request["missing"] = missing.tolist()
    count = sum(entry[0] for entry in written)
    document = {
        "version": VERSION,
        "request": request,
        "events": count,
        "missing": missing.tolist(),
        "quarantined": given_up.tolist(),
        "jagged": sorted(layout.name for layout in layouts if layout.jagged),
        "files": described,
    }
    write_file(notes, (json.dumps(document, indent=1) + "\n").encode(), files)
    for entry in old.get("files", []):
        if entry["name"] not in names and os.path.exists(os.path.join(folder, entry["name"])):
            os.unlink(os.path.join(folder, entry["name"]))  # of a merge with another events_per_file
    return Merged(names, count, missing, given_up, bad, frozenset(document["jagged"]), True)


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(
    plan: Plan,
    layouts: list[Layout],
    paths: list[str],
    step: int,
    events: int,
    attributes: dict[str, Any],
    compression: str,
    level: int,
    threads: int,
    files: Files,
    progress: Callable[[int, int], None] | None,
) -> list[tuple[int, int, str]]:
    """Write one file per `step` positions; returns events, bytes and sha256 of each. After damage only look on."""
    written: list[tuple[int, int, str]] = []
    done = 0
    rest: Image | None = None

    def useful() -> bool:
        return plan.partial or not plan.damaged

    def images() -> Iterator[Image]:
        for batch in found:
            if batch.error is not None and useful():
                raise batch.error
            yield from batch.images

    with closing(batches(plan, layouts)) as found:
        coming = images()
        for number, path in enumerate(paths):
            stop = min(events, (number + 1) * step)
            out = FinalFile(path, layouts, compression, level, threads, files)
            try:
                while True:
                    image, rest = rest, None
                    if image is None:
                        image = next(coming, None)
                    if image is None:
                        break
                    inside = int(np.searchsorted(image.positions, stop))  # there may be holes
                    if inside < len(image.positions):
                        rest = image.select(slice(inside, None))
                        image = image.select(slice(0, inside))
                    if inside and useful():
                        out.add(image.positions, image.fields)
                    done += inside
                    if progress is not None:
                        progress(done, events)
                    if rest is not None:
                        break
                size, sha256 = out.finish(attributes | {"events": out.events, "first": number * step, "stop": stop})
                written.append((out.events, size, sha256))
            except BaseException:
                out.abandon()
                raise
    return written


def _tidy(folder: str, stem: str, suffix: str, alone: bool) -> None:
    """Remove what merges that were killed have left: all of it where nobody else has the right to merge."""
    left = re.compile(rf"{re.escape(stem)}(-\d{{5,}})?{re.escape(suffix)}\.([0-9a-f]{{8}}\.)?tmp")
    for name in filter(left.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            if alone or os.path.getmtime(path) < time.time() - STALE:
                os.unlink(path)


def _publish(temporaries: list[str], paths: list[str], folder: str, files: Files) -> None:
    for temporary, path in zip(temporaries, paths, strict=True):
        try:
            files.replace(temporary, path)
        except OSError as error:
            raise explain(error, path) from error
    files.fsync_folder(folder)


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("version") == VERSION else {}


def _current(folder: str, notes: Mapping[str, Any]) -> bool:
    for entry in notes["files"]:
        path = os.path.join(folder, entry["name"])
        try:
            if os.path.getsize(path) != entry["size"] or sha256_of(path)[1] != entry["sha256"]:
                return False
        except OSError:
            return False
    return True


def _incomplete(
    missing: NDArray[np.int64], events: int, damaged: NDArray[Any], why: ImageDamaged | None = None
) -> MergeIncomplete:
    shown = ", ".join(f"[{start}, {stop})" for start, stop in missing[:8].tolist())
    shown += f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    if why is not None:
        shown += f" ({why.what.format(**why.values)})"
    count = int((missing[:, 1] - missing[:, 0]).sum())
    return MergeIncomplete(missing=count, events=events, ranges=shown, intervals=missing, damaged=damaged)
