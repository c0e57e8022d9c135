"""The file a program wrote for a range -> one dict of fields per event.

Two formats, told apart by their first bytes:

* HDF5: every dataset in the root is a field and its first axis is the event; where a dataset `<field>_count` of
  integers is beside it, `<field>` holds the rows of all events one after another, `<field>_count` how many are whose.
  Strings of variable length are strings, in UTF-8; those of a fixed length are fixed bytes.
* JSON lines: one object per event and line, in order. `true` -> bool, `3` -> int64, `3.0` -> float64, `"x"` -> string,
  a list -> an array of these, lists of equally long lists -> arrays with more axes. Numbers are taken as written, so a
  field must not be `1` in one event and `1.5` in another, and the numbers of an empty list are taken to be floats.

Where JSON cannot say what is meant, `payload.options: {fields: {pt: float64, id: int32, hits: 3f8}}` does: in a field
that is declared a float, `1` means 1.0, an empty list has the declared dtype, and `3f8` means rows of three float64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fields = dict[str, Any]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_KINDS: dict[type, np.dtype[Any]] = {
    bool: np.dtype(np.bool_),
    int: np.dtype(np.int64),
    float: np.dtype(np.float64),
    str: np.dtype(object),
}


class Unreadable(Exception):
    """The file is not what the module's docstring promises; the text says what is wrong and where."""


def declared(fields: Mapping[str, Any]) -> dict[str, np.dtype[Any]]:
    """The dtypes of `payload.options.fields`. Raises ValueError, naming the field, for what is no dtype of numbers."""
    out = {}
    for name, text in fields.items():
        try:
            found = np.dtype(text)
        except TypeError:
            raise ValueError(f"{name}: {text!r} is no dtype") from None
        if found.base.kind not in "biufc":
            raise ValueError(f"{name}: {text!r} is no dtype of numbers")
        out[name] = found
    return out


def read_output(path: Path, fields: Mapping[str, np.dtype[Any]] | None = None) -> list[Fields]:
    """The fields of each event in the file, in its order. `fields` are dtypes that were declared. Raises Unreadable."""
    with open(path, "rb") as file:
        head = file.read(8)
    dtypes = fields or {}
    if head != _HDF5:
        return _json(path, dtypes)
    events = _hdf5(path)
    for number, event in enumerate(events, 1):
        for name in event.keys() & dtypes.keys():
            event[name] = _as_declared(event[name], dtypes[name], f"event {number}, field {name!r}")
    return events


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def _hdf5(path: Path) -> list[Fields]:
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            arrays = {}
            for name, item in file.items():
                if not isinstance(item, h5py.Dataset):
                    raise Unreadable(f"{name!r} is a group; fields are datasets in the root of the file")
                if not item.shape:
                    raise Unreadable(f"dataset {name!r} has no axis of events")
                arrays[name] = _values(name, item)
    except (OSError, RuntimeError, ValueError) as error:
        raise Unreadable(f"it is no whole HDF5 file ({error})") from error
    columns: dict[str, Any] = {}
    for name, values in arrays.items():
        counts = arrays.get(f"{name}_count")
        if counts is not None:
            columns[name] = _rows(name, values, counts)
        elif not (name.endswith("_count") and name.removesuffix("_count") in arrays):
            # of fixed bytes an item would be as short as its own text, and its dtype another for every event
            columns[name] = values if values.dtype.kind != "S" else [values[at, ...] for at in range(len(values))]
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise Unreadable("its fields have different numbers of events: " + _listed(lengths))
    if not columns:
        raise Unreadable("it holds no datasets")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(name: str, item: Any) -> NDArray[Any]:
    """All of a dataset; strings of variable length as `str`."""
    from droid.inputs.hdf5 import strings

    values: NDArray[Any]
    try:
        values = strings(item)[()]
    except UnicodeDecodeError as error:
        raise Unreadable(f"dataset {name!r} holds a string that is no UTF-8: {error.object!r:.60}") from None
    return values


