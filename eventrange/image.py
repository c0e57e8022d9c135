"""Fields of events <-> one HDF5 file in memory.

An image holds the dataset `event` (int64 positions) and, per field, either one dataset (n, *shape) or, where the first
axis varies from event to event, `<field>` (rows of all events one after another) and `<field>_count` (n,).

Most of what HDF5 costs is making metadata, and all images of a task have the same but for a few numbers. So HDF5 makes
a file with empty datasets once, and making an image is putting the numbers in and the values behind (skeleton.py).
Behind the end of the HDF5 file (HDF5 ignores what is there) follows a small index of the same offsets, so that reading
needs no HDF5 either. Strings are the exception: HDF5 keeps them in heaps of its own, so those go through HDF5 both
ways.
"""

from __future__ import annotations

import io
import json
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from eventrange.errors import ImageDamaged, ImageTooBig
from eventrange.fields import Column, Image, check_columns, describe, gather, schema_of
from eventrange.hdf5file import Kinds, empty, whole
from eventrange.skeleton import Skeleton

__all__ = ["Column", "Image", "build", "build_columns", "read", "schema"]

_TAIL = struct.Struct("<I8s")
_MAGIC = b"YodaIdx1"
_LARGEST = 2**32 - 1
_CACHED_KINDS = 64


def schema(event: Mapping[str, Any]) -> str:
    """Canonical JSON of the fields of `event`: `{field: [dtype, number of axes, [all axes but the first]]}`."""
    return gather(np.zeros(1, np.int64), [event])[1]


def build(
    start: int,
    positions: Sequence[int] | NDArray[np.int64] | None,
    events: Sequence[Mapping[str, Any]],
    attributes: Mapping[str, Any] | None = None,
    expected: str | None = None,
) -> bytes:
    """The image of `events`, one mapping field -> scalar, string or array of any shape each.

    `positions` (n,) are their places on the axis; None means start, start+1, ... `expected` is a schema the events
    must have.
    Equal arguments give equal bytes. Raises FieldRefused, FieldsChanged, ImageTooBig; ValueError for no events.
    """
    if not events:
        raise ValueError("an image needs at least one event")
    where = np.arange(start, start + len(events)) if positions is None else np.asarray(positions, np.int64)
    if where.shape != (len(events),):
        raise ValueError(f"{len(events)} events but positions of shape {where.shape}")
    columns, _ = gather(where, events, expected)
    return _assemble(where, columns, attributes or {})


def build_columns(
    positions: NDArray[np.int64],
    columns: Mapping[str, Column],
    attributes: Mapping[str, Any] | None = None,
    expected: str | None = None,
) -> bytes:
    """The image of fields that are columns already: values (n, *shape), or rows of all events with counts (n,).

    For what a `process_range` payload returned, or `Image.fields`. A column whose counts are all equal becomes fixed.
    """
    where = np.asarray(positions, np.int64)
    return _assemble(where, check_columns(where, columns, expected), attributes or {})


def read(data: bytes | bytearray | memoryview) -> Image:
    """The positions and fields in an image; arrays are read-only views of `data` where that is possible.

    Raises ImageDamaged when `data` is no image; damage inside values is the business of the checksum in the record.
    """
    view = memoryview(data).cast("B")
    try:
        inside = parse(index_text(view))
        arrays: dict[str, NDArray[Any]] = {}
        for name, dtype, shape, offset, count in inside.arrays:
            array = np.frombuffer(view, dtype, count, offset)
            arrays[name] = array if len(shape) == 1 else array.reshape(shape)
        if inside.through_hdf5:
            with h5py.File(io.BytesIO(view), "r") as file:
                arrays.update({name: file[name][()] for name in inside.through_hdf5})
        positions = arrays["event"]
        fields = {name: Column(arrays[name], arrays.get(counts)) for name, counts in inside.fields}
        for name, counts in inside.jagged:
            if len(arrays[counts]) != len(positions) or int(np.add.reduce(arrays[counts])) != len(arrays[name]):
                raise ValueError("counts do not add up")
        if any(len(arrays[name]) != len(positions) for name in inside.fixed):
            raise ValueError("fields of unequal length")
    except Exception as error:  # numpy, json and HDF5 have a dozen ways to say that bytes make no sense
        raise ImageDamaged(path="memory", offset=0, detail=f"not an image ({error})") from error
    return Image(positions, fields)


def schema_of_image(image: Image) -> str:
    """The schema of the events in an image; what `schema` gives for each of them."""
    return schema_of(image.fields)


# --- writing ----------------------------------------------------------------------------------------------------------


def _assemble(positions: NDArray[np.int64], columns: Mapping[str, Column], attributes: Mapping[str, Any]) -> bytes:
    arrays: list[NDArray[Any]] = [positions]
    plan: list[tuple[str, np.dtype[Any], int]] = [("event", positions.dtype, 1)]
    size = positions.nbytes
    for name, (values, counts) in columns.items():
        arrays.append(values)
        plan.append((name, values.dtype, values.ndim))
        size += values.nbytes
        if counts is not None:
            arrays.append(counts)
            plan.append((f"{name}_count", counts.dtype, 1))
    if size > _LARGEST - 2**20:
        raise ImageTooBig(start=int(positions[0]), stop=int(positions[-1]) + 1, size=size)
    pieces, which = _template(tuple(plan), attributes, arrays)
    parts: list[Any] = [pieces[0]]
    for number, piece in zip(which, pieces[1:], strict=True):
        parts += (_bytes(arrays[number]), piece)
    return b"".join(parts)


