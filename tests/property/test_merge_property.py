from __future__ import annotations

import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "unit"))
from merging import Task, event, events_in, numbers, same, whole

from eventrange import records
from eventrange.records import Code, Kind
from stageout import finalfile
from stageout.merge import merge, winners

COUNT = 40


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int, int, bool]]:
    """(start, stop, allocation, is done) in journal order, that cover the whole axis in the end."""
    pieces = draw(
        st.lists(
            st.tuples(st.integers(0, COUNT - 1), st.integers(1, COUNT), st.integers(0, 3), st.integers(0, 6)),
            max_size=12,
        )
    )
    out = [(start, min(COUNT, start + size), of, kind > 0) for start, size, of, kind in pieces]
    cuts = sorted(draw(st.sets(st.integers(1, COUNT - 1), max_size=10)) | {0, COUNT})
    covering = [(low, high, 4, True) for low, high in pairwise(cuts)]
    return out + draw(st.permutations(covering))


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 2, st.sampled_from([0, 1, 2])), max_size=20))
def test_events_that_were_quarantined_take_nothing_back(entries: list[tuple[int, int, int]]) -> None:
    """Winners with records of `--retry-quarantined` among them are those without."""
    rows = records.new(len(entries))
    for row, (start, size, what) in zip(rows, entries, strict=True):
        row["start"], row["stop"], row["kind"] = start, start + size, Kind.DONE if what == 1 else Kind.PENDING
        row["code"] = Code.RETRY if what == 2 else Code.NONE
    without = rows[rows["code"] != Code.RETRY]
    assert (winners(rows) == winners(without)).all()


def _race(history: list[tuple[int, int, int, bool]], count: int) -> list[int]:
    """Which entry wins each event, the slow and obvious way."""
    owner = [-1] * count
    for number, (start, stop, _, done) in enumerate(history):
        for position in range(start, stop):
            if not done:
                owner[position] = -1
            elif owner[position] < 0:
                owner[position] = number
    return owner


@given(histories())
@settings(max_examples=300, deadline=None)
def test_winners_are_the_first_of_each_event(history: list[tuple[int, int, int, bool]]) -> None:
    made = records.new(len(history))
    for row, (start, stop, _, done) in zip(made, history, strict=True):
        row["start"], row["stop"], row["kind"] = start, stop, Kind.DONE if done else Kind.PENDING
    made["segment"] = np.arange(len(history))
    placed = winners(made, np.array([of for _, _, of, _ in history]))
    owner = [-1] * COUNT
    for row in placed:
        assert row["start"] <= row["keep_start"] < row["keep_stop"] <= row["stop"]
        assert row["allocation"] == history[row["segment"]][2]
        for position in range(row["keep_start"], row["keep_stop"]):
            assert owner[position] < 0
            owner[position] = int(row["segment"])
    assert owner == _race(history, COUNT)
    assert (np.diff(placed["keep_start"]) > 0).all()


@given(
    histories(),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2]),
    st.sampled_from([None, 1, 13]),
    st.sampled_from([32, 500]),
    st.sampled_from([event, numbers]),
)
@settings(max_examples=60, deadline=None)
def test_same_bytes_from_any_history(
    history: Any, threads: int, readers: int, per_file: int | None, chunk: int, make: Any
) -> None:
    before = finalfile.CHUNK
    finalfile.CHUNK = chunk
    try:
        with tempfile.TemporaryDirectory() as folder:
            raw = []
            task = Task(folder, make)
            for start, stop, of, done in history:
                if done:
                    task.done(start, stop, of)
                else:
                    task.note(Kind.PENDING, start, stop, of)
            calm = whole(os.path.join(folder, "calm"), COUNT, COUNT, make)
            for made, workers in ((task, threads), (calm, 1)):
                out = os.path.join(folder, f"out{len(raw)}")
                merged = merge(
                    made.placed(),
                    made.fetch,
                    out,
                    "t",
                    COUNT,
                    fetch_many=made.fetch_many if made is task else None,
                    threads=workers,
                    readers=readers,
                    events_per_file=per_file,
                )
                contents = []
                found: dict[int, Any] = {}
                for name in [*merged.files, "merge.json"]:
                    with open(os.path.join(out, name), "rb") as file:
                        contents.append(file.read())
                for name in merged.files:
                    found |= events_in(os.path.join(out, name))
                raw.append(contents)
                assert list(found) == list(range(COUNT))
                assert all(same(found[position], make(position)) for position in found)
            assert raw[0] == raw[1]
    finally:
        finalfile.CHUNK = before


def _images(draw: st.DrawFn, holes: set[int]) -> list[tuple[int, int]]:
    """Ranges that cover everything but `holes`, cut anywhere."""
    cuts = draw(st.sets(st.integers(1, COUNT - 1), max_size=15)) | {0, COUNT} | holes | {at + 1 for at in holes}
    return [(low, high) for low, high in pairwise(sorted(cuts)) if low not in holes]


@given(st.data(), st.sets(st.integers(0, COUNT - 1), max_size=12), st.sampled_from([None, 1, 7, 13]))
@settings(max_examples=60, deadline=None)
def test_events_that_were_given_up_shift_no_other_into_another_file(
    data: st.DataObject, holes: set[int], per_file: int | None
) -> None:
    """Whatever images they came in, an event is in the file of its place on the axis."""
    quarantined = np.array([(at, at + 1) for at in sorted(holes)], np.int64).reshape(-1, 2)
    with tempfile.TemporaryDirectory() as folder:
        raw = []
        for number in range(2):
            os.makedirs(source := os.path.join(folder, f"s{number}"))
            task, out = Task(source, numbers), os.path.join(folder, f"m{number}")
            for start, stop in data.draw(st.composite(_images)(holes)):
                task.done(start, stop)
            merged = merge(
                *(task.placed(), task.fetch, out, "t", COUNT),
                fetch_many=task.fetch_many,
                events_per_file=per_file,
                quarantined=quarantined,
            )
            step = per_file or COUNT
            for at, name in enumerate(merged.files):
                there = [event for event in range(at * step, min(COUNT, (at + 1) * step)) if event not in holes]
                with h5py.File(os.path.join(out, name)) as file:
                    assert file["event"][()].tolist() == there and file.attrs["events"] == len(there)
            raw.append([Path(out, name).read_bytes() for name in merged.files])
        assert raw[0] == raw[1]
