"""The random numbers of an event: functions of (seed, position), independent of each other, the same for ever."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from numpy.random import Generator, Philox, SeedSequence

from droid.randoms import random_for, streams


def test_golden_values() -> None:
    """If this fails after an upgrade of numpy, old tasks cannot be made again with it: say so in the changelog."""
    assert random_for(42, 0).integers(0, 2**63, 3).tolist() == [
        5697100670315903303,
        8574051859041567495,
        3028628571363704482,
    ]
    assert random_for(42, 1).random(2).tolist() == [0.5126980162021866, 0.43540352133635796]
    assert random_for(2**63 - 1, 10**12).standard_normal(2).tolist() == [-1.9880045926051688, 0.08514930094105481]


def test_it_is_plain_philox_that_anyone_can_make_again() -> None:
    key = SeedSequence([0x596F6461, 7]).generate_state(2, np.uint64)
    by_hand = Generator(Philox(key=key, counter=np.array([0, 0, 123, 0], np.uint64)))
    assert (random_for(7, 123).random(100) == by_hand.random(100)).all()


def test_streams_are_those_of_each_event() -> None:
    positions = [*range(5, 70), 3, 2**40]
    made = list(streams(7, positions))
    assert len({id(one) for one in made}) == len({id(one.bit_generator) for one in made}) == len(positions)
    assert [one.random() for one in made] == [random_for(7, position).random() for position in positions]
    assert list(streams(7, range(0))) == []


def test_every_call_gives_an_object_of_its_own() -> None:
    first, second = random_for(1, 2), random_for(1, 2)
    expected = first.random(5)
    random_for(1, 3).random(1000)
    assert (second.random(5) == expected).all()
    assert first.random() != expected[0]


def test_generators_can_be_kept_copied_and_pickled() -> None:
    random = random_for(3, 4)
    random.random(3)
    copies = [copy.deepcopy(random), pickle.loads(pickle.dumps(random))]
    expected = random.random(8)
    for other in copies:
        assert (other.random(8) == expected).all()


@pytest.mark.parametrize("seeds", [[5] * 2000, list(range(2000))], ids=["one seed", "many seeds"])
def test_first_numbers_of_neighbours_are_uniform_and_uncorrelated(seeds: list[int]) -> None:
    """Neighbouring positions and neighbouring seeds are the pairs a weak generator would correlate."""
    fixed = seeds[0] != seeds[1]
    table = np.array([random_for(seed, 9 if fixed else i).random(8) for i, seed in enumerate(seeds)])
    counts = np.histogram(table, 16, (0, 1))[0]
    expected = table.size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi2 with 15 degrees of freedom: p = 1e-4
    correlation = np.corrcoef(np.concatenate([table[:-1], table[1:]], axis=1), rowvar=False)
    off = np.abs(correlation - np.eye(16)).max()
    assert off < 5 / np.sqrt(len(seeds))


def test_no_stream_repeats_another() -> None:
    seen: set[int] = set()
    for seed in (0, 1, 2**32, 2**32 + 1, 2**62):
        for position in (*range(50), 2**31, 2**32, 2**40):
            seen.add(int(random_for(seed, position).integers(0, 2**63)))
    assert len(seen) == 5 * 53


def test_a_generator_of_the_users_own_with_the_same_seed_is_another() -> None:
    own = Generator(Philox(42)).random(4)
    assert not (random_for(42, 0).random(4) == own).any()
