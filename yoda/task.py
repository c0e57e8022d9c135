"""A task directory's task.yaml: made once, compared ever after (yoda/frozen.py says what counts).

It is made exclusively (a hard link to a finished file), so two allocations that start at once agree on one; later it is
only ever replaced as a whole. It carries its own fingerprint, so that a flipped bit in it is seen.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from eventrange.durable import FILES, Files, explain, write_file
from eventrange.errors import ConfigError, InputChanged, NotATask, TaskChanged, TaskDamaged
from eventrange.taskdir import TaskDir
from yoda.frozen import VERSION, Frozen, FrozenFile, FrozenRanges, canonical, freeze
from yoda.schema import Job
from yoda.yamlfile import Literal, dump, inline, read_document

_HEAD = (
    "# What yoda froze when it made this task, and the job as last run. Written by yoda: edit the job file instead.\n"
)
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_ABSENT = object()


def open_task(
    taskdir: TaskDir,
    job: Job,
    axis: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    *,
    files: Files = FILES,
    link: Callable[[str, str], None] = os.link,
) -> Frozen:
    """Freeze `job` into `taskdir`, or find that it is the task that is there already. Creates the directory if need be.

    `axis` is `Axis.to_dict()`, or a function that counts and returns it: then it is called only where the stored axis
    cannot be used, so that resuming opens no input file. Keys that decide nothing are brought up to date in task.yaml.

    Raises TaskChanged (another job, with the differences), InputChanged, NotATask, TaskDamaged (all exit 78),
    CannotWrite (73).
    """
    try:
        present = read_task(taskdir)
    except TaskDamaged as damage:
        return _repair(taskdir, job, axis, files, damage)
    if present is None:
        _check_directory(taskdir)
        try:
            taskdir.make()  # before events are counted: the index of the inputs is kept there
        except OSError as error:
            raise explain(error, error.filename or taskdir.root) from error
        fresh = freeze(job, axis() if callable(axis) else axis)
        orphaned = taskdir.allocations() and not os.path.lexists(taskdir.task_file)
        if orphaned and not _journals_fit(taskdir, fresh):
            raise NotATask(path=taskdir.root, detail="it has no task.yaml, and its journals are not of this job")
        if _create(taskdir, _text(fresh), files, link):
            return fresh
        present = read_task(taskdir)  # somebody was faster
        if present is None:
            raise NotATask(path=taskdir.root, detail="its task.yaml vanished while it was being opened")
    return _resume(taskdir, present, job, axis, files)


def read_task(taskdir: TaskDir) -> Frozen | None:
    """The task in `taskdir`; None where there is no task.yaml. TaskDamaged where it is not what yoda wrote."""
    path = taskdir.task_file
    if not os.path.lexists(path):
        return None
    try:
        plain = read_document(path, "task").value
        version = plain.get("version")
        if isinstance(version, int) and version > VERSION:
            hint = f"use the yoda that wrote it; this one reads versions up to {VERSION}"
            raise TaskDamaged(path=path, detail=f"its format is version {version}", hint=hint, newer=True)
        axis = msgspec.json.decode(plain["axis"].encode())
        if named := axis.get("ranges"):
            named["path"] = os.path.join(taskdir.indexes, named["path"])
        frozen = msgspec.convert({**plain, "axis": axis, "warnings": []}, Frozen)
        stored = plain["fingerprint"]
    except ConfigError as error:
        raise _damaged(path, f"{error.values['key']}: {error.values['detail']}") from None
    except (KeyError, AttributeError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise _damaged(path, f"{error.__class__.__name__}: {error}") from None
    if frozen.fingerprint != stored:
        raise _damaged(path, "its keys do not give the fingerprint it carries")
    return frozen


def need_task(taskdir: TaskDir) -> Frozen:
    """The task in `taskdir`, for commands that look at one. NotATask where there is none."""
    frozen = read_task(taskdir)
    if frozen is None:
        detail = "it has no task.yaml" if os.path.isdir(taskdir.root) else "there is no such directory"
        raise NotATask(path=taskdir.root, detail=detail)
    return frozen


def differences(old: Mapping[str, Any], new: Mapping[str, Any], key: str = "") -> list[str]:
    """One line `key: old -> new` for each difference between two trees of plain values."""
    lines: list[str] = []
    for name in [*old, *(name for name in new if name not in old)]:
        dotted = f"{key}.{name}" if key else str(name)
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, dotted)
        elif isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)) and (before or after):
            lines += differences(_numbered(before), _numbered(after), dotted)
        elif _canonical(before) != _canonical(after):
            lines.append(f"{dotted}: {_shown(before)} -> {_shown(after)}")
    return lines


# --- a task that is there already -------------------------------------------------------------------------------------


def _resume(
    taskdir: TaskDir,
    present: Frozen,
    job: Job,
    axis: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    files: Files,
) -> Frozen:
    known = {file.path: file for file in present.inputs.files}
    events = [file.events for file in present.inputs.files]
    now = freeze(job, present.axis, events)  # as if every file still held as many events as then
    for file in now.inputs.files:
        _check_unchanged(known.get(file.path), file)
    _check_same(taskdir, present, now)
    moved = [file.path for file in now.inputs.files] != [file.path for file in present.inputs.files]
    if moved or _rewritten(present.ranges, now.ranges):
        now = freeze(job, axis() if callable(axis) else axis)  # events are counted, ranges are read again
        try:
            _check_same(taskdir, present, now)
        except TaskChanged:
            _forget(now, present)
            raise
    if _canonical(msgspec.to_builtins(now)) != _canonical(msgspec.to_builtins(present)):
        _replace(taskdir, _text(now), files)
    elif not os.access(taskdir.root, os.W_OK):
        raise explain(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), taskdir.root)
    before, after = present.payload.sha256, now.payload.sha256
    if before == after:
        return now
    warning = (
        f"{job.payload_file} has changed since this task was last run "
        f"(sha256 {before or 'none':.12} -> {after or 'none':.12}): events already done stay as they are"
    )
    return msgspec.structs.replace(now, warnings=(warning,))


def _repair(
    taskdir: TaskDir,
    job: Job,
    axis: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    files: Files,
    damage: TaskDamaged,
) -> Frozen:
    """Damage costs task.yaml alone (L7): where the journals know the job by its fingerprint, it is written anew."""
    if not taskdir.allocations() or damage.values.get("newer"):
        raise damage
    fresh = freeze(job, axis() if callable(axis) else axis)
    if not _journals_fit(taskdir, fresh):
        raise damage
    _replace(taskdir, _text(fresh), files)
    path, detail = damage.values["path"], damage.values["detail"]
    warning = f"{path} was damaged ({detail}) and is written anew: the journals are of this job"
    return msgspec.structs.replace(fresh, warnings=(warning,))


def _check_same(taskdir: TaskDir, old: Frozen, new: Frozen) -> None:
    if old.fingerprint == new.fingerprint:
        return
    if old.task != new.task:
        detail = f"it belongs to the task {old.task!r}, and the job is {new.task!r}"
        raise NotATask(path=taskdir.root, detail=detail)
    lines = differences(_readable(old), _readable(new))
    raise TaskChanged(path=taskdir.root, task=old.task, changes="\n     ".join(lines), job=new.job_file)


def _check_unchanged(old: FrozenFile | None, new: FrozenFile) -> None:
    if old is None or (old.size, old.mtime_ns) == (new.size, new.mtime_ns):
        return
    if old.size != new.size:
        raise InputChanged(path=new.path, detail=f"it had {old.size} bytes and has {new.size}")
    then, now = old.mtime_ns or 0, new.mtime_ns or 0
    detail = f"it was written at {_date(now)}, and was last written at {_date(then)} before"
    stamp = f"{then // 10**9}.{then % 10**9:09d}"
    raise InputChanged(path=new.path, detail=f"{detail} (if only its date changed: touch -d @{stamp} {new.path})")


def _rewritten(old: FrozenRanges | None, new: FrozenRanges | None) -> bool:
    """Whether the ranges file may hold other ranges than it did."""

    def stamp(ranges: FrozenRanges | None) -> Any:
        return None if ranges is None else (ranges.size, ranges.mtime_ns, ranges.numbering)

    return stamp(old) != stamp(new)


def _forget(now: Frozen, present: Frozen) -> None:
    """Remove what was laid down for ranges that are refused."""
    made, kept = (frozen.axis.get("ranges", {}).get("path") for frozen in (now, present))
    if made and made != kept:
        with contextlib.suppress(OSError):
            os.unlink(made)


def _readable(frozen: Frozen) -> dict[str, Any]:
    plain = frozen.deciding
    if (ranges := frozen.ranges) is not None:
        known = f" ({ranges.count} ranges, sha256 {ranges.sha256:.12})" if ranges.count else ""
        plain["ranges"] = {"file": f"{os.path.basename(ranges.path)}{known}"}
    plain["inputs"]["files"] = [f"{name} ({size} bytes, {n} events)" for name, size, n in plain["inputs"]["files"]]
    return plain


# --- a new one --------------------------------------------------------------------------------------------------------


def _check_directory(taskdir: TaskDir) -> None:
    """A directory without task.yaml may become a task's only if nothing is in it but what a start cut short leaves."""
    try:
        names = sorted(os.listdir(taskdir.root))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise NotATask(path=taskdir.root, detail="it is not a directory") from None
    except OSError as error:
        raise explain(error, taskdir.root) from error
    expected = [taskdir.journals, taskdir.indexes, taskdir.leases, taskdir.segments("x"), taskdir.logs("x")]
    if taskdir.allocations():  # a task that lost its task.yaml; whether it is this one is seen later
        expected += [taskdir.quarantine, taskdir.merged, taskdir.slurm, taskdir.report, taskdir.metrics]
    own = {os.path.relpath(path, taskdir.root).split(os.sep)[0] for path in expected}
    leftover = os.path.basename(taskdir.task_file) + "."
    strange = [name for name in names if name not in own and not name.startswith(leftover)]
    if strange and not os.path.lexists(taskdir.task_file):  # or else another allocation made it just now
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise NotATask(
            path=taskdir.root, detail=f"it is not empty and has no task.yaml; in it: {', '.join(strange[:3])}{more}"
        )


