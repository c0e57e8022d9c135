"""Descriptors do not grow with ranges, seals and replaced workers; memory does not, either, in what is seen within
seconds. The long run is soak_memory.py."""

from __future__ import annotations

from pathlib import Path

from runs import Place
from soak_memory import ROLES, simulated, soak


def test_nothing_stays_open(place_here: Place) -> None:
    report, events = soak(place_here, seconds=5.0, every=0.25, shots=1.5, max_age="0.5s")
    assert events > 300
    assert set(report) == set(ROLES)
    for role, found in report.items():
        assert found["descriptors_flat"], f"{role}: {found}"
        assert found["anonymous_mb_largest"] < 1.3 * found["anonymous_mb"], f"{role}: {found}"


def test_hours_take_no_more_memory(tmp_path: Path) -> None:
    """What dispatcher and Droid core hold grows by less than a byte for each of thousands of events: by a block of a
    deque, or a new bin of a histogram, and not with what has been done."""
    first, *_, last = simulated(3, 4, str(tmp_path))
    assert last["done"] - first["done"] > 4000
    for who in ("yoda", "droid"):
        assert last[who] - first[who] < last["done"] - first["done"]
