"""A disk that fails at every call of a merge: the old files stay, nothing half-made does, the next merge is right."""

from __future__ import annotations

import errno
import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "unit"))
from merging import Task, whole

from eventrange.durable import Files
from eventrange.errors import CannotWrite
from stageout import finalfile
from stageout.merge import merge

COUNT = 60


class Failing(Files):
    """Fails call number `number` of everything; `stays`: and all after it, as a full disk does."""

    def __init__(self, number: int, code: int, stays: bool) -> None:
        self.number, self.code, self.stays, self.calls = number, code, stays, 0
        self.failed = ""

    def _turn(self, name: str) -> None:
        self.calls += 1
        if self.calls - 1 == self.number or (self.stays and self.calls > self.number and name in ("write", "fsync")):
            self.failed = self.failed or name
            raise OSError(self.code, os.strerror(self.code))

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        self._turn("open")
        return super().open(path, flags, mode)

    def write(self, fd: int, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.calls == self.number:
            super().write(fd, view[: len(view) // 2])
        self._turn("write")
        return super().write(fd, view[:5000])  # short writes are allowed at any time

    def fsync(self, fd: int) -> None:
        self._turn("fsync")
        super().fsync(fd)

    def replace(self, source: str, target: str) -> None:
        self._turn("replace")
        super().replace(source, target)

    def fsync_folder(self, path: str) -> None:
        self._turn("fsync_folder")
        super().fsync_folder(path)

    def close(self, fd: int) -> None:
        super().close(fd)
        self._turn("close")


def _merge(task: Task, out: Path, files: Files | None = None, **options: Any) -> Any:
    more: dict[str, Any] = {"fetch_many": task.fetch_many}
    if files is not None:
        more["files"] = files
    return merge(task.placed(), task.fetch, str(out), "t", COUNT, events_per_file=25, threads=2, **more, **options)


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


@pytest.mark.parametrize(
    ("compression", "code", "stays"),
    [("gzip", errno.ENOSPC, True), ("lzf", errno.EIO, False), ("none", errno.EDQUOT, True)],
)
def test_every_call_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, code: int, stays: bool
) -> None:
    monkeypatch.setattr(finalfile, "CHUNK", 512)
    task = whole(str(tmp_path / "s"), COUNT)
    _merge(task, tmp_path / "right", compression=compression)
    right = _contents(tmp_path / "right")
    _merge(task, tmp_path / "m", jagged=["trio"])
    old = _contents(tmp_path / "m")
    seen: set[str] = set()
    descriptors = len(os.listdir("/proc/self/fd"))
    number = 0
    while True:
        files = Failing(number, code, stays)
        try:
            _merge(task, tmp_path / "m", files, compression=compression)
        except CannotWrite as error:
            assert error.exit_code == 73 and str(tmp_path / "m") in str(error)
        else:
            assert not files.failed, f"{files.failed} failed and nobody noticed"
            break
        seen.add(files.failed)
        found = _contents(tmp_path / "m")
        # write_file may leave its own temporary file when the rename itself fails; the next one takes its place
        assert {name for name in found if not name.startswith("merge.json.")} == set(old), "left something behind"
        if files.failed not in ("replace", "fsync_folder"):
            changed = [name for name in old if found[name] != old[name]]
            # from the first rename on files are new and merge.json is old, so the next merge writes all again
            assert not changed or all(found[name] == right[name] for name in changed)
        if found != old:
            _merge(task, tmp_path / "m", jagged=["trio"])
            assert _contents(tmp_path / "m") == old
        number += 1
    assert seen >= {"open", "write", "fsync", "replace", "fsync_folder"}
    assert _contents(tmp_path / "m") == right
    gc.collect()
    # one: DurableFile keeps its descriptor when the folder cannot be made durable
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1


def test_full_disk_before_the_first_file_is_complete_touches_nothing(tmp_path: Path) -> None:
    task = whole(str(tmp_path / "s"), COUNT)
    _merge(task, tmp_path / "m", jagged=["trio"])
    old = _contents(tmp_path / "m")
    for number in range(1, 12):
        with pytest.raises(CannotWrite, match="No space left"):
            _merge(task, tmp_path / "m", Failing(number, errno.ENOSPC, True))
        assert _contents(tmp_path / "m") == old


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    task = whole(str(tmp_path / "s"), COUNT)
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite):
        _merge(task, tmp_path / "file" / "m")
