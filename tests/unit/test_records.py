"""Records: layout and check words."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eventrange import records, salvage
from eventrange.records import Code, Kind


def sample(count: int = 50) -> np.ndarray:
    raw = np.random.default_rng(count).integers(0, 256, count * records.SIZE, np.uint8)
    return records.stamp(raw.view(records.RECORD).copy())


def test_layout_is_on_disk_and_does_not_change() -> None:
    offsets = {name: field[1] for name, field in (records.RECORD.fields or {}).items()}
    assert records.SIZE == 64
    assert offsets == {
        "kind": 0, "code": 1, "attempt": 2, "droid": 4, "worker": 6, "segment": 8, "checksum": 12, "start": 16,
        "stop": 24, "time": 32, "wall": 40, "cpu": 44, "offset": 48, "size": 56, "check": 60,
    }  # fmt: skip
    assert (Code.TIMEOUT, Code.DRAINED, Code.DROID_LOST, Code.INPUT, Code.RETRY) == (3, 7, 9, 11, 13)
    assert [int(k) for k in Kind] == list(range(1, 7)) and [int(c) for c in Code] == list(range(len(Code)))


def test_stamped_records_are_intact() -> None:
    assert records.intact(sample()).all()
    assert records.intact(records.stamp(sample(), 7), 7).all()
    assert not records.intact(records.stamp(sample(), 7), 8).any()
    assert len(records.intact(records.new(0))) == 0


def test_zeros_and_ones_are_not_intact() -> None:
    assert not records.intact(np.zeros(3, records.RECORD)).any()
    assert not records.intact(np.full(192, 255, np.uint8).view(records.RECORD)).any()


def test_every_single_bit_counts() -> None:
    one = sample(1)
    for bit in range(records.SIZE * 8):
        raw = bytearray(one.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        assert not records.intact(np.frombuffer(bytes(raw), records.RECORD)).any(), bit


@given(st.integers(0, 15), st.binary(min_size=4, max_size=4))
def test_every_word_counts(word: int, value: bytes) -> None:
    raw = bytearray(sample(1).tobytes())
    changed = raw[4 * word : 4 * word + 4] != value
    raw[4 * word : 4 * word + 4] = value
    assert records.intact(np.frombuffer(bytes(raw), records.RECORD)).all() == (not changed)


def test_swapped_words_are_noticed() -> None:
    rows = sample(200)
    words = rows.view(np.uint32).reshape(-1, 16).copy()
    words[:, [4, 6]] = words[:, [6, 4]]
    assert not records.intact(words.view(records.RECORD).reshape(-1)).any()


def test_check_words_of_strided_rows() -> None:
    rows = sample(10)
    assert (records.check_words(rows[::2]) == records.check_words(rows)[::2]).all()


def test_a_salt_tells_the_frame() -> None:
    for journal in (0, 1, 0xFFFFFFFF, 12345):
        for sequence in (0, 1, 77, 0x7FFFFFFF):
            salt = np.array([salvage.salt(journal, sequence)], np.uint32)
            assert salvage.sequences(salt, journal)[0] == sequence


def test_new_sets_what_is_named() -> None:
    rows = records.new(2, kind=Kind.DONE, start=[1, 2], stop=5)
    assert rows["start"].tolist() == [1, 2] and rows["stop"].tolist() == [5, 5] and not rows["wall"].any()
