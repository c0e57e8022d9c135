"""Output: bytes a second from payloads into durable segments, beside write + fdatasync of the same bytes by one
process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchlib import Figure, alternate, median, workspace, write_job, yoda


def run(quick: bool = False) -> dict[str, Any]:
    """Megabytes per second, all rounds; ours from the first grant to the end, everything fsynced."""
    size = 1 << 20
    events, rounds = (32, 1) if quick else (768, 3)
    with workspace() as folder:
        job = write_job(folder, "blob", "Blob", events, options={"size": size}, ranges={"events": 4})
        cases = {"yoda": lambda: _ours(job, events * size), "raw": lambda: _raw(folder, events, size)}
        found = alternate(cases, rounds)
    return {"megabytes": events * size / 1e6, "megabytes_per_second": found}


def _ours(job: Path, size: int) -> float:
    outcome = yoda(job)
    for name in Path(outcome.taskdir.root, "segments").rglob("*.tar"):
        name.unlink()
    return size / 1e6 / (outcome.end_note - outcome.first_grant)


def _raw(folder: Path, events: int, size: int) -> float:
    data = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8).tobytes()
    path = folder / "raw"
    begin = time.monotonic()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(events):
        os.write(fd, data)
        if number % 64 == 63:  # as often as a Droid commits
            os.fdatasync(fd)
    os.fdatasync(fd)
    os.close(fd)
    seconds = time.monotonic() - begin
    path.unlink()
    return events * size / 1e6 / seconds


def figures(result: dict[str, Any]) -> list[Figure]:
    """Ours over the raw disk; ours checksums every byte four times on the way."""
    rates = {name: median(values) for name, values in result["megabytes_per_second"].items()}
    return [Figure("durable output", rates["yoda"], "MB/s", "write + fdatasync, no checksum", rates["raw"])]
