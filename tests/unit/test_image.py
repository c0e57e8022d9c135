from __future__ import annotations

import io
import json
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventrange import fields, hdf5file, image, skeleton
from eventrange.errors import FieldRefused, FieldsChanged, ImageDamaged, ImageTooBig

POINT = np.dtype([("x", "f4"), ("n", "i2", (3,)), ("inner", [("ok", "?"), ("tag", "S4")])])
PADDED = np.dtype([("a", "i1"), ("b", "f8")], align=True)
TITLED = np.dtype([(("Transverse momentum", "pt"), "f8"), ("hit", [(("Layer", "l"), ">i2")])])

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
    "objects": [np.array(["a", "längere"], object), np.array([], object), np.array(["z"], "U9")],
    "struct": [np.zeros(n, POINT) for n in (1, 2, 1)],
    "padded": [np.ones(2, PADDED)] * 3,
    "titled": [np.zeros(n, TITLED) for n in (1, 2, 1)],
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
    image._kinds.clear()
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
    "dtype",
    [
        TITLED,
        PADDED,
        POINT,
        np.dtype((np.record, [(("Energy", "e"), "f8")])),
        np.dtype([("a", PADDED, (2, 1)), ("t", TITLED, (2,)), ("b", ">c16", (3,))]),
        np.dtype({"names": ["b", "a"], "formats": [">f8", "?"], "offsets": [16, 3], "itemsize": 40}),
        np.dtype({"names": ["all", "low"], "formats": ["<i4", "<i2"], "offsets": [0, 0]}),
        np.dtype([("a", np.dtype("i4", metadata={"unit": "GeV"}))]),
        np.dtype([("a", h5py.enum_dtype({"MU": 13})), ("b", h5py.string_dtype("utf-8", 5))], metadata={"x": object()}),
        np.dtype(">f8", metadata={"unit": "GeV"}),
        np.dtype("q"),
        np.dtype("S3"),
    ],
)
def test_every_stored_dtype_is_read_as_it_was_written(dtype: np.dtype[Any]) -> None:
    stored = fields.canonical("f", dtype, 0)
    assert image.undescribe(json.loads(json.dumps(fields.describe(stored)))) == stored
    values = np.zeros(3, dtype)
    values.view(np.uint8)[:] = 1
    data = image.build(0, None, [{"f": values[:2]}, {"f": values[2:]}])
    with h5py.File(io.BytesIO(data)) as file:
        read = image.read(data).fields["f"].values
        assert read.dtype == file["f"].dtype == stored
        assert read.tobytes() == file["f"][()].tobytes() == values.astype(stored).tobytes()


def test_what_numpy_and_h5py_note_on_a_dtype_changes_no_byte() -> None:
    plain, noted = np.dtype([("a", "u1")]), np.dtype([("a", h5py.enum_dtype({"A": 1}, "u1"))])
    made = []
    for order in ((plain, noted), (noted, plain)):
        fields._canonical.cache_clear()
        image._kinds.clear()
        made += [image.build(0, None, [{"f": np.ones(2, dtype)}]) for dtype in order]
    assert len(set(made)) == 1


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
        ({"f": np.array([b"\xff"], object)}, "UTF-8"),
        ({"f": np.array(["a", 1], object)}, "object is stored as strings, and 1 is none"),
        ({"f": np.ma.masked_array([1.0], [True])}, "masked"),
        ({"f": np.zeros(1, [("o", object)])}, "object"),
        ({"f": np.zeros(1, [("t", "M8[s]")])}, "datetime64"),
        ({"f": np.zeros(1, "m8[s]")}, "timedelta64"),
        ({"f": np.zeros(1, "V5")}, "V5"),
        ({"f": np.zeros(1, [("v", "V5")])}, "V5"),
        ({"f": np.zeros(1, [("g", "g", (2,))])}, "structures cannot hold"),
        ({"f": np.zeros(1, [("in", [("u", "U3")], (2,))])}, "U3"),
        ({"f": np.zeros(1, [("none", "f8", (0,))])}, "none"),
        ({"f": np.zeros(1, {"names": ["", "b"], "formats": ["f8", "f8"]})}, "member ''"),
        ({"f": np.zeros(1, [("a\0b", "f8")])}, "not a name"),
        ({"f": np.zeros(1, [("\udc80", "f8")])}, "not a name"),
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


def test_cache_of_kinds_stays_small() -> None:
    for n in range(1, 200):
        image.build(0, None, [{f"a{n}": 1}])
    assert len(image._kinds) <= image._CACHED_KINDS


