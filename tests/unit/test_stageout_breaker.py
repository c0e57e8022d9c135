"""The circuit breaker in the Event Service operators' own words, one test each."""

from __future__ import annotations

import json

from stageout.breaker import Breaker
from stageout.site import BreakerRules

HOUR = 3600.0


def fail_until_off(breaker: Breaker, now: float) -> float:
    while breaker.state("q") == "closed":
        now += 60
        breaker.failure("q", now)
    return now


def test_more_than_half_failed_within_two_hours_switches_off() -> None:
    breaker = Breaker(BreakerRules(samples=4))
    for minute in range(2):
        assert breaker.success("q", minute * 60.0) == []
        assert breaker.failure("q", minute * 60.0) == []
    assert breaker.allow("q", 200.0) == (True, [])  # exactly half
    (change,) = breaker.failure("q", 300.0, "503")
    assert (change.before, change.after, change.time) == ("closed", "open", 300.0)
    assert "3 of 5" in change.reason and "503" in change.reason and not change.alert
    assert breaker.allow("q", 301.0) == (False, [])
    assert breaker.allow("other", 301.0) == (True, [])


def test_few_results_and_old_results_do_not() -> None:
    breaker = Breaker(BreakerRules(samples=4))
    for hour in range(20):
        assert breaker.failure("q", hour * HOUR) == []


def test_tried_again_after_six_hours_and_back_on() -> None:
    breaker = Breaker()
    off = fail_until_off(breaker, 0.0)
    assert breaker.retry_at("q") == off + 6 * HOUR
    assert breaker.allow("q", off + 6 * HOUR - 1)[0] is False
    assert breaker.would_allow("q", off + 6 * HOUR)
    allowed, (change,) = breaker.allow("q", off + 6 * HOUR)
    assert allowed and change.after == "half-open"
    assert breaker.allow("q", off + 6 * HOUR) == (False, [])  # one at a time
    (change,) = breaker.success("q", off + 6 * HOUR + 5)
    assert change.after == "closed" and breaker.counts("q") == (0, 0)


def test_off_four_times_within_a_day_is_exhausted_until_reset() -> None:
    breaker, now, states = Breaker(), 0.0, []
    now = fail_until_off(breaker, now)
    while breaker.state("q") == "open":
        states.append(breaker.state("q"))
        now += 6 * HOUR
        assert breaker.allow("q", now)[0]
        changes = breaker.failure("q", now, "403")
    assert len(states) == 3 and changes[0].alert and "4 times" in changes[0].reason
    assert breaker.retry_at("q") is None and not breaker.would_allow("q", now + 1e9)
    assert breaker.allow("q", now + 1e9)[0] is False
    assert breaker.success("q", now) == []
    (change,) = breaker.reset("q", now)
    assert change.after == "closed"
    assert fail_until_off(breaker, now) and breaker.state("q") == "open"  # its past is forgotten


def test_off_four_times_in_more_than_a_day_is_not() -> None:
    breaker, now = Breaker(), 0.0
    for _ in range(10):
        now = fail_until_off(breaker, now)
        now += 9 * HOUR
        assert breaker.allow("q", now)[0]
        breaker.success("q", now)
        assert breaker.state("q") == "closed"


def test_a_probe_without_an_answer_is_forgotten() -> None:
    breaker = Breaker(BreakerRules(probe_timeout=100))
    now = fail_until_off(breaker, 0.0) + 6 * HOUR
    assert breaker.allow("q", now)[0] and not breaker.allow("q", now + 99)[0]
    assert breaker.allow("q", now + 100)[0]
    breaker.forget_probe("q")
    assert breaker.allow("q", now + 101)[0]


def test_state_survives_as_json_and_damage_costs_only_that_key() -> None:
    breaker = Breaker()
    now = fail_until_off(breaker, 0.0)
    breaker.failure("endpoint:b", now)
    state = json.loads(json.dumps(breaker.to_dict()))
    assert Breaker(state=state).to_dict() == breaker.to_dict()
    state["keys"]["q"]["state"] = "nonsense"
    assert Breaker(state=state).keys() == ["endpoint:b"]
    for bad in ({}, {"version": 99, "keys": {}}, {"version": 1, "keys": [1]}, {"version": 1, "keys": {"q": None}}):
        assert Breaker(state=bad).keys() == []
