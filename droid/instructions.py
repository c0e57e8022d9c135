"""What the core of a Droid tells its shell to do.

Structs of msgspec: a dataclass takes half a millisecond to define, at every start of every rank.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from numpy.typing import NDArray

from eventrange.messages import Range
from eventrange.records import Code


class Spawn(Struct, frozen=True):
    worker: int


class Assign(Struct, frozen=True):
    worker: int
    ranges: list[Range]
    follow: bool = False  #: on what it has: what it finishes before these is not waited for


class Cut(Struct, frozen=True):
    """Have the worker finish the event at hand and return the rest."""

    worker: int


class Kill(Struct, frozen=True):
    worker: int
    why: str


class SetSchema(Struct, frozen=True):
    schema: str


class Discard(Struct, frozen=True):
    """Images that Yoda has not been told of have other fields than the task: return their ranges."""


class Rows(Struct, frozen=True):
    """Records to report as they are: nothing has to be durable first."""

    rows: NDArray[Any]


class Failure(Struct, frozen=True):
    """An event failed in a way the worker could not report itself."""

    event: int
    attempt: int
    worker: int
    code: Code
    text: str
    wall: float


class Sick(Struct, frozen=True):
    reason: str
    exit_code: int


Instruction = Spawn | Assign | Cut | Kill | SetSchema | Discard | Rows | Failure | Sick
