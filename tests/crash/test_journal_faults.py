"""The disk says no at every call in turn: what was acknowledged is there, and nothing that was never written."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from journal_memory import Memory, Sample, drain

from eventrange import records
from eventrange.errors import CannotWrite
from eventrange.journal import JournalReader, JournalWriter
from eventrange.records import Kind

ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE]


class Faulty(Memory):
    """Fails at call number `at`, counting opens, writes and fsyncs.

    `durable` is what survives a loss of power: the bytes of the last fsync that succeeded. A failing write puts half of
    its data into the file first, as a full disk does.
    """

    def __init__(self, at: int, fault: int | str, for_ever: bool = False) -> None:
        super().__init__()
        self.at, self.fault, self.for_ever, self.calls = at, fault, for_ever, 0
        self.durable = b""
        self.synced_after_failure = 0
        self._failed_sync = False

    def _fails(self) -> bool:
        self.calls += 1
        return self.calls - 1 == self.at or (self.for_ever and self.calls > self.at)

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        if flags & os.O_CREAT and self._fails() and isinstance(self.fault, int):
            raise OSError(self.fault, "fault")
        return super().open(path, flags, mode)

    def write(self, fd: int, data: Any) -> int:
        if not self._fails():
            return super().write(fd, data)
        if self.fault == "short":
            return super().write(fd, data[: max(1, len(data) // 3)])
        if self.fault != errno.EINTR:
            super().write(fd, data[: len(data) // 2])
        assert isinstance(self.fault, int)
        raise OSError(self.fault, "fault")

    def fsync(self, fd: int) -> None:
        self.synced_after_failure += self._failed_sync
        if self._fails() and isinstance(self.fault, int):
            self._failed_sync = self.fault != errno.EINTR
            # The kernel may have dropped the pages: all that was not synced before is gone.
            if self._failed_sync:
                self.content["j"] = bytearray(self.durable)
            raise OSError(self.fault, "fault")
        self.durable = bytes(self.content["j"])


def write(files: Faulty) -> tuple[int, int, CannotWrite | None]:
    """Six commits of five records; returns (acknowledged, handed in, error)."""
    acknowledged = given = 0
    try:
        writer = JournalWriter("j", "f", "a", files)
        for number in range(6):
            rows = records.new(5, kind=Kind.DONE, start=range(number * 5, number * 5 + 5), time=number)
            rows["stop"] = rows["start"] + 1
            writer.append(rows)
            given += 5
            size = writer.flush()
            if writer.file.sync() >= size:
                acknowledged = given
    except CannotWrite as error:
        return acknowledged, given, error
    return acknowledged, given, None


def starts(files: Memory) -> list[int]:
    reader = JournalReader("j", "f", "a", files)
    rows, _ = drain(reader)
    return [int(start) for start in rows["start"]]


@pytest.mark.parametrize("fault", ERRORS)
@pytest.mark.parametrize("power", [False, True])
def test_every_call(fault: int, power: bool) -> None:
    for at in range(13):
        files = Faulty(at, fault)
        acknowledged, given, error = write(files)
        assert error is not None and error.exit_code == 73 and "j" in str(error)
        assert files.synced_after_failure == 0
        after = Memory()
        after.content["j"] = bytearray(files.durable if power else files.content.get("j", b""))
        found = starts(after)
        assert found[:acknowledged] == list(range(acknowledged)), "what was acknowledged is there"
        assert found == list(range(len(found))) and len(found) <= given, "and nothing that was not written"


@pytest.mark.parametrize("fault", [errno.EINTR, "short"])
def test_what_is_no_failure(fault: int | str) -> None:
    """Interrupted calls and short writes are continued, byte for byte."""
    expected = Memory()
    for at in range(14):
        files = Faulty(at, fault)
        if at == 0 and fault == errno.EINTR:
            continue  # Python itself retries an interrupted open
        acknowledged, _, error = write(files)
        assert error is None and acknowledged == 30
        expected.content.setdefault("j", files.content["j"])
        assert files.content["j"] == expected.content["j"] == files.durable
        assert starts(files) == list(range(30))


def test_every_write_is_short() -> None:
    files = Faulty(1, "short", for_ever=True)
    assert write(files)[0] == 30 and starts(files) == list(range(30))


def test_full_disk_then_a_new_allocation() -> None:
    """The torn file stays as it is; the next allocation has its own."""
    files = Faulty(3, errno.ENOSPC, for_ever=True)
    acknowledged, _, error = write(files)
    assert error is not None and "fault" in str(error)
    torn = bytes(files.content["j"])
    sample = Sample(2, 3, allocation="b")
    assert len(sample.read(sample.content)[0]) == 6
    assert files.content["j"] == torn and starts(files)[:acknowledged] == list(range(acknowledged))


@pytest.mark.parametrize("fault", [errno.ESTALE, errno.EACCES, errno.ENOENT])
def test_reading_fails(fault: int) -> None:
    """A file that cannot be read at all is an OSError for the caller, who reports it."""

    class Unreadable(Memory):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            raise OSError(fault, "fault")

    files = Unreadable()
    files.content["j"] = bytearray(b"x")
    with pytest.raises(OSError):
        list(JournalReader("j", "f", "a", files))
