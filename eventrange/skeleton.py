"""HDF5 files but for their values: one with empty datasets, into which each image gets its own numbers. Pure.

What differs between the images of a task are the extents of the datasets, where their values are, and the end of the
file. The oldest format that HDF5 writes keeps those as plain numbers with no checksum around them: in the dataspace
message and the data layout message of each object header (version 1), and in the superblock (version 0).

Source: HDF5 File Format Specification, version 3.0, sections II.A, IV.A.1.a, IV.A.2.b, IV.A.2.i and IV.A.2.q.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_SIGNATURE = b"\x89HDF\r\n\x1a\n\0"  #: and version 0 of the superblock
_SIZES, _SIZES_AT, _END_AT = b"\x08\x08", 13, 40  #: bytes of offsets and lengths; the end of the file
_DATASPACE, _LAYOUT, _CONTINUATION = 0x01, 0x08, 0x10
_NOWHERE = 2**64 - 1
_ONE, _TWO = struct.Struct("<Q"), struct.Struct("<QQ")


class _Place(NamedTuple):
    """Where the numbers of a dataset are."""

    extents: struct.Struct
    extents_at: tuple[int, ...]  #: now, and at most, where that is told
    layout_at: int  #: offset and size of the values


class Skeleton:
    """`body` is an HDF5 file whose datasets, with `axes` axes each, are empty; `addresses` are their object headers.

    Raises ValueError where it is not exactly what this module knows.
    """

    def __init__(self, body: bytes, addresses: Sequence[int], axes: Sequence[int]) -> None:
        if body[: len(_SIGNATURE)] != _SIGNATURE or body[_SIZES_AT : _SIZES_AT + 2] != _SIZES:
            raise ValueError("not a superblock of version 0 with offsets and lengths of 8 bytes")
        self._body = body + bytes(-len(body) % 8)
        try:
            self._places = [_place(body, at, rank) for at, rank in zip(addresses, axes, strict=True)]
        except (struct.error, IndexError, KeyError) as error:
            raise ValueError(f"not the object header of an empty dataset ({error!r})") from error

    def fill(self, shapes: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> tuple[bytes, list[int]]:
        """What comes before the values for datasets of these shapes and bytes, and the offsets of the values, -1 where
        there are none. They follow each other, each beginning at the next multiple of 8, and so ends the file."""
        out = bytearray(self._body)
        end, offsets = len(out), []
        for (extents, extents_at, layout_at), shape, size in zip(self._places, shapes, sizes, strict=True):
            for at in extents_at:
                extents.pack_into(out, at, *shape)
            if not size:
                offsets.append(-1)
                continue
            _TWO.pack_into(out, layout_at, end, size)
            offsets.append(end)
            end += size + -size % 8
        _ONE.pack_into(out, _END_AT, end)
        return bytes(out), offsets


def _place(body: bytes, address: int, axes: int) -> _Place:
    found = dict(_messages(body, address))
    space, layout = found[_DATASPACE], found[_LAYOUT]
    version, rank, flags = body[space : space + 3]
    extents = struct.Struct(f"<{axes}Q")
    at = (space + 8, space + 8 + extents.size) if flags == 1 else (space + 8,)
    if (version, rank) != (1, axes) or flags > 1 or any(any(extents.unpack_from(body, one)) for one in at):
        raise ValueError("not the dataspace of an empty dataset")
    if body[layout : layout + 2] != b"\x03\x01" or _TWO.unpack_from(body, layout + 2) != (_NOWHERE, 0):
        raise ValueError("not the layout of a dataset in one piece that is nowhere yet")
    return _Place(extents, at, layout + 2)


def _messages(body: bytes, address: int) -> Iterator[tuple[int, int]]:
    """(type, offset of the data) of the messages in the object header at `address`."""
    if body[address] != 1:
        raise ValueError("not an object header of version 1")
    (size,) = struct.unpack_from("<I", body, address + 8)
    blocks = [(address + 16, size)]
    for begin, length in blocks:
        at = begin
        while at + 8 <= begin + length:
            kind, size = struct.unpack_from("<HH", body, at)
            if kind == _CONTINUATION:
                blocks.append(_TWO.unpack_from(body, at + 8))
            yield kind, at + 8
            at += 8 + size
