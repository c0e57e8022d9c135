"""One merged HDF5 file, written in a stream, byte for byte the same however the events arrive (L3).

HDF5 places things in a file in the order they are written, so that order is made a property of the data alone: the size
of a dataset's chunks follows from that of its rows, a chunk is written when the event that fills it has arrived, and
chunks filled by the same event go in the order of the datasets. Chunks are compressed by a few threads and written in
order. What is held in memory is a chunk per dataset and the few that are being compressed.

HDF5 cannot be trusted with a full disk: a file that failed to flush cannot be closed, and it tries again at exit. So it
writes through `_Out`, which keeps the first error to itself, drops everything after it, and lets HDF5 believe all is
well; `FinalFile` looks at it after each step.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5f, h5fd, h5p, h5s, h5t
from numpy.typing import NDArray

from eventrange.durable import FILES, Files, explain
from eventrange.fields import Column

#: Bytes of a chunk before compression. Below 100 kB the cost per chunk shows, above 1 MB reading single events does.
CHUNK = 256 * 1024
COMPRESSIONS = ("gzip", "lzf", "none")


class Layout(NamedTuple):
    """How one field is stored: `shape` (without the event axis) when fixed, else the shape of one of its rows."""

    name: str
    dtype: np.dtype[Any]
    jagged: bool
    shape: tuple[int, ...]


class _Out:
    """A file for HDF5 whose errors are kept for later."""

    def __init__(self, path: str, files: Files) -> None:
        self.path, self.files = path, files
        self.error: OSError | None = None
        self._at = self._end = 0
        try:
            self.fd = files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        except OSError as error:
            raise explain(error, path) from error

    def check(self) -> None:
        if self.error is not None:
            raise explain(self.error, self.path) from self.error

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = b""
        if self.error is None:
            try:
                data = os.pread(self.fd, len(view), self._at)
            except OSError as error:
                self.error = error
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
        self._at += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        if self.error is None:
            try:
                os.lseek(self.fd, self._at, os.SEEK_SET)
                while len(view):
                    view = view[self.files.write(self.fd, view) :]
            except OSError as error:
                self.error = error
        self._at += size
        self._end = max(self._end, self._at)
        return size

    def truncate(self, size: int | None = None) -> int:
        self._end = self._at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self.fd, self._end)
            except OSError as error:
                self.error = error
        return self._end

    def flush(self) -> None:
        pass

    def sync(self) -> None:
        if self.error is None:
            try:
                self.files.fsync(self.fd)
            except OSError as error:
                self.error = error

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            try:
                self.files.close(fd)
            except OSError as error:
                self.error = self.error or error


class _Stream:
    """One dataset: gathers rows until a chunk is full."""

    def __init__(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        self.text = dtype.kind == "O"
        width = 64 if self.text else dtype.itemsize  # strings may be of any length; this one is a guess
        self.row = width * int(np.prod(shape, dtype=np.int64))
        self.rows = max(1, CHUNK // self.row) if self.row else 0  #: of a chunk; 0: nothing to store
        self.total = 0
        self.buffer: NDArray[Any] | None = None
        self.dataset: Any = None
        self.chunk = 0

    def put(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Add rows; returns the chunks that are now full."""
        if not self.rows:
            self.total += len(values)
            return []
        full: list[NDArray[Any]] = []
        used = self.total % self.rows
        self.total += len(values)
        at = 0
        while at < len(values):
            take = min(self.rows - used, len(values) - at)
            part = values[at : at + take]
            at += take
            if take == self.rows:  # a whole chunk out of one array: no need to copy
                full.append(part)
                continue
            if self.buffer is None:
                self.buffer = np.zeros((self.rows, *self.shape), self.dtype)
            self.buffer[used : used + take] = part
            used += take
            if used == self.rows:
                full.append(self.buffer)
                self.buffer, used = None, 0
        return full


