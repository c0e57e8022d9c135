"""Many images read as one hold what they hold one by one, or are left to be read one by one."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrange import image, imagejoin
from eventrange.fields import Image
from eventrange.imagejoin import read_together

PAIR = np.dtype([("a", "<f4"), ("b", "<i2", (2,))])


def _event(position: int, rows: int) -> dict[str, Any]:
    random = np.random.default_rng(position)
    return {
        "number": position,
        "trio": random.normal(size=3).astype("f4"),
        "grid": random.normal(size=(2, 2)),
        "none": np.zeros((2, 0)),
        "pair": np.array((position, (1, 2)), PAIR),
        "hits": random.normal(size=(rows, 2)),
        "ids": np.arange(rows, dtype="u2"),
    }


def _images(sizes: list[list[int]]) -> list[bytes]:
    out, at = [], 0
    for rows in sizes:
        out.append(image.build(at, None, [_event(at + n, count) for n, count in enumerate(rows)], {"task": "t"}))
        at += len(rows)
    return out


def _values(images: list[Image], name: str, event: int) -> Any:
    for one in images:
        if event < len(one.positions):
            values, counts = one.fields[name]
            return values[event] if counts is None else np.split(values, np.cumsum(counts)[:-1])[event]
        event -= len(one.positions)
    raise AssertionError("no such event")


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6))
def test_what_is_joined_is_what_was_there(sizes: list[list[int]]) -> None:
    datas = _images(sizes)
    found = read_together(datas, frozenset({"hits", "ids"}))
    assert found is not None
    alone = [image.read(data) for data in datas]
    assert found.positions.tolist() == list(range(sum(map(len, sizes)))) and list(found.fields) == list(alone[0].fields)
    assert (found.fields["hits"].counts is not None) and (found.fields["trio"].counts is None)
    assert found.fields["hits"].counts.tolist() == [count for rows in sizes for count in rows]
    for name in found.fields:
        for event in range(len(found.positions)):
            np.testing.assert_array_equal(_values([found], name, event), _values(alone, name, event))
        assert found.fields[name].values.dtype == alone[0].fields[name].values.dtype


def test_a_field_fixed_in_one_and_jagged_in_another_needs_to_be_known_as_jagged() -> None:
    datas = _images([[2, 2], [1, 2]])
    assert read_together(datas) is None and read_together(datas, frozenset({"hits"})) is None
    assert read_together(datas[:1]) is not None and read_together(datas[1:]) is not None


def test_scalars_cannot_be_jagged() -> None:
    assert read_together(_images([[1]]), frozenset({"number"})) is None


def test_strings_other_fields_and_nothing_are_left_to_be_read_one_by_one() -> None:
    assert read_together([]) is None
    assert read_together([image.build(0, None, [{"name": "text"}])]) is None
    one, other = image.build(0, None, [{"a": 1}]), image.build(1, None, [{"a": 1.0}])
    assert read_together([one, one]) is not None and read_together([one, other]) is None
    assert read_together([one, image.build(1, None, [{"a": 1, "b": 1}])]) is None


@pytest.mark.parametrize("length", [0, 7, 11, 12, 100])
def test_a_piece_of_an_image_is_none(length: int) -> None:
    data = _images([[1, 2, 3]])[0]
    assert (
        read_together([data, data[:length]]) is None
        and read_together([data, data[-length:] if length else b""]) is None
    )


def _with_index(data: bytes, change: Any) -> bytes:
    text = image.index_text(memoryview(data))
    new = json.dumps(change(json.loads(text)), separators=(",", ":")).encode()
    tail = image._TAIL.pack(len(new), image._MAGIC)
    return data[: len(data) - len(text) - len(tail)] + new + tail


def test_an_index_that_contradicts_itself_is_not_trusted() -> None:
    data = _images([[1, 2, 3]])[0]
    changes: dict[str, Any] = {
        "as it was": lambda index: index,
        "fewer rows": lambda index: [[n, d, [5, *s[1:]] if n == "hits" else s, o] for n, d, s, o in index],
        "one event less": lambda index: [[n, d, [2, *s[1:]] if n == "trio" else s, o] for n, d, s, o in index],
        "fewer counts": lambda index: [[n, d, [2] if n == "ids_count" else s, o] for n, d, s, o in index],
        "positions of another kind": lambda index: [[n, "<f8" if n == "event" else d, s, o] for n, d, s, o in index],
        "values beyond the end": lambda index: [[n, d, s, 10**6 if n == "trio" else o] for n, d, s, o in index],
        "counts beyond the end": lambda index: [[n, d, s, 10**6 if n == "ids_count" else o] for n, d, s, o in index],
        "no positions": lambda index: index[1:],
        "no list": lambda index: 7,
    }
    found = {name: read_together([_with_index(data, change)]) is not None for name, change in changes.items()}
    assert found == {name: name == "as it was" for name in changes}


def test_counts_that_no_image_stores_are_not_kept() -> None:
    """What is known of an index is kept for many of them: it must not grow with the events."""
    events = 20_000
    for rows in range(1, 40):
        columns = {"a": np.zeros((events, 1)), "b": np.zeros((events, rows))}
        data = image.build_columns(np.arange(events), {name: image.Column(array) for name, array in columns.items()})
        found = read_together([data], frozenset({"a", "b"}))
        assert found is not None and found.fields["b"].counts is not None
        assert (found.fields["b"].counts == rows).all() and len(found.fields["b"].values) == rows * events
        pieces = imagejoin._pieces(image.index_text(memoryview(data)), frozenset({"a", "b"}))
        assert len(pickle.dumps(pieces)) < 2000
