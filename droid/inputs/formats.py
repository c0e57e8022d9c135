"""From the word in `inputs.format` to the module that knows it; each is imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from droid.inputs.index import Index, index_path
from eventrange.errors import ConfigError

FORMATS = ("lhe", "hdf5", "root", "hepmc", "generate")


class Input(Protocol):
    """One open input file."""

    def count(self) -> int:
        """Events in the file."""
        ...

    def read(self, start: int, stop: int) -> Sequence[Any]:
        """Events [start, stop) of this file, 0-based: one item per event."""
        ...

    def close(self) -> None: ...


def index_file(
    format: str, path: str, options: dict[str, Any] | None = None, cache_dir: str | PathLike[str] | None = None
) -> Index:
    """Read a file once: how many events, and whatever makes a range in its middle cheap.

    With `cache_dir` the index is kept there, and for a gzip file the copy without which each reader unpacks it whole.
    Raises InputMissing, InputDamaged, InputChanged, ExtraMissing, ConfigError, CannotWrite.
    """
    options = options or {}
    kept = index_path(cache_dir, format, path, options) if cache_dir is not None else None
    copy = kept.with_suffix(".blocks.gz") if kept is not None else None
    index = _index(format, path, options, copy)
    if kept is not None:
        index.save(kept)
        # Mapped and not held: the arrays of a thousand files would otherwise add up.
        index = Index.load(kept) or index
    return index


def _index(format: str, path: str, options: dict[str, Any], copy: Path | None) -> Index:
    if format == "lhe":
        from droid.inputs.lhe import index_lhe

        return index_lhe(path, options, copy)
    if format == "hepmc":
        from droid.inputs.hepmc import index_hepmc

        return index_hepmc(path, options, copy)
    if format == "hdf5":
        from droid.inputs.hdf5 import index_hdf5

        return index_hdf5(path, options)
    if format == "root":
        from droid.inputs.root import index_root

        return index_root(path, options)
    raise _unknown(format)


def open_input(
    format: str, path: str | None, index: Index | None = None, options: dict[str, Any] | None = None
) -> Input:
    """Open one input file. Without an index the file is read once here to make one.

    For `generate` the path is None and `options` holds `events`. Raises as `index_file` does.
    """
    options = options or {}
    if format == "generate":
        from droid.inputs.generate import GenerateInput

        return GenerateInput(int(options["events"]))
    if path is None:
        raise ValueError(f"format {format} needs a path")
    if index is None:
        index = index_file(format, path, options)
    if format == "lhe":
        from droid.inputs.lhe import LHEInput

        return LHEInput(index)
    if format == "hepmc":
        from droid.inputs.hepmc import HepMCInput

        return HepMCInput(index)
    if format == "hdf5":
        from droid.inputs.hdf5 import HDF5Input

        return HDF5Input(index, options)
    if format == "root":
        from droid.inputs.root import RootInput

        return RootInput(index)
    raise _unknown(format)


def _unknown(format: str) -> ConfigError:
    return ConfigError(
        file="job file",
        key="inputs.format",
        detail=f"{format!r} is no format",
        hint=f"write one of: {', '.join(FORMATS)}",
    )
