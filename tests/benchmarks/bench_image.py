"""Microseconds to build and read the image of 100 events of 5 small fields, and to find the winners of many records."""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from eventrange import image, records
from stageout.winners import winners
from yoda.bench import Figure

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


def _h5py_microseconds(events: list[dict[str, Any]], count: int) -> float:
    """The same image made by h5py in the ordinary way: a file in memory, one dataset per field."""

    def build(_: int) -> None:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file["event"] = np.arange(len(events))
            for name in events[0]:
                file[name] = np.array([fields[name] for fields in events])
            for name, value in ATTRIBUTES.items():
                file.attrs[name] = value

    return _microseconds(build, count)


def run(quick: bool = False) -> dict[str, Any]:
    """Medians in microseconds; seconds for the winners of 10^6 records in random order, without and with copies."""
    count, many = (20, 10_000) if quick else (400, 10**6)
    random = np.random.default_rng(1)
    fixed = _events(random, False)
    varying = [_events(random, True) for _ in range(count)]  # another number of rows each: no template fits
    one = image.build(0, None, varying[0], ATTRIBUTES)
    rows = records.new(many, kind=records.Kind.DONE)
    rows["start"] = random.permutation(many) * 10
    rows["stop"] = rows["start"] + 10
    copies = np.concatenate((rows, rows[::20]))
    seconds = []
    for some in (rows, copies):
        begin = time.perf_counter()
        winners(some)
        seconds.append(time.perf_counter() - begin)
    return {
        "build_fixed_us": _microseconds(lambda _: image.build(0, None, fixed, ATTRIBUTES), count),
        "build_jagged_us": _microseconds(lambda number: image.build(0, None, varying[number], ATTRIBUTES), count),
        "build_one_event_us": _microseconds(lambda _: image.build(0, None, fixed[:1], ATTRIBUTES), count),
        "read_us": _microseconds(lambda _: image.read(one), count),
        "h5py_fixed_us": _h5py_microseconds(fixed, count),
        "image_bytes": len(one),
        "winners_s": seconds[0],
        "winners_with_copies_s": seconds[1],
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """Building beside h5py; the rest as it is."""
    h5py_us = result["h5py_fixed_us"]
    who = "h5py, file in memory"
    return [
        Figure("image of 100 events x 5 fields", result["build_fixed_us"], "us", who, h5py_us),
        Figure("the same, jagged", result["build_jagged_us"], "us", f"{who}, not jagged", h5py_us),
        Figure("image of one event", result["build_one_event_us"], "us"),
        Figure("reading an image", result["read_us"], "us"),
        Figure("winners of all records, random order", 1000 * result["winners_s"], "ms"),
    ]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
