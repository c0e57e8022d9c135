"""What decides the events of a task, as the task directory keeps it: the job with the state of its files.

`fingerprint` covers what decides the physics and nothing else: name, seed, input files (base name, size, events),
format, reader options, number of events, the ranges that someone else named, and the payload's spec and options. How we
cut ranges ourselves, output, site and the place of the files may differ from run to run. So may the payload's own file:
a repaired bug and another run are legitimate, and only worth a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from eventrange.errors import InputChanged
from yoda.inputfiles import is_url
from yoda.schema import Job

VERSION = 1


class FrozenFile(msgspec.Struct, frozen=True):
    """An input file: `events` counts those on the axis. Size in bytes and mtime are None for a URL."""

    path: str
    size: int | None
    mtime_ns: int | None
    events: int


class FrozenInputs(msgspec.Struct, frozen=True):
    format: str
    events: int | None
    options: dict[str, Any]
    files: tuple[FrozenFile, ...]


class FrozenRanges(msgspec.Struct, frozen=True):
    """The file in which someone else named the ranges; `sha256` is that of their names and places, in any format."""

    path: str
    size: int
    mtime_ns: int
    numbering: str
    count: int
    sha256: str


class FrozenPayload(msgspec.Struct, frozen=True):
    """`sha256` of the payload's file, where it is one: for information, it decides nothing."""

    python: str | None
    command: tuple[str, ...] | None
    options: dict[str, Any]
    sha256: str | None


class Frozen(msgspec.Struct, frozen=True):
    """A task as its directory knows it. `warnings` are sentences for the log of this run and are not stored."""

    task: str
    seed: int
    inputs: FrozenInputs
    payload: FrozenPayload
    job_file: str
    job: dict[str, Any]  # the job as last run, as plain values
    axis: dict[str, Any]  # Axis.to_dict()
    ranges: FrozenRanges | None = None
    warnings: tuple[str, ...] = ()

    @property
    def deciding(self) -> dict[str, Any]:
        """What the fingerprint covers, as plain values."""
        inputs, payload = self.inputs, self.payload
        ranges = {"ranges": [self.ranges.count, self.ranges.sha256]} if self.ranges is not None else {}
        return {
            **ranges,
            "task": self.task,
            "seed": self.seed,
            "inputs": {
                "format": inputs.format,
                "events": inputs.events,
                "options": inputs.options,
                "files": [[os.path.basename(file.path), file.size, file.events] for file in inputs.files],
            },
            "payload": {"python": payload.python, "command": payload.command, "options": payload.options},
        }

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, over the canonical JSON of `deciding`."""
        return hashlib.sha256(canonical(["yoda-task", VERSION, self.deciding]).encode()).hexdigest()


def freeze(job: Job, axis: Mapping[str, Any], events: list[int] | None = None) -> Frozen:
    """`job` with the state of its files now; `events` per input file are taken from `axis` where not given."""
    if events is None:
        events = [file["events"] for file in axis["files"]] if job.inputs.files else []
    events = events + [0] * (len(job.inputs.files) - len(events))  # files behind the last event that is wanted
    plain = msgspec.to_builtins(job)
    for key in ("path", "origins"):
        del plain[key]
    del plain["inputs"]["files"]  # they are in `inputs`, with more to say about each
    return Frozen(
        task=job.task,
        seed=job.seed,
        inputs=FrozenInputs(
            job.inputs.format,
            job.inputs.events,
            job.inputs.options,
            tuple(_file(path, count) for path, count in zip(job.inputs.files, events, strict=False)),
        ),
        payload=FrozenPayload(job.payload.python, job.payload.command, job.payload.options, _sha256(job.payload_file)),
        job_file=job.path,
        job=plain,
        axis=dict(axis),
        ranges=_ranges(job, axis.get("ranges", {})),
    )


def _ranges(job: Job, known: Mapping[str, Any]) -> FrozenRanges | None:
    """The ranges file of `job`; `known` is what is known of its content, if anything."""
    path = job.ranges.file
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputChanged(path=path, detail=error.strerror or str(error)) from None
    count, sha256 = known.get("count", 0), known.get("sha256", "")
    return FrozenRanges(path, status.st_size, status.st_mtime_ns, job.ranges.numbering, count, sha256)


def _file(path: str, events: int) -> FrozenFile:
    if is_url(path):
        return FrozenFile(path, None, None, events)
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputChanged(path=path, detail=error.strerror or str(error)) from None
    return FrozenFile(path, status.st_size, status.st_mtime_ns, events)


def _sha256(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError:
        return None


def canonical(value: Any) -> str:
    """`value` as the one JSON text it has."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
