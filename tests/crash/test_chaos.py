"""A few dozen random hits on real runs (tests/crash/chaos.py); the seed is in the output, YODA_TEST_SEED sets it."""

from __future__ import annotations

import os
import random

import pytest
from chaos import Chaos
from runs import Place


@pytest.mark.slow
def test_chaos(place: Place) -> None:
    """Whatever is killed, stopped or told to end: every event once, the same bytes, nothing acknowledged done again."""
    seed = int(os.environ.get("YODA_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    outcome = Chaos(place, seed, kills=15, events=2000).run()
    print(outcome)
    assert not outcome.wrong, str(outcome)
    assert outcome.granted_again == 0
