"""ROOT files, TTree and RNTuple, through uproot: a dict of branches per event.

Name the branches that the payload needs (`options: {branches: ["Muon_*"]}`). The default is every branch that can be
read, and on a file of a thousand branches that is a thousand times the work and the bytes.

Reading one event of a basket costs as much as reading all of it, so `read` takes a whole window of entries at once,
some megabytes of it, and copies the ranges that follow out of what it has: a payload may change its events.
"""

from __future__ import annotations

import fnmatch
import itertools
from typing import Any

import numpy as np

from droid.inputs.index import Index, is_remote, local_path, stamp
from eventrange.errors import ConfigError, ExtraMissing, InputDamaged, YodaError

WINDOW_BYTES = 4 << 20  # arrays held per open file; with 128 workers on a node still below 1 GiB
FIRST_WINDOW = 256  # entries, until the first window has shown how large an entry is
MOST_ENTRIES = 1 << 14
_OPTIONS = {"tree", "branches"}
_KINDS = ("TTree", "ROOT::RNTuple")


def _uproot() -> Any:
    try:
        import awkward  # noqa: F401
        import uproot
    except ImportError as error:
        raise ExtraMissing(feature="reading ROOT files", package=error.name or "uproot", extra="root") from error
    return uproot


def _damaged(path: str, what: str, error: Exception) -> InputDamaged:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return InputDamaged(
        path=path,
        detail=f"{what} ({type(error).__name__}: {first})",
        hint="look at the file and at inputs.format in the job file, or copy it again from its source",
    )


def _open(path: str, size: int) -> Any:
    uproot = _uproot()
    try:
        if is_remote(path):
            file = uproot.open({path: None})
        else:
            # A memory map has no threads, so it can be opened in a process that forks and shared by all on a node.
            file = uproot.open({local_path(path): None}, handler=uproot.source.file.MemmapSource)
        end = int(file.file.fEND)
    except ImportError as error:
        raise ExtraMissing(feature=f"reading {path}", package="fsspec or its plugin", extra="remote") from error
    except Exception as error:  # uproot passes on whatever its parsers and stores raise
        raise _damaged(path, "is no ROOT file that can be read", error) from error
    if not is_remote(path) and end > size:
        file.close()
        raise InputDamaged(
            path=path,
            detail=f"is cut short: it has {size} bytes and its header says {end}",
            hint="copy the file again from its source",
        )
    return file


def _tree(path: str, file: Any, name: str | None) -> tuple[str, Any]:
    trees = [key for key, kind in file.classnames(cycle=False).items() if kind in _KINDS]
    trees = list(dict.fromkeys(trees))
    said = ", ".join(trees) or "none"
    if name is None and len(trees) != 1:
        if not trees:
            raise InputDamaged(path=path, detail="holds no TTree and no RNTuple", hint="name another file")
        raise ConfigError(
            file="job file",
            key="inputs.options.tree",
            detail=f"{path} holds {len(trees)} trees, so one must be named",
            hint=f"write one of: {said}",
        )
    wanted = trees[0] if name is None else name.split(";")[0].strip("/")
    if wanted not in trees:
        raise ConfigError(
            file="job file", key="inputs.options.tree", detail=f"{path} has no tree {name!r}", hint=f"there are: {said}"
        )
    return wanted, file[wanted]


def _branches(path: str, tree: Any, patterns: list[str] | str | None) -> list[str]:
    """Names of the branches to read: those that match, or all that uproot can give as arrays."""
    readable, others = [], []
    if hasattr(tree, "itervalues") and hasattr(tree, "branches"):
        for key, branch in tree.iteritems(full_paths=True):
            try:
                branch.interpretation.awkward_form(tree.file)
                if branch.branches:
                    raise ValueError("a group of branches")
                readable.append(key)
            except Exception:  # every way in which a C++ type can be unknown to uproot
                others.append(key)
    else:
        readable = tree.keys(recursive=False)
    if patterns is None:
        found = readable
    else:
        found = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matching = [name for name in readable if fnmatch.fnmatchcase(name, pattern)]
            if not matching:
                why = "only branches that uproot cannot read" if fnmatch.filter(others, pattern) else "no branch"
                raise ConfigError(
                    file="job file",
                    key="inputs.options.branches",
                    detail=f"{pattern!r} matches {why} of {path}",
                    hint=f"there are for example: {', '.join(readable[:12]) or 'none'}",
                )
            found += matching
    if not found:
        raise InputDamaged(path=path, detail="has no branch that can be read", hint="name another tree or file")
    return list(dict.fromkeys(found))


