"""Every error a user can see: what happened, where, what to do, and the exit code.

The list lives on the ground floor because every room raises from it and imports only go down. Each class is one
message: `what` and `todo` are templates filled from the keyword arguments, so tables for people are made from the
classes.

Exit codes (binding for scripts): 0 complete; 65 bad data or quarantined events; 73 output cannot be written;
75 stopped with work left, run again; 78 configuration; 1 a bug.
"""

from __future__ import annotations

from typing import Any, ClassVar

OK, BUG, BAD_DATA, CANNOT_WRITE, RUN_AGAIN, BAD_CONFIG = 0, 1, 65, 73, 75, 78


class YodaError(Exception):
    """Base of every error shown to a user without a traceback."""

    exit_code: ClassVar[int] = BUG
    what: ClassVar[str] = "{detail}"
    todo: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        self.values = values
        text = self.what.format(**values)
        if self.todo:
            text += "\n  -> " + self.todo.format(**values)
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.values)


def _rebuild(cls: type[YodaError], values: dict[str, Any]) -> YodaError:
    return cls(**values)


# --- configuration, 78 ------------------------------------------------------------------------------------------------


class ConfigError(YodaError):
    """A key of the job or site file is unknown, missing, or has a value of the wrong type or out of range."""

    exit_code = BAD_CONFIG
    what = "{file}: {key}: {detail}"
    todo = "{hint}"


class InputMissing(YodaError):
    """An input file named in the job does not exist or cannot be read."""

    exit_code = BAD_CONFIG
    what = "input {path}: {detail}"
    todo = "correct inputs.files in the job file, or put the file there"


class ExtraMissing(YodaError):
    """An optional package is needed for what the job asks and is not installed."""

    exit_code = BAD_CONFIG
    what = "{feature} needs the Python package {package}, which is not installed"
    todo = "pip install 'yoda-droid[{extra}]'"


class TaskChanged(YodaError):
    """The job is no longer the one that the task directory was made for: it would give other events."""

    exit_code = BAD_CONFIG
    what = "{path} was made by another version of this job:\n     {changes}"
    todo = "restore these keys in {job}, or give the new job a directory of its own with --task"


class NotATask(YodaError):
    """The directory is not, and cannot become, the directory of this task."""

    exit_code = BAD_CONFIG
    what = "{path} is not the directory of this task: {detail}"
    todo = "name the right directory with --task, or one that does not exist yet"


class TaskDamaged(YodaError):
    """task.yaml cannot be read as what yoda wrote, or is of a newer format."""

    exit_code = BAD_CONFIG
    what = "{path} is damaged: {detail}"
    todo = "{hint}"


class RangesDamaged(YodaError):
    """The task's copy of the ranges file cannot be read as what yoda wrote."""

    exit_code = BAD_CONFIG
    what = "{path} is damaged: {detail}"
    todo = "remove it, and run the same `yoda run` again: it is made again from ranges.file of the job"


# --- data, 65 ---------------------------------------------------------------------------------------------------------


class InputDamaged(YodaError):
    """An input file is not what its format promises: truncated, empty, cut in the middle of an event, wrong shape."""

    exit_code = BAD_DATA
    what = "input {path}: {detail}"
    todo = "{hint}"


class InputChanged(YodaError):
    """An input file is no longer the one this task was planned with; its events could be other events."""

    exit_code = BAD_CONFIG
    what = "input {path} has changed since the task was made: {detail}"
    todo = "restore the file, or start a new task in another directory"


# --- fields and images, 65 --------------------------------------------------------------------------------------------


class FieldRefused(YodaError):
    """A field cannot be stored: reserved or impossible name, a dtype HDF5 has no word for, or no dict at all."""

    exit_code = BAD_DATA
    what = "event {event}: field {field!r}: {detail}"
    todo = "{hint}"


class FieldsChanged(YodaError):
    """The payload gave an event other fields, dtypes or shapes than the events before it."""

    exit_code = BAD_DATA
    what = "event {event}: field {field!r} is {found}, but should be {expected} as in the other events of the task"
    todo = (
        "make the payload return the same fields, dtypes and numbers of axes for every event; "
        "only the first axis may vary"
    )


class ImageTooBig(YodaError):
    """The image of one range is larger than a record can describe (4 GiB)."""

    exit_code = BAD_DATA
    what = "the image of events {start} to {stop} has {size} bytes, more than 4 GiB"
    todo = "set ranges.events in the job file to a smaller number"


