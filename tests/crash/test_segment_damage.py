"""Segments cut off, zeroed, flipped, on a disk that refuses: only the images that were hit are lost (L7)."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eventrange import image, segment, segmentreader
from eventrange.durable import Files
from eventrange.errors import CannotWrite, ImageDamaged

KINDS = ["tar", "zip"]


def _made(path: str, kind: str, count: int = 6) -> list[tuple[int, bytes]]:
    out = segment.writer(path, kind)
    made = []
    for number in range(count):
        data = image.build(number * 3, None, [{"a": n, "j": np.arange(n)} for n in range(3)])[: 400 + 97 * number]
        made.append((out.append(f"t.{number * 3 + 1}-{number * 3 + 3}.h5", data), data))
    out.seal()
    return made


def _by_record(path: str, made: list[tuple[int, bytes]]) -> list[bool]:
    whole = []
    for offset, data in made:
        try:
            whole.append(segmentreader.read_image(path, offset, len(data), zlib.crc32(data)) == data)
        except ImageDamaged:
            whole.append(False)
    return whole


def _by_scan(path: str, made: list[tuple[int, bytes]]) -> list[bool]:
    found = {member.offset: member for member in segment.scan(path) if member.intact}
    known = {offset for offset, _ in made}
    assert set(found) <= known, "an image that never was"
    for offset, data in made:
        if offset in found:
            assert (found[offset].size, found[offset].crc) == (len(data), zlib.crc32(data))
    return [offset in found for offset, _ in made]


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_anywhere(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / f"s.{kind}")
    made = _made(path, kind)
    for size in range(os.path.getsize(path) - 1, -1, -1):
        os.truncate(path, size)
        expected = [offset + len(data) <= size for offset, data in made]
        assert _by_record(path, made) == expected
        if size % 7 == 0:
            assert _by_scan(path, made) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 512, 700, 1536])
def test_zeroed_anywhere(tmp_path: Path, kind: str, width: int) -> None:
    path = str(tmp_path / f"s.{kind}")
    made = _made(path, kind)
    raw = Path(path).read_bytes()
    broken = tmp_path / f"b.{kind}"
    for at in range(0, len(raw), 61 if width == 1 else 128):
        changed = raw[:at] + bytes(min(width, len(raw) - at)) + raw[at + width :]
        broken.write_bytes(changed)
        untouched = [changed[offset : offset + len(data)] == data for offset, data in made]
        assert _by_record(str(broken), made) == untouched
        scanned = _by_scan(str(broken), made)
        # without records an image is lost with its header too, but never one whose header and bytes are as they were
        for number, (offset, data) in enumerate(made):
            begin = made[number - 1][0] + len(made[number - 1][1]) if number else 0
            if changed[begin : offset + len(data)] == raw[begin : offset + len(data)]:
                assert scanned[number]


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / f"s.{kind}")
    made = _made(path, kind)
    raw = bytearray(Path(path).read_bytes())
    random = np.random.default_rng(3)
    broken = tmp_path / f"b.{kind}"
    for _ in range(400):
        at, bit = int(random.integers(len(raw))), 1 << int(random.integers(8))
        raw[at] ^= bit
        broken.write_bytes(raw)
        hit = [offset <= at < offset + len(data) for offset, data in made]
        assert _by_record(str(broken), made) == [not was for was in hit]
        assert sum(_by_scan(str(broken), made)) >= len(made) - 1
        raw[at] ^= bit


class Failing(Files):
    """Fails the n-th call of one kind, and `write` writes half before it does."""

    def __init__(self, kind: str, number: int, code: int) -> None:
        self.kind, self.number, self.code, self.calls = kind, number, code, 0

    def _turn(self, kind: str) -> bool:
        if kind == self.kind:
            self.calls += 1
        return kind == self.kind and self.calls - 1 == self.number

    def write(self, fd: int, data: Any) -> int:
        if self._turn("write"):
            view = memoryview(data).cast("B")
            super().write(fd, view[: len(view) // 2])
            raise OSError(self.code, os.strerror(self.code))
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        if self._turn("fsync"):
            raise OSError(self.code, os.strerror(self.code))
        super().fsync(fd)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_disk_refuses_at_every_call(tmp_path: Path, call: str, kind: str, code: int) -> None:
    for number in range(40):
        path = str(tmp_path / f"{call}{number}.{kind}")
        files = Failing(call, number, code)
        acknowledged: list[tuple[int, bytes]] = []
        waiting: list[tuple[int, bytes]] = []
        out = segment.writer(path, kind, files)
        try:
            for which in range(8):
                data = os.urandom(1000) * 300
                waiting.append((out.append(f"t.{which}", data), data))
                if which % 2:
                    out.sync()
                    acknowledged += waiting
                    waiting = []
            out.seal()
        except CannotWrite as error:
            assert error.exit_code == 73 and path in str(error)
            with pytest.raises(CannotWrite):
                out.append("x", b"x")
            with pytest.raises(CannotWrite):
                out.seal()
        else:
            assert files.calls <= number
            break
        finally:
            out.close()
        assert all(_by_record(path, acknowledged))
        intact = {member.offset for member in segment.scan(path) if member.intact}
        assert intact >= {offset for offset, _ in acknowledged}
    else:
        raise AssertionError("never got through")
