from __future__ import annotations

import io
from typing import Any

import h5py
import numpy as np
import pytest

from eventrange import image
from eventrange.errors import FieldRefused, FieldsChanged, ImageDamaged, ImageTooBig

POINT = np.dtype([("x", "f4"), ("n", "i2", (3,)), ("inner", [("ok", "?"), ("tag", "S4")])])
PADDED = np.dtype([("a", "i1"), ("b", "f8")], align=True)

KINDS: dict[str, list[Any]] = {
    "float": [1.5, float("nan"), -0.0],
    "int": [1, -(2**63), 2**63 - 1],
    "bool": [True, False, True],
    "complex": [1j, 2.0 + 0j, 3j],
    "str": ["", "grüße", "\U0001f600"],
    "np_float32": [np.float32(1), np.float32(2), np.float32(3)],
    "np_uint64": [np.uint64(2**64 - 1), np.uint64(0), np.uint64(1)],
    "longdouble": [np.longdouble("1.1"), np.longdouble(2), np.longdouble(-3)],
    "half": [np.float16(1), np.float16(2), np.float16(3)],
    "zero_axes": [np.array(1), np.array(2), np.array(3)],
    "vector": [np.arange(3.0), np.ones(3), np.zeros(3)],
    "cube": [np.full((2, 3, 4), n, np.int8) for n in range(3)],
    "jagged": [np.arange(n, dtype="i4") for n in (2, 0, 5)],
    "jagged_tail": [np.full((n, 2), n, "c8") for n in (1, 3, 0)],
    "empty": [np.zeros(0)] * 3,
    "empty_tail": [np.zeros((n, 0)) for n in (1, 2, 3)],
    "bytes": [np.array([b"ab", b""], "S5")] * 3,
    "words": [np.array(["a", "längere"]), np.array([], "U1"), np.array(["z"])],
    "struct": [np.zeros(n, POINT) for n in (1, 2, 1)],
    "padded": [np.ones(2, PADDED)] * 3,
    "bools": [np.array([True, False])] * 3,
    "big_endian": [np.array([1.0, 2.0], ">f8"), np.array([3.0, 4.0], "<f8"), np.array([5, 6], ">f8")],
    "strided": [np.arange(12).reshape(3, 4).T[::2]] * 3,
    "lists": [[1, 2], [3, 4], [5, 6]],
}


def _plain(file: h5py.File, name: str) -> list[Any]:
    """Events of a field as plain h5py sees them."""
    text = h5py.check_string_dtype(file[name].dtype)
    data = file[name].asstr()[()] if text and text.length is None else file[name][()]
    if f"{name}_count" not in file:
        return list(data)
    return np.split(data, np.cumsum(file[f"{name}_count"][()])[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_field_comes_back(kind: str) -> None:
    events = [{"f": value, "other": n} for n, value in enumerate(KINDS[kind])]
    data = image.build(10, None, events, {"task": "t"})
    with h5py.File(io.BytesIO(data)) as file:
        assert file["event"][()].tolist() == [10, 11, 12]
        for found, put in zip(_plain(file, "f"), KINDS[kind], strict=True):
            if isinstance(put, str):
                assert found == put
            elif np.asarray(put).dtype.names:
                assert str(np.asarray(found).tolist()) == str(put.tolist())
            else:
                np.testing.assert_array_equal(found, np.asarray(put))
    found_image = image.read(data)
    assert found_image.positions.tolist() == [10, 11, 12]
    with h5py.File(io.BytesIO(data)) as file:
        for name, column in found_image.fields.items():
            assert str(column.values.tolist()) == str(file[name][()].tolist())
            assert (column.counts is None) == (f"{name}_count" not in file)
    assert image.build(10, [10, 11, 12], [dict(reversed(event.items())) for event in events], {"task": "t"}) == data
    image._templates.clear()
    assert image.build(10, None, events, {"task": "t"}) == data
    assert image.build_columns(found_image.positions, found_image.fields, {"task": "t"}) == data
    assert image.schema_of_image(found_image) == image.schema(events[0])


def test_fixed_only_when_all_lengths_agree() -> None:
    fixed = image.read(image.build(0, None, [{"f": np.ones((2, 3))}] * 4)).fields["f"]
    assert fixed.counts is None and fixed.values.shape == (4, 2, 3)
    jagged = image.read(image.build(0, None, [{"f": np.ones((n, 3))} for n in (2, 1)])).fields["f"]
    assert jagged.counts is not None and jagged.counts.tolist() == [2, 1] and jagged.values.shape == (3, 3)


def test_select_is_building_from_fewer_events() -> None:
    events = [{"a": n, "j": np.arange(n % 3), "s": f"<{n}>"} for n in range(9)]
    whole = image.read(image.build(100, None, events))
    for keep in (slice(2, 7), np.arange(9) % 2 == 0):
        part = whole.select(keep)
        want = image.build(0, np.arange(100, 109)[keep], [events[n] for n in np.arange(9)[keep]])
        assert image.build_columns(part.positions, part.fields) == want


def test_padding_bytes_do_not_get_out() -> None:
    noisy, clean = np.empty(3, PADDED), np.zeros(3, PADDED)
    noisy.view(np.uint8)[:] = 0xAB
    for name in ("a", "b"):
        noisy[name] = clean[name] = 1
    assert image.build(0, None, [{"f": noisy}]) == image.build(0, None, [{"f": clean}])
    wide, zero = np.empty(2, np.longdouble), np.zeros(2, np.longdouble)
    wide.view(np.uint8)[:] = 0xCD
    wide[:] = zero[:] = 1
    assert image.build(0, None, [{"f": wide}]) == image.build(0, None, [{"f": zero}])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"f": 1}, {"f": 1.5}, ("float64", "int64")),
        ({"f": np.ones(2)}, {"f": np.ones(2, "f4")}, ("float32", "float64")),
        ({"f": np.ones((2, 3))}, {"f": np.ones((2, 4))}, ("(2, 4)", "(n, 3)")),
        ({"f": np.ones(2)}, {"f": np.ones((2, 2))}, ("(2, 2)", "(n,)")),
        ({"f": 1.0}, {"f": np.ones(2)}, ("(2,)", "scalar")),
        ({"f": 1.0}, {"g": 1.0}, ("missing", "there")),
        ({"f": 1.0}, {"f": 1.0, "g": 2}, ("'g' is there", "absent")),
        ({"f": "x"}, {"f": 1}, ("int64", "str")),
    ],
)
def test_change_of_fields_names_event_field_and_both_sides(first: Any, second: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(FieldsChanged) as caught:
        image.build(40, None, [first, first, second])
    assert "event 42" in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(FieldsChanged, match="event 7"):
        image.build(7, None, [second], expected=image.schema(first))


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": 1}, "reserved"),
        ({"jets_count": 1}, "reserved"),
        ({"a/b": 1}, "name"),
        ({"": 1}, "name"),
        ({".": 1}, "name"),
        ({3: 1}, "string"),
        ({"f": object()}, "object"),
        ({"f": None}, "object"),
        ({"f": np.array([None])}, "object"),
        ({"f": np.datetime64("2020-01-01")}, "datetime64"),
        ({"f": 2**70}, "64 bits"),
        ({"f": [[1], [2, 3]]}, "array"),
        ({"f": "a\0b"}, "zero character"),
        ({"f": "\ud800"}, "UTF-8"),
        ({"f": np.ma.masked_array([1.0], [True])}, "masked"),
        ({"f": np.zeros(1, [("o", object)])}, "object"),
        (None, "NoneType"),
        ([1, 2], "list"),
    ],
)
def test_what_cannot_be_stored_is_refused(event: Any, words: str) -> None:
    with pytest.raises(FieldRefused, match=words) as caught:
        image.build(5, None, [event])
    assert "event 5" in str(caught.value) and "->" in str(caught.value)


