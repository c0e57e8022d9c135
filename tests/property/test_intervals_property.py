"""Interval sets against plain Python sets of positions."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eventrange.intervals import IntervalSet, union

pair = st.tuples(st.integers(0, 50), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))


def members(intervals: IntervalSet) -> set[int]:
    found: set[int] = set()
    last = -1
    for a, b in intervals:
        assert last < a < b, "sorted, disjoint and not touching"
        last = b
        found |= set(range(a, b))
    assert intervals.total == len(found)
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.booleans(), pair), max_size=40), pair)
def test_add_remove_query(steps: list[tuple[bool, tuple[int, int]]], query: tuple[int, int]) -> None:
    intervals, model = IntervalSet(), set()
    for adding, (a, b) in steps:
        here = set(range(a, b))
        if adding:
            assert intervals.add(a, b) == len(here - model)
            model |= here
        else:
            assert intervals.remove(a, b) == len(here & model)
            model -= here
        assert members(intervals) == model
    a, b = query
    here = set(range(a, b))
    assert {e for x, y in intervals.overlap(a, b) for e in range(x, y)} == here & model
    assert {e for x, y in intervals.gaps(a, b) for e in range(x, y)} == here - model
    assert intervals.covers(a, b) == (here <= model)
    assert (a in intervals) == (a in model)
    found = intervals.next_from(a)
    later = sorted(e for e in model if e >= a) or sorted(model)
    assert (found is None) == (not model) and (found is None or found[0] == later[0])


@settings(max_examples=300, deadline=None)
@given(st.lists(pair, max_size=60))
def test_union_of_arrays(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([a for a, _ in pairs], np.int64)
    stops = np.array([b for _, b in pairs], np.int64)
    got = IntervalSet.from_arrays(*union(starts, stops))
    assert got == IntervalSet(pairs)
    members(got)
