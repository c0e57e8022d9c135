"""HDF5 files with one row per event, jagged fields, and the LHE-in-HDF5 layout.

Three ways to store a varying number of rows per event are met in practice and two are read here: `<field>` with
`<field>_count` (what this project writes itself), and `layout: lheh5` (`events` with columns `start` and `nparticles`
that point into `particles`). The third, variable-length types, is just an ordinary dataset to h5py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from droid.inputs.index import Index, is_remote, local_path, open_remote, stamp
from eventrange.errors import ConfigError, InputDamaged

COUNT = "_count"
EVERY = 1024  # a jagged field's rows before every 1024th event are kept: 8 bytes per 1024 events, 4 KiB more to read
_OPTIONS = {"group", "fields", "layout"}


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    import h5py

    source = open_remote(path) if is_remote(path) else local_path(path)
    try:
        # Nobody writes inputs, and file locks fail on many parallel file systems.
        file = h5py.File(source, "r", locking=False, rdcc_nbytes=8 << 20)
    except OSError as error:
        raise InputDamaged(
            path=path,
            detail=f"is no HDF5 file, or is cut short ({error})",
            hint="look at the file and at inputs.format in the job file, or copy it again from its source",
        ) from error
    try:
        yield file
    finally:
        file.close()


def _bad(key: str, detail: str, hint: str) -> ConfigError:
    return ConfigError(file="job file", key=f"inputs.options.{key}", detail=detail, hint=hint)


def _group(file: Any, path: str, name: str) -> Any:
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Group):
        groups = ["/"]
        file.visititems(lambda key, item: groups.append(key) if isinstance(item, h5py.Group) else None)
        raise _bad("group", f"{path} has no group {name!r}", f"write one of: {', '.join(groups[:20])}")
    return found


def _datasets(group: Any) -> dict[str, Any]:
    """Every dataset below a group that has a leading axis, by its path in the group."""
    import h5py

    found: dict[str, Any] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            found[name] = item

    group.visititems(take)
    return found


def strings(dataset: Any, errors: str = "strict") -> Any:
    """`dataset`, or a view of it with strings of variable length as `str`: as bytes, each is of another dtype.

    They are UTF-8 whatever the file says: a C program that says nothing has said ASCII.
    """
    import h5py

    text = h5py.check_string_dtype(dataset.dtype)
    return dataset if text is None or text.length is not None else dataset.asstr("utf-8", errors)


def _chosen(path: str, group: Any, fields: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """({field: dataset}, {jagged field: dataset of its counts}) as the options ask."""
    there = _datasets(group)
    if fields is None:
        names = [name for name in there if not (name.endswith(COUNT) and name.removesuffix(COUNT) in there)]
    else:
        names = list(fields)
        for name in names:
            if name not in there:
                near = ", ".join(sorted(there)[:20]) or "none"
                raise _bad("fields", f"{path} has no dataset {name!r} with a leading axis", f"there are: {near}")
    if not names:
        raise InputDamaged(
            path=path,
            detail=f"has no dataset with a leading axis in group {group.name}",
            hint="name the group in inputs.options.group",
        )
    return {name: there[name] for name in names}, {name: there[name + COUNT] for name in names if name + COUNT in there}


def index_hdf5(path: str, options: dict[str, Any]) -> Index:
    """Count the events and, for jagged fields, the rows before every 1024th.

    Options: `group` (default the root), `fields` (default all), `layout` (`fields` or `lheh5`).
    Raises InputMissing, InputDamaged (unequal leading axes, counts that do not add up), ConfigError (wrong option).
    """
    unknown = set(options) - _OPTIONS
    if unknown:
        raise _bad(sorted(unknown)[0], "is no option of format hdf5", f"write one of: {', '.join(sorted(_OPTIONS))}")
    size, mtime_ns = stamp(path)
    index = Index("hdf5", path, size, mtime_ns, 0)
    layout = options.get("layout", "fields")
    if layout not in ("fields", "lheh5"):
        raise _bad("layout", f"{layout!r} is not known", "write fields or lheh5")
    with _opened(path) as file:
        group = _group(file, path, options.get("group", "/"))
        if layout == "lheh5":
            index.count = _check_lheh5(path, group)
        else:
            _index_fields(index, group, options.get("fields"))
    return index


def _index_fields(index: Index, group: Any, fields: list[str] | None) -> None:
    datasets, counts = _chosen(index.path, group, fields)
    axes = {name: len(counts.get(name, dataset)) for name, dataset in datasets.items()}
    lengths = sorted(set(axes.values()))
    if len(lengths) > 1:
        said = "; ".join(
            f"{length} rows: {', '.join(name for name, own in axes.items() if own == length)}" for length in lengths[:5]
        )
        raise InputDamaged(
            path=index.path,
            detail=f"its fields do not have the same number of events ({said})",
            hint="choose fields that belong together with inputs.options.fields or .group; "
            f"a field with several rows per event needs <field>{COUNT}",
        )
    index.count = lengths[0]
    for number, (name, dataset) in enumerate(counts.items()):
        starts, rows = [0], 0
        for begin in range(0, index.count, EVERY * 64):
            piece = np.asarray(dataset[begin : begin + EVERY * 64])
            if piece.ndim != 1 or piece.dtype.kind not in "iu" or (piece.dtype.kind == "i" and (piece < 0).any()):
                raise InputDamaged(
                    path=index.path,
                    detail=f"{name}{COUNT} does not hold one number of rows per event",
                    hint=f"it must be a list of integers, 0 or more: how many rows of {name} an event has",
                )
            sums = np.add.reduceat(piece.astype(np.int64), np.arange(0, len(piece), EVERY))
            starts += (rows + np.cumsum(sums)).tolist()
            rows = starts[-1]
        if rows != len(datasets[name]):
            raise InputDamaged(
                path=index.path,
                detail=f"{name}{COUNT} adds up to {rows} rows, but {name} has {len(datasets[name])}",
                hint="the file was not written to its end; copy it again from its source",
            )
        index.arrays[f"rows{number}"] = np.array(starts, np.int64)
    index.meta["jagged"] = list(counts)


def _columns(dataset: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in dataset.attrs["properties"]]


def _check_lheh5(path: str, group: Any) -> int:
    try:
        events, particles = group["events"], group["particles"]
        columns = _columns(events)
        starts = events[:, columns.index("start")]
        ends = starts + events[:, columns.index("nparticles")]
        _columns(particles)
    except (KeyError, ValueError) as error:
        raise InputDamaged(
            path=path,
            detail=f"is not laid out as lheh5: {error}",
            hint="events and particles with the attribute properties are needed; otherwise leave out the option layout",
        ) from error
    if len(ends) and (starts.min() < 0 or ends.max() > len(particles) or (ends < starts).any()):
        raise InputDamaged(
            path=path,
            detail=f"events point to rows up to {int(ends.max())} of particles, which has {len(particles)}",
            hint="the file was not written to its end; copy it again from its source",
        )
    return len(events)


class HDF5Input:
    """One open HDF5 file: `read` gives a dict per event.

    With fields: {field: its row, an array, a NumPy scalar or a string; for a jagged field an array (rows, ...)}.
    With `layout: lheh5`: {column of `events`: float, ..., "particles": array of shape (nparticles, columns)},
    and `particle_columns` says what the columns are.
    """

    def __init__(self, index: Index, options: dict[str, Any]) -> None:
        self.index = index
        self.particle_columns: list[str] = []
        self._manager = _opened(index.path)
        self._file = self._manager.__enter__()
        group = _group(self._file, index.path, options.get("group", "/"))
        self._lheh5 = options.get("layout") == "lheh5"
        if self._lheh5:
            self._events, self._particles = group["events"], group["particles"]
            self._event_columns = _columns(self._events)
            self.particle_columns = _columns(self._particles)
        else:
            found, self._counts = _chosen(index.path, group, options.get("fields"))
            self._fields = {name: strings(dataset, "surrogateescape") for name, dataset in found.items()}
            self._rows = {name: index.arrays[f"rows{i}"] for i, name in enumerate(index.meta["jagged"])}

    def count(self) -> int:
        return self.index.count

    def read(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Events [start, stop) of this file, 0-based; one read per field. Raises IndexError, InputDamaged."""
        if not 0 <= start <= stop <= self.index.count:
            raise IndexError(f"[{start}, {stop}) is outside {self.index.path}, which has {self.index.count} events")
        if start == stop:
            return []
        try:
            return self._read_lheh5(start, stop) if self._lheh5 else self._read_fields(start, stop)
        except (OSError, KeyError) as error:
            raise InputDamaged(
                path=self.index.path,
                detail=f"events {start + 1} to {stop} cannot be read ({error})",
                hint="copy the file again from its source",
            ) from error

    def _read_fields(self, start: int, stop: int) -> list[dict[str, Any]]:
        columns: dict[str, Any] = {}
        for name, dataset in self._fields.items():
            if name not in self._counts:
                columns[name] = dataset[start:stop]
                continue
            anchor = start // EVERY
            counts = np.asarray(self._counts[name][anchor * EVERY : stop], np.int64)
            edges = np.concatenate([[0], np.cumsum(counts)]) + int(self._rows[name][anchor])
            edges = edges[start - anchor * EVERY :]
            rows = dataset[int(edges[0]) : int(edges[-1])]
            inner = (edges - edges[0]).tolist()
            columns[name] = [rows[a:b] for a, b in itertools.pairwise(inner)]
        names = list(columns)
        return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _read_lheh5(self, start: int, stop: int) -> list[dict[str, Any]]:
        rows = self._events[start:stop]
        first = rows[:, self._event_columns.index("start")].astype(np.int64)
        after = first + rows[:, self._event_columns.index("nparticles")].astype(np.int64)
        low = int(first.min())
        particles = self._particles[low : int(after.max())]
        return [
            dict(zip(self._event_columns, row, strict=True)) | {"particles": particles[a - low : b - low]}
            for row, a, b in zip(rows.tolist(), first.tolist(), after.tolist(), strict=True)
        ]

    def close(self) -> None:
        self._manager.__exit__(None, None, None)


__all__ = ["EVERY", "HDF5Input", "index_hdf5", "strings"]
