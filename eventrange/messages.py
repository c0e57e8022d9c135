"""Every message between Yoda and Droid, and between Droid and worker.

MPI carries msgspec structs in MessagePack, tagged by their name; hot content (ranges, records) inside them is the raw
bytes of a numpy array, so that a message of a thousand ranges costs what a message of one costs. A worker's socket
carries frames `length 4 | type 1 | payload`, since what travels there is mostly images.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from eventrange import records

#: A granted piece of the axis: [start, stop), and how often its first event has been tried. 20 bytes packed to 24.
RANGE = np.dtype([("start", "<i8"), ("stop", "<i8"), ("attempt", "<i8")])

Range = tuple[int, int, int]  #: start, stop, attempt


def pack_ranges(ranges: list[Range]) -> bytes:
    return np.array(ranges, RANGE).tobytes() if ranges else b""


def unpack_ranges(data: bytes) -> list[Range]:
    return np.frombuffer(data, RANGE).tolist()


_RUNNING = struct.Struct("<qd")


def pack_running(running: Iterable[tuple[int, float]]) -> bytes:
    """Events that workers are on, and for how many seconds each."""
    return b"".join(_RUNNING.pack(event, seconds) for event, seconds in running)


def unpack_running(data: bytes) -> Iterator[tuple[int, float]]:
    return _RUNNING.iter_unpack(data)


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True, omit_defaults=False):
    """Base of the messages over MPI."""


class Hello(Message, frozen=True, tag=1, array_like=True):
    """Droid -> Yoda, first: who I am. `startup` is seconds from the start of the process until now."""

    host: str
    pid: int
    workers: int
    cores: int
    startup: float
    versions: dict[str, str]


class Evidence(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one failed attempt at one event."""

    event: int
    attempt: int
    code: int
    text: str
    stderr: str
    cpu: float
    wall: float
    worker: int


class Report(Message, frozen=True, tag=2, array_like=True):
    """Droid -> Yoda: what became durable, what failed, what comes back, and how many more events are wanted.

    `records` holds RECORD rows of kinds DONE, FAILED and RETURNED; images of DONE rows are fsynced. `want` and
    `backlog` count events. `running` (pack_running) is the event each worker is on and for how many seconds, oldest
    first (at most 16). `times` is the histogram of event times (times.py) since the last report, `commits` that of
    the seconds commits took, `notes` go into the journal as they are. `under_way` sums the seconds that
    workers have spent on the ranges they are on: what would be lost now.
    """

    records: bytes
    evidence: list[Evidence]
    want: int
    backlog: int
    busy: int
    seconds_per_event: float
    running: bytes
    times: dict[int, int] = {}
    schema: str = ""
    notes: list[dict[str, Any]] = []
    commits: dict[int, int] = {}
    under_way: float = 0.0


class Sick(Message, frozen=True, tag=3, array_like=True):
    """Droid -> Yoda: I can do no work here, and why; all my grants come back. `exit_code` is what the run should end
    with if no Droid is left."""

    reason: str
    exit_code: int


class Bye(Message, frozen=True, tag=4, array_like=True):
    """Droid -> Yoda, last: everything I had is reported. After it the Droid only waits to end."""

    reason: str


class Warned(Message, frozen=True, tag=5, array_like=True):
    """Droid -> Yoda: a signal reached me."""

    signal: int


class Welcome(Message, frozen=True, tag=21, array_like=True):
    """Yoda -> Droid, answer to Hello: the task, so that no Droid has to read it from the file system.

    `task` goes to the workers as it is; `allocation` names the allocation, `schema` the fields if they are known.
    """

    task: dict[str, Any]
    allocation: str
    schema: str = ""


class Grant(Message, frozen=True, tag=16, array_like=True):
    """Yoda -> Droid: work. `size` > 0 fixes the events per range (of ranges that someone else named it is the mean);
    else a range is about `range_seconds` of work. Group commits are worth it `commit_seconds` apart.

    `remaining` events are still pending at Yoda after this grant: at 0 the Droid makes its ranges small. They are for
    all `workers` of the allocation.
    """

    ranges: bytes
    size: int
    range_seconds: float
    commit_seconds: float
    remaining: int
    workers: int
    schema: str = ""


class Reclaim(Message, frozen=True, tag=17, array_like=True):
    """Yoda -> Droid: others are idle; give back up to `events` that no worker has begun."""

    events: int


class Revoke(Message, frozen=True, tag=18, array_like=True):
    """Yoda -> Droid: somebody else has made these ranges durable; drop them, also where they are running. Not `begun`:
    somebody else is at work on them; finish the event at hand, and drop what no worker has begun."""

    ranges: bytes
    begun: bool = True


class Drain(Message, frozen=True, tag=19, array_like=True):
    """Yoda -> Droid: start nothing new; be done within `grace` seconds; report everything, seal, say Bye."""

    grace: float
    reason: str


class Stop(Message, frozen=True, tag=20, array_like=True):
    """Yoda -> Droid: the run is over and everything is durable; end. `together`: all ranks are there for
    MPI_Finalize."""

    reason: str
    together: bool = True


class Kept(Message, frozen=True, tag=23, array_like=True):
    """Yoda -> Droid: those of your notes that carry a `number` are durable in the journal, up to this one."""

    number: int


AnyMessage = Hello | Report | Sick | Bye | Warned | Welcome | Grant | Reclaim | Revoke | Drain | Stop | Kept
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> AnyMessage:
    """The message in `data`; msgspec.DecodeError if it is none."""
    return _decoder.decode(data)


def rows(data: bytes) -> NDArray[Any]:
    """RECORD rows of a Report, shape (n,), writable."""
    return np.frombuffer(bytearray(data), records.RECORD)
