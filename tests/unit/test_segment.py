from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import pytest

from eventrange import records, segment, segmentreader
from eventrange.errors import CannotWrite, ImageDamaged, ImageMissing

NAMES = ["t.1-10.h5", "with space.11-20.h5", "n" * 150 + ".7.h5", "größe.3-4.h5", "empty.h5", "Range-00001.ev%1.h5"]
DATA = [os.urandom(size) for size in (1, 512, 700, 300_000, 0, 1023)]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archive_is_one_that_others_read(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / f"s.{kind}")
    out = segment.writer(path, kind)
    offsets = [out.append(name, data) for name, data in zip(NAMES, DATA, strict=True)]
    assert out.sync() == out.size == os.path.getsize(path)
    for offset, data in zip(offsets, DATA, strict=True):  # before it is sealed
        assert segmentreader.read_image(path, offset, len(data), zlib.crc32(data)) == data
    sealed = out.seal()
    raw = Path(path).read_bytes()
    assert (sealed.size, sealed.adler32, sealed.sha256, sealed.members) == (
        len(raw),
        zlib.adler32(raw),
        hashlib.sha256(raw).hexdigest(),
        len(NAMES),
    )
    assert segment.digest(path) == (sealed.size, sealed.adler32, sealed.sha256)
    if kind == "tar":
        with tarfile.open(path) as archive:
            assert archive.getnames() == NAMES
            contents = [archive.extractfile(member).read() for member in archive]  # type: ignore[union-attr]
            assert {(member.uid, member.gid, member.mtime) for member in archive} == {(0, 0, 0)}
        listed = subprocess.run(["tar", "tf", path], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
        assert not listed.stderr and len(listed.stdout.splitlines()) == len(NAMES)
    else:
        with zipfile.ZipFile(path) as archive_zip:
            assert archive_zip.namelist() == NAMES and archive_zip.testzip() is None
            contents = [archive_zip.read(name) for name in NAMES]
    assert contents == DATA
    found = list(segment.scan(path))
    assert [(m.name, m.offset, m.size, m.intact) for m in found] == [
        (name, offset, len(data), True) for name, offset, data in zip(NAMES, offsets, DATA, strict=True)
    ]


@pytest.mark.parametrize("sizes", [(3 << 20,), (700_000,) * 4, (200_000,) * 12, (90 << 20, 1000)])
def test_checksums_of_a_segment_that_a_thread_computes(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    made = segment.SegmentWriter(str(tmp_path / "0.tar"))
    threads = threading.active_count()
    for number, size in enumerate(sizes):
        made.append(f"{number}", bytes([number]) * size)
    sealed = made.seal()
    assert segment.digest(made.path) == (sealed.size, sealed.adler32, sealed.sha256)
    assert threading.active_count() == threads


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_same_images_same_bytes(tmp_path: Path, kind: str) -> None:
    raw = []
    for name in ("a", "b"):
        out = segment.writer(str(tmp_path / name), kind)
        for member, data in zip(NAMES, DATA, strict=True):
            out.append(member, memoryview(data), zlib.crc32(data))
        out.seal()
        raw.append((tmp_path / name).read_bytes())
    assert raw[0] == raw[1]


def test_many_members_make_a_zip64(tmp_path: Path) -> None:
    out = segment.writer(str(tmp_path / "s.zip"), "zip")
    for number in range(66_000):
        out.append(f"t.{number}", b"x")
    out.seal()
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert len(archive.namelist()) == 66_000 and archive.read("t.65999") == b"x"


def test_zip_beyond_4_gib(tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    out = segment.writer(str(path), "zip")
    os.truncate(path, 2**32 + 5)  # a hole in place of 4 GiB of images; appending goes on behind it
    out.file.size = 2**32 + 5
    offset = out.append("far", b"image")
    out.append("farther", b"image2")
    out.seal()
    with zipfile.ZipFile(path) as archive:
        assert archive.read("far") == b"image" and archive.read("farther") == b"image2"
    assert segmentreader.read_image(str(path), offset, 5, zlib.crc32(b"image")) == b"image"


def test_a_segment_is_never_appended_to_by_another(tmp_path: Path) -> None:
    path = str(tmp_path / "s.tar")
    segment.SegmentWriter(path).close()
    with pytest.raises(CannotWrite, match="exist"):
        segment.SegmentWriter(path)


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    path = str(tmp_path / "s.tar")
    with pytest.raises(ImageMissing):
        segmentreader.read_image(path, 0, 1, 0)
    with pytest.raises(ImageMissing):
        list(segment.scan(path))
    out = segment.SegmentWriter(path)
    offset = out.append("a", b"hello")
    out.seal()
    with pytest.raises(ImageDamaged, match="checksum"):
        segmentreader.read_image(path, offset, 5, 1)
    with pytest.raises(ImageDamaged, match="ends after"):
        segmentreader.read_image(path, offset, 50_000, 1)
    with pytest.raises(ImageDamaged):
        segmentreader.read_image(str(tmp_path), offset, 5, 1)


def test_reader_keeps_few_files_open(tmp_path: Path) -> None:
    crc = zlib.crc32(b"hello")
    offsets = []
    for number in range(9):
        out = segment.SegmentWriter(str(tmp_path / f"{number}.tar"))
        offsets.append(out.append("a", b"hello"))
        out.seal()
    before = len(os.listdir("/proc/self/fd"))
    with segmentreader.SegmentReader(limit=3) as reader:
        for _ in range(2):
            for number, offset in enumerate(offsets):
                assert reader.read(str(tmp_path / f"{number}.tar"), offset, 5, crc) == b"hello"
        assert len(os.listdir("/proc/self/fd")) - before == 3
        with pytest.raises(ImageMissing):
            reader.read(str(tmp_path / "none.tar"), 0, 5, crc)
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_images_in_few_reads_and_those_that_are_not_whole_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "s.tar")
    images = [bytes([number]) * 3000 for number in range(60)]
    out = segment.SegmentWriter(path)
    offsets = [out.append("a", data) for data in images[:30]]
    out.append("far", bytes(2 * segmentreader.GAP))
    offsets += [out.append("a", data) for data in images[30:]]
    out.seal()
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: reads.append(size) or pread(fd, size, at))
    crcs = [zlib.crc32(data) for data in images]
    crcs[4] ^= 1
    sizes = [len(data) for data in images]
    sizes[59] = 10**6
    order = [*range(59, -1, -2), *range(0, 60, 2)]
    with segmentreader.SegmentReader() as reader:
        rows = records.new(60)
        rows["offset"], rows["size"], rows["checksum"] = offsets, sizes, crcs
        found = dict(zip(order, reader.read_many(path, rows[order]), strict=True))
        assert len(reads) == 2
        assert {n: None if view is None else bytes(view) for n, view in found.items()} == {
            n: None if n in (4, 59) else images[n] for n in range(60)
        }
        assert reader.read_many(str(tmp_path / "none.tar"), rows[:1]) == [None]
        assert reader.read_many(path, rows[:0]) == []


def test_scan_of_a_foreign_tar(tmp_path: Path) -> None:
    path = tmp_path / "foreign.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("x")
        info.size = 5
        import io

        archive.addfile(info, io.BytesIO(b"hello"))
    (member,) = segment.scan(str(path))
    assert member == segment.Member("x", 512, 5, zlib.crc32(b"hello"), True)