class FinalFile:
    """A merged file in the making at `path`. `add` events in axis order, then `finish`; `abandon` in all other cases.

    Raises CannotWrite for anything the file system refuses, and leaves removing the file to the caller.
    """

    def __init__(
        self,
        path: str,
        layouts: Sequence[Layout],
        compression: str = "gzip",
        level: int = 4,
        threads: int = 1,
        files: Files = FILES,
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f"compression {compression!r} is none of {', '.join(COMPRESSIONS)}")
        self.events = 0
        self._compression, self._level = compression, level
        self._pool = ThreadPoolExecutor(threads) if threads > 1 and compression == "gzip" else None
        self._ahead = 2 * threads
        self._waiting: deque[tuple[_Stream, Any, int]] = deque()
        self._event = _Stream("event", np.dtype(np.int64), ())
        self._streams = [self._event]
        self._fields: list[tuple[str, _Stream, _Stream | None]] = []
        for layout in layouts:
            stream = _Stream(layout.name, layout.dtype, layout.shape)
            count = _Stream(f"{layout.name}_count", np.dtype(np.int64), ()) if layout.jagged else None
            self._streams += [stream] if count is None else [stream, count]
            self._fields.append((layout.name, stream, count))
        self._out = _Out(path, files)
        self._file: Any = self._do(self._create)

    def add(self, positions: NDArray[np.int64], columns: Mapping[str, Column]) -> None:
        """Append n events: `columns` exactly as the layouts say (fixed: (n, *shape); jagged: rows and counts)."""
        base = self.events
        self.events += len(positions)
        full: list[tuple[int, int, NDArray[Any]]] = []
        number = 0
        self._collect(full, 0, self._event, positions, base, None)
        for name, stream, count in self._fields:
            values, counts = columns[name]
            number += 1
            self._collect(full, number, stream, values, base, counts if count is not None else None)
            if count is not None and counts is not None:
                number += 1
                self._collect(full, number, count, counts, base, None)
        full.sort(key=lambda entry: entry[:2])
        for _, which, chunk in full:
            self._submit(self._streams[which], chunk, len(chunk))

    def finish(self, attributes: Mapping[str, Any]) -> tuple[int, str]:
        """Write what is left, the attributes of the root group, and make the file durable; returns its size and
        sha256."""
        for stream in self._streams:
            if stream.buffer is not None:
                used = stream.total % stream.rows
                whole = self._direct(stream) and stream.total > stream.rows  # HDF5's filters are not there to pad it
                self._submit(stream, stream.buffer if whole else stream.buffer[:used], used)
                stream.buffer = None
        self._drain(0)
        self._do(lambda: self._close(attributes))
        if self._pool is not None:
            self._pool.shutdown()
        with ThreadPoolExecutor(1) as beside:  # the disk writes, meanwhile a core reads what is still in memory
            digest = beside.submit(sha256_of, self._out.path)
            self._out.sync()
            self._out.close()
            self._out.check()
            return digest.result()

    def abandon(self) -> None:
        """Let go of everything after an error; never raises."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._out.error = self._out.error or OSError("abandoned")  # so that closing writes nothing more
        try:
            for stream in self._streams:
                stream.dataset = None
            if self._file is not None and self._file.valid:
                self._file.close()
        except (OSError, RuntimeError, ValueError):
            pass
        self._out.close()

    # --- order of chunks ----------------------------------------------------------------------------------------------

    @staticmethod
    def _collect(
        full: list[tuple[int, int, NDArray[Any]]],
        number: int,
        stream: _Stream,
        values: NDArray[Any],
        base: int,
        counts: NDArray[np.int64] | None,
    ) -> None:
        before = stream.total
        chunks = stream.put(values)
        if not chunks:
            return
        # rows of this batch that complete each chunk, then the event that brings the last of them
        ends = (np.arange(len(chunks)) + before // stream.rows + 1) * stream.rows - before
        at = ends - 1 if counts is None else np.searchsorted(np.cumsum(counts), ends)
        full += [(base + int(event), number, chunk) for event, chunk in zip(at, chunks, strict=True)]

    def _direct(self, stream: _Stream) -> bool:
        """Whether chunks are packed here and not by HDF5: strings are HDF5's own affair, and lzf is in h5py alone."""
        return not stream.text and self._compression != "lzf"

    def _submit(self, stream: _Stream, chunk: NDArray[Any], rows: int) -> None:
        packed: Any = chunk
        if self._direct(stream):
            if self._compression == "none":
                packed = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
            elif self._pool is not None:
                packed = self._pool.submit(_pack, chunk, self._level)
            else:
                packed = _pack(chunk, self._level)
        self._waiting.append((stream, packed, rows))
        self._drain(self._ahead)

    def _drain(self, leave: int) -> None:
        while len(self._waiting) > leave:
            stream, packed, rows = self._waiting.popleft()
            data = packed.result() if isinstance(packed, Future) else packed
            self._do(lambda stream=stream, data=data, rows=rows: self._write(stream, data, rows))

    # --- HDF5 ---------------------------------------------------------------------------------------------------------

    def _do(self, call: Any) -> Any:
        try:
            result = call()
        except (OSError, RuntimeError) as error:
            self._out.check()
            raise explain(error if isinstance(error, OSError) else OSError(str(error)), self._out.path) from error
        self._out.check()
        return result

    def _create(self) -> Any:
        creation, access = h5p.create(h5p.FILE_CREATE), h5p.create(h5p.FILE_ACCESS)
        creation.set_obj_track_times(False)
        access.set_fileobj_driver(h5fd.fileobj_driver, self._out)
        access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V110)
        access.set_meta_block_size(16 * 1024)
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        return h5f.create(self._out.path.encode(), h5f.ACC_TRUNC, creation, access)

    def _dataset(self, stream: _Stream) -> Any:
        kind = h5t.py_create(h5py.string_dtype() if stream.text else stream.dtype, logical=True)
        creation, access = h5p.create(h5p.DATASET_CREATE), h5p.create(h5p.DATASET_ACCESS)
        creation.set_obj_track_times(False)
        rows = min(stream.rows, stream.total)
        if not rows:
            space = h5s.create_simple((stream.total, *stream.shape))
            return h5d.create(self._file, stream.name.encode(), kind, space, creation)
        creation.set_chunk((rows, *stream.shape))
        if self._direct(stream):
            creation.set_fill_time(h5d.FILL_TIME_NEVER)
        if not stream.text and self._compression != "none":
            creation.set_shuffle()
            if self._compression == "gzip":
                creation.set_deflate(self._level)
            else:
                creation.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)
        access.set_chunk_cache(0, 0, 0.0)  # every chunk is written once, whole: caching would only delay it
        space = h5s.create_simple((0, *stream.shape), (h5s.UNLIMITED, *stream.shape))
        return h5d.create(self._file, stream.name.encode(), kind, space, creation, dapl=access)

    def _write(self, stream: _Stream, data: Any, rows: int) -> None:
        if stream.dataset is None:
            stream.dataset = self._dataset(stream)
        at = stream.chunk * stream.rows
        stream.dataset.set_extent((at + rows, *stream.shape))
        where = (at, *(0 for _ in stream.shape))
        if isinstance(data, np.ndarray):
            space = stream.dataset.get_space()
            space.select_hyperslab(where, data.shape)
            if stream.text:
                data = data.astype(h5py.string_dtype())
            stream.dataset.write(h5s.create_simple(data.shape), space, np.ascontiguousarray(data))
        else:
            stream.dataset.write_direct_chunk(where, data)
        stream.chunk += 1

    def _close(self, attributes: Mapping[str, Any]) -> None:
        for stream in self._streams:
            if stream.dataset is None:
                stream.dataset = self._dataset(stream)
        root = h5py.Group(h5py.h5g.open(self._file, b"/"))
        for name in sorted(attributes):
            root.attrs[name] = attributes[name]
        for stream in self._streams:
            stream.dataset = None
        del root
        self._file.close()


def sha256_of(path: str) -> tuple[int, str]:
    """(bytes, sha256 in hex) of a file."""
    sha, size = hashlib.sha256(), 0
    view = memoryview(bytearray(1 << 18))  # small enough to stay in a core's cache
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(view):
            sha.update(view[:count])
            size += count
    return size, sha.hexdigest()


def _pack(chunk: NDArray[Any], level: int) -> bytes:
    """A chunk as HDF5's filters shuffle and deflate would leave it."""
    flat = np.ascontiguousarray(chunk).reshape(-1)
    width = flat.dtype.itemsize
    raw = flat.view(np.uint8).reshape(-1, width)
    return zlib.compress(np.ascontiguousarray(raw.T).data, level)
