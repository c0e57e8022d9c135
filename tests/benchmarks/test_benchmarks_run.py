"""Every benchmark runs, quickly, and gives figures. No number is judged here: that is what `yoda bench` is for."""

from __future__ import annotations

import json
import math

import pytest
from benchlib import CORES, Sampler

from yoda import bench


@pytest.mark.slow
@pytest.mark.parametrize("name", bench.names())
def test_benchmark_runs(name: str) -> None:
    result, figures = bench.measure(name, quick=True)
    json.dumps(result)  # plain values
    assert figures
    for figure in figures:
        assert figure.what and math.isfinite(figure.value) and figure.met is None
        assert figure.peer_value is None or (figure.peer and figure.peer_value >= 0)
    assert bench.table(figures).count("\n") == len(figures)


def test_table_shows_what_is_short_of_its_budget() -> None:
    short = bench.Figure("speed", 1.0, "m/s", "a peer", 2.0, ">= 3 m/s", False)
    line = bench.table([short]).splitlines()[1].split()
    assert line == ["speed", "1", "m/s", "2", "0.5", "a", "peer", ">=", "3", "m/s", "NO"]


def test_machine_names_no_host() -> None:
    assert set(bench.machine()) == {"processor", "cores", "memory_gb", "kernel", "python", "versions", "load"}


def test_what_ended_processes_used_is_not_counted_as_that_of_others() -> None:
    """Their CPU time since the last sample is in no tree: for a moment it looked as if somebody else had taken it."""
    sampler = Sampler(0)
    sampler.samples = [(0.25 * n, 0.5 * n, 0.45 * n) for n in range(41)]  # two cores, others take a tenth of a core
    sampler.samples += [(10.25, 20.5, 1.0), (10.5, 20.5, 1.0)]  # all workers have ended
    assert sampler.others(1.0, 10.2) == pytest.approx(0.2 * 9.2)
    assert sampler.capacity(1.0, 10.2) == pytest.approx((CORES - 0.2) * 9.2)
