"""Before any work: look at every input file, many at a time, and lay them out as one axis."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from droid.inputs.formats import FORMATS, index_file
from droid.inputs.index import Index, index_path, stamp
from eventrange.axis import Axis
from eventrange.errors import ConfigError, InputDamaged


def plan_axis(
    format: str,
    files: Sequence[str],
    events: int | None,
    options: dict[str, Any] | None,
    cache_dir: str | PathLike[str],
    processes: int = 1,
    *,
    refuse_changed: bool = True,
    where: str = "job file",
) -> Axis:
    """The axis of a task, from its input files in the order given; `events` keeps the first N only.

    Each file is read once, up to `processes` of them at a time in forked processes (so: before MPI is started), and
    what was learnt is kept in `cache_dir`. A file that is no longer the one kept there raises InputChanged, or, without
    `refuse_changed` (a task that has not begun), is read again. Raises also InputMissing, InputDamaged, ExtraMissing,
    CannotWrite, and ConfigError for a wrong option or more events than there are.
    """
    if format not in FORMATS:
        raise ConfigError(
            file=where,
            key="inputs.format",
            detail=f"{format!r} is no format",
            hint=f"write one of: {', '.join(FORMATS)}",
        )
    if format == "generate":
        if files:
            raise ConfigError(
                file=where,
                key="inputs.files",
                detail="the format generate reads no files",
                hint="leave the key out, or write another inputs.format",
            )
        if events is None or events < 1:
            raise ConfigError(
                file=where,
                key="inputs.events",
                detail="the format generate needs a number of events",
                hint="write for example events: 1000",
            )
        return Axis.generate(events)
    if not files:
        raise ConfigError(file=where, key="inputs.files", detail="names no file", hint="name one or more input files")
    chosen = dict(options or {})
    counts = _counts(format, list(files), chosen, Path(cache_dir), processes, refuse_changed)
    if not sum(counts):
        raise InputDamaged(
            path=", ".join(files[:3]) + (", ..." if len(files) > 3 else ""),
            detail="there are no events at all" if len(files) > 1 else "it holds no events",
            hint="name files with events in inputs.files",
        )
    return Axis(zip(files, counts, strict=True), limit=events, where=where)


def _counts(
    format: str, files: list[str], options: dict[str, Any], cache_dir: Path, processes: int, refuse_changed: bool
) -> list[int]:
    found: dict[str, int] = {}
    todo = []
    for path in dict.fromkeys(files):
        stamp(path)  # what is not there at all is said before hours are spent on the others
        index = Index.load(index_path(cache_dir, format, path, options))
        if index is not None and _unchanged(index, refuse_changed):
            found[path] = index.count
        else:
            todo.append(path)
    jobs = [(format, path, options, cache_dir) for path in todo]
    if processes <= 1 or len(jobs) <= 1:
        new = [_index(job) for job in jobs]
    else:
        import multiprocessing  # late: who only reads inputs needs none
        from concurrent.futures import ProcessPoolExecutor

        # fork: workers of this pool live before MPI is started, and importing everything afresh would cost more.
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
            futures = [pool.submit(_index, job) for job in jobs]
            try:
                new = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    found |= dict(zip(todo, new, strict=True))
    return [found[path] for path in files]


def _unchanged(index: Index, refuse: bool) -> bool:
    if refuse:
        index.check()
        return True
    return stamp(index.path) == (index.size, index.mtime_ns)


def _index(job: tuple[str, str, dict[str, Any], Path]) -> int:
    format, path, options, cache_dir = job
    return index_file(format, path, options, cache_dir).count
