"""File endpoints: atomic, checked, never overwriting, and clear about what went wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from stageout import posix
from stageout.endpoint import (
    Conflict,
    Corrupt,
    Full,
    Missing,
    Permanent,
    SegmentDamaged,
    SegmentUnreadable,
    Tools,
    Transient,
)
from stageout.opening import open_endpoint
from stageout.posix import PART, PosixEndpoint
from stageout.site import EndpointSite

DATA = bytes(range(256)) * 5000


def sums(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "adler32": zlib.adler32(data), "sha256": hashlib.sha256(data).hexdigest()}


def make(tmp_path: Path, **keys: Any) -> PosixEndpoint:
    site = EndpointSite(name="disk", url=f"file://{tmp_path}/store", **keys)
    endpoint = open_endpoint(site)
    assert isinstance(endpoint, PosixEndpoint)
    return endpoint


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=len)
def test_what_is_put_can_be_had_back(tmp_path: Path, data: bytes) -> None:
    endpoint = make(tmp_path)
    (tmp_path / "segment").write_bytes(data)
    stat = endpoint.put(str(tmp_path / "segment"), "task/a/1.tar", **sums(data))
    assert stat == endpoint.digest("task/a/1.tar") == endpoint.get("task/a/1.tar", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == data
    assert endpoint.head("task/a/1.tar").size == len(data)
    assert (
        endpoint.get_range("task/a/1.tar", len(data) // 2, len(data) // 4) == data[len(data) // 2 :][: len(data) // 4]
    )
    assert os.listdir(tmp_path / "store" / "task" / "a") == ["1.tar"]
    assert endpoint.url("task/a/1.tar") == f"file://{tmp_path}/store/task/a/1.tar"


def test_a_name_is_never_overwritten(tmp_path: Path) -> None:
    endpoint = make(tmp_path)
    endpoint.put(b"first", "key", **sums(b"first"))
    endpoint.put(b"first", "key", **sums(b"first"))
    for other in (b"other", b"longer than first"):
        with pytest.raises(Conflict):
            endpoint.put(other, "key", **sums(other))
    assert (tmp_path / "store" / "key").read_bytes() == b"first"


@pytest.mark.parametrize("links", [True, False])
def test_a_race_for_a_name_has_one_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """The other writer's file appears after our look and before our link."""
    endpoint = make(tmp_path)
    path = tmp_path / "store" / "key"

    def link(source: str, target: str) -> None:
        path.write_bytes(b"theirs")
        if not links:
            raise OSError(errno.EOPNOTSUPP, "no links here")
        raise FileExistsError

    monkeypatch.setattr(posix.os, "link", link)
    with pytest.raises(Conflict):
        endpoint.put(b"ours", "key", **sums(b"ours"))
    path.unlink()
    endpoint.put(b"theirs", "key", **sums(b"theirs"))
    assert path.read_bytes() == b"theirs" and os.listdir(path.parent) == ["key"]


def test_file_systems_without_links_get_a_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(posix.os, "link", link)
    make(tmp_path).put(b"ours", "key", **sums(b"ours"))
    assert os.listdir(tmp_path / "store") == ["key"]


def test_a_damaged_or_missing_local_segment_is_not_uploaded(tmp_path: Path) -> None:
    endpoint = make(tmp_path)
    for source in (b"what it became", str(tmp_path / "gone")):
        with pytest.raises(SegmentDamaged):
            endpoint.put(source, "key", **sums(b"what was sealed"))
    assert os.listdir(tmp_path / "store") == []


def test_a_local_segment_that_cannot_be_read_now_is_not_taken_to_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read = tmp_path / "segment", os.read
    source.write_bytes(DATA)
    for number in (errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE):

        def fails(file: int, size: int, number: int = number) -> bytes:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("stageout.endpoint.os.read", fails)
        with pytest.raises(SegmentUnreadable):
            make(tmp_path).put(str(source), "key", **sums(DATA))
        monkeypatch.setattr("stageout.endpoint.os.read", read)
    assert make(tmp_path).put(str(source), "key", **sums(DATA)).size == len(DATA)


