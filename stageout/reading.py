"""The images of a merge in the order of the axis, neighbours as one, read ahead by threads.

What a batch of images has in common is looked at once for all of them. Wherever something is not as it should be, or
only unusual, each image of that batch is read by itself: that path is slow, exact, and says what is wrong with which.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eventrange.errors import FieldsChanged, ImageDamaged
from eventrange.fields import Image, schema_of
from eventrange.image import read
from eventrange.imagejoin import read_together
from stageout.finalfile import Layout
from stageout.layout import FieldVaries, joined_images, layouts_of, length

#: reads and checks the image of one row of PLACED; raises ImageDamaged where it cannot. Called from `readers` threads.
Fetch = Callable[[Any], bytes]
#: the same for many rows, in few reads; None for each that has to be asked for by itself
FetchMany = Callable[[NDArray[Any]], list[memoryview | None]]

_BATCH_ROWS, _BATCH_BYTES = 256, 8 * 2**20
_FIRST_ROWS = 32  #: the first batches are short, so that writing begins at once
_LARGE = 256 * 1024  #: bytes of an image from which on copying it to its neighbours costs more than it saves
_SAMPLES = 16


@dataclass
class Plan:
    """One merge: what is asked, and what has been learned while doing it."""

    placed: NDArray[Any]
    fetch: Fetch
    fetch_many: FetchMany | None
    readers: int
    jagged: frozenset[str]
    partial: bool
    schema: str = ""
    damaged: dict[int, ImageDamaged] = field(default_factory=dict)


class Batch(NamedTuple):
    """Neighbouring images: those that could be read, in order, small ones as one, and which could not. Or what is wrong
    with their fields."""

    images: list[Image]
    damaged: dict[int, ImageDamaged]
    error: Exception | None = None


def batches(plan: Plan, layouts: list[Layout]) -> Generator[Batch, None, None]:
    """All images of a plan, cut to what wins and as `layouts` have them."""
    sizes = np.cumsum(plan.placed["size"].astype(np.int64))
    cuts, at, rows = [0], 0, _FIRST_ROWS
    while at < len(sizes):
        base = int(sizes[at - 1]) if at else 0
        at = max(at + 1, min(at + rows, int(np.searchsorted(sizes, base + _BATCH_BYTES))))
        rows = min(2 * rows, _BATCH_ROWS)
        cuts.append(at)
    ahead = pairwise(cuts)
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(plan.readers) as pool:
        try:
            while True:
                while len(waiting) <= plan.readers and (cut := next(ahead, None)) is not None:
                    waiting.append(pool.submit(_batch, plan, layouts, *cut))
                if not waiting:
                    return
                found = waiting.popleft().result()
                plan.damaged.update(found.damaged)
                yield found
        finally:
            for future in waiting:
                future.cancel()


def sample(plan: Plan) -> None:
    """Look at a few images over the whole axis: what varies between them need not be found out by starting again."""
    some = np.unique(np.linspace(0, len(plan.placed) - 1, _SAMPLES).astype(np.int64)) if len(plan.placed) else ()
    seen: list[tuple[str, int]] = []
    for row in some:
        image = _looked_at(plan, int(row))
        for name, column in image.fields.items() if image is not None else ():
            rows = length(column)
            if rows is not None:
                seen.append((name, rows))
    first = dict(reversed(seen))
    plan.jagged |= {name for name, rows in seen if rows != first[name]}


def first_layouts(plan: Plan) -> list[Layout]:
    """The layout the first readable image asks for."""
    for row in range(len(plan.placed)):
        image = _looked_at(plan, row)
        if image is not None:
            plan.schema = schema_of(image.fields)
            return layouts_of(image, plan.jagged)
    return []


def _looked_at(plan: Plan, row: int) -> Image | None:
    if row in plan.damaged:
        return None
    try:
        return _checked(plan.placed[row], _fetch_one(plan, plan.placed[row]))
    except ImageDamaged as error:
        plan.damaged[row] = error
        return None


def _batch(plan: Plan, layouts: list[Layout], low: int, high: int) -> Batch:
    rows = [row for row in range(low, high) if row not in plan.damaged]
    damaged: dict[int, ImageDamaged] = {}
    places = plan.placed[rows]
    data = _fetched(plan, rows, places, damaged)
    apart = int(places["size"].sum()) >= _LARGE * len(rows)
    found = None if apart else _together(layouts, places, data)
    images = [found] if found is not None else []
    if found is None:
        for row, place, image in zip(rows, places, data, strict=True):
            if image is not None:
                try:
                    images.append(_checked(place, image))
                except ImageDamaged as error:
                    damaged[row] = error
    groups = [[image] for image in images] if apart else [images] if images else []
    try:
        return Batch([joined_images(layouts, plan.schema, group) for group in groups], damaged)
    except (FieldVaries, FieldsChanged) as error:
        return Batch([], damaged, error)


def _fetched(
    plan: Plan, rows: list[int], places: NDArray[Any], damaged: dict[int, ImageDamaged]
) -> list[bytes | memoryview | None]:
    """The images of `rows`, None for those that are now in `damaged`."""
    many: Sequence[bytes | memoryview | None] = [None] * len(rows)
    if plan.fetch_many is not None and len(rows) > 1:
        many = plan.fetch_many(places)
    out = list(many)
    for at in [at for at, image in enumerate(out) if image is None]:
        try:
            out[at] = _fetch_one(plan, places[at])
        except ImageDamaged as error:
            damaged[rows[at]] = error
    return out


def _together(layouts: list[Layout], places: NDArray[Any], data: list[bytes | memoryview | None]) -> Image | None:
    """All of `data` as one image if they can be read so, and hold the events they should."""
    there = [image for image in data if image is not None]
    found = read_together(there, frozenset(layout.name for layout in layouts if layout.jagged))
    if found is None:
        return None
    if len(there) < len(data):
        places = places[[image is not None for image in data]]
    starts, counts = places["start"], places["stop"] - places["start"]
    first = np.cumsum(counts) - counts
    if int(counts.sum()) != len(found.positions):
        return None
    # All of them, not only first and last: two events swapped would be two events wrong.
    if (found.positions != np.arange(len(found.positions)) + np.repeat(starts - first, counts)).any():
        return None
    keep_start, keep_stop = places["keep_start"], places["keep_stop"]
    if (keep_start == starts).all() and (keep_stop == places["stop"]).all():
        return found
    inside = np.repeat(keep_start, counts) <= found.positions
    return found.select(inside & (found.positions < np.repeat(keep_stop, counts)))


def _fetch_one(plan: Plan, place: Any) -> bytes:
    if not place["size"]:
        detail = f"no image was written for events {place['start']} to {place['stop']}"
        raise ImageDamaged(path=_where(place), offset=0, detail=detail)
    return plan.fetch(place)


def _checked(place: Any, data: bytes | memoryview) -> Image:
    start, stop, first, last = (int(place[name]) for name in ("start", "stop", "keep_start", "keep_stop"))
    image = read(data)
    if image.positions.tobytes() != np.arange(start, stop).tobytes():
        detail = f"holds other events than {start} to {stop}"
        raise ImageDamaged(path=_where(place), offset=int(place["offset"]), detail=detail)
    return image if (first, last) == (start, stop) else image.select(slice(first - start, last - start))


def _where(place: Any) -> str:
    return f"segment {place['segment']} of droid {place['droid']}"
