"""What a Droid and its stage-out process say to each other: one JSON object per line, commands down, reports up.

The process keeps nothing that lasts. What it reports as `Staged` is true when it says so, but only the journal makes it
known: the parent writes the record, then answers `Recorded`, and only then are local copies or failover copies removed.
So a SIGKILL of either side at any point leaves at most an object that nobody knows of, which the next upload finds.
"""

from __future__ import annotations

from typing import Any, Union

import msgspec

from stageout.site import EndpointSite, StageoutRules


class Segment(msgspec.Struct, frozen=True):
    """A sealed segment: `name` in the journal, absolute local `path`, `key` on every endpoint, and its sums."""

    name: str
    path: str
    key: str
    size: int
    adler32: int
    sha256: str


# --- commands ---------------------------------------------------------------------------------------------------------


class Command(msgspec.Struct, frozen=True, tag_field="do", tag=str.lower):
    """Base of what the parent says."""


class Start(Command, frozen=True):
    """Always the first line. `breaker` is the state to go on from. Unfinished uploads are removed below each prefix of
    `mine` whatever their age (nobody else uploads there), and below `task` when older than `rules.orphan_age`."""

    endpoints: tuple[EndpointSite, ...]
    rules: StageoutRules = StageoutRules()
    breaker: dict[str, Any] = {}
    mine: tuple[str, ...] = ()
    task: str | None = None


class Submit(Command, frozen=True):
    """Stage this segment. `copies` names the endpoints that have it according to the journal."""

    segment: Segment
    copies: tuple[str, ...] = ()


class Recorded(Command, frozen=True):
    """The journal now says that `endpoint` has this segment (or, with `removed`, that it has it no longer)."""

    segment: str
    endpoint: str
    removed: bool = False


class Reset(Command, frozen=True):
    """A person says that this endpoint is well again."""

    endpoint: str


class Drain(Command, frozen=True):
    """Finish what can be finished within `seconds`, with or without re-homing, then end."""

    seconds: float
    rehome: bool = False


class Stop(Command, frozen=True):
    """Break off and end."""


# --- reports ----------------------------------------------------------------------------------------------------------


class Report(msgspec.Struct, frozen=True, tag_field="is", tag=str.lower):
    """Base of what the stage-out process says."""


class Ready(Report, frozen=True):
    """It runs."""

    pid: int


class Staged(Report, frozen=True):
    """`endpoint` holds a verified copy of the segment. `rehomed`: it was elsewhere before."""

    segment: str
    endpoint: str
    key: str
    url: str
    size: int
    adler32: int
    sha256: str
    time: float
    rehomed: bool = False


class Removed(Report, frozen=True):
    """A copy is given up. Without `endpoint`: the local one, deleted already. Others are deleted once `Recorded`."""

    segment: str
    endpoint: str | None
    time: float
    key: str = ""


class Failed(Report, frozen=True):
    """One attempt failed; `kind` is the error's class name. It will be tried again, here or elsewhere."""

    segment: str
    endpoint: str
    kind: str
    detail: str
    time: float


class Damaged(Report, frozen=True):
    """The local file is not what was sealed, and no endpoint has it: it is not uploaded and not tried again."""

    segment: str
    detail: str
    time: float


class Breaker(Report, frozen=True):
    """An endpoint went on, off, on trial, or (`alert`) off for good; `state` is the whole breaker, to be kept."""

    key: str
    before: str
    after: str
    reason: str
    time: float
    alert: bool
    state: dict[str, Any]


class Blocked(Report, frozen=True):
    """`waiting` segments have no endpoint to go to; the next attempt is at `until`, if there will be one."""

    waiting: int
    until: float | None
    time: float


class Ended(Report, frozen=True):
    """The last line: names of the segments that have no recorded copy anywhere yet."""

    left: tuple[str, ...]
    breaker: dict[str, Any]


AnyCommand = Union[Start, Submit, Recorded, Reset, Drain, Stop]  # noqa: UP007
AnyReport = Union[Ready, Staged, Removed, Failed, Damaged, Breaker, Blocked, Ended]  # noqa: UP007

_encoder = msgspec.json.Encoder()
_commands = msgspec.json.Decoder(AnyCommand)
_reports = msgspec.json.Decoder(AnyReport)


def encode(message: Command | Report) -> bytes:
    """One line, with its newline."""
    return _encoder.encode(message) + b"\n"


def decode_command(line: bytes) -> AnyCommand:
    """The command in a line; msgspec.DecodeError or ValidationError when it is none."""
    return _commands.decode(line)


def decode_report(line: bytes) -> AnyReport:
    """The report in a line; msgspec.DecodeError or ValidationError when it is none."""
    return _reports.decode(line)