def _rows(name: str, values: NDArray[Any], counts: NDArray[Any]) -> list[NDArray[Any]]:
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts.size and counts.min() < 0):
        raise Unreadable(f"{name}_count is not one whole number per event")
    total = int(counts.sum())
    if total != len(values):
        raise Unreadable(f"{name}_count adds up to {total}, and {name} has {len(values)} rows")
    stops = np.cumsum(counts).tolist()
    return [values[stop - count : stop] for stop, count in zip(stops, counts.tolist(), strict=True)]


def _listed(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {length}" for name, length in lengths.items())


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _json(path: Path, dtypes: Mapping[str, np.dtype[Any]]) -> list[Fields]:
    events = []
    with open(path, encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if line := line.strip():
                    events.append(_event(number, line, dtypes))
        except UnicodeDecodeError as error:
            raise Unreadable(f"it is neither HDF5 nor JSON lines (byte {error.start} is no UTF-8)") from None
    return events


def _event(number: int, line: str, dtypes: Mapping[str, np.dtype[Any]]) -> Fields:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise Unreadable(f"line {number} is no JSON: {error}, in {line[:60]!r}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"line {number} is no object {{...}} with the fields of one event: {line[:60]!r}")
    out = {}
    for name, value in found.items():
        where = f"line {number}, field {name!r}"
        dtype = dtypes.get(name)
        out[name] = _value(value, where) if dtype is None else _as_declared(_value(value, where, True), dtype, where)
    return out


def _value(value: Any, where: str, mixed: bool = False) -> Any:
    """A JSON value as a Python scalar or an array; `mixed` lets whole numbers stand among floats."""
    kinds: set[type] = set()
    shape = _shape(value, kinds) if isinstance(value, list) else ()
    if shape is None:
        raise Unreadable(f"{where}: the lists in the list are not equally long")
    if not isinstance(value, list):
        kinds.add(type(value))
    for kind, words in ((type(None), "null"), (dict, "an object")):
        if kind in kinds:
            raise Unreadable(f"{where}: {words} cannot be stored")
    if mixed and kinds == {int, float}:
        kinds = {float}
    if len(kinds) > 1:
        words = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise Unreadable(f"{where}: {words} in one list; write 1.0 for 1, or give payload.options.fields")
    if not isinstance(value, list):
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise Unreadable(f"{where}: {value} does not fit int64")
        return value
    try:
        return np.array(value, _KINDS[kinds.pop()] if kinds else np.float64).reshape(shape)
    except OverflowError:
        raise Unreadable(f"{where}: a number does not fit int64") from None


def _shape(value: list[Any], kinds: set[type]) -> tuple[int, ...] | None:
    """The shape of nested lists, None where they are not equally long; the types of what is in them go to `kinds`."""
    inner = {_shape(item, kinds) for item in value if isinstance(item, list)}
    if not inner:
        kinds.update(map(type, value))
        return (len(value),)
    first = inner.pop()
    if inner or first is None or not all(isinstance(item, list) for item in value):
        return None
    return (len(value), *first)


def _as_declared(value: Any, dtype: np.dtype[Any], where: str) -> Any:
    given = np.asarray(value)
    whole = given.dtype.kind in "iu" and dtype.base.kind in "iu"
    if given.size and not whole and not np.can_cast(given.dtype, dtype.base, "same_kind"):
        raise Unreadable(f"{where} is {given.dtype}, declared as {dtype.base}")
    array = given.astype(dtype.base)
    if whole and (array != given).any():
        raise Unreadable(f"{where}: a number does not fit {dtype.base}")
    if dtype.shape:
        if not array.size:
            array = array.reshape(0, *dtype.shape)
        if array.shape[1:] != dtype.shape:
            raise Unreadable(f"{where} has shape {array.shape}, declared as rows of shape {dtype.shape}")
    return array if array.ndim else array[()]
