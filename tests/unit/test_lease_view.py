"""What `yoda status` says of who holds what."""

from __future__ import annotations

from typing import Any

import pytest

from yoda.lease_view import render, words


def lease(**keys: Any) -> dict[str, Any]:
    return {
        "allocation": "a",
        "host": "n1",
        "pid": 7,
        "state": "working",
        "wants": False,
        "parts": 3,
        "beat_age": 2.0,
        "merges": False,
        **keys,
    }


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (lease(), "working: holds 3 parts of the axis, last beat 2.0 s ago"),
        (lease(parts=0, wants=True), "working: holds 0 parts of the axis and waits for work, last beat 2.0 s ago"),
        (lease(state="merging", parts=1, merges=True), "merging: merges the task, last beat 2.0 s ago"),
        (lease(state="dead", parts=1), "dead; holds 1 part of the axis until another allocation looks"),
        (lease(state="dead", parts=0), "dead"),
        (
            lease(state="silent", beat_age=125.0),
            "silent, last beat 2 min 05 s ago; holds 3 parts of the axis until lease_timeout has passed for another"
            " allocation",
        ),
    ],
)
def test_words(one: dict[str, Any], said: str) -> None:
    assert words(one) == said


def test_allocations_without_a_journal_are_told_of() -> None:
    leases = [lease(), lease(allocation="b", state="starting", parts=0), lease(allocation="c", state="dead")]
    [line] = render(leases, {"a"})
    assert line == "  b  process 7 on n1: starting: holds 0 parts of the axis, last beat 2.0 s ago"
