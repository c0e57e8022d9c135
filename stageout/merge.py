"""Images from anywhere -> the final files, every event exactly once, the same bytes from any history.

The layout is decided over the whole task: a field whose first axis has the same length in every event is stored fixed,
any other one with its counts. That is known only at the end, so the merge begins with what a few images spread over the
axis say, and starts again with one more field jagged when an event contradicts. Nothing is at its final name before all
files are complete and durable; `merge.json` comes last and is what says that a merge happened.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eventrange.durable import FILES, Files, explain, write_file
from eventrange.errors import FieldsChanged, ImageDamaged, MergeIncomplete
from eventrange.fields import Image, schema_of
from eventrange.image import read
from stageout.finalfile import FinalFile, Layout, sha256_of
from stageout.layout import FieldVaries, joined_images, layouts_of, length
from stageout.winners import PLACED, common, gaps, joined, winners

__all__ = ["PLACED", "Merged", "gaps", "merge", "winners"]

VERSION = 1
#: reads and checks the image of one row of PLACED; raises ImageDamaged where it cannot. Called from `readers` threads.
Fetch = Callable[[Any], bytes]

_BATCH_ROWS, _BATCH_BYTES = 256, 8 * 2**20
_SAMPLES = 16


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


@dataclass
class _Plan:
    """One merge: what is asked, and what has been learned while doing it."""

    placed: NDArray[Any]
    fetch: Fetch
    readers: int
    jagged: frozenset[str]
    partial: bool
    schema: str = ""
    damaged: dict[int, ImageDamaged] = field(default_factory=dict)


def merge(
    placed: NDArray[Any],
    fetch: Fetch,
    folder: str,
    name: str,
    events: int,
    *,
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
    `placed` (k,) of PLACED as `winners` gives it, of a task of `events` events; `quarantined` (m, 2) intervals that
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
    plan = _Plan(placed, fetch, max(1, readers), frozenset(jagged), partial)
    threads = min(4, len(os.sched_getaffinity(0))) if threads is None else threads
    names = [stem + suffix]
    if events_per_file is not None:
        names = [f"{stem}-{number:05d}{suffix}" for number in range(max(1, -(-events // events_per_file)))]
    paths = [os.path.join(folder, entry) for entry in names]
    step = events_per_file or max(events, 1)
    extra = dict(attributes or {}) | {"task": name, "fingerprint": fingerprint}
    temporaries = [f"{path}.tmp" for path in paths]
    try:
        _sample(plan)
        while True:
            try:
                layouts = _layouts(plan)
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


# --- reading ----------------------------------------------------------------------------------------------------------


class _Batch(NamedTuple):
    """Neighbouring images as one: those that could be read, in order, and which could not. Or what is wrong with their
    fields."""

    image: Image | None
    damaged: dict[int, ImageDamaged]
    error: Exception | None = None


def _batches(
    plan: _Plan, rows: NDArray[np.int64], join: Callable[[list[Image]], Image]
) -> Generator[_Batch, None, None]:
    """The images of `rows`, cut to what wins, in order; read ahead by threads in small batches."""
    sizes = np.cumsum(plan.placed["size"][rows].astype(np.int64))
    cuts, at = [0], 0
    while at < len(rows):
        base = int(sizes[at - 1]) if at else 0
        at = max(at + 1, min(at + _BATCH_ROWS, int(np.searchsorted(sizes, base + _BATCH_BYTES))))
        cuts.append(at)
    batches = iter([rows[low:high] for low, high in pairwise(cuts)])
    waiting: deque[Future[_Batch]] = deque()
    with ThreadPoolExecutor(plan.readers) as pool:
        try:
            while True:
                while len(waiting) <= plan.readers and (batch := next(batches, None)) is not None:
                    waiting.append(pool.submit(_read_batch, plan, batch, join))
                if not waiting:
                    return
                found = waiting.popleft().result()
                plan.damaged.update(found.damaged)
                yield found
        finally:
            for future in waiting:
                future.cancel()


def _read_batch(plan: _Plan, rows: NDArray[np.int64], join: Callable[[list[Image]], Image]) -> _Batch:
    images: list[Image] = []
    damaged: dict[int, ImageDamaged] = {}
    places = plan.placed[rows]
    spans = zip(*(places[name].tolist() for name in ("start", "stop", "keep_start", "keep_stop")), strict=True)
    for row, place, span in zip(rows.tolist(), places, spans, strict=True):
        if row in plan.damaged:
            continue
        try:
            images.append(_read_one(plan, place, *span))
        except ImageDamaged as error:
            damaged[row] = error
    if not images:
        return _Batch(None, damaged)
    try:
        return _Batch(join(images), damaged)
    except (FieldVaries, FieldsChanged) as error:
        return _Batch(None, damaged, error)


def _read_one(plan: _Plan, row: Any, start: int, stop: int, first: int, last: int) -> Image:
    if not row["size"]:
        raise ImageDamaged(path=_where(row), offset=0, detail=f"no image was written for events {start} to {stop}")
    image = read(plan.fetch(row))
    # All of them, not only first and last: two events swapped would be two events wrong.
    if image.positions.tobytes() != np.arange(start, stop).tobytes():
        detail = f"holds other events than {start} to {stop}"
        raise ImageDamaged(path=_where(row), offset=int(row["offset"]), detail=detail)
    return image if (first, last) == (start, stop) else image.select(slice(first - start, last - start))


def _where(row: Any) -> str:
    return f"segment {row['segment']} of droid {row['droid']}"


def _sample(plan: _Plan) -> None:
    """Look at a few images over the whole axis: what varies between them need not be found out by starting again."""
    some = np.unique(np.linspace(0, len(plan.placed) - 1, _SAMPLES).astype(np.int64)) if len(plan.placed) else ()
    seen: list[tuple[str, int]] = []

    def look(images: list[Image]) -> Image:
        for image in images:
            for name, column in image.fields.items():
                rows = length(column)
                if rows is not None:
                    seen.append((name, rows))
        return images[0]

    for _ in _batches(plan, np.asarray(some, np.int64), look):
        pass
    first = dict(reversed(seen))
    plan.jagged |= {name for name, rows in seen if rows != first[name]}


def _layouts(plan: _Plan) -> list[Layout]:
    """The layout the first readable image asks for."""
    with closing(_batches(plan, np.arange(len(plan.placed)), lambda images: images[0])) as batches:
        for image, *_ in batches:
            if image is not None:
                plan.schema = schema_of(image.fields)
                return layouts_of(image, plan.jagged)
    return []


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(
    plan: _Plan,
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
        for image, _, error in batches:
            if error is not None and useful():
                raise error
            if image is not None:
                yield image

    def join(found: list[Image]) -> Image:
        return joined_images(layouts, plan.schema, found)

    with closing(_batches(plan, np.arange(len(plan.placed)), join)) as batches:
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
                    inside = min(len(image.positions), stop - int(image.positions[0]))
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