def _bytes(array: NDArray[Any]) -> memoryview:
    # a view of uint8 and not .data: memoryview refuses complex, float16 and structures
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class _Kind:
    """All images with the same fields, dtypes and attributes: their skeleton, and the last template made of it."""

    def __init__(self, kinds: Kinds, attributes: Mapping[str, Any]) -> None:
        self.skeleton = Skeleton(*empty(kinds, attributes), [axes for _, _, axes in kinds])
        words = [json.dumps([name, describe(dtype)], separators=(",", ":"))[:-1] for name, dtype, _ in kinds]
        self._words = [f"{word},[" for word in words]
        self._shapes: tuple[tuple[int, ...], ...] = ()
        self._template: Template = (), ()

    def template(self, arrays: Sequence[NDArray[Any]]) -> Template:
        shapes = tuple([array.shape for array in arrays])
        if shapes != self._shapes:
            sizes = [array.nbytes for array in arrays]
            head, offsets = self.skeleton.fill(shapes, sizes)
            which = tuple([number for number, size in enumerate(sizes) if size])
            index = zip(self._words, shapes, offsets, strict=True)
            text = ",".join([f"{word}{','.join(map(str, shape))}],{offset}]" for word, shape, offset in index])
            padding = [bytes(-sizes[number] % 8) for number in which]
            pieces = [head, *padding]
            pieces[-1] += _tail(f"[{text}]")
            self._shapes, self._template = shapes, (tuple(pieces), which)
        return self._template


#: What is before, between and behind the values, and the numbers of the arrays that go in between. Arrays that are not
#: mentioned are in the pieces already, or empty.
Template = tuple[tuple[bytes, ...], tuple[int, ...]]

_kinds: OrderedDict[Any, _Kind | None] = OrderedDict()


def _template(plan: Kinds, attributes: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> Template:
    """An image with all but the values."""
    kind = None
    if not any(dtype.kind == "O" for _, dtype, _ in plan):
        try:
            key = (plan, tuple([(name, type(value), value) for name, value in attributes.items()]))
            kind = _kinds.get(key)
            if key in _kinds:
                _kinds.move_to_end(key)
            else:
                kind = _kinds[key] = _new_kind(plan, attributes)
                if len(_kinds) > _CACHED_KINDS:
                    _kinds.popitem(last=False)
        except TypeError:  # an attribute that is an array
            pass
    return kind.template(arrays) if kind is not None else _through_hdf5(plan, attributes, arrays)


def _new_kind(kinds: Kinds, attributes: Mapping[str, Any]) -> _Kind | None:
    try:
        return _Kind(kinds, attributes)
    except ValueError:  # attributes too large, or an HDF5 library that writes the old format in another way
        return None


def _through_hdf5(kinds: Kinds, attributes: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> Template:
    body, offsets = whole(kinds, attributes, arrays)
    pairs = zip(kinds, arrays, offsets, strict=True)
    index = [[name, describe(dtype), array.shape, offset] for (name, dtype, _), array, offset in pairs]
    which = sorted((number for number, offset in enumerate(offsets) if offset >= 0), key=offsets.__getitem__)
    pieces, at = [], 0
    for number in which:
        pieces.append(body[at : offsets[number]])
        at = offsets[number] + arrays[number].nbytes
    return (*pieces, body[at:] + _tail(json.dumps(index, separators=(",", ":")))), tuple(which)


def _tail(index: str) -> bytes:
    text = index.encode()
    return text + _TAIL.pack(len(text), _MAGIC)


# --- reading ----------------------------------------------------------------------------------------------------------


class Inside(NamedTuple):
    """What the index of an image says; images of the same shape share it."""

    arrays: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int, int], ...]  #: name, dtype, shape, offset, elements
    through_hdf5: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]  #: and the name their counts would have
    jagged: tuple[tuple[str, str], ...]
    fixed: tuple[str, ...]


def index_text(view: memoryview) -> bytes:
    """The index behind an image, for `parse`. Raises ValueError, struct.error where there is none."""
    length, magic = _TAIL.unpack_from(view, len(view) - _TAIL.size)
    if magic != _MAGIC or length > len(view) - _TAIL.size:
        raise ValueError("no index at the end")
    end = len(view) - _TAIL.size
    return bytes(view[end - length : end])


@lru_cache(maxsize=1024)
def parse(text: bytes) -> Inside:
    """What an index says."""
    arrays, through_hdf5, names = [], [], set()
    for name, dtype, shape, offset in json.loads(text):
        count = 1
        for extent in shape:
            count *= extent
        here = undescribe(dtype)
        if not count and here.kind != "O":
            offset = 0
        names.add(name)
        if offset < 0:
            through_hdf5.append(name)
        else:
            arrays.append((name, here, tuple(shape), offset, count))
    fields = sorted((name, f"{name}_count") for name in names if name != "event" and not name.endswith("_count"))
    jagged = tuple(pair for pair in fields if pair[1] in names)
    fixed = tuple(name for name, counts in fields if counts not in names)
    return Inside(tuple(arrays), tuple(through_hdf5), tuple(fields), jagged, fixed)


@lru_cache(maxsize=256)
def _dtype(text: str) -> np.dtype[Any]:
    return np.dtype(object) if text == "str" else np.dtype(text)


def undescribe(found: Any) -> np.dtype[Any]:
    """The dtype that `describe` was given."""
    if isinstance(found, str):
        return _dtype(found)
    return np.dtype([_member(entry) for entry in found])


def _member(entry: Sequence[Any]) -> tuple[Any, ...]:
    name, kind, *shape = entry
    inner = kind if isinstance(kind, str) else undescribe(kind)
    return (name, inner, tuple(shape[0])) if shape else (name, inner)
