"""Every journal record, numbered and versioned; one numpy dtype.

Two kinds of entry share the journal. *Records* are the hot ones, fixed size, written by the ten thousand a second.
*Notes* are rare, carry text (a host name, a traceback, an endpoint) and are small JSON objects: `{"note": NAME, "time":
T, ...}`.

A record carries its own check word beside the checksum of its frame, so that damage inside a frame costs the records it
hits and not the hundreds around them (L7).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1


class Kind(IntEnum):
    """What a record says of its range. Numbers are on disk: add, never renumber."""

    GRANTED = 1  #: handed to `droid` at `time`; with a `code`: it had been taken from it, which had it all the same
    DONE = 2  #: its image is durable at (droid, segment, offset, size, checksum); no image: size 0
    FAILED = 3  #: one event, attempt number `attempt`, `code` says how; evidence in a note
    RETURNED = 4  #: given back unprocessed (drain, revoked, lost); `wall` is the time in flight that was lost with it
    QUARANTINED = 5  #: one event, given up after `attempt` attempts
    #: taken up again: one whose image is damaged everywhere, or, with the code RETRY, a quarantined event; only the
    #: former voids what is done
    PENDING = 6


class Code(IntEnum):
    """How an event failed, or why a range came back or is pending again."""

    NONE = 0
    EXCEPTION = 1
    EXITED = 2  #: the worker ended (exit, abort, segfault, kill) while on the event
    TIMEOUT = 3
    MEMORY = 4
    FIELDS = 5  #: fields or dtypes differ from the task's
    TOO_BIG = 6
    DRAINED = 7
    REVOKED = 8
    DROID_LOST = 9
    COMMAND = 10  #: a program returned non-zero or made no output
    INPUT = 11  #: the event could not be read
    STORAGE = 12  #: the image could not be made durable
    RETRY = 13  #: it was quarantined; another allocation may have taken it up at the same moment, and have done it


#: 64 bytes. `time` unix seconds at the start of processing, `wall` and `cpu` seconds, `offset`/`size` bytes of the
#: image within the segment file, `checksum` crc32 of the image, `check` the record's own check word.
RECORD = np.dtype(
    [
        ("kind", "u1"),
        ("code", "u1"),
        ("attempt", "<u2"),
        ("droid", "<u2"),
        ("worker", "<u2"),
        ("segment", "<u4"),
        ("checksum", "<u4"),
        ("start", "<i8"),
        ("stop", "<i8"),
        ("time", "<f8"),
        ("wall", "<f4"),
        ("cpu", "<f4"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("check", "<u4"),
    ]
)
SIZE = RECORD.itemsize
assert SIZE == 64

_WORDS = SIZE // 4 - 1
# Odd weights: a change of any one word always changes the sum. The constant keeps a block of zeros from passing.
_WEIGHTS = (np.arange(1, _WORDS + 1, dtype=np.uint64) * 0x9E3779B1 & 0xFFFFFFFF).astype(np.uint32) | np.uint32(1)
_SALT = np.uint32(0x59F0DA01)


def new(count: int = 1, **values: Any) -> NDArray[Any]:
    """Records of shape (count,), the named fields set, all others zero, not yet stamped."""
    out = np.zeros(count, RECORD)
    for name, value in values.items():
        out[name] = value
    return out


def voids(records: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of `records` say that what was done of their range before is not; shape (n,)."""
    found: NDArray[np.bool_] = (records["kind"] == Kind.PENDING) & (records["code"] != Code.RETRY)
    return found


def check_words(records: NDArray[Any]) -> NDArray[np.uint32]:
    """The check word each of `records` (shape (n,)) should carry; shape (n,)."""
    words = np.ascontiguousarray(records).view(np.uint32).reshape(-1, _WORDS + 1)[:, :_WORDS]
    mixed = words ^ (words >> np.uint32(15))
    return (mixed * _WEIGHTS).sum(axis=1, dtype=np.uint32) ^ _SALT


def stamp(records: NDArray[Any], salt: int = 0) -> NDArray[Any]:
    """Set the check word of every record, in place; returns `records`. `salt` (32 bits) says where they belong."""
    records["check"] = check_words(records) ^ np.uint32(salt)
    return records


def salts(records: NDArray[Any]) -> NDArray[np.uint32]:
    """The salt each of `records` (shape (n,)) was stamped with, if it is intact; shape (n,)."""
    found: NDArray[np.uint32] = records["check"] ^ check_words(records)
    return found


def intact(records: NDArray[Any], salt: int = 0) -> NDArray[np.bool_]:
    """Which records carry the right check word; shape (n,)."""
    return salts(records) == np.uint32(salt)
