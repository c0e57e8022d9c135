"""What one run is: what the command line asked for, the job and the site it names, and the payload of the job."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from eventrange.errors import YodaError
from eventrange.taskdir import TaskDir
from yoda.schema import Job, Site

if TYPE_CHECKING:
    from yoda.frozen import Frozen

HANDED = "YODA_SETTING"  #: names the file in which our launcher hands on to its ranks what it has read
EXIT_FILE = "YODA_EXIT_FILE"  #: names the file in which rank 0 leaves its exit code for our launcher; empty till then


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    job: str
    site: str | None = None
    task: str | None = None
    droids: int | None = None
    workers: int | None = None
    sets: tuple[str, ...] = ()
    time: float | None = None  #: seconds this allocation has from now
    retry_quarantined: bool = False
    images: bool = True

    def arguments(self) -> list[str]:
        """The command line that asks a rank for the same; without what only the launcher needs."""
        out = ["run", self.job]
        for flag, value in (("--site", self.site), ("--task", self.task), ("--workers", self.workers)):
            if value is not None:
                out += [flag, str(value)]
        for value in self.sets:
            out += ["--set", value]
        if self.time is not None:
            out += ["--time", str(self.time)]
        if self.retry_quarantined:
            out.append("--retry-quarantined")
        if not self.images:
            out.append("--no-images")
        return out


@dataclass(frozen=True)
class Setting:
    """Configuration of one run, read."""

    request: Request
    job: Job
    site: Site
    taskdir: TaskDir
    frozen: bytes | None = None  #: the task (yoda.frozen.Frozen, msgpack) where our launcher has opened it


class _Handed(msgspec.Struct, frozen=True):
    folder: str
    arguments: list[str]
    job: Job
    site: Site
    root: str
    task: msgspec.Raw


def hand_on(setting: Setting, frozen: Frozen, path: str) -> dict[str, str]:
    """Write what was read to `path`, so that ranks on this machine need neither read nor check it again; returns what
    their environment has to say. What cannot be written down they read for themselves."""
    try:
        task, said = msgspec.Raw(msgspec.msgpack.encode(frozen)), setting.request.arguments()
        handed = _Handed(os.getcwd(), said, setting.job, setting.site, setting.taskdir.root, task)
        with open(path, "xb") as file:
            file.write(msgspec.msgpack.encode(handed))
    except (OSError, OverflowError, TypeError, ValueError):
        return {}
    return {HANDED: path}


def handed(request: Request, environ: Mapping[str, str]) -> Setting:
    """What our launcher read for this `request`; what is read now if none did."""
    try:
        with open(environ[HANDED], "rb") as file:
            found = msgspec.msgpack.decode(file.read(), type=_Handed)
    except (KeyError, OSError, msgspec.DecodeError):
        return read(request)
    if (found.folder, found.arguments) != (
        os.getcwd(),
        request.arguments(),
    ):  # a payload that runs Yoda has our environment, too
        return read(request)
    return Setting(request, found.job, found.site, TaskDir(found.root), bytes(found.task))


def read(request: Request, here: bool = True) -> Setting:
    """Read and check job and site. Where it is not `here` that the job runs, its scratch folder need not exist."""
    from yoda.config import default_task_dir, load_job, load_site

    job = load_job(request.job, request.sets)
    site = load_site(request.site, request.sets, here=here)
    root = os.path.abspath(request.task or default_task_dir(job))
    return Setting(request, job, site, TaskDir(root))


def load_payload(job: Job) -> Any:
    """The payload of `job`, Python or program. Runs in the zygote."""
    return _load(job.payload.python, job.payload.command, job.payload.options, job.folder)


def load_frozen_payload(frozen: Any) -> Any:
    """The payload of a task directory (yoda.task.Frozen)."""
    chosen = frozen.payload
    return _load(chosen.python, chosen.command, chosen.options, os.path.dirname(frozen.job_file))


def _load(python: str | None, command: Sequence[str] | None, options: dict[str, Any], folder: str) -> Any:
    if command is not None:
        from droid.channel import CommandPayload

        return CommandPayload(command, folder, options)
    from droid.payload import load

    place, _, name = (python or "").rpartition(":")
    if place.endswith(".py"):
        place = os.path.join(folder, os.path.expanduser(place))
    return load(f"{place}:{name}", options)


def report_error(error: YodaError) -> int:
    """Print an error for people; returns its exit code."""
    print(f"yoda: {error}", file=sys.stderr, flush=True)
    return error.exit_code