def index_root(path: str, options: dict[str, Any]) -> Index:
    """The number of entries, and which tree and branches are read.

    Options: `tree` (needed unless there is exactly one), `branches` (names with * and ?).
    Raises InputMissing, InputDamaged, ExtraMissing, ConfigError (naming what the file has).
    """
    unknown = set(options) - _OPTIONS
    if unknown:
        raise ConfigError(
            file="job file",
            key=f"inputs.options.{sorted(unknown)[0]}",
            detail="is no option of the root format",
            hint="write tree or branches",
        )
    size, mtime_ns = stamp(path)
    with _open(path, size) as file:
        try:
            name, tree = _tree(path, file, options.get("tree"))
            branches = _branches(path, tree, options.get("branches"))
            count = int(tree.num_entries)
        except YodaError:
            raise
        except Exception as error:  # as above
            raise _damaged(path, "its tree cannot be read", error) from error
    return Index("root", path, size, mtime_ns, count, {"tree": name, "branches": branches})


class RootInput:
    """One open tree: `read` gives {branch: value} per event.

    A plain branch gives a NumPy scalar, or an array if each entry holds a fixed number; a jagged branch a NumPy array;
    a string a str; what is more nested than that an `awkward.Array`.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._file = _open(index.path, index.size)
        try:
            self._tree = self._file[index.meta["tree"]]
        except Exception as error:  # as above
            raise _damaged(index.path, f"its tree {index.meta['tree']!r} cannot be read", error) from error
        self._wanted = frozenset(index.meta["branches"])
        self._begin = self._end = 0
        self._columns: dict[str, tuple[Any, Any]] = {}
        self._window = min(FIRST_WINDOW, MOST_ENTRIES)

    def count(self) -> int:
        return self.index.count

    def read(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Events [start, stop) of the tree, 0-based. Raises IndexError, InputDamaged."""
        if not 0 <= start <= stop <= self.index.count:
            raise IndexError(f"[{start}, {stop}) is outside {self.index.path}, which has {self.index.count} events")
        if start == stop:
            return []
        if not self._begin <= start <= stop <= self._end:
            self._load(start, stop)
        low, high = start - self._begin, stop - self._begin
        names = list(self._columns)
        parts = [_cut(column, low, high) for column in self._columns.values()]
        return [dict(zip(names, values, strict=True)) for values in zip(*parts, strict=True)]

    def _load(self, start: int, stop: int) -> None:
        begin = start // self._window * self._window
        end = min(max(begin + self._window, stop), self.index.count)
        try:
            whole = self._tree.arrays(
                filter_name=self._wanted.__contains__, entry_start=begin, entry_stop=end, library="ak", array_cache=None
            )
            self._columns = {name: _column(whole[name]) for name in whole.fields}
            size = whole.nbytes
            if len(whole) != end - begin or not self._columns:
                raise ValueError(f"{len(whole)} entries of {len(self._columns)} branches found")
        except Exception as error:  # as above
            self._columns, self._begin, self._end = {}, 0, 0
            raise _damaged(self.index.path, f"entries {begin} to {end} cannot be read", error) from error
        self._begin, self._end = begin, end
        self._window = int(min(max(WINDOW_BYTES * (end - begin) // max(size, 1), 1), MOST_ENTRIES))

    def close(self) -> None:
        self._columns, self._begin, self._end = {}, 0, 0
        self._file.close()


def _column(array: Any) -> tuple[Any, Any]:
    """(values, edges) of a jagged column of numbers; (values, None) of any other."""
    layout = array.layout
    if layout.is_list and layout.parameter("__array__") is None and layout.content.is_numpy:
        layout = layout.to_ListOffsetArray64(True)
        return np.asarray(layout.content.data), np.asarray(layout.offsets.data)
    if layout.is_numpy:
        return np.asarray(layout.data), None
    return array, None


def _cut(column: tuple[Any, Any], low: int, high: int) -> list[Any]:
    """Events [low, high) of a column, with arrays of their own: the column is there for the next reading as well."""
    values, edges = column
    if edges is not None:
        inner = edges[low : high + 1].tolist()
        return [values[a:b].copy() for a, b in itertools.pairwise(inner)]
    if isinstance(values, np.ndarray):
        return list(values[low:high].copy())
    import awkward

    return list(awkward.copy(awkward.to_packed(values[low:high])))  # packed, or all that was read would be copied
