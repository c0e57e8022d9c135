"""Microseconds to build and read the image of 100 events of 5 small fields, and to find the winners of many records."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from eventrange import image, records
from stageout.winners import winners

ATTRIBUTES = {"task": "f" * 32, "seed": 42, "software": "numpy 2, h5py 3"}


def _microseconds(call: Callable[[int], Any], count: int = 400) -> float:
    times = []
    for number in range(count):
        begin = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def _events(random: np.random.Generator, jagged: bool) -> list[dict[str, Any]]:
    return [
        {
            "weight": float(random.normal()),
            "channel": number,
            "momentum": random.normal(size=4),
            "met": np.float32(number),
            "jets": random.normal(size=random.poisson(5) if jagged else 5),
        }
        for number in range(100)
    ]


def run() -> dict[str, Any]:
    """Medians in microseconds; seconds for the winners of 10^6 records in random order, without and with copies."""
    random = np.random.default_rng(1)
    fixed = _events(random, False)
    varying = [_events(random, True) for _ in range(400)]  # another number of rows each: no template fits
    one = image.build(0, None, varying[0], ATTRIBUTES)
    rows = records.new(10**6, kind=records.Kind.DONE)
    rows["start"] = random.permutation(10**6) * 10
    rows["stop"] = rows["start"] + 10
    copies = np.concatenate((rows, rows[::20]))
    seconds = []
    for some in (rows, copies):
        begin = time.perf_counter()
        winners(some)
        seconds.append(time.perf_counter() - begin)
    return {
        "build_fixed_us": _microseconds(lambda _: image.build(0, None, fixed, ATTRIBUTES)),
        "build_jagged_us": _microseconds(lambda number: image.build(0, None, varying[number], ATTRIBUTES)),
        "build_one_event_us": _microseconds(lambda _: image.build(0, None, fixed[:1], ATTRIBUTES)),
        "read_us": _microseconds(lambda _: image.read(one)),
        "image_bytes": len(one),
        "winners_million_s": seconds[0],
        "winners_million_with_copies_s": seconds[1],
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
