"""Every benchmark runs, quickly, and gives figures. No number is judged here: that is what `yoda bench` is for."""

from __future__ import annotations

import json
import math

import pytest

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