def _journals_fit(taskdir: TaskDir, frozen: Frozen) -> bool:
    """Whether a journal in the directory was written under this fingerprint: its frames carry it."""
    from eventrange.journal import JournalReader  # brings numpy, which commands that only look at a job do not need

    return any(
        next(iter(JournalReader(taskdir.journal(name), frozen.fingerprint, name)), None) is not None
        for name in taskdir.allocations()
    )


def _create(taskdir: TaskDir, text: str, files: Files, link: Callable[[str, str], None]) -> bool:
    """Put task.yaml there as a whole, unless one is there; says whether it was this one."""
    temporary = _temporary(taskdir)
    write_file(temporary, text.encode(), files)
    try:
        try:
            link(temporary, taskdir.task_file)
        except FileExistsError:
            return False
        except OSError as error:
            # A file system without hard links: the moment between the look and the rename is not guarded there.
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(taskdir.task_file):
                return False
            files.replace(temporary, taskdir.task_file)
        files.fsync_folder(taskdir.root)
    except OSError as error:
        raise explain(error, taskdir.task_file) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    return True


def _replace(taskdir: TaskDir, text: str, files: Files) -> None:
    temporary = _temporary(taskdir)
    write_file(temporary, text.encode(), files)
    try:
        files.replace(temporary, taskdir.task_file)
        files.fsync_folder(taskdir.root)
    except OSError as error:
        raise explain(error, taskdir.task_file) from error


