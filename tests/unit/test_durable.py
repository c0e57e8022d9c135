"""Bytes that stay: errors are final, and told in order."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from eventrange.durable import POLITE, SPARED, DurableFile, Files, Syncer, explain, write_file
from eventrange.errors import CannotWrite

ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS]


class Failing(Files):
    """The real file system, with a list of every call; the calls numbered in `faults` fail, or write less."""

    def __init__(self, faults: dict[int, int | str] | None = None, only: str = "") -> None:
        self.faults, self.only, self.calls = faults or {}, only, []  # type: tuple[Any, str, list[str]]

    def _call(self, name: str, function: Any, *values: Any) -> Any:
        number = sum(call == name for call in self.calls) if self.only else len(self.calls)
        self.calls.append(name)
        fault = self.faults.get(number) if self.only in ("", name) else None
        if isinstance(fault, int):
            raise OSError(fault, os.strerror(fault))
        if fault == "short" and name == "write":
            values = (values[0], bytes(values[1])[: max(1, len(values[1]) // 3)])
        if fault == "nothing" and name == "write":
            return 0
        return function(*values)

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        return self._call("open", super().open, path, flags, mode)

    def write(self, fd: int, data: Any) -> int:
        return self._call("write", super().write, fd, data)

    def fsync(self, fd: int) -> None:
        return self._call("fsync", super().fsync, fd)

    def replace(self, source: str, target: str) -> None:
        return self._call("replace", super().replace, source, target)

    def fsync_folder(self, path: str) -> None:
        return self._call("fsync_folder", super().fsync_folder, path)


def test_append_and_sync(tmp_path: Path) -> None:
    files = Failing()
    file = DurableFile(str(tmp_path / "x"), files)
    assert file.append(b"ab", memoryview(b"cde")) == 0 and file.append(b"f") == 5
    assert (file.size, file.synced) == (6, 0)
    assert file.sync() == 6 and file.synced == 6
    file.sync()
    assert files.calls.count("fsync") == 1, "nothing new, nothing to sync"
    file.close()
    file.close()
    assert (tmp_path / "x").read_bytes() == b"abcdef"
    assert files.calls[:2] == ["open", "fsync_folder"], "the name is durable before the content"


def test_exclusive(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(CannotWrite):
        DurableFile(str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize("fault", ["short", errno.EINTR])
def test_short_and_interrupted_writes_are_continued(tmp_path: Path, fault: int | str) -> None:
    files = Failing({0: fault, 1: fault, 3: fault, 4: fault}, only="write")
    file = DurableFile(str(tmp_path / "x"), files)
    file.append(b"0123456789" * 10, b"abc")
    assert (tmp_path / "x").read_bytes() == b"0123456789" * 10 + b"abc" and file.size == 103


@pytest.mark.parametrize("code", ERRORS)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_error_is_final(tmp_path: Path, code: int, call: str) -> None:
    files = Failing({1: code}, only=call)
    file = DurableFile(str(tmp_path / "x"), files)
    file.append(b"one")
    file.sync()
    with pytest.raises(CannotWrite) as first:
        file.append(b"two")
        file.sync()
    count = len(files.calls)
    for again in (lambda: file.append(b"three"), file.sync):
        with pytest.raises(CannotWrite) as caught:
            again()
            file.append(b"x")
        assert caught.value is first.value
    assert len(files.calls) == count, "a failed file is never touched again"
    assert file.synced == 3 and str(tmp_path / "x") in str(first.value)
    file.close()


def test_a_write_that_writes_nothing_ends(tmp_path: Path) -> None:
    file = DurableFile(str(tmp_path / "x"), Failing({0: "nothing"}, only="write"))
    with pytest.raises(CannotWrite):
        file.append(b"abc")


@pytest.mark.parametrize("call", ["open", "fsync_folder"])
def test_cannot_begin(tmp_path: Path, call: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CannotWrite, match="x"):
        DurableFile(str(tmp_path / "x"), Failing({0: errno.EIO}, only=call))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_message_says_how_much_room_is_left(tmp_path: Path) -> None:
    assert "MB free" in str(explain(OSError(errno.ENOSPC, "No space left"), str(tmp_path / "x")))
    assert "No space left" in str(explain(OSError(errno.ENOSPC, "No space left"), "/nonexistent/x"))


@pytest.mark.parametrize("fault", [*ERRORS, errno.EINTR, "short"])
def test_write_file_is_all_or_nothing(tmp_path: Path, fault: int | str) -> None:
    """Fail at every call index: the old content or the new one, no leftovers, and an error unless it is the new one."""
    path = tmp_path / "x"
    for at in range(12):
        path.write_bytes(b"old")
        files = Failing({at: fault})
        try:
            write_file(str(path), b"new content", files)
        except CannotWrite as error:
            assert str(path) in str(error) and ".tmp" not in str(error)
            assert path.read_bytes() in (b"old", b"new content")
        else:
            assert path.read_bytes() == b"new content"
        assert os.listdir(tmp_path) == ["x"], at
        if at >= len(files.calls):
            break
    else:
        raise AssertionError("more calls than were tried")


def test_write_file_takes_over_a_dead_ones_leftover(tmp_path: Path) -> None:
    (tmp_path / f"x.{os.getpid()}.tmp").write_bytes(b"junk that is longer than the new content")
    write_file(str(tmp_path / "x"), b"new")
    assert (tmp_path / "x").read_bytes() == b"new" and os.listdir(tmp_path) == ["x"]


class Gate:
    """Collects a Syncer's answers."""

    def __init__(self) -> None:
        self.rung = threading.Semaphore(0)
        self.syncer = Syncer(self.rung.release)
        self.answers: list[tuple[Any, CannotWrite | None]] = []

    def wait(self, count: int) -> list[tuple[Any, CannotWrite | None]]:
        while len(self.answers) < count:
            assert self.rung.acquire(timeout=60)
            self.answers += self.syncer.done()
        return self.answers


