"""Merging beside copying: the byte rate of `merge` over that of h5py copying the same datasets, chunks and codec.

Both end with an fsync; that is the budget's peer. The copy still does less: it reads one finished file, while merge
reads as many images as there were ranges, checks the crc32 of each and the positions in it, and knows the sha256 of
what it wrote. So there are three more peers: the copy with fsync and sha256, the copy that promises nothing at all, and
h5py appending the datasets of every image in the ordinary way, which is the same work from the same source.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from eventrange import image, records
from eventrange.entry import COLLECT
from eventrange.memory import keep_freed
from eventrange.segment import SegmentWriter, checksum
from eventrange.segmentreader import SegmentReader
from stageout.merge import merge, winners
from yoda.bench import Figure


def _write(folder: str, events: list[dict[str, Any]], size: int) -> tuple[Any, Any, Any, SegmentReader]:
    path = os.path.join(folder, "0.tar")
    writer = SegmentWriter(path)
    rows = records.new(-(-len(events) // size), kind=records.Kind.DONE)
    for row, start in zip(rows, range(0, len(events), size), strict=True):
        part = events[start : start + size]
        data = image.build(start, None, part, {"task": "bench"})
        row["start"], row["stop"] = start, start + len(part)
        row["offset"] = writer.append(f"bench.{start + 1}-{start + len(part)}.h5", data)
        row["size"], row["checksum"] = len(data), checksum(data)
    writer.seal()
    reader = SegmentReader()

    def fetch(row: Any) -> bytes:
        return reader.read(path, int(row["offset"]), int(row["size"]), int(row["checksum"]))

    def fetch_many(rows: Any) -> list[memoryview | None]:
        return reader.read_many(path, rows)

    return winners(rows), fetch, fetch_many, reader


def _copy(source: str, target: str) -> None:
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        for name, data in old.items():
            made = new.create_dataset(
                name,
                data.shape,
                data.dtype,
                chunks=data.chunks,
                compression=data.compression,
                compression_opts=data.compression_opts,
                shuffle=data.shuffle,
            )
            step = max(1, 2**20 // max(1, data.chunks[0] * data.dtype.itemsize)) * data.chunks[0]
            for start in range(0, len(data), step):
                made[start : start + step] = data[start : start + step]


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _hash(path: str) -> None:
    sha = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            sha.update(data)
    sha.hexdigest()


def _append(placed: Any, fetch: Callable[[Any], bytes], like: str, target: str) -> None:
    """The datasets of all images one after another, each image opened by h5py."""
    with h5py.File(like) as old, h5py.File(target, "w") as new:
        for name, data in old.items():
            filters = {"compression": data.compression, "compression_opts": data.compression_opts}
            most = (None, *data.shape[1:])
            new.create_dataset(
                name,
                (0, *data.shape[1:]),
                data.dtype,
                maxshape=most,
                chunks=data.chunks,
                shuffle=data.shuffle,
                **filters,
            )
        for row in placed:
            with h5py.File(io.BytesIO(fetch(row)), "r") as image:
                for name, data in image.items():
                    rows = len(new[name])
                    new[name].resize(rows + len(data), axis=0)
                    new[name][rows:] = data[()]


def _case(events: list[dict[str, Any]], size: int, compression: str, repeat: int = 3) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        placed, fetch, fetch_many, reader = _write(folder, events, size)
        gc.collect()
        gc.freeze()  # no process that merges has the events of a whole task as objects, to be looked at again and again
        merging: list[float] = []
        alone: list[float] = []
        copying: list[float] = []
        synced: list[float] = []
        settled: list[float] = []
        for number in range(repeat):
            for threads, times in ((None, merging), (1, alone)):
                begin = time.perf_counter()
                out = os.path.join(folder, f"{number}-{threads}")
                merge(
                    placed,
                    fetch,
                    out,
                    "bench",
                    len(events),
                    fetch_many=fetch_many,
                    compression=compression,
                    threads=threads,
                )
                times.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            _copy(os.path.join(out, "bench.h5"), os.path.join(folder, "copy.h5"))
            copying.append(time.perf_counter() - begin)
            _sync(os.path.join(folder, "copy.h5"))
            synced.append(time.perf_counter() - begin)
            _hash(os.path.join(folder, "copy.h5"))
            settled.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        some = placed[: max(1, len(placed) // 10)]  # a tenth is enough: it is slow
        _append(some, fetch, os.path.join(out, "bench.h5"), os.path.join(folder, "append.h5"))
        appending = (time.perf_counter() - begin) * len(placed) / len(some)
        reader.close()
        with h5py.File(os.path.join(out, "bench.h5")) as file:
            size_mb = sum(data.size * data.dtype.itemsize for data in file.values()) / 1e6
    rounds = {"merge": merging, "merge_one_thread": alone, "copy": copying, "synced": synced, "settled": settled}
    rates = {f"{name}_mb_per_s": size_mb / statistics.median(times) for name, times in rounds.items()}
    return {"megabytes": size_mb, **rates, "append_mb_per_s": size_mb / appending}


def run(quick: bool = False) -> dict[str, Any]:
    """Byte rates of merge and copy, small and large images, gzip and none."""
    gc.set_threshold(COLLECT, *gc.get_threshold()[1:])  # as in every process of ours
    keep_freed()  # as in every merge
    random = np.random.default_rng(5)
    small = [
        {
            "weight": float(value),
            "channel": int(value * 10),
            "met": np.float32(value),
            "vertex": random.normal(size=3),
            "jet_pt": random.exponential(size=random.poisson(6)).astype(np.float32),
        }
        for value in random.normal(size=2000 if quick else 300_000)
    ]
    large = [
        {"hits": random.normal(size=(random.integers(900, 1100), 4)), "id": n} for n in range(64 if quick else 4000)
    ]
    return {
        "small_images_gzip": _case(small, 100, "gzip"),
        "small_images_none": _case(small, 100, "none"),
        "large_images_gzip": _case(large, 32, "gzip"),
        "large_images_none": _case(large, 32, "none"),
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """The budget is against the copy with fsync."""
    out = []
    for name, case in result.items():
        ours, what = case["merge_mb_per_s"], f"merge, {name.replace('_', ' ')}"
        synced = case["synced_mb_per_s"]
        out.append(
            Figure(what, ours, "MB/s", "h5py copying the result, fsync", synced, ">= 80 %", ours >= 0.8 * synced)
        )
        out.append(Figure(what, ours, "MB/s", "the same and sha256", case["settled_mb_per_s"]))
        out.append(Figure(what, ours, "MB/s", "the copy without fsync", case["copy_mb_per_s"]))
        out.append(Figure(what, ours, "MB/s", "h5py appending image by image", case["append_mb_per_s"]))
    return out


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