@given(
    st.dictionaries(
        st.text("abcäß_~ .-", min_size=1, max_size=12).filter(lambda name: name != "." and not name.endswith("_count")),
        st.tuples(st.sampled_from(["?", "<i2", "<u8", "<f2", "<f4", "<f8", "<c16", "S3"]), st.integers(0, 4)),
        max_size=40,
    ),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_h5py_reads_what_was_put_together(kinds: dict[str, tuple[str, int]], data: st.DataObject) -> None:
    """Any number of fields, axes and events: one kind of image after the other, without HDF5 making each."""
    for _ in range(2):
        events = data.draw(st.integers(1, 5))
        columns = {}
        for name, (dtype, axes) in kinds.items():
            shape = (events, *data.draw(st.lists(st.integers(0, 3), min_size=axes, max_size=axes)))
            raw = np.arange(int(np.prod(shape)) * np.dtype(dtype).itemsize, dtype=np.uint8) % 2
            values = np.frombuffer(raw.tobytes(), dtype).reshape(shape)
            columns[name] = image.Column(values)
            if axes and data.draw(st.booleans()):
                counts = np.full(events, shape[1])
                counts[0] += 1
                tail = np.zeros((1, *shape[2:]), dtype)
                rows = values.reshape(events * shape[1], *shape[2:])
                columns[name] = image.Column(np.concatenate((tail, rows)), counts)
        made = image.build_columns(np.arange(events), columns, {"task": "t", "seed": 7})
        with h5py.File(io.BytesIO(made)) as file:
            assert file["event"][()].tolist() == list(range(events)) and file.attrs["seed"] == 7
            for name, (values, counts) in image.read(made).fields.items():
                put = columns[name]
                assert file[name].dtype == values.dtype == put.values.dtype
                assert file[name][()].tobytes() == values.tobytes() == put.values.tobytes()
                assert file[name].shape == values.shape
                if counts is not None and put.counts is not None:
                    assert file[f"{name}_count"][()].tolist() == counts.tolist() == put.counts.tolist()


def test_hdf5_is_asked_once_for_all_images_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    image._kinds.clear()
    asked: list[Any] = []
    empty = image.empty
    monkeypatch.setattr(image, "empty", lambda *given: asked.append(given) or empty(*given))
    monkeypatch.setattr(image, "whole", lambda *given: pytest.fail("one image made by HDF5"))
    for n in range(1, 9):
        image.build(0, None, [{"a": 1.0, "b": np.ones(k)} for k in range(n)])
    assert len(asked) == 2, "the first has one length for all its events, the others do not"


@pytest.mark.parametrize("size", [32_768, 32_769, 65_500])
def test_large_attributes(size: int) -> None:
    attributes = {"task": "t" * size}
    data = image.build(0, None, [{"a": 1}], attributes)
    with h5py.File(io.BytesIO(data)) as file:
        assert len(file.attrs["task"]) == size and file["a"][()].tolist() == [1]


def test_where_hdf5_writes_something_unknown_it_makes_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [{"a": 1.0, "b": np.ones(k)} for k in range(3)]
    expected = image.read(image.build(0, None, events))
    image._kinds.clear()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        file["a"] = 1.0
    monkeypatch.setattr(image, "empty", lambda *given: (buffer.getvalue(), [96] * 4))
    data = image.build(0, None, events)
    assert str(image.read(data).fields) == str(expected.fields)
    with h5py.File(io.BytesIO(data)) as file:
        assert file["b"][()].tolist() == [1.0] * 3
    image._kinds.clear()


def test_a_skeleton_is_made_of_nothing_but_what_it_knows() -> None:
    body, (address,) = hdf5file.empty((("a", np.dtype("f8"), 2),), {})
    found = dict(skeleton._messages(body, address))
    space, layout = found[1], found[8]
    skeleton.Skeleton(body, [address], [2])
    for at in (
        0,
        8,
        13,
        14,
        address,
        space,
        space + 1,
        space + 2,
        space + 8,
        space + 31,
        layout,
        layout + 1,
        layout + 9,
    ):
        spoilt = bytearray(body)
        spoilt[at] ^= 0xFE
        with pytest.raises(ValueError):
            skeleton.Skeleton(bytes(spoilt), [address], [2])
    for wrong in ([address + 8], [len(body)], [len(body) - 4]):
        with pytest.raises(ValueError):
            skeleton.Skeleton(body, wrong, [2])
    with pytest.raises(ValueError):
        skeleton.Skeleton(body, [address], [3])
