"""What one run is: what the command line asked for, the job and the site it names, and the payload of the job."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eventrange.errors import YodaError
from eventrange.taskdir import TaskDir
from yoda.config import Job, Site, default_task_dir, load_job, load_site

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


def read(request: Request, here: bool = True) -> Setting:
    """Read and check job and site. Where it is not `here` that the job runs, its scratch folder need not exist."""
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
