"""Fields of events, one mapping each -> columns, and the check that all events have the same ones.

The loop over events runs in a worker for every range: types, shapes and dtypes are compared as sets, and only when a
set has more than one member is the event looked for that does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eventrange.errors import FieldRefused, FieldsChanged


class Column(NamedTuple):
    """One field of n events: `values` (n, *shape); or rows of all events one after another, `counts` (n,) rows each."""

    values: NDArray[Any]
    counts: NDArray[np.int64] | None = None


class Image(NamedTuple):
    """What an image holds: `positions` (n,) on the axis and one column per field, fields sorted by name."""

    positions: NDArray[np.int64]
    fields: dict[str, Column]

    def select(self, keep: NDArray[np.bool_] | slice) -> Image:
        """The events where `keep` (n,) is true, or those of a slice, as an image of its own."""
        if isinstance(keep, slice):
            mask = np.zeros(len(self.positions), np.bool_)
            mask[keep] = True
        else:
            mask = keep
        fields = {}
        for name, (values, counts) in self.fields.items():
            if counts is None:
                fields[name] = Column(values[keep])
            else:
                fields[name] = Column(values[np.repeat(mask, counts)], counts[keep])
        return Image(self.positions[keep], fields)


#: what a field is in every event of a task: dtype as JSON, number of axes, all axes but the first
What = tuple[Any, int, tuple[int, ...]]

_STRING = np.dtype(object)
_PYTHON: dict[type, np.dtype[Any]] = {
    bool: np.dtype(np.bool_),
    int: np.dtype(np.int64),
    float: np.dtype(np.float64),
    complex: np.dtype(np.complex128),
    str: _STRING,
    np.str_: _STRING,
}
for _code in "?bBhHiIlLqQefdFD":
    _PYTHON.setdefault(np.dtype(_code).type, np.dtype(_code))
#: types of values that are scalars and cannot be changed
PLAIN = frozenset((*_PYTHON, bytes))


def gather(
    positions: NDArray[np.int64], events: Sequence[Mapping[str, Any]], expected: str | None = None
) -> tuple[dict[str, Column], str]:
    """Columns of all fields, sorted by name, and their schema.

    Raises FieldRefused and FieldsChanged, naming the event.
    """
    first = events[0]
    try:
        keys = first.keys()
        for event in events:
            if event.keys() != keys:
                _differing_names(positions, events)
        names = _names(tuple(keys))
    except (AttributeError, TypeError):
        raise _no_mapping(positions, events) from None
    except ValueError as error:
        raise _refused(positions[0], error) from None
    columns: dict[str, Column] = {}
    whats: list[What] = []
    for name in names:
        columns[name], what = _column(name, [event[name] for event in events], positions)
        whats.append(what)
    text = _schema(names, tuple(whats))
    if expected is not None and text != expected:
        raise _unexpected(int(positions[0]), expected, text)
    return columns, text


def check_columns(
    positions: NDArray[np.int64], columns: Mapping[str, Column], expected: str | None = None
) -> dict[str, Column]:
    """`columns` sorted by name with canonical dtypes; those with equal counts made fixed."""
    try:
        names = _names(tuple(columns))
    except ValueError as error:
        raise _refused(positions[0], error) from None
    out: dict[str, Column] = {}
    for name in names:
        values, counts = _array(name, columns[name][0], positions[0]), columns[name][1]
        dtype = canonical(name, values.dtype, positions[0])
        values = _finished(name, values, dtype, positions[0])
        n = len(values) if values.ndim else -1
        if counts is not None:
            counts = np.ascontiguousarray(counts, np.int64)
            if counts.ndim != 1 or (len(counts) and counts.min() < 0) or int(counts.sum()) != n:
                raise _bad(positions[0], name, f"its counts do not add up to its {n} rows")
            n = len(counts)
        if n != len(positions):
            raise _bad(positions[0], name, f"has {max(n, 0)} entries for {len(positions)} events")
        if counts is not None and (counts == counts[0]).all():
            values, counts = values.reshape(len(counts), int(counts[0]), *values.shape[1:]), None
        out[name] = Column(values, counts)
    text = schema_of(out)
    if expected is not None and text != expected:
        raise _unexpected(int(positions[0]), expected, text)
    return out


def schema_of(columns: Mapping[str, Column]) -> str:
    """The schema of the events in `columns`."""
    whats = []
    for values, counts in columns.values():
        ndim = values.ndim - 1 if counts is None else values.ndim
        tail = values.shape[2:] if counts is None else values.shape[1:]
        whats.append((values.dtype, ndim, tail))
    return _schema(tuple(columns), tuple(whats))


def describe(dtype: np.dtype[Any]) -> Any:
    """A dtype as JSON: its numpy string, `str` for strings, a list of numpy's description for structures."""
    if dtype.kind == "O":
        return "str"
    return dtype.descr if dtype.names else dtype.str


