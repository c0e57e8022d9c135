"""Random numbers of one event, from the task's seed and the event's position alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from numpy.random.bit_generator import ISeedSequence

_TOGETHER = 32
_DOMAIN = 0x596F6461  # "Yoda": a payload that makes its own Philox(seed) must not meet the streams given to it


class _Key(ISeedSequence):
    """Hands Philox a key made once: building a SeedSequence for every event would cost four times as much."""

    def __init__(self, seed: int) -> None:
        self._key = SeedSequence([_DOMAIN, seed]).generate_state(2, np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return self._key


_key = functools.lru_cache(maxsize=8)(_Key)


def streams(seed: int, positions: Sequence[int]) -> Iterator[Generator]:
    """The Generator of each event: a function of the task's seed and the event's position on the axis, of nothing else.

    Philox with the key from the seed and the position in the third word of its counter, so streams of different events
    are disjoint for 2^128 blocks each. Every one is an object of its own. They are made a few at a time: between two
    events a core forgets how, which makes one by one take five times as long.
    """
    key: Any = _key(seed)
    for at in range(0, len(positions), _TOGETHER):
        some = positions[at : at + _TOGETHER]
        counters = np.zeros((len(some), 4), np.uint64)
        counters[:, 2] = some
        yield from [Generator(Philox(key, counter=counter)) for counter in counters]


def random_for(seed: int, position: int) -> Generator:
    """The Generator of one event."""
    return next(streams(seed, [position]))
