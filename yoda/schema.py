"""The keys of the job file and of the site file, typed: what may be written, and what stands when nothing is.

`None` stands for `auto` where a key says so, and is shown as `auto`. Every key carries an example: it is what an error
tells the user to write. Rules that span keys are in `yoda.config`; here are only types and limits of single keys.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from eventrange.durable import POLITE
from eventrange.quantity import Duration, Size
from slurm.site import SlurmSite
from stageout.site import EndpointSite, NodeBreakerRules, QueueBreakerRules, StageoutRules

MiB, GiB = 1 << 20, 1 << 30

PLACEHOLDERS = ("input", "first", "last", "position", "output", "seed", "events", "workdir")
"""What may stand in braces in `payload.command`."""

Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._-]+\Z",
        max_length=128,
        examples=["zjets-shower"],
        extra={"says": "letters, digits, '.', '_' and '-'"},
    ),
]
_AUTO = {"auto": True}
_Count = Annotated[int, Meta(ge=1)]
_Span = Annotated[Duration, Meta(gt=0)]
_Bytes = Annotated[Size, Meta(gt=0)]


class Inputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where events come from. After loading, `files` are absolute paths (globs expanded, sorted) and URLs."""

    format: Annotated[Literal["lhe", "hdf5", "root", "hepmc", "generate"], Meta(examples=["lhe"])]
    files: Annotated[tuple[str, ...], Meta(examples=[["data/zjets.lhe.gz"]])] = ()
    events: Annotated[_Count | None, Meta(examples=[1000])] = None  # the first N only; None: all there are
    options: Annotated[dict[str, Any], Meta(examples=[{"tree": "Events"}])] = field(default_factory=dict)


class Payload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done with each event: exactly one of `python` and `command`, both as written in the job file."""

    python: Annotated[str | None, Meta(examples=["shower.py:Shower"])] = None
    command: Annotated[
        tuple[str, ...] | None, Meta(examples=[["./simulate", "{input}", "{first}", "{last}", "{output}"]])
    ] = None
    options: Annotated[dict[str, Any], Meta(examples=[{"tune": "monash"}])] = field(default_factory=dict)
    memory: Annotated[_Bytes | None, Meta(examples=["2GiB"])] = None  # bytes one worker needs; None: unknown
    name: Annotated[str | None, Meta(examples=["shower"])] = None  # what people call it; no influence on anything


class Ranges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How events are cut into ranges and when one is given up. None: decided while running, from measured times."""

    file: Annotated[str | None, Meta(examples=["ranges.json"])] = None  # ranges that someone else named; None: our own
    numbering: Annotated[Literal["file", "inputs"], Meta(examples=["inputs"])] = "file"  # what its numbers count
    events: Annotated[_Count | None, Meta(examples=["auto", 100], extra=_AUTO)] = None  # fixed size of a range
    seconds: Annotated[_Span | None, Meta(examples=["auto", 0.25], extra=_AUTO)] = None  # work aimed at per range
    max_attempts: Annotated[_Count, Meta(examples=[3])] = 3  # of one event, before it is quarantined
    timeout: Annotated[_Span | None, Meta(examples=["auto", "10min"], extra=_AUTO)] = None  # of one event


class Output(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The final files."""

    merge: Annotated[bool, Meta(examples=[True])] = False  # merge by itself when the task is complete
    compression: Annotated[Literal["gzip", "lzf", "none"], Meta(examples=["gzip"])] = "gzip"
    events_per_file: Annotated[_Count | None, Meta(examples=[100000])] = None  # None: one file


class JobKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The job file as written."""

    task: Name
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1, examples=[42])]
    inputs: Annotated[Inputs, Meta(examples=[{"format": "lhe", "files": ["data/zjets.lhe.gz"]}])]
    payload: Annotated[Payload, Meta(examples=[{"python": "shower.py:Shower"}])]
    ranges: Ranges = Ranges()
    output: Output = Output()


class Job(JobKeys, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The job: its keys, the absolute path of the file they came from, and the origin of each key that was given."""

    path: str
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Where the job file is; relative paths in it start here."""
        return os.path.dirname(self.path)

    @property
    def payload_file(self) -> str | None:
        """The absolute path of FILE.py, or of a program named with a slash; None for anything else."""
        if self.payload.python is not None:
            place, _, _ = self.payload.python.rpartition(":")
            return os.path.join(self.folder, os.path.expanduser(place)) if place.endswith(".py") else None
        program = os.path.expanduser((self.payload.command or ("",))[0])
        return os.path.normpath(os.path.join(self.folder, program)) if "/" in program else None


class Segments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a segment is sealed and the next one begun, and its format."""

    max_bytes: Annotated[_Bytes, Meta(examples=["1GiB"])] = GiB
    max_age: Annotated[_Span, Meta(examples=["30min"])] = 1800.0
    format: Annotated[Literal["tar", "zip"], Meta(examples=["tar"])] = "tar"


class Commit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Group commit: one fsync for all that gathered in so many seconds or bytes, whichever comes first."""

    seconds: Annotated[_Span, Meta(examples=["1s"])] = 1.0
    bytes: Annotated[_Bytes, Meta(examples=["64MiB"])] = 64 * MiB

    @property
    def yoda_seconds(self) -> float:
        """At most between syncs of the journal: one is for many Droids, and where there are few they seldom report."""
        return max(self.seconds / 8, min(self.seconds / 2, POLITE))

    @property
    def droid_seconds(self) -> float:
        """At most between syncs of a Droid's segment; both together are `seconds`."""
        return self.seconds - self.yoda_seconds


class SiteKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The site file as written; every key may be left out."""

    site: Annotated[Name, Meta(examples=["perlmutter-preempt"])] = "local"
    launcher: Annotated[str | None, Meta(examples=["srun --mpi=pmi2 --ntasks={ranks}"])] = (
        None  # None: mpiexec -n {ranks}
    )
    workers: Annotated[_Count | None, Meta(examples=["auto", 8], extra=_AUTO)] = None  # per Droid; None: one per core
    scratch: Annotated[str | None, Meta(examples=["$SCRATCH"])] = None
    segments: Segments = Segments()
    commit: Commit = Commit()
    stageout: Annotated[
        tuple[EndpointSite, ...], Meta(examples=[[{"name": "primary", "url": "s3://bucket/prefix"}]])
    ] = ()
    stageout_rules: StageoutRules = StageoutRules()
    node_breaker: NodeBreakerRules = NodeBreakerRules()
    queue_breaker: QueueBreakerRules = QueueBreakerRules()
    slurm: Annotated[SlurmSite | None, Meta(examples=[{"partition": "regular", "time": "4h"}])] = None
    grace: Annotated[Duration, Meta(examples=["30s"])] = 30.0  # between the warning and the kill
    silent: Annotated[_Span, Meta(examples=["60s"])] = 60.0  # without a word: a Droid is believed lost
    margin: Annotated[Duration | None, Meta(examples=["auto", "2min"], extra=_AUTO)] = (
        None  # no grants this long before the end
    )
    starting: Annotated[_Span, Meta(examples=["5min"])] = 300.0  # for all ranks to start MPI
    lease_timeout: Annotated[_Span, Meta(examples=["60s"])] = 60.0  # silence after which another allocation is dead


class Site(SiteKeys, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The site: its keys, the absolute path of its file (None: defaults), and the origin of each key that was given."""

    path: str | None = None
    origins: dict[str, str] = field(default_factory=dict)
