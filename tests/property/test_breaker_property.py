"""The circuit breaker against a model that keeps every result, under any sequence of events and clocks that jump."""

from __future__ import annotations

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stageout.breaker import SLOTS, Breaker, Change
from stageout.site import BreakerRules

RULES = BreakerRules(
    window=120.0, share=0.5, samples=3, recovery=300.0, opens=3, opens_window=2000.0, probe_timeout=50.0
)
KEYS = ("endpoint:primary", "node:n1")


class BreakerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(RULES)
        self.now = 1000.0
        self.latest = dict.fromkeys(KEYS, 0.0)
        self.state = dict.fromkeys(KEYS, "closed")
        self.results: dict[str, list[tuple[int, bool]]] = {key: [] for key in KEYS}
        self.opened: dict[str, list[float]] = {key: [] for key in KEYS}
        self.probing: dict[str, float | None] = dict.fromkeys(KEYS)

    def clock(self, key: str) -> float:
        self.latest[key] = max(self.latest[key], self.now)
        return self.latest[key]

    def follow(self, key: str, changes: list[Change]) -> None:
        """Every change starts where the last one ended, and only the known steps exist."""
        for change in changes:
            assert change.key == key and change.before == self.state[key] and change.after != change.before
            assert (change.before, change.after) in {
                ("closed", "open"),
                ("closed", "exhausted"),
                ("open", "half-open"),
                ("half-open", "open"),
                ("half-open", "closed"),
                ("half-open", "exhausted"),
                ("open", "closed"),
                ("exhausted", "closed"),
            }
            self.state[key] = change.after
            self.probing[key] = None
            if change.after in ("open", "exhausted"):
                self.opened[key].append(change.time)
                recent = [t for t in self.opened[key] if t > change.time - RULES.opens_window]
                assert (len(recent) >= RULES.opens) == (change.after == "exhausted") == change.alert

    @rule(seconds=st.one_of(st.floats(0, 10), st.floats(0, 1000), st.floats(-500, 0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=st.sampled_from(KEYS), good=st.booleans())
    def result(self, key: str, good: bool) -> None:
        now, before = self.clock(key), self.state[key]
        probing = self.probing[key]
        changes = self.breaker.success(key, self.now) if good else self.breaker.failure(key, self.now, "reason")
        self.follow(key, changes)
        if before == "closed":
            slot = int(now // (RULES.window / SLOTS))
            self.results[key] = [(s, ok) for s, ok in (*self.results[key], (slot, good)) if s > slot - SLOTS]
            bad = sum(not ok for _, ok in self.results[key])
            tripped = (
                not good and len(self.results[key]) >= RULES.samples and bad > RULES.share * len(self.results[key])
            )
            assert (self.state[key] != "closed") == tripped
        elif before == "half-open" and probing is not None:
            assert (self.state[key] == "closed") == good
        else:
            assert changes == []
        if self.state[key] != before:
            self.results[key] = []

    @rule(key=st.sampled_from(KEYS))
    def ask(self, key: str) -> None:
        now, before = self.clock(key), self.state[key]
        would = self.breaker.would_allow(key, self.now)
        allowed, changes = self.breaker.allow(key, self.now)
        self.follow(key, changes)
        assert allowed == would
        if before == "closed":
            assert allowed
        elif before == "exhausted":
            assert not allowed
        elif before == "open":
            assert allowed == (now >= self.opened[key][-1] + RULES.recovery)
        else:
            probing = self.probing[key]
            assert allowed == (probing is None or now >= probing + RULES.probe_timeout)
        if allowed and self.state[key] == "half-open":
            self.probing[key] = now

    @rule(key=st.sampled_from(KEYS))
    def reset(self, key: str) -> None:
        self.clock(key)
        self.follow(key, self.breaker.reset(key, self.now))
        assert self.state[key] == "closed"
        self.results[key], self.opened[key] = [], []

    @rule()
    def restart(self) -> None:
        self.breaker = Breaker(RULES, json.loads(json.dumps(self.breaker.to_dict())))
        self.probing = dict.fromkeys(KEYS)

    @invariant()
    def states_agree_and_memory_is_bounded(self) -> None:
        for key in KEYS:
            assert self.breaker.state(key) == self.state[key]
        for value in self.breaker.to_dict()["keys"].values():
            assert len(value["slots"]) <= SLOTS and len(value["opens"]) <= RULES.opens + 1


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestBreaker = BreakerMachine.TestCase
