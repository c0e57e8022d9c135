"""Payloads of the benchmarks, for Yoda and for its peers alike; numpy and the standard library only."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray


def noop(event: Any) -> dict[str, Any]:
    """Nothing, and no image."""
    return {}


def small(event: Any) -> dict[str, Any]:
    """An image of one dataset."""
    return {"x": 1.0}


def drawing(event: Any, random: Any) -> dict[str, Any]:
    """The same, and the event's random numbers are there, though not used."""
    return {"x": 1.0}


def five(event: Any) -> dict[str, Any]:
    """An image of five small fields, as real events have."""
    return {"weight": 1.0, "channel": 3, "met": 17.5, "vertex": _VERTEX, "jets": _JETS}


_VERTEX, _JETS = np.zeros(3), np.zeros(5)


@functools.lru_cache(maxsize=4)
def durations(mean: float, events: int, seed: int = 7) -> NDArray[np.float64]:
    """CPU seconds of each event: lognormal of that mean, sigma 1, the same for everybody."""
    return np.random.default_rng(seed).lognormal(math.log(mean) - 0.5, 1.0, events)


def spin(seconds: float) -> tuple[float, float]:
    """Use that much CPU time, however long it takes; returns when it began and ended."""
    begin, until = time.time(), time.process_time() + seconds
    while time.process_time() < until:
        pass
    return begin, time.time()


class Spin:
    """Events of known CPU time."""

    def __init__(self, mean: float, events: int, seed: int = 7) -> None:
        self.drawn = mean, events, seed

    def setup(self) -> None:
        self.seconds = durations(*self.drawn).tolist()

    def process(self, event: int) -> dict[str, Any]:
        begin, end = spin(self.seconds[event])
        return {"begin": begin, "end": end, "vertex": _VERTEX, "jets": _JETS}


class Pythia:
    """Real events: proton-proton collisions with a pair of top quarks, some milliseconds each."""

    def setup(self) -> None:
        import pythia8mc

        self.generator = pythia8mc.Pythia("", False)
        settings = ("Print:quiet = on", "Beams:eCM = 13000.", "Top:gg2ttbar = on", "Top:qqbar2ttbar = on")
        for line in (*settings, "Random:setSeed = on", "Random:seed = 1"):
            self.generator.readString(line)
        self.generator.init()

    def process(self, event: int) -> dict[str, Any]:
        begin, before = time.time(), time.process_time()
        self.generator.rndm.init(event + 1)
        self.generator.next()
        charged = self.generator.event.nFinal(True)
        cpu = time.process_time() - before
        return {"begin": begin, "end": time.time(), "cpu": cpu, "charged": charged, "vertex": _VERTEX}


@functools.lru_cache(maxsize=1)
def pythia() -> Pythia:
    """The one of this process."""
    made = Pythia()
    made.setup()
    return made


def sleep(event: Any, seconds: float) -> dict[str, Any]:
    """A worker that is busy and uses no CPU: what is left is the runner's own."""
    time.sleep(seconds)
    return {"x": 1.0}


class Blob:
    """Events that are nothing but output: `size` bytes each, made beforehand."""

    def __init__(self, size: int) -> None:
        self.data = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)

    def process(self, event: int) -> dict[str, Any]:
        return {"x": self.data}


class Heavy:
    """A payload whose one-time set-up holds `megabytes` that all workers read."""

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes

    def setup(self) -> None:
        self.table = np.ones(self.megabytes << 17)

    def process(self, event: int) -> dict[str, Any]:
        time.sleep(0.05)
        return {"x": float(self.table.sum())}


class Naps:
    """Events of known length that use no CPU: `file` is a numpy array of seconds by event."""

    def __init__(self, file: str) -> None:
        self.file = file

    def setup(self) -> None:
        self.seconds = np.load(self.file, mmap_mode="r")

    def process(self, event: int) -> dict[str, Any]:
        time.sleep(float(self.seconds[event]))
        return {"x": 1.0}
