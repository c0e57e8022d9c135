"""What the Dispatcher tells its shell to do."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from numpy.typing import NDArray

from eventrange import records
from eventrange.intervals import Pair
from eventrange.messages import Message, Range
from eventrange.records import Code, Kind


class Send(Struct, frozen=True):
    droid: int
    message: Message


class Write(Struct, frozen=True):
    """Records for the journal."""

    rows: NDArray[Any]


class Note(Struct, frozen=True):
    """A note for the journal and, as a sentence, for the log."""

    name: str
    values: dict[str, Any]


Instruction = Send | Write | Note


def granted(rank: int, ranges: list[Range], code: Code = Code.NONE) -> Write:
    """Droid `rank` has been given `ranges`; or they had been taken from it, and it had them all the same: `code`."""
    rows = records.new(len(ranges), kind=Kind.GRANTED, code=code, droid=rank)
    rows["start"], rows["stop"] = [r[0] for r in ranges], [r[1] for r in ranges]
    rows["attempt"] = [r[2] for r in ranges]
    return Write(rows)


def returned(rank: int, pairs: list[Pair], code: Code, wall: float = 0.0) -> Write:
    """`pairs`, of which there is one at least, are taken from Droid `rank`; `wall` seconds of work are lost with
    them."""
    rows = records.new(len(pairs), kind=Kind.RETURNED, code=code, droid=rank)
    rows["start"], rows["stop"] = [a for a, _ in pairs], [b for _, b in pairs]
    rows["wall"][0] = wall
    return Write(rows)
