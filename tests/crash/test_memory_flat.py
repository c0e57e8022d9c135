"""Descriptors do not grow with ranges, seals and replaced workers; memory does not, either, in what is seen within
seconds. The long run is soak_memory.py."""

from __future__ import annotations

from runs import Place
from soak_memory import ROLES, soak


def test_nothing_stays_open(place_here: Place) -> None:
    report, events = soak(place_here, seconds=5.0, every=0.25, shots=1.5, max_age="0.5s")
    assert events > 300
    assert set(report) == set(ROLES)
    for role, found in report.items():
        assert found["descriptors_flat"], f"{role}: {found}"
        assert found["anonymous_mb_largest"] < 1.3 * found["anonymous_mb"], f"{role}: {found}"
