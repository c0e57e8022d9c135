"""The story is short however much goes wrong."""

from __future__ import annotations

from typing import Any

import pytest

from yoda.instructions import Note
from yoda.telling import FAILURES_SAID, Teller


def told(*notes: tuple[str, dict[str, Any]]) -> list[str]:
    said: list[str] = []
    teller = Teller(said.append)
    for name, values in notes:
        teller.tell(Note(name, values))
    return said


def failure(event: int, text: str) -> tuple[str, dict[str, Any]]:
    return "evidence", {"event": event, "droid": 2, "attempt": 0, "text": text}


def test_a_failure_is_told_by_the_line_that_says_what_it_was() -> None:
    trace = "Traceback (most recent call last):\n  File ...\nValueError: no tracks\n"
    assert told(failure(7, trace), failure(8, "killed by signal 11\nand more"), failure(9, "")) == [
        "event 7 failed on droid 2 (attempt 1): ValueError: no tracks",
        "event 8 failed on droid 2 (attempt 1): killed by signal 11",
        "event 9 failed on droid 2 (attempt 1): ?",
    ]


def test_a_payload_that_always_fails_is_one_story() -> None:
    said = told(*(failure(event, "no") for event in range(3 * FAILURES_SAID)))
    assert len(said) == FAILURES_SAID + 1 and said[-1] == "more events fail; see `yoda journal` for all of them"


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        (
            "left",
            {"droid": 3, "host": "n1", "reason": "lost: its process died\nx"},
            "Droid 3 on n1 is lost: its process",
        ),
        ("left", {"droid": 3, "host": "n1", "reason": "drained"}, ""),
        ("claimed", {"parts": [1], "events": 9, "from": []}, ""),
        ("claimed", {"parts": [1], "events": 9, "from": ["a"]}, "9 events are taken over from a"),
        ("breaker", {"key": "endpoint:s3", "after": "off", "by": 1, "reason": "r", "alert": True}, "--reset s3`"),
        ("breaker", {"key": "node:n1", "after": "off", "reason": "r", "alert": True}, "n1 is off: r; it stays off"),
        ("breaker", {"key": "node:n1", "after": "off", "reason": "r", "alert": True}, "--reset node:n1`"),
        ("breaker", {"key": "node:n1", "after": "on trial", "reason": "r"}, "node n1 is on trial: r"),
        ("pulse", {"busy": 1}, ""),
    ],
)
def test_what_matters_is_told(name: str, values: dict[str, Any], says: str) -> None:
    said = told((name, values))
    assert len(said) == (1 if says else 0) and all(says in line for line in said)
