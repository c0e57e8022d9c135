"""Pace: measured seconds per event, and an estimate that says how little it knows."""

from __future__ import annotations

import numpy as np
import pytest

from eventrange import records
from eventrange.records import Kind
from eventrange.times import time_bin
from yoda.pace import Pace, time_bins


def done(walls: np.ndarray, size: int = 1, begin: float = 1000.0) -> np.ndarray:
    rows = records.new(len(walls), kind=Kind.DONE, wall=walls)
    rows["start"] = np.arange(len(walls)) * size
    rows["stop"] = rows["start"] + size
    rows["time"] = begin + np.cumsum(walls) - walls
    return rows


def test_nothing_known() -> None:
    pace = Pace()
    assert pace.mean == 0 and pace.eta(1000.0, 10, 4) is None and pace.rate(1000.0) == 0
    assert pace.eta(1000.0, 0, 0) is not None


def test_nobody_works() -> None:
    pace = Pace()
    pace.add(done(np.full(50, 1.0)))
    assert pace.eta(1050.0, 10, 0) is None


@pytest.mark.parametrize("size", [1, 25])
def test_mean_and_deviation_do_not_depend_on_the_size_of_ranges(size: int) -> None:
    random = np.random.default_rng(1)
    walls = random.lognormal(0, 1, (4000, size)).sum(axis=1)
    pace = Pace()
    pace.add(done(walls[:1000], size))
    pace.add(done(walls[1000:], size))
    assert pace.mean == pytest.approx(np.exp(0.5), rel=0.05)
    assert pace.deviation == pytest.approx(np.sqrt((np.e - 1) * np.e), rel=0.2)


def test_the_range_holds_the_truth() -> None:
    """Half of a task of lognormal events is done; the other half should end within the range, nearly always."""
    random, inside = np.random.default_rng(2), 0
    for _ in range(200):
        walls = random.lognormal(0, 1, 2000)
        pace = Pace()
        pace.add(done(walls[:1000]))
        eta = pace.eta(5000.0, 1000, 8)
        assert eta is not None and eta.low <= eta.seconds <= eta.high
        inside += eta.low <= walls[1000:].sum() / 8 <= eta.high
    assert inside > 160


def test_other_kinds_and_damaged_records_are_passed_over() -> None:
    rows = done(np.array([1.0, np.nan, -1.0, 2.0]))
    rows["kind"][3] = Kind.FAILED
    pace = Pace()
    pace.add(rows)
    assert pace.events == 1 and pace.wall == 1.0


def test_memory_is_bounded() -> None:
    pace = Pace()
    for n in range(20):
        pace.add(done(np.full(300, 1.0), begin=1000.0 + 300 * n))
    assert len(pace.by_second) <= 1200
    assert pace.rate(7000.0) == pytest.approx(1.0, rel=0.05)


def test_bins_are_those_of_times() -> None:
    values = np.array([1e-9, 1e-3, 0.5, 1.0, 1.19, 60.0])
    assert time_bins(values).tolist() == [time_bin(value) for value in values.tolist()]
