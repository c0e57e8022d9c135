"""What only HDF5 itself can make of an image: files with strings, and files without values to fill in later.

Nothing in them depends on the clock; equal arguments give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5o, h5p, h5s, h5t
from numpy.typing import NDArray

_LARGEST = 32 * 1024  #: bytes of an attribute in the oldest format; HDF5 ends at 64 kB, and writes files it cannot read
#: name, dtype and number of axes of every dataset, in the order they are made
Kinds = tuple[tuple[str, np.dtype[Any], int], ...]


def whole(kinds: Kinds, attributes: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> tuple[bytes, list[int]]:
    """A file whose datasets have the shapes of `arrays` and, for strings, the values; and the offset of the values of
    each: -1 where there are none or HDF5 keeps them in its own way."""
    file = h5f.create(b"image", h5f.ACC_TRUNC, _creation(), _access(h5f.LIBVER_V18))
    try:
        offsets = []
        for (name, dtype, _), array in zip(kinds, arrays, strict=True):
            text = dtype.kind == "O"
            made = h5d.create(file, name.encode(), _type(dtype), h5s.create_simple(array.shape), _dataset(text))
            if text:
                made.write(h5s.ALL, h5s.ALL, array.astype(h5py.string_dtype()))
            offsets.append(made.get_offset() if array.size and not text else -1)
        return _finished(file, attributes), offsets
    finally:
        file.close()


def empty(kinds: Kinds, attributes: Mapping[str, Any]) -> tuple[bytes, list[int]]:
    """A file of the oldest format, whose datasets have no events and no values, and where the object header of each
    is. Raises ValueError for attributes that this format cannot hold."""
    if any(np.asarray(value).nbytes > _LARGEST for value in attributes.values()):
        raise ValueError("an attribute is too large")
    file = h5f.create(b"image", h5f.ACC_TRUNC, _creation(), _access(h5f.LIBVER_EARLIEST))
    try:
        addresses = []
        for name, dtype, axes in kinds:
            space = h5s.create_simple((0,) * axes)
            made = h5d.create(file, name.encode(), _type(dtype), space, _dataset(text=False))
            addresses.append(int(h5o.get_info(made).addr))
        return _finished(file, attributes), addresses
    finally:
        file.close()


def _finished(file: Any, attributes: Mapping[str, Any]) -> bytes:
    for name, value in attributes.items():
        array = np.asarray(np.array(value.encode() or b"\0") if isinstance(value, str) else value)
        space = h5s.create_simple(array.shape) if array.ndim else h5s.create(h5s.SCALAR)
        h5a.create(file, name.encode(), _type(array.dtype), space).write(array)
    h5f.flush(file)
    image: bytes = file.get_file_image()
    return image


@lru_cache(maxsize=1)
def _creation() -> Any:
    creation = h5p.create(h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    return creation


@lru_cache(maxsize=2)
def _access(version: int) -> Any:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(4096, False)
    access.set_fclose_degree(h5f.CLOSE_STRONG)  # an error in the middle must not leave the file open
    access.set_libver_bounds(version, h5f.LIBVER_V110)
    return access


@lru_cache(maxsize=2)
def _dataset(text: bool) -> Any:
    """In one piece from the start, with nothing written into it; but strings must be filled, says HDF5."""
    dataset = h5p.create(h5p.DATASET_CREATE)
    dataset.set_layout(h5d.CONTIGUOUS)
    dataset.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    dataset.set_obj_track_times(False)
    if not text:
        dataset.set_fill_time(h5d.FILL_TIME_NEVER)
    return dataset


@lru_cache(maxsize=256)
def _type(dtype: np.dtype[Any]) -> Any:
    return h5t.py_create(h5py.string_dtype() if dtype.kind == "O" else dtype, logical=True)