class ImageDamaged(YodaError):
    """The image of a range cannot be read back as it was written: truncated, overwritten, wrong checksum, I/O error."""

    exit_code = RUN_AGAIN
    what = "image in {path} at byte {offset}: {detail}"
    todo = "its events become pending again; run the same command again"


class ImageMissing(ImageDamaged):
    """The segment that should hold an image is not there."""


class ImageUnreadable(ImageDamaged):
    """The segment that holds an image cannot be opened or read now; nothing is known of the image."""


class MergeIncomplete(YodaError):
    """Some events have no readable image, so the merged file would not hold every event exactly once."""

    exit_code = RUN_AGAIN
    what = "cannot merge: {missing} of {events} events have no readable image: {ranges}"
    todo = "run the same command again to process them"


class MergeBusy(YodaError):
    """Somebody else, who is alive, merges the task: an allocation that completed it, or another `yoda merge`."""

    exit_code = RUN_AGAIN
    what = "{allocation} is merging this task (process {pid} on {host})"
    todo = "wait until it is done, see `yoda status {task}`; or merge into another file: yoda merge {task} -o FILE"


# --- payloads, 78 and 65 ----------------------------------------------------------------------------------------------


class PayloadError(YodaError):
    """The payload named in the job file cannot be used; nothing has been processed."""

    exit_code = BAD_CONFIG
    what = "payload {payload}: {detail}"
    todo = "{hint}"


class PayloadImport(PayloadError):
    """The payload's file or module is not there, or importing it raised."""

    what = "payload {payload} cannot be imported: {detail}"


class PayloadName(PayloadError):
    """The payload's module has no class or function of that name."""


class PayloadInterface(PayloadError):
    """The payload's class or function does not have the methods or parameters that are called."""


class PayloadOptions(PayloadError):
    """The payload does not take the options of the job file, or one it needs is missing."""


class PayloadStart(PayloadError):
    """The payload raised before its first event: when it was made, in setup() or in start()."""

    what = "payload {payload}: {step} raised {detail}"


class PayloadReturned(YodaError):
    """What process_range returned is not one entry per event for every field."""

    exit_code = BAD_DATA
    what = "payload {payload}: {detail}"
    todo = "{hint}"


class PayloadFailed(YodaError):
    """A payload that is a program failed on a range: exit status, signal, or output that cannot be used.

    `code` is the exit status, negative for a signal, 0 where the program ended well and its output is at fault; `text`
    says what happened in one sentence, `stderr` is the end of what the program wrote.
    """

    exit_code = BAD_DATA
    what = "{program}, events {events}: {text}{stderr_lines}"
    todo = "{hint}"

    def __init__(self, **values: Any) -> None:
        stderr = values.setdefault("stderr", "")
        values.setdefault("hint", "run the command by hand on that range")
        values["stderr_lines"] = "".join(f"\n  | {line}" for line in stderr.splitlines()[-20:])
        super().__init__(**values)
        self.code: int = values.get("code", 0)
        self.text: str = values["text"]
        self.stderr: str = stderr


# --- output, 73 -------------------------------------------------------------------------------------------------------


class CannotWrite(YodaError):
    """A file of the task cannot be written: disk full, quota, I/O error, permission."""

    exit_code = CANNOT_WRITE
    what = "cannot write {path}: {detail}"
    todo = (
        "make room or correct the permissions, then run the same command again; nothing that was acknowledged is lost"
    )


# --- storage, 73 and 75 -----------------------------------------------------------------------------------------------


class StorageError(YodaError):
    """Base of what a storage endpoint can answer; `retry` says whether the same request may succeed a little later."""

    exit_code = RUN_AGAIN
    what = "storage {endpoint}: {operation} {key}: {detail}"
    todo = "the local copy is kept; run `yoda stageout TASK` once the storage is back"
    retry: ClassVar[bool] = False


class StorageTransient(StorageError):
    """A storage endpoint is down, overloaded, too slow, or broke the connection; waiting helps."""

    retry = True


class StoragePermanent(StorageError):
    """A storage endpoint refuses: credentials missing, expired or wrong, forbidden, no such bucket or folder."""

    exit_code = CANNOT_WRITE
    todo = "correct the credentials or the endpoint in the site file (see `yoda doctor`), then run `yoda stageout TASK`"


