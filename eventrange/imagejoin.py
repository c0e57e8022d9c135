"""Many small images read as one: pieces of bytes are joined per dataset, and numpy sees only the result."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from eventrange.fields import Column, Image
from eventrange.image import index_text, parse

#: of images that can be joined: name, dtype, shape of a row, and whether there are counts, of every field
_Kinds = tuple[tuple[str, np.dtype[Any], tuple[int, ...], bool], ...]


class _Pieces(NamedTuple):
    """Where an image has what it adds to others: `event`, then the values and counts of each of `kinds`."""

    kinds: _Kinds  #: the same object for equal ones
    events: int
    end: int  #: bytes the image has at least
    where: tuple[slice, ...]
    counts: tuple[tuple[int, int], ...]  #: those it does not store: place among the pieces, and what each event has
    rows: tuple[int, ...]  #: of each field with counts


@lru_cache(maxsize=1024)
def _pieces(text: bytes, jagged: frozenset[str]) -> _Pieces | None:
    inside = parse(text)
    if inside.through_hdf5:
        return None
    arrays = {name: (dtype, shape, offset, count) for name, dtype, shape, offset, count in inside.arrays}
    kind, shape, offset, events = arrays["event"]
    if kind != np.int64 or shape != (events,) or not events:
        return None
    end = offset + 8 * events
    where = [slice(offset, end)]
    kinds: list[tuple[str, np.dtype[Any], tuple[int, ...], bool]] = []
    rows: list[int] = []
    made: list[tuple[int, int]] = []
    for name, counts in inside.fields:
        dtype, shape, offset, count = arrays[name]
        stored, counted = arrays.get(counts), counts in arrays or name in jagged
        stop = offset + count * dtype.itemsize
        end = max(end, stop)
        where.append(slice(offset, stop))
        if stored is not None:
            if stored[0] != np.int64 or stored[1] != (events,):
                return None
            stop = stored[2] + 8 * events
            where.append(slice(stored[2], stop))
            end = max(end, stop)
            rows.append(shape[0])
        elif not shape or shape[0] != events:
            return None
        elif counted:
            if len(shape) < 2:
                return None
            made.append((len(where) + len(made), shape[1]))
            rows.append(events * shape[1])
        kinds.append((name, dtype, shape[2:] if counted and stored is None else shape[1:], counted))
    return _Pieces(_same(tuple(kinds)), events, end, tuple(where), tuple(made), tuple(rows))


@lru_cache(maxsize=8)
def _repeated(count: int, events: int) -> bytes:
    return np.full(events, count, np.int64).tobytes()


@lru_cache(maxsize=256)
def _same(kinds: _Kinds) -> _Kinds:
    return kinds


def read_together(datas: Iterable[bytes | memoryview], jagged: frozenset[str] = frozenset()) -> Image | None:
    """The images `datas` one after another as one, much faster than joining what `read` gives. The fields `jagged` come
    with counts in any case.

    None where that cannot be: no images, strings, fields that differ in more than their counts, bytes that are no
    image. `read` says what is wrong.
    """
    kinds: _Kinds = ()
    gathered: list[list[Any]] = []
    rows: list[tuple[int, ...]] = []
    events: list[int] = []
    for data in datas:
        view = memoryview(data)
        try:
            found = _pieces(index_text(view), jagged)
        except Exception:  # as in `read`
            return None
        if found is None or found.end > len(view):
            return None
        if found.kinds is not kinds:
            if gathered and found.kinds != kinds:
                return None
            kinds = found.kinds
        parts: list[Any] = list(map(view.__getitem__, found.where))
        for at, count in found.counts:
            parts.insert(at, _repeated(count, found.events))
        gathered.append(parts)
        rows.append(found.rows)
        events.append(found.events)
    if not gathered:
        return None
    joined = [b"".join(column) for column in zip(*gathered, strict=True)]
    fields: dict[str, Column] = {}
    starts = np.cumsum(events, dtype=np.int64) - events
    total = sum(events)
    of = iter(np.array(rows, np.int64).reshape(len(events), -1).T)
    after = iter(joined[1:])
    for name, dtype, tail, counted in kinds:
        values = np.frombuffer(next(after), dtype)
        if not counted:
            fields[name] = Column(values.reshape(total, *tail))
            continue
        each, should = np.frombuffer(next(after), np.int64), next(of)
        if (np.add.reduceat(each, starts) != should).any():
            return None
        fields[name] = Column(values.reshape(int(should.sum()), *tail), each)
    return Image(np.frombuffer(joined[0], np.int64), fields)