@lru_cache(maxsize=256)
def _schema(names: tuple[str, ...], whats: tuple[What, ...]) -> str:
    found = {name: [describe(what[0]), what[1], what[2]] for name, what in zip(names, whats, strict=True)}
    return json.dumps(found, separators=(",", ":"), sort_keys=True)


# --- one field --------------------------------------------------------------------------------------------------------


def _column(name: str, values: list[Any], positions: NDArray[np.int64]) -> tuple[Column, What]:
    kinds = set(map(type, values))
    if len(kinds) == 1:
        dtype = _PYTHON.get(next(iter(kinds)))
        if dtype is not None:
            try:
                column = np.array(values, dtype)
                return Column(_strings(name, column, positions[0]) if dtype == _STRING else column), (dtype, 0, ())
            except OverflowError:
                raise _bad(positions[0], name, "an integer does not fit 64 bits", "use a float or a string") from None
    if kinds != {np.ndarray}:
        values = [_array(name, value, where) for value, where in zip(values, positions, strict=True)]
    dtypes = {value.dtype for value in values}
    if len(dtypes) == 1:
        dtype = canonical(name, next(iter(dtypes)), positions[0])
    else:
        every = [canonical(name, value.dtype, where) for value, where in zip(values, positions, strict=True)]
        dtype = every[0]
        for at, other in enumerate(every):
            if other != dtype:
                raise _changed(positions[at], name, (other, values[at].shape), (dtype, values[0].shape))
        values = [value.astype(dtype) for value in values]
    shapes = {value.shape for value in values}
    shape = values[0].shape
    if len(shapes) == 1:
        joined = np.concatenate(values).reshape(len(values), *shape) if shape else np.stack(values)
        return Column(_finished(name, joined, dtype, positions[0])), (dtype, len(shape), shape[1:])
    for at, value in enumerate(values):
        if value.ndim != len(shape) or value.shape[1:] != shape[1:]:
            raise _changed(positions[at], name, (dtype, value.shape), (dtype, shape))
    counts = np.fromiter(map(len, values), np.int64, len(values))
    return Column(_finished(name, np.concatenate(values), dtype, positions[0]), counts), (dtype, len(shape), shape[1:])


def _array(name: str, value: Any, where: Any) -> NDArray[Any]:
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise _bad(where, name, "is a masked array", "store .filled(...) and the mask as a field of its own")
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise _bad(where, name, f"{type(value).__name__} cannot be made an array ({error})") from None


def _finished(name: str, values: NDArray[Any], dtype: np.dtype[Any], where: Any) -> NDArray[Any]:
    """`values` as contiguous array of the canonical dtype, no byte of it left to chance."""
    if dtype == _STRING:
        return _strings(name, values, where)
    values = np.ascontiguousarray(values, dtype).reshape(values.shape)
    if dtype.char in "gG" and np.finfo(dtype).nmant == 63:  # x86: 80 bits in 16 bytes, the rest is whatever was there
        values = values.copy()
        values.reshape(-1).view(np.uint8).reshape(-1, 16)[:, 10:] = 0
    return values


def _strings(name: str, values: NDArray[Any], where: Any) -> NDArray[Any]:
    """Objects of UTF-8 bytes, as HDF5 stores and h5py reads them; of arrays of objects each must be a string."""
    out = np.empty(values.size, object)
    for at, text in enumerate(values.reshape(-1).tolist()):
        try:
            # what h5py has read is bytes already, and of any encoding
            out[at] = text.decode().encode() if type(text) is bytes else text.encode()
        except AttributeError:
            raise _bad(where, name, f"dtype object is stored as strings, and {text!r:.40} is none") from None
        except UnicodeError:
            raise _bad(where, name, f"{text!r:.40} is not a string that UTF-8 can hold") from None
        if b"\0" in out[at]:
            raise _bad(where, name, "HDF5 strings cannot hold a zero character", "use fixed bytes or an array of uint8")
    return out.reshape(values.shape)


