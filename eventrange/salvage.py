"""Records in bytes that are no frame: after lost headers, removed, inserted or overwritten bytes.

A record says by its check word that it is whole, and by the salt in it to which journal and to which frame of that
journal it belongs. So it can be recognised at any byte offset, and nothing else passes for it: a stale block of another
journal has another salt, an old block of this one a number that is not missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange import records

#: How far ahead of the last known frame a number may be where no later frame tells. Larger accepts more garbage: one
#: random 64 bytes in 2**22, and of these only what also looks like a record.
WINDOW = 1024
_ODD = 0x9E3779B1  # any odd number has an inverse modulo 2**32, so the frame's number can be read from a salt
_INVERSE = pow(_ODD, -1, 1 << 32)
_PIECE = 1 << 18  # bytes searched at a time: candidates are copied out, 64 bytes for each byte in the worst case
_KINDS = max(records.Kind)
_FIELDS: Any = records.RECORD.fields
_START_TOP, _STOP_TOP = _FIELDS["start"][1] + 7, _FIELDS["stop"][1] + 7


def salt(journal: int, sequence: int) -> int:
    """What the check words of the records in frame `sequence` of `journal` are salted with; 32 bits."""
    return (journal + sequence * _ODD) & 0xFFFFFFFF


def sequences(salts: NDArray[np.uint32], journal: int) -> NDArray[np.uint32]:
    """The frame number each salt stands for, if the record belongs to `journal`; shape (n,)."""
    return (salts - np.uint32(journal)) * np.uint32(_INVERSE)


def find(data: bytes, begin: int, end: int, journal: int) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """All that can be a record and begins in data[begin:end], in order: RECORD rows and their frame numbers, shape (n,)
    each.

    The caller must refuse rows with a number that cannot be there; most of them are garbage.
    """
    found: list[NDArray[Any]] = []
    raw = np.frombuffer(data, np.uint8)
    inside = np.arange(records.SIZE)
    for at in range(begin, min(end, len(raw) - records.SIZE + 1), _PIECE):
        size = min(_PIECE, end - at, len(raw) - records.SIZE + 1 - at)
        # Cheap looks first, at single bytes: kind, code, and that positions are below 2**56 and not negative.
        likely = raw[at : at + size] - np.uint8(1) < _KINDS
        likely &= raw[at + 1 : at + 1 + size] < 64
        likely &= raw[at + _START_TOP : at + _START_TOP + size] == 0
        likely &= raw[at + _STOP_TOP : at + _STOP_TOP + size] == 0
        where = np.flatnonzero(likely) + at
        if len(where):
            rows = raw[where[:, None] + inside].view(records.RECORD)[:, 0]
            found.append(rows[rows["start"] <= rows["stop"]])
    rows = np.concatenate(found) if found else records.new(0)
    return rows, sequences(records.salts(rows), journal)
