"""Whole tasks, simulated: see simulator.py. A failing seed is named; `YODA_SIM_SEEDS=SEED` runs only that one."""

from __future__ import annotations

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import simulator

BLOCK = 20
SEEDS = os.environ.get("YODA_SIM_SEEDS", "")  #: "17", or "100-200"
FIRST, STOP = 0, 240


def blocks() -> list[range]:
    if SEEDS:
        first, _, last = SEEDS.partition("-")
        return [range(int(first), int(last or first) + 1)]
    return [range(at, min(at + BLOCK, STOP)) for at in range(FIRST, STOP, BLOCK)]


@pytest.mark.parametrize("seeds", blocks(), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_the_laws_hold_whatever_happens(seeds: range) -> None:
    for seed in seeds:
        simulator.run(seed)
