"""What travels between a Droid and a worker: frames `length 4 | type 1 | payload` on a stream socket.

To the worker: 'R' ranges (messages.RANGE rows), 'N' such that follow on what it has, 'S' the task's schema.
To the Droid: 'I' ready, with what start-up took; 'X' cannot start, with the reason; 'B' a batch of results: the length
of three parts, then RECORD rows in the order of work, the evidence and event times (MessagePack), and all images one
after another in the order of the DONE rows that have one.

The Droid does not wait for what workers send: it looks for it whenever it is awake. A worker wakes it, with a byte into
a pipe, unless it goes on with ranges of an 'N': nobody needs to hurry then.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from eventrange import records
from eventrange.messages import Evidence

HEAD = struct.Struct("<IB")
RANGES, NEXT, SCHEMA = ord("R"), ord("N"), ord("S")
READY, CANNOT, BATCH = ord("I"), ord("X"), ord("B")
_PARTS = struct.Struct("<II")


class Extra(msgspec.Struct, array_like=True):
    """The small part of a batch: evidence of failures, event times (bin -> events), the schema of the images, seconds
    spent waiting for input, and on groups that are done again one by one."""

    evidence: list[Evidence] = []
    times: dict[int, int] = {}
    schema: str = ""
    input: float = 0.0
    again: float = 0.0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Extra)


def frame(kind: int, *parts: Any) -> list[Any]:
    """A frame as the list of buffers to send; images are not copied together."""
    size = sum(len(part) for part in parts)
    return [HEAD.pack(size, kind), *parts]


def batch(rows: NDArray[Any], extra: Extra, images: list[bytes]) -> list[Any]:
    """A 'B' frame. `rows` are RECORD; len(images) == DONE rows with size > 0."""
    small = _encoder.encode(extra)
    return frame(BATCH, _PARTS.pack(len(rows), len(small)), rows.tobytes(), small, *images)


def unbatch(payload: memoryview) -> tuple[NDArray[Any], Extra, memoryview]:
    """(rows, extra, the images' bytes); rows are writable."""
    count, small = _PARTS.unpack_from(payload)
    start = _PARTS.size
    end = start + count * records.SIZE
    rows = np.frombuffer(bytearray(payload[start:end]), records.RECORD)
    return rows, _decoder.decode(payload[end : end + small]), payload[end + small :]


class FrameReader:
    """Cuts the bytes that arrive on one socket into frames. A frame may be of any size; it is kept in one buffer."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a part of a frame is still to come."""
        return bool(self._data)

    def feed(self, data: bytes | memoryview) -> list[tuple[int, memoryview]]:
        """Frames that are complete now, as (kind, payload)."""
        self._data += data
        out = []
        at = 0
        while len(self._data) - at >= HEAD.size:
            size, kind = HEAD.unpack_from(self._data, at)
            if len(self._data) - at - HEAD.size < size:
                break
            out.append((kind, at + HEAD.size, size))
            at += HEAD.size + size
        if not out:
            return []
        # The old buffer lives on in the payloads that are handed out; what is left moves to a new one.
        whole = memoryview(self._data)
        self._data = bytearray(whole[at:])
        return [(kind, whole[start : start + size]) for kind, start, size in out]