def _temporary(taskdir: TaskDir) -> str:
    # Allocations on other nodes write here too, and process numbers repeat between nodes.
    return f"{taskdir.task_file}.{os.urandom(6).hex()}"


def _text(frozen: Frozen) -> str:
    plain = msgspec.to_builtins(frozen)
    del plain["warnings"]
    axis = frozen.axis
    if named := axis.get("ranges"):  # the task directory may be moved
        axis = {**axis, "ranges": {**named, "path": os.path.basename(named["path"])}}
    plain["axis"] = Literal(msgspec.json.encode(axis).decode("ascii", "backslashreplace") + "\n")
    return _HEAD + dump({"version": VERSION, "fingerprint": frozen.fingerprint, **plain})


# --- words ------------------------------------------------------------------------------------------------------------


def _canonical(value: Any) -> str:
    return "" if value is _ABSENT else canonical(value)


def _numbered(items: Any) -> dict[str, Any]:
    return {str(number): item for number, item in enumerate(items)}


def _shown(value: Any) -> str:
    return "(not there)" if value is _ABSENT else f"{inline(value):.100}"


def _date(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns / 1e9))


def _damaged(path: str, detail: str) -> TaskDamaged:
    return TaskDamaged(
        path=path,
        detail=detail,
        hint="restore it or the job as it was (then it is written anew), or use another --task directory",
    )