def canonical(name: str, dtype: np.dtype[Any], where: Any) -> np.dtype[Any]:
    """The dtype a field is stored with: little-endian, structures unpadded (padding is random), object for strings.

    Without titles and metadata: `describe` has no words for them that could be read again.
    """
    try:
        return _canonical(dtype)
    except ValueError as error:
        raise _bad(where, name, str(error)) from None


@lru_cache(maxsize=256)
def _canonical(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind in "UTO":
        return _STRING
    if dtype.names:
        return np.dtype([_member(name, dtype[name]) for name in dtype.names])
    if dtype.kind not in "biufcS" or not dtype.itemsize:
        raise ValueError(f"dtype {dtype} cannot be stored in HDF5")
    return np.dtype(dtype.str.replace(">", "<"))


def _member(name: str, dtype: np.dtype[Any]) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """A member of a structure; `dtype` is a subarray where it has several values."""
    if not name or "\0" in name or name.encode(errors="replace").decode() != name:
        raise ValueError(f"structures cannot have a member {name!r}: not a name HDF5 can store")
    inner = _canonical(dtype.base)
    if inner == _STRING or inner.char in "gG" or 0 in dtype.shape:
        raise ValueError(f"structures cannot hold {dtype} ({name})")
    return name, inner, dtype.shape


# --- names and errors -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _names(names: tuple[Any, ...]) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str):
            raise ValueError(name, f"a field name must be a string, not {type(name).__name__}")
        if name == "event" or name.endswith("_count"):
            raise ValueError(name, "this name is reserved: `event` holds positions, `<field>_count` the rows per event")
        if not name or name == "." or "/" in name or "\0" in name or not name.isprintable():
            raise ValueError(name, "not a name HDF5 can store: empty, `.`, or with `/` or unprintable characters")
    return tuple(sorted(names))


_STORABLE = "return numbers, strings, or numpy arrays of numbers, bools, fixed bytes, strings or structures of them"


def _bad(where: Any, name: Any, detail: str, hint: str = "") -> FieldRefused:
    return FieldRefused(event=int(where), field=name, detail=detail, hint=hint or _STORABLE)


def _refused(where: Any, error: ValueError) -> FieldRefused:
    name, detail = error.args
    return _bad(where, name, detail, "give the field another name")


def _no_mapping(positions: NDArray[np.int64], events: Sequence[Any]) -> FieldRefused:
    for where, event in zip(positions, events, strict=True):
        if not isinstance(event, Mapping):
            return _bad(
                where, "-", f"the payload returned {type(event).__name__}, not a dict of fields", "return a dict"
            )
    return _bad(positions[0], "-", "the names of the fields are not all strings", "return a dict {name: value}")


def _differing_names(positions: NDArray[np.int64], events: Sequence[Mapping[str, Any]]) -> None:
    should = set(events[0])
    for where, event in zip(positions, events, strict=True):
        has = set(event)
        if has != should:
            name = min(has ^ should, key=str)
            found, expected = ("there", "absent") if name in has else ("missing", "there")
            raise FieldsChanged(event=int(where), field=name, found=found, expected=expected)


def _words(dtype: Any, shape: tuple[Any, ...]) -> str:
    kind = "str" if dtype == _STRING or dtype == "str" else str(dtype)
    return (
        f"{kind}, a scalar" if not shape else f"{kind} of shape ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    )


def _changed(where: Any, name: str, found: tuple[Any, Any], expected: tuple[Any, Any]) -> FieldsChanged:
    dtype, shape = expected
    should = _words(dtype, ("n", *shape[1:]) if shape else ())
    return FieldsChanged(event=int(where), field=name, found=_words(*found), expected=should)


def _unexpected(event: int, expected: str, found: str) -> FieldsChanged:
    return differ(event, json.loads(expected), json.loads(found))


def differ(event: int, expected: Mapping[str, Any], found: Mapping[str, Any]) -> FieldsChanged:
    """The error for the first field in which two schemas differ."""
    for name in sorted(set(expected) | set(found)):
        if name not in found:
            return FieldsChanged(event=event, field=name, found="missing", expected="there")
        if name not in expected:
            return FieldsChanged(event=event, field=name, found="there", expected="absent")
        if expected[name] != found[name]:
            texts = []
            for dtype, ndim, tail in (found[name], expected[name]):
                texts.append(_words(dtype, ("n", *tail)[:ndim]))
            return FieldsChanged(event=event, field=name, found=texts[0], expected=texts[1])
    raise ValueError("the schemas do not differ")