def test_syncer_answers_in_order_and_errors_stay_with_their_file(tmp_path: Path) -> None:
    gate = Gate()
    good = DurableFile(str(tmp_path / "good"))
    files = Failing({1: errno.EIO}, only="fsync")
    bad = DurableFile(str(tmp_path / "bad"), files)
    asked = []
    for number in range(40):
        file = bad if number % 4 == 3 else good
        if file.broken is None:
            try:
                file.append(b"x")
            except CannotWrite:
                pass  # it broke in the Syncer's thread meanwhile
        gate.syncer.request(number, file)
        asked.append(number)
    answers = gate.wait(40)
    gate.syncer.close()
    assert [token for token, _ in answers] == asked
    assert all(error is None for token, error in answers if token % 4 != 3)
    failed = [token for token, error in answers if error is not None]
    assert failed == [token for token in asked if token % 4 == 3 and token >= (failed or [99])[0]]
    assert files.calls.count("fsync") <= 2, "a failed fsync is not tried again"
    assert good.synced == good.size


def test_syncer_finishes_what_was_asked_before_it_ends(tmp_path: Path) -> None:
    gate = Gate()
    file = DurableFile(str(tmp_path / "x"))
    for number in range(10):
        file.append(b"x")
        gate.syncer.request(number, file)
    gate.syncer.close()
    assert [token for token, _ in gate.syncer.done() + gate.answers] == list(range(10)) and file.synced == 10


def test_syncer_outlives_whatever_a_sync_raises(tmp_path: Path) -> None:
    """A file that was closed under it, or a bug: the loop is told, the thread goes on, nobody waits for ever."""

    class Odd(Files):
        def fsync(self, fd: int) -> None:
            raise RuntimeError("odd")

    gate = Gate()
    odd, good = DurableFile(str(tmp_path / "odd"), Odd()), DurableFile(str(tmp_path / "good"))
    odd.append(b"x")
    good.append(b"x")
    gate.syncer.request(1, odd)
    gate.syncer.request(2, good)
    (one, first), (two, second) = gate.wait(2)
    gate.syncer.close()
    assert (one, two) == (1, 2) and isinstance(first, CannotWrite) and second is None and "odd" in str(first)
    assert odd.synced == 0 and odd.broken is first


class Slow(Files):
    """An fsync takes at least `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def fsync(self, fd: int) -> None:
        time.sleep(self.seconds)
        super().fsync(fd)


def test_commits_are_as_close_together_as_the_file_system_bears(tmp_path: Path) -> None:
    gate = Gate()
    assert gate.syncer.spacing(0.125, least=0.02) == 0.125, "nothing is known yet"
    file = DurableFile(str(tmp_path / "x"), Slow(0.02))
    file.append(b"x")
    gate.syncer.request(0, file)
    gate.wait(1)
    gate.syncer.close()
    assert gate.syncer.spacing(0.1) == 0.1, "never more than allowed"
    assert gate.syncer.spacing(1e9) == POLITE < 0.02 * SPARED, "nobody loses a second because a server is slow"
    assert gate.syncer.spacing(1e9, least=1e8) == 1e8
    gate.syncer._took = 0.001
    assert gate.syncer.spacing(1e9) == 0.001 * SPARED


def test_who_waits_for_a_quick_sync_is_not_woken_for_it_and_who_gave_up_is(tmp_path: Path) -> None:
    gate = Gate()
    quick, slow = DurableFile(str(tmp_path / "quick")), DurableFile(str(tmp_path / "slow"), Slow(0.3))
    quick.append(b"x")
    slow.append(b"x")
    gate.syncer.request(1, quick)
    gate.syncer.settle(60.0)
    assert gate.syncer.done() == [(1, None)] and not gate.rung.acquire(blocking=False)
    gate.syncer.request(2, slow)
    gate.syncer.settle(0.01)
    assert gate.syncer.done() == []
    assert gate.wait(1) == [(2, None)]
    gate.syncer.close()
