"""The ledger against a dictionary of events that does everything one event at a time."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventrange.intervals import IntervalSet
from eventrange.ledger import Ledger

E = 60


class Model:
    """Per event: 'pending', 'retry', 'quarantined', 'done', or the set of droids that hold it."""

    def __init__(self) -> None:
        self.state: list[object] = ["pending"] * E
        self.tries = [0] * E

    def sets(self, name: str) -> list[int]:
        return [e for e in range(E) if self.state[e] == name]

    def held(self, droid: int) -> list[int]:
        return [e for e in range(E) if isinstance(self.state[e], set) and droid in self.state[e]]  # type: ignore[operator]


def positions(intervals: IntervalSet) -> list[int]:
    return [e for a, b in intervals for e in range(a, b)]


def same(ledger: Ledger, model: Model) -> None:
    assert positions(ledger.pending) == model.sets("pending")
    assert sorted(ledger.retries) == model.sets("retry")
    assert positions(ledger.quarantined) == model.sets("quarantined")
    assert ledger.in_flight == sum(isinstance(s, set) for s in model.state)
    assert ledger.done == len(model.sets("done"))
    for droid in range(4):
        assert positions(ledger.granted.get(droid, IntervalSet())) == model.held(droid)
    for event, retry in ledger.retries.items():
        assert retry.attempts == model.tries[event]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_ledger_agrees_with_one_event_at_a_time(seed: int) -> None:
    rng = random.Random(seed)
    ledger, model = Ledger(E), Model()
    ledger.pending.add(0, E)
    for _ in range(80):
        droid = rng.randrange(4)
        a = rng.randrange(E)
        b = min(E, a + rng.randrange(1, 12))
        what = rng.choice(["grant", "copy", *["finish"] * 2, "fail", "back", "lose", "retry", "quarantine", "settle"])
        if what == "grant":
            for start, stop in ledger.pending.overlap(a, b):
                ledger.grant(droid, start, stop)
                for e in range(start, stop):
                    model.state[e] = {droid}
        elif what == "copy":
            for e in range(a, b):
                s = model.state[e]
                if isinstance(s, set) and droid not in s:
                    ledger.copy(droid, e, e + 1)
                    s.add(droid)
        elif what == "finish":
            news = ledger.finish(droid, a, b)
            fresh = [e for e in range(a, b) if model.state[e] != "done"]
            assert [e for x, y in news for e in range(x, y)] == fresh
            for e in fresh:
                model.state[e] = "done"
                model.tries[e] = 0
        elif what == "fail":
            s = model.state[a]
            expected = 0
            if isinstance(s, set) and droid in s:
                s.remove(droid)
                model.tries[a] += 1
                if not s:
                    model.state[a] = "retry"
                    expected = model.tries[a]
            assert ledger.fail(droid, a) == expected
        elif what in ("back", "lose"):
            if what == "lose":
                a, b = 0, E
                ledger.lose(droid)
            else:
                ledger.give_back(droid, a, b)
            for e in range(a, b):
                s = model.state[e]
                if isinstance(s, set) and droid in s:
                    s.remove(droid)
                    if not s:
                        model.state[e] = "retry" if model.tries[e] else "pending"
        elif what == "retry" and ledger.retries:
            e = rng.choice(sorted(ledger.retries))
            assert ledger.grant_retry(droid, e) == model.tries[e]
            model.state[e] = {droid}
        elif what == "quarantine" and ledger.retries:
            e = rng.choice(sorted(ledger.retries))
            ledger.quarantine(e)
            model.state[e] = "quarantined"
            # a late report of a quarantined event makes it done; its tries no longer matter
        elif what == "settle":
            news = [e for e in range(a, b) if isinstance(model.state[e], str) and model.state[e] != "done"]
            assert ledger.settle(np.array([a]), np.array([b])) == len(news)
            for e in news:
                model.state[e] = "done"
                model.tries[e] = 0
        same(ledger, model)


def test_granting_what_is_not_pending_is_refused() -> None:
    ledger = Ledger(10)
    ledger.pending.add(0, 5)
    with pytest.raises(ValueError, match="only 5 of its events are pending"):
        ledger.grant(1, 0, 10)
