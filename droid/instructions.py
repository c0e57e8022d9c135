"""What the core of a Droid tells its shell to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from eventrange.messages import Range
from eventrange.records import Code


@dataclass(frozen=True)
class Spawn:
    worker: int


@dataclass(frozen=True)
class Assign:
    worker: int
    ranges: list[Range]
    follow: bool = False  #: on what it has: what it finishes before these is not waited for


@dataclass(frozen=True)
class Cut:
    """Have the worker finish the event at hand and return the rest."""

    worker: int


@dataclass(frozen=True)
class Kill:
    worker: int
    why: str


@dataclass(frozen=True)
class SetSchema:
    schema: str


@dataclass(frozen=True)
class Discard:
    """Images that Yoda has not been told of have other fields than the task: return their ranges."""


@dataclass(frozen=True)
class Rows:
    """Records to report as they are: nothing has to be durable first."""

    rows: NDArray[Any]


@dataclass(frozen=True)
class Failure:
    """An event failed in a way the worker could not report itself."""

    event: int
    attempt: int
    worker: int
    code: Code
    text: str
    wall: float


@dataclass(frozen=True)
class Sick:
    reason: str
    exit_code: int


Instruction = Spawn | Assign | Cut | Kill | SetSchema | Discard | Rows | Failure | Sick