def test_storage_that_gives_back_other_bytes_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = make(tmp_path)
    write = os.write
    monkeypatch.setattr(posix.os, "write", lambda file, data: write(file, bytes(len(data))))
    with pytest.raises(Corrupt):
        endpoint.put(DATA, "key", **sums(DATA))
    assert os.listdir(tmp_path / "store") == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, Full),
        (errno.EDQUOT, Full),
        (errno.EACCES, Permanent),
        (errno.EROFS, Permanent),
        (errno.EIO, Transient),
        (errno.ESTALE, Transient),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_what_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], call: str
) -> None:
    endpoint = make(tmp_path)
    endpoint.put(b"here before", "other", **sums(b"here before"))

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(posix.os, call, fail)
        with pytest.raises(kind, match=os.strerror(number)):
            endpoint.put(DATA, "key", **sums(DATA))
    assert os.listdir(tmp_path / "store") == ["other"]
    endpoint.put(DATA, "key", **sums(DATA))


def test_a_really_full_disk(tmp_path: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError):
        full.write(b"x")
    endpoint = make(tmp_path)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    code = (
        f"{limit}\nimport signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from stageout.endpoint import *\nfrom stageout.opening import open_endpoint\n"
        "from stageout.site import EndpointSite\n"
        f"e = open_endpoint(EndpointSite(name='disk', url='file://{tmp_path}/store'))\n"
        f"try: e.put(bytes(5000), 'key', **{sums(bytes(5000))!r})\nexcept Full: print('full')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "full\n", done.stderr
    assert list(endpoint.list("")) == [] and os.listdir(tmp_path / "store") == []


def test_missing_short_unmounted(tmp_path: Path) -> None:
    endpoint = make(tmp_path)
    with pytest.raises(Transient):  # the root is not there: perhaps not mounted yet
        endpoint.head("key")
    endpoint.put(b"0123456789", "key", **sums(b"0123456789"))
    with pytest.raises(Missing):
        endpoint.head("nothing")
    with pytest.raises(Corrupt):
        endpoint.get_range("key", 5, 20)
    endpoint.delete("key")
    endpoint.delete("key")
    site = EndpointSite(name="disk", url=f"file://{tmp_path}/not/mounted")
    with pytest.raises(Permanent, match="mounted"):
        open_endpoint(site).put(b"x", "key", **sums(b"x"))
    for bad in ("", "/etc/x", "a/../../b", "a//b"):
        with pytest.raises(ValueError):
            endpoint.head(bad)


def test_list_shows_objects_only(tmp_path: Path) -> None:
    endpoint = make(tmp_path)
    for key in ("b/2", "b/1", "a/x/y", "bc"):
        endpoint.put(key.encode(), key, **sums(key.encode()))
    (tmp_path / "store" / "b" / f"{PART}node-1.3").write_bytes(b"half")
    assert sorted(s.key for s in endpoint.list("")) == ["a/x/y", "b/1", "b/2", "bc"]
    assert sorted(s.key for s in endpoint.list("b")) == ["b/1", "b/2", "bc"]
    assert [(s.key, s.size) for s in endpoint.list("b/")] == [("b/1", 3), ("b/2", 3)]


@pytest.mark.parametrize("moment", ["write", "fsync", "link", "unlink"])
def test_killed_at_any_point_leaves_no_false_truth_and_is_cleaned(tmp_path: Path, moment: str) -> None:
    """A process is killed at that call; the next start cleans, does it again, and there is one whole object."""
    code = (
        "import os, signal\nfrom stageout import posix\nfrom stageout.opening import open_endpoint\n"
        "from stageout.site import EndpointSite\n"
        f"def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\nposix.os.{moment} = die\n"
        f"e = open_endpoint(EndpointSite(name='disk', url='file://{tmp_path}/store'))\n"
        f"e.put(bytes(5000), 'task/a/key', **{sums(bytes(5000))!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    endpoint = make(tmp_path)
    assert [s.size for s in endpoint.list("")] in ([], [5000])
    assert endpoint.clean("task/b/") == 0
    assert endpoint.clean("task/", older_than=3600) == 0
    assert endpoint.clean("task/a/") == 1
    endpoint.put(bytes(5000), "task/a/key", **sums(bytes(5000)))
    assert os.listdir(tmp_path / "store" / "task" / "a") == ["key"]


def test_bandwidth_is_bounded(tmp_path: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    site = EndpointSite(name="disk", url=f"file://{tmp_path}/store", max_bandwidth=100_000)
    open_endpoint(site, Tools(clock=lambda: now[0], sleep=sleep)).put(DATA, "key", **sums(DATA))
    assert now[0] >= len(DATA) / 100_000 - 1


def test_closing_breaks_off(tmp_path: Path) -> None:
    endpoint = make(tmp_path)
    endpoint.close()
    with pytest.raises(Transient, match="stopped"):
        endpoint.put(DATA, "key", **sums(DATA))
    assert os.listdir(tmp_path / "store") == []
