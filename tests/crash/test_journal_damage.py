"""Damage is local (L7): whatever happens to the bytes of a journal costs the records it hits and nothing else.

Always checked by `Sample.read`: reading never raises, no record comes out that was never written, none comes twice.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from journal_memory import Memory, Sample, drain

from eventrange import records
from eventrange.journal import HEADER_SIZE, MAGIC, JournalReader, JournalWriter
from eventrange.records import SIZE

SMALL = Sample(frames=5, size=6)
BIG = Sample(frames=100, size=100)  # 10,000 records
SPLIT = Sample(frames=1000, size=10)  # as many
HUGE = Sample(frames=4, size=4096)  # frames of the largest size


def hit(sample: Sample, begin: int, size: int) -> int:
    """How many records of the journal have a byte in [begin, begin + size)."""
    where = sample.where
    return int(((where < begin + size) & (where + SIZE > begin)).sum())


def test_intact() -> None:
    for sample in (SMALL, BIG, HUGE):
        rows, notes, damage = sample.read(sample.content)
        assert len(rows) == len(sample.rows)
        assert len(notes) == sample.notes
        assert not damage
        assert damage.tail == 0


@pytest.mark.parametrize("block", [1, 7, 63, 4096])
def test_short_reads(block: int) -> None:
    sample = SMALL if block < 63 else BIG
    rows, notes, damage = sample.read(sample.content, block)
    assert len(rows) == len(sample.rows) and len(notes) == sample.notes and not damage


def test_cut_at_every_byte_small() -> None:
    """Every record that is whole before the cut is found, even in the frame that is not."""
    where = SMALL.where
    for cut in range(len(SMALL.content) + 1):
        rows, _, damage = SMALL.read(SMALL.content[:cut])
        assert len(rows) == int((where + SIZE <= cut).sum()), cut
        whole = max((end for end in [0, *SMALL.ends] if end <= cut), default=0)
        assert damage.tail == cut - whole, cut
        assert not damage.spots


#: Bytes between two cuts inside a payload, where all bytes are alike; in CI there is a cut at each.
SOME_OR_EVERY = pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)])


def cuts(low: int, high: int, step: int) -> Iterator[int]:
    """Where to cut the frame at [low, high): at every byte of the header, and every `step` bytes of the payload."""
    yield from range(low, min(high, low + HEADER_SIZE + 8))
    yield from range(low + HEADER_SIZE + 8, high, step)


@SOME_OR_EVERY
def test_cut_at_every_byte_of_10000_records_while_followed(step: int) -> None:
    """The file grows byte by byte and a reader follows: each whole frame comes out at once, and only once."""
    files = Memory()
    files.content["j"] = bytearray(BIG.content)
    reader = JournalReader("j", "f", "a", files)
    count = 0
    for number, (low, high) in enumerate(pairwise([0, *BIG.ends, len(BIG.content) + 1])):
        for cut in cuts(low, high, step):
            files.limit = cut
            for entry in reader:
                if not isinstance(entry, dict):
                    BIG.check(entry)
                    count += len(entry)
            assert reader.offset == low, cut
            assert reader.damage.tail == cut - low
            assert count == number // 2 * 100
    assert count == 10_000 and not reader.damage


@SOME_OR_EVERY
def test_cut_at_every_byte_of_10000_records(step: int) -> None:
    """The same cuts, found dead: what is whole of the last frame is found. A frame before the cut is not touched by it,
    so readers start at the cut frame."""
    sample, size = (BIG, 100) if step > 1 else (SPLIT, 10)  # small frames: less to search at each cut
    files = Memory()
    files.content["j"] = bytearray(sample.content)
    count = 0
    for number, (low, high) in enumerate(pairwise([0, *sample.ends])):
        is_note, first = number % 2 == 0, number // 2 * size
        for cut in cuts(low, high, step):
            files.limit = cut
            reader = JournalReader("j", "f", "a", files)
            reader.offset, reader._next = low, number
            found = [row for entry in reader.rest() if not isinstance(entry, dict) for row in entry["start"].tolist()]
            whole = 0 if is_note else max(0, cut - low - HEADER_SIZE) // SIZE
            assert found == list(range(first, first + whole)), cut
            assert reader.damage.tail == cut - low and not reader.damage
        count += 0 if is_note else size
    assert count == 10_000


@pytest.mark.parametrize("size", [1, 3, 16, 40, 64, 100, 512, 4096, 8192])
def test_zeroed_anywhere(size: int) -> None:
    step = 1 if size <= 16 else 5
    for at in range(0, len(SMALL.content), step):
        damaged = SMALL.content[:at] + bytes(size) + SMALL.content[at + size :]
        if damaged == SMALL.content:
            continue
        rows, _, damage = SMALL.read(damaged)
        assert len(SMALL.rows) - len(rows) == hit(SMALL, at, size), at
        assert damage or damage.tail, at


def test_zeroed_blocks_of_a_big_journal() -> None:
    """Two neighbouring file system blocks of zeros, the loss that other event journals have been seen to suffer."""
    rng = random.Random(5)
    for sample in (BIG, HUGE):
        for _ in range(20):
            at = rng.randrange(len(sample.content) // 4096 - 3) * 4096
            damaged = sample.content[:at] + bytes(8192) + sample.content[at + 8192 :]
            rows, _, damage = sample.read(damaged)
            assert len(sample.rows) - len(rows) == hit(sample, at, 8192)
            assert sum(size for _, size in damage.spots) >= 8192
            assert damage.frames_lost > 0


def test_every_bit_flipped() -> None:
    for at in range(len(SMALL.content)):
        for bit in range(8):
            damaged = bytearray(SMALL.content)
            damaged[at] ^= 1 << bit
            rows, _, damage = SMALL.read(bytes(damaged))
            assert len(SMALL.rows) - len(rows) == hit(SMALL, at, 1), (at, bit)
            assert damage or damage.tail


@pytest.mark.parametrize("size", [1, 2, 8, 39, 64, 65, 128, 1000])
def test_removed(size: int) -> None:
    for at in range(0, len(SMALL.content) - size + 1):
        rows, _, damage = SMALL.read(SMALL.content[:at] + SMALL.content[at + size :])
        assert len(SMALL.rows) - len(rows) <= hit(SMALL, at, size), at
        assert damage or damage.tail or at + size == len(SMALL.content)


def garbage(rng: random.Random, size: int) -> bytes:
    return rng.randbytes(size)


def magics(rng: random.Random, size: int) -> bytes:
    return (MAGIC * (size // 8 + 1))[:size]


def false_headers(rng: random.Random, size: int) -> bytes:
    out = bytearray(SMALL.content[:HEADER_SIZE] * (size // HEADER_SIZE + 1))
    for at in range(0, len(out), HEADER_SIZE):
        out[at + rng.randrange(8, HEADER_SIZE)] ^= 1 << rng.randrange(8)
    return bytes(out[:size])


def true_headers(rng: random.Random, size: int) -> bytes:
    """Headers that promise what does not follow."""
    return (SMALL.content[SMALL.ends[0] :][:HEADER_SIZE] * (size // HEADER_SIZE + 1))[:size]


def stale(rng: random.Random, size: int) -> bytes:
    """A block of another journal, as a file system hands out blocks of deleted files after a crash."""
    other = Sample(frames=3, size=40, allocation="b", first=1000).content
    at = rng.randrange(len(other) - 64)
    return (other[at:] + other)[:size]


def old(rng: random.Random, size: int) -> bytes:
    """A block of this journal again."""
    at = rng.randrange(len(SMALL.content) - 64)
    return (SMALL.content[at:] + SMALL.content)[:size]


@pytest.mark.parametrize("what", [garbage, magics, false_headers, true_headers, stale, old, lambda rng, n: bytes(n)])
@pytest.mark.parametrize("size", [1, 40, 64, 200, 3000])
def test_inserted(what: Callable[[random.Random, int], bytes], size: int) -> None:
    """Bytes put between or into frames cost at most the one record they tear apart."""
    rng = random.Random(size)
    for at in range(0, len(SMALL.content) + 1, 1 if size < 64 else 9):
        rows, _, _ = SMALL.read(SMALL.content[:at] + what(rng, size) + SMALL.content[at:])
        assert len(SMALL.rows) - len(rows) <= hit(SMALL, at, 0), at


@pytest.mark.parametrize("what", [garbage, magics, false_headers, stale, old])
def test_overwritten(what: Callable[[random.Random, int], bytes]) -> None:
    rng = random.Random(8)
    for size in (8, 64, 512, 1024):
        for at in range(0, len(SMALL.content) - size + 1, 3):
            rows, _, _ = SMALL.read(SMALL.content[:at] + what(rng, size) + SMALL.content[at + size :])
            assert len(SMALL.rows) - len(rows) <= hit(SMALL, at, size), (size, at)


def test_inserted_into_the_largest_frames() -> None:
    rng = random.Random(3)
    for what in (garbage, magics, stale, old):
        for size in (1, 4096, 1 << 20):
            at = rng.randrange(len(HUGE.content))
            rows, _, _ = HUGE.read(HUGE.content[:at] + what(rng, size) + HUGE.content[at:])
            assert len(HUGE.rows) - len(rows) <= hit(HUGE, at, 0), (what, size, at)


def test_much_garbage_does_not_hide_what_follows() -> None:
    """More than a reader holds at a time."""
    at = HUGE.ends[2]
    for filling in (bytes(40 << 20), np.random.default_rng(1).bytes(20 << 20)):
        rows, _, damage = HUGE.read(HUGE.content[:at] + filling + HUGE.content[at:])
        assert len(rows) == len(HUGE.rows)
        assert damage.spots == [(at, len(filling))]


def test_concatenated() -> None:
    other = Sample(frames=5, size=7, allocation="b", first=500)
    rows, notes, damage = SMALL.read(SMALL.content + other.content)
    assert len(rows) == len(SMALL.rows) and len(notes) == SMALL.notes
    assert damage.foreign == len(other.ends)
    rows, _, damage = SMALL.read(other.content + SMALL.content)
    assert len(rows) == len(SMALL.rows)
    assert damage.spots == [(0, len(other.content))]
    rows, notes, damage = SMALL.read(SMALL.content * 3)
    assert len(rows) == len(SMALL.rows) and len(notes) == SMALL.notes
    assert damage.duplicates == 2 * len(SMALL.ends)


def test_another_task_or_allocation_is_foreign_altogether() -> None:
    for other in (Sample(3, 3, allocation="b"), Sample(3, 3, fingerprint="g")):
        rows, notes, damage = SMALL.read(other.content)
        assert not len(rows) and not notes
        assert damage.foreign == len(other.ends)


def test_frames_in_another_order() -> None:
    """Late is not lost: a frame with a number that was missing is taken when it comes."""
    ends = [0, *SMALL.ends]
    frames = [SMALL.content[a:b] for a, b in pairwise(ends)]
    for seed in range(50):
        random.Random(seed).shuffle(frames)
        rows, notes, damage = SMALL.read(b"".join(frames))
        assert len(rows) == len(SMALL.rows) and len(notes) == SMALL.notes
        assert damage.frames_lost == 0


def test_a_damaged_frame_and_later_its_copy() -> None:
    begin, end = SMALL.ends[0], SMALL.ends[1]
    damaged = bytearray(SMALL.content)
    damaged[begin + HEADER_SIZE + 70] ^= 1
    rows, _, damage = SMALL.read(bytes(damaged) + SMALL.content[begin:end])
    assert len(rows) == len(SMALL.rows)
    assert damage.records_lost == 0 and damage.frames_lost == 0


def test_no_old_record_in_a_newer_frame() -> None:
    """An old block inside a damaged frame must not come out as if it were written there: a PENDING record in between
    may have voided it."""
    begin = SMALL.ends[-3] + HEADER_SIZE
    old_records = SMALL.content[SMALL.ends[0] + HEADER_SIZE :][: 3 * SIZE]
    damaged = SMALL.content[:begin] + old_records + SMALL.content[begin + 3 * SIZE :]
    rows, _, damage = SMALL.read(damaged)  # `read` checks that nothing comes twice
    assert len(rows) == len(SMALL.rows) - 3
    assert damage.records_lost == 3 and damage.records_saved == 3


def test_counts_and_names_the_damage() -> None:
    begin = SMALL.ends[0]
    damaged = bytearray(SMALL.content)
    damaged[begin + HEADER_SIZE + 2 * SIZE + 5] ^= 4
    _, _, damage = SMALL.read(bytes(damaged))
    assert damage.spots == [(begin, SMALL.ends[1] - begin)]
    assert (damage.records_lost, damage.records_saved, damage.frames_lost) == (1, 5, 1)
    damaged = bytearray(SMALL.content)
    damaged[SMALL.ends[1] + HEADER_SIZE] ^= 1
    _, _, damage = SMALL.read(bytes(damaged))
    assert damage.notes_lost == 1


def test_header_of_a_frame_lost_costs_no_record() -> None:
    damaged = bytearray(BIG.content)
    for at in BIG.ends[2:40:2]:
        damaged[at : at + HEADER_SIZE] = bytes(HEADER_SIZE)
    rows, _, damage = BIG.read(bytes(damaged))
    assert len(rows) == len(BIG.rows)
    assert damage.frames_lost == 19 and damage.records_lost == 0


def test_unknown_version_is_told() -> None:
    files = Memory()
    version, records.VERSION = records.VERSION, 9
    try:
        writer = JournalWriter("j", "f", "a", files)
        writer.append(records.new(2, kind=1, start=1, stop=2))
        writer.flush()
    finally:
        records.VERSION = version
    _, notes, damage = SMALL.read(bytes(files.content["j"]))
    assert not notes and damage.unknown == 2 and damage


def test_garbage_at_the_end_may_still_become_a_frame() -> None:
    """Seen from another node, a file can be longer than its content, and zeros stand where the rest will be."""
    cut = SMALL.ends[3] + 100
    files = Memory()
    files.content["j"] = bytearray(SMALL.content[:cut] + bytes(len(SMALL.content) - cut))
    reader = JournalReader("j", "f", "a", files)
    first = [entry for entry in reader if not isinstance(entry, dict)]
    assert reader.damage.tail and not reader.damage
    files.content["j"] = bytearray(SMALL.content)
    second = [entry for entry in reader if not isinstance(entry, dict)]
    rows = np.concatenate(first + second)
    SMALL.check(rows)
    assert len(rows) == len(SMALL.rows) and not reader.damage and reader.damage.tail == 0


def test_a_reader_that_stops_early_loses_nothing() -> None:
    files = Memory()
    files.content["j"] = bytearray(SMALL.content)
    reader = JournalReader("j", "f", "a", files)
    rows, notes = [], 0
    for _ in range(1000):
        entry = next(iter(reader), None)
        if entry is None:
            break
        if isinstance(entry, dict):
            notes += 1
        else:
            rows.append(entry)
    assert len(np.concatenate(rows)) == len(SMALL.rows) and notes == SMALL.notes


def test_new_writer_leaves_the_torn_file_alone(tmp_path: Path) -> None:
    """Resume after a cut anywhere: the next allocation writes its own file and both are read."""
    for cut in range(0, len(SMALL.content), 97):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "a.yj").write_bytes(SMALL.content[:cut])
        writer = JournalWriter(str(folder / "b.yj"), "f", "b")
        writer.append(SMALL.rows.copy())
        writer.flush()
        writer.file.sync()
        writer.file.close()
        assert (folder / "a.yj").read_bytes() == SMALL.content[:cut]
        rows, _ = drain(JournalReader(str(folder / "a.yj"), "f", "a"))
        SMALL.check(rows)
        rows, _ = drain(JournalReader(str(folder / "b.yj"), "f", "b"))
        assert len(rows) == len(SMALL.rows)
        shutil.rmtree(folder)


def test_bad_sector() -> None:
    """The disk does not give back one block in the middle: that block is lost, the rest is read."""

    class Bad(Memory):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            if offset < 8192 + 4096 and min(offset + size, self.size(fd)) > 8192:
                raise OSError(5, "Input/output error")
            return super().pread(fd, size, offset)

    for sample in (BIG, SMALL):
        files = Bad()
        files.content["j"] = bytearray(sample.content)
        reader = JournalReader("j", "f", "a", files)
        rows, _ = drain(reader)
        sample.check(rows)
        assert len(sample.rows) - len(rows) == hit(sample, 8192, 4096)
        assert reader.damage.unreadable in (4096, 0)
        assert bool(reader.damage) == (sample is BIG)


def test_a_pipe_of_that_name_does_not_block(tmp_path: Path) -> None:
    path = str(tmp_path / "a.yj")
    os.mkfifo(path)
    with pytest.raises(OSError):
        list(JournalReader(path, "f", "a"))
