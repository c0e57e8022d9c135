"""Durations, sizes and YAML: what is written is what is read, and no text makes the reader fail in a new way."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrange.errors import ConfigError
from eventrange.quantity import format_duration, format_size, parse_duration, parse_size
from yoda.schema import JobKeys, SiteKeys
from yoda.validate import Origins, build
from yoda.yamlfile import Literal, dump, inline, parse_document

PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=12,
)


@given(st.floats(min_value=0, allow_infinity=False) | st.integers(0, 1 << 40).map(float))
def test_durations_round_trip(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(
    st.integers(0, (1 << 63) - 1)
    | st.integers(0, 900).map(lambda n: n << 40)
    | st.integers(0, 999).map(lambda n: n * 10**12)
)
def test_sizes_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_clocks_are_read_as_slurm_reads_them(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_duration(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == total
    assert parse_duration(f"{days}d{hours}h {minutes}min{seconds}s") == total
    assert parse_duration(f"{days * 24 + hours}:{minutes:02}:{seconds:02}") == total


@given(st.text() | st.text("0123456789.:-eEdhmins kMGTiB"))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            value = parse(text)
        except ValueError as error:
            assert str(error)
        else:
            assert math.isfinite(value) and value >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4h", 14400), ("30min", 1800), ("120s", 120), ("1.5h", 5400), ("2-04:00:00", 187200), ("90", 90), ("10ms", 0.01)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", 1 << 30),
        ("500MB", 500_000_000),
        ("1.5 kib", 1536),
        ("2G", 2 << 30),
        ("7", 7),
        ("7B", 7),
        ("1e3kB", 10**6),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "h", "4:30", "-1s", "1e999h", "5 parsecs", "1h 3", "inf", "nan", "1 2s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize("value", ["", "B", "-1", "1XB", "1e9999B", "9000EB", True, 1.5, -1])
def test_no_sizes(value: Any) -> None:
    with pytest.raises(ValueError):
        parse_size(value)


@given(PLAIN)
def test_yaml_round_trips(value: Any) -> None:
    for text in (dump({"key": value}), f"key: {inline(value)}"):
        read = parse_document(text, "f").value["key"]
        assert read == value and type(read) is type(value)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_blocks_round_trip(text: str) -> None:
    assert parse_document(dump({"a": Literal(text + "\n"), "b": 1}), "f").value == {"a": text + "\n", "b": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("010", 10),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1_000", 1000),
        ("0x10", 16),
        ("0o10", 8),
        ("~", None),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("True", True),
        ("+3", 3),
        ("=", "="),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    read = parse_document(f"key: {text}", "f").value["key"]
    assert read == value and type(read) is type(value)


@given(st.text() | st.text("ab:[]{}-*&!|>'\"#%@`,?~. \n\t01"))
def test_any_text_is_yaml_or_a_config_error(text: str) -> None:
    try:
        parse_document(text, "f")
    except ConfigError as error:
        assert error.values["file"] == "f" and error.values["hint"]


@given(st.dictionaries(st.sampled_from([*JobKeys.__struct_fields__, *SiteKeys.__struct_fields__]) | st.text(), PLAIN))
def test_any_tree_is_a_config_or_a_config_error(tree: dict[str, Any]) -> None:
    for cls in (JobKeys, SiteKeys):
        try:
            built = build(cls, tree, Origins("f"))
        except ConfigError as error:
            assert error.values["file"] == "f" and error.values["hint"]
        else:
            assert isinstance(built, cls)