class StorageFull(StorageError):
    """A storage endpoint has no room left: disk, quota, bucket limit."""

    exit_code = CANNOT_WRITE
    todo = "make room or raise the quota, then run `yoda stageout TASK`; the local copy is kept"


class StorageMissing(StorageError):
    """An object that should be on a storage endpoint is not there."""

    todo = "another copy is used if there is one; otherwise its events become pending and `yoda run` makes them again"


class StorageCorrupt(StorageError):
    """What a storage endpoint holds or sent is not what was written: wrong size or checksum."""

    retry = True
    todo = "another copy is used if there is one; otherwise its events become pending and `yoda run` makes them again"


class StorageConflict(StorageError):
    """Another object with different content already has this name on the endpoint; it is never overwritten."""

    exit_code = CANNOT_WRITE
    todo = "two tasks write the same names: give each its own prefix in the site file, or remove the foreign object"


class StorageOffline(YodaError):
    """Images are needed that only storage has that cannot be reached now; they are not lost."""

    exit_code = RUN_AGAIN
    what = "cannot merge now: {missing} of {events} events are on storage that cannot be used ({detail})"
    todo = "`yoda merge --wait` tries until it can be used; `--partial` merges what can be read now"


class SegmentDamaged(StorageError):
    """A sealed local segment is gone or no longer has the checksum it was sealed with, so it must not be uploaded."""

    todo = (
        "run `yoda merge TASK`: readable images are kept, other events become pending, and `yoda run` makes those again"
    )


class SegmentUnreadable(StorageError):
    """A sealed local segment cannot be read now: no permission, a stale handle, a disk or file server in trouble."""

    todo = "see why the file cannot be read, then run `yoda stageout TASK`"


class StagerGone(YodaError):
    """The stage-out process of a Droid died or answered nonsense; processing goes on, and another one is started."""

    exit_code = RUN_AGAIN
    what = "the stage-out process ended: {detail}"
    todo = "nothing is lost: the segments are in the task directory; run `yoda stageout TASK` afterwards"


class HarvesterBusy(YodaError):
    """Harvester has not yet taken the last report of ranges, and another one would overwrite it."""

    exit_code = RUN_AGAIN
    what = "{path} is still there: Harvester has not taken it"
    todo = "run the same command again when it has renamed the file"


# --- the batch system -------------------------------------------------------------------------------------------------


class SlurmMissing(YodaError):
    """A Slurm command is not there."""

    exit_code = BAD_CONFIG
    what = "Slurm's command {command} was not found"
    todo = "run this on a login node of the site, or load its Slurm module; without Slurm use yoda run"


class SlurmSilent(YodaError):
    """A Slurm command failed although what we asked was in order, or did not answer."""

    exit_code = RUN_AGAIN
    what = "{command}: {detail}"
    todo = "see whether squeue answers, then run the same command again"


class SlurmRefused(YodaError):
    """Slurm does not accept the job as described."""

    exit_code = BAD_CONFIG
    what = "Slurm does not accept the job: {detail}"
    todo = "correct the slurm: keys of the site file ({keys}); sinfo and sacctmgr show assoc say what you may ask for"


class QueueOff(YodaError):
    """The allocations of a queue end without anything done, not by preemption: no more are submitted for a while."""

    exit_code = RUN_AGAIN
    what = "queue {queue}: its allocations end and nothing is done; {detail}"
    todo = "the outputs in {logs} say why; once that is healed, `yoda submit --force` submits at once"


class LauncherMissing(YodaError):
    """No mpiexec was found to start a run with."""

    exit_code = BAD_CONFIG
    what = "no mpiexec beside {python} or on the PATH"
    todo = "pip install 'yoda-droid[mpi]', load the site's MPI, or set `launcher` in the site file"


class LauncherEnded(YodaError):
    """The MPI launcher that `yoda run` started ended before rank 0 had begun; what it said stands above."""

    exit_code = RUN_AGAIN
    what = "{program} ended with status {status} before rank 0 had begun"
    todo = "run the same command again; if that does not help, see whether MPI starts at all: {trial}"


class RanksAlone(YodaError):
    """A launcher started several processes, but MPI made each a job of its own: PMI or the MPI did not match."""

    exit_code = BAD_CONFIG
    what = "{detail}"
    todo = "{hint}"
