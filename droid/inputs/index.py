"""What is known of one input file after reading it once, and where that is kept.

An index is one uncompressed `.npz` in the task's `index/` directory. Its arrays are mapped, not loaded: a node's worth
of workers shares one copy in the page cache and opening it costs a few system calls whatever the file's size.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from eventrange.errors import CannotWrite, ExtraMissing, InputChanged, InputDamaged, InputMissing

VERSION = 1
MOST_OFFSETS = 1 << 20
"""An index holds at most this many offsets (8 MiB): beyond it every second one goes, and reading skips a few events."""


@dataclass
class Index:
    """Facts about one input file that make a range in its middle cheap.

    `size` and `mtime_ns` are those of the file when it was read; `meta` holds small facts (JSON), `arrays` the large
    ones, each an int64 array; `copy` is the re-blocked copy of a compressed file, beside the index, or None.
    """

    format: str
    path: str
    size: int
    mtime_ns: int
    count: int
    meta: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    copy: str | None = None

    def check(self) -> None:
        """Raise InputMissing or InputChanged unless the file is the one that was indexed."""
        size, mtime_ns = stamp(self.path)
        if size != self.size:
            raise InputChanged(path=self.path, detail=f"it has {size} bytes and had {self.size}")
        if mtime_ns != self.mtime_ns:
            raise InputChanged(path=self.path, detail="it was written to since (its modification time differs)")

    def save(self, target: Path) -> None:
        """Write the index so that `target` is either whole or absent. Raises CannotWrite."""
        facts = {
            "version": VERSION,
            "format": self.format,
            "path": self.path,
            "size": self.size,
            "mtime_ns": self.mtime_ns,
            "count": self.count,
            "meta": self.meta,
            "copy": os.path.basename(self.copy) if self.copy else None,
        }
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.savez(file, _facts=text, **self.arrays)  # type: ignore[arg-type]

        write_whole(target, write)

    @classmethod
    def load(cls, source: Path) -> Index | None:
        """The index stored at `source`, or None if there is none that can be read: it is then simply made again."""
        try:
            arrays = _map_arrays(source)
            facts = json.loads(arrays.pop("_facts").tobytes())
            if facts.pop("version") != VERSION:
                return None
            copy = facts.pop("copy")
            if copy is not None:
                copy = str(source.parent / copy)
                if os.path.getsize(copy) != facts["meta"]["copy_size"]:
                    return None
            return cls(**facts, arrays=arrays, copy=copy)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, struct.error):
            return None


def _map_arrays(source: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed .npz as views of one read-only map. NumPy itself only copies them."""
    with open(source, "rb") as file:
        members = zipfile.ZipFile(file).infolist()
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = {}
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{source}: compressed")
            file.seek(member.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            begin = member.header_offset + 30 + name_length + extra_length
            file.seek(begin)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if file.tell() + dtype.itemsize * int(np.prod(shape)) > begin + member.file_size:
                raise ValueError(f"{source}: {member.filename} is cut short")
            arrays[member.filename.removesuffix(".npy")] = np.ndarray(shape, dtype, buffer=view, offset=file.tell())
    return arrays


def write_whole(target: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `target`, then put it there in one step. Raises CannotWrite.

    Several processes may do so at once: each has its own temporary name and the last one wins with the same bytes.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # An input that cannot be read raises its own error inside `write`; what is left is the writing.
        raise CannotWrite(path=str(target), detail=error.strerror or str(error)) from error


def index_path(cache_dir: str | os.PathLike[str], format: str, path: str, options: dict[str, Any]) -> Path:
    """Where the index of this file, read in this way, is kept: a name to recognise and a hash to tell apart."""
    key = json.dumps([format, path, options], sort_keys=True, default=str).encode()
    base = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(path.rstrip("/")))[-80:] or "input"
    return Path(cache_dir) / f"{base}.{hashlib.sha256(key).hexdigest()[:12]}.npz"


# --- files, here and elsewhere ----------------------------------------------------------------------------------------


def is_remote(path: str) -> bool:
    """Whether a path is a URL of another place; `file://` is not."""
    scheme = urlsplit(path).scheme
    return "://" in path and len(scheme) > 1 and scheme != "file"


def local_path(path: str) -> str:
    """The path without `file://`."""
    return path[len("file://") :] if path.startswith("file://") else path


def stamp(path: str) -> tuple[int, int]:
    """(size in bytes, modification time in ns) of an input file.

    Raises InputMissing for what is absent, unreadable, or no regular file, InputDamaged for an empty file, ExtraMissing
    for a URL without fsspec. For a URL the time stands for whatever version stamp the store gives, or is 0.
    """
    if is_remote(path):
        return _remote_stamp(path)
    local = local_path(path)
    try:
        status = os.stat(local)
        if os.path.isdir(local):
            raise InputMissing(path=path, detail="is a directory, not a file")
        if not os.path.isfile(local):
            raise InputMissing(path=path, detail="is not a regular file, so a range in its middle cannot be read")
        if not os.access(local, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            raise InputMissing(path=path, detail=f"permission denied for user {os.geteuid()}")
    except FileNotFoundError as error:
        raise InputMissing(path=path, detail="no such file") from error
    except OSError as error:
        raise InputMissing(path=path, detail=error.strerror or str(error)) from error
    if status.st_size == 0:
        raise InputDamaged(path=path, detail="is empty (0 bytes)", hint="copy the file again from its source")
    return status.st_size, status.st_mtime_ns


def open_remote(path: str) -> Any:
    """A seekable binary file object for a URL, reading only the blocks it is asked for."""
    filesystem, inner = _filesystem(path)
    try:
        return filesystem.open(inner, "rb", cache_type="readahead", block_size=1 << 20)
    except Exception as error:  # every store has its own exceptions
        raise InputMissing(path=path, detail=f"cannot be opened ({type(error).__name__}: {error})") from error


def _filesystem(path: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise ExtraMissing(feature=f"reading {path}", package="fsspec", extra="remote") from error
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except ImportError as error:
        scheme = urlsplit(path).scheme
        package = {"s3": "s3fs", "root": "fsspec-xrootd", "http": "aiohttp", "https": "aiohttp"}.get(scheme, scheme)
        raise ExtraMissing(feature=f"reading {path}", package=package, extra="remote") from error
    except Exception as error:
        raise InputMissing(path=path, detail=f"is no URL that fsspec can read ({error})") from error
    return filesystem, inner


def _remote_stamp(path: str) -> tuple[int, int]:
    filesystem, inner = _filesystem(path)
    try:
        info = filesystem.info(inner)
    except FileNotFoundError as error:
        raise InputMissing(path=path, detail="no such file") from error
    except Exception as error:  # every store has its own exceptions
        raise InputMissing(path=path, detail=f"cannot be reached ({type(error).__name__}: {error})") from error
    if info.get("type") == "directory":
        raise InputMissing(path=path, detail="is a directory, not a file")
    if info.get("size") is None:
        raise InputMissing(path=path, detail="the server does not say how large it is, so ranges cannot be read")
    if info["size"] == 0:
        raise InputDamaged(path=path, detail="is empty (0 bytes)", hint="copy the file again from its source")
    mark = next((str(info[key]) for key in ("ETag", "mtime", "LastModified", "created") if info.get(key)), "")
    return int(info["size"]), int.from_bytes(hashlib.sha256(mark.encode()).digest()[:7], "big") if mark else 0
