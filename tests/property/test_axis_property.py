"""The axis agrees with a list of (file, event) pairs written out in full."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from eventrange.axis import Axis, unique_names

counts = st.lists(st.integers(0, 12), min_size=1, max_size=8)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    files = [(f"d{draw(st.integers(0, 2))}/f{draw(st.integers(0, 2))}", n) for n in draw(counts)]
    return Axis(files)


@settings(max_examples=200, deadline=None)
@given(axis=axes(), data=st.data())
def test_axis_is_the_list_of_all_events(axis: Axis, data: st.DataObject) -> None:
    written_out = [(i, e) for i, file in enumerate(axis.files) for e in range(file.events)]
    assert axis.total == len(written_out)
    assert [axis.locate(p) for p in range(axis.total)] == written_out
    start = data.draw(st.integers(0, axis.total))
    stop = data.draw(st.integers(start, axis.total))
    pieces = axis.pieces(start, stop)
    assert [(n, e) for n, a, b in pieces for e in range(a, b)] == written_out[start:stop]
    assert [axis.parse(name) for name in axis.names(start, stop)] == [
        (axis.files[n].start + a, axis.files[n].start + b) for n, a, b in axis.pieces(start, stop)
    ]
    assert Axis.from_dict(axis.to_dict()) == axis


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "a~2", "c:1"]), min_size=1, max_size=3).map("/".join), max_size=8))
def test_names_of_files_are_all_different(paths: list[str]) -> None:
    names = unique_names(paths)
    assert len(set(names)) == len(paths)