def test_no_fields_and_no_events() -> None:
    found = image.read(image.build(3, None, [{}, {}]))
    assert found.positions.tolist() == [3, 4] and found.fields == {}
    with pytest.raises(ValueError):
        image.build(0, None, [])
    with pytest.raises(ValueError):
        image.build(0, [1, 2], [{}])


def test_columns_that_do_not_fit() -> None:
    where = np.arange(2)
    for column in (
        image.Column(np.zeros(3)),
        image.Column(np.zeros(3), np.array([1, 1])),
        image.Column(np.zeros(1), np.array([2, -1])),
        image.Column(np.array([object(), 1])),
    ):
        with pytest.raises(FieldRefused):
            image.build_columns(where, {"f": column})


def test_too_big_is_said_before_memory_is_taken() -> None:
    huge = np.lib.stride_tricks.as_strided(np.zeros(1), (2**20, 2**10), (0, 0))
    with pytest.raises(ImageTooBig, match="events 0 to 1"):
        image._assemble(np.arange(1), {"f": image.Column(huge[np.newaxis])}, {})


def test_damage_is_an_error_of_ours() -> None:
    data = image.build(0, None, [{"a": 1, "s": "x", "j": np.arange(3)}, {"a": 2, "s": "y", "j": np.arange(2)}])
    for bad in (b"", data[:-1], data[:100], data[:-40] + bytes(40), bytes(len(data))):
        with pytest.raises(ImageDamaged):
            image.read(bad)
    random = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        broken[int(random.integers(len(data) - 400, len(data)))] ^= 1 << int(random.integers(8))
        try:
            image.read(broken)
        except ImageDamaged:
            pass


def test_attributes_are_plain_hdf5() -> None:
    data = image.build(0, None, [{"a": 1}], {"task": "t", "seed": 42, "versions": np.array([1, 2])})
    with h5py.File(io.BytesIO(data)) as file:
        assert file.attrs["seed"] == 42 and file.attrs["task"] == b"t" and file.attrs["versions"].tolist() == [1, 2]
    other = image.build(0, None, [{"a": 1}], {"task": "t", "seed": True, "versions": np.array([1, 2])})
    assert other != data


def test_template_cache_stays_small() -> None:
    for n in range(1, 200):
        image.build(0, None, [{"a": np.zeros(n)}])
    assert len(image._templates) <= image._CACHED_TEMPLATES
