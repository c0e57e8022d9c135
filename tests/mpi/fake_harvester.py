"""The other side of the files: what the shared-file messenger of PanDA's Harvester does in a worker's access point.

    fake_harvester.py ACCESS_POINT RANGES [N]  puts JobsEventRanges.json there, in two writes, as it prefetches ranges;
                                               then takes every event_status.dump.json until `stop` is there;
                                               with N it waits to be asked, and gives N ranges at a time at most

A dump that is no dict of lists is deleted, and its updates are lost. A good one is renamed to .read, every file in it
is looked at (size, adler32, a tar member that ends with the range's ID), and then it is renamed again: acknowledged.
What became of every range is in `taken.json`.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any


def adler32(path: Path) -> str:
    return f"{zlib.adler32(path.read_bytes()):08x}"


def look_at(entry: dict[str, Any], archives: dict[str, set[str]]) -> str:
    """What is wrong with one entry; empty if nothing is."""
    if None in entry.values():
        return "a null counts as given"
    if entry["eventStatus"] not in ("finished", "failed"):
        return f"unknown status {entry['eventStatus']}"
    if "path" not in entry:
        return "" if entry["eventStatus"] == "failed" else "finished without a file"
    path = Path(entry["path"])
    if entry["type"] != "zip_output" or not path.is_file():
        return f"{path}: no archive"
    if entry["path"] not in archives:
        if entry["fsize"] != path.stat().st_size or entry["chksum"] != adler32(path):
            return f"{path}: size or checksum is wrong"
        with tarfile.open(path) as tar:
            archives[entry["path"]] = {name.rpartition(".")[2] for name in tar.getnames()}
    return "" if entry["eventRangeID"] in archives[entry["path"]] else f"{path}: no member of {entry['eventRangeID']}"


def take(folder: Path, taken: dict[str, list[str]], wrong: list[str]) -> None:
    dump = folder / "event_status.dump.json"
    if not dump.exists() or (folder / "event_status.dump.json.read").exists():
        return
    try:
        found = json.loads(dump.read_text())
        assert isinstance(found, dict) and all(isinstance(entries, list) for entries in found.values())
    except (ValueError, AssertionError):
        dump.unlink()
        wrong.append("a dump was deleted")
        return
    read = dump.rename(folder / "event_status.dump.json.read")
    archives: dict[str, set[str]] = {}
    for panda_id, entries in found.items():
        for entry in entries:
            if text := look_at(entry, archives):
                wrong.append(text)
            taken.setdefault(entry["eventRangeID"], []).append(f"{panda_id} {entry['eventStatus']}")
    read.rename(folder / time.strftime(f"event_status.dump.json.read.%Y-%m-%d_%H_%M_%S.{time.time_ns()}"))


def feed(folder: Path, ranges: dict[str, Any]) -> None:
    text = json.dumps(ranges)
    with open(folder / "JobsEventRanges.json", "w") as out:
        out.write(text[: len(text) // 2])
        out.flush()
        time.sleep(0.2)
        out.write(text[len(text) // 2 :])


def answer(folder: Path, left: dict[str, Any], most: int, wrong: list[str]) -> None:
    """Give what is asked for, and remove the question."""
    question = folder / "worker_requestevents.json"
    if not question.exists():
        return
    ((panda_id, asked),) = json.loads(question.read_text()).items()
    if set(asked) != {"pandaID", "taskID", "jobsetID", "nRanges"} or asked["pandaID"] != panda_id:
        wrong.append(f"asked with {asked}")
    if (folder / "JobsEventRanges.json").exists():
        wrong.append("asked for more while some are there")
    count = min(most, int(asked["nRanges"]))
    feed(folder, {panda_id: left[panda_id][:count]})
    del left[panda_id][:count]
    question.unlink()


def main(folder: Path, ranges: Path, most: int = 0) -> None:
    left = json.loads(ranges.read_text())
    if not most:
        feed(folder, left)
        (folder / "fed").touch()
    taken: dict[str, list[str]] = {}
    wrong: list[str] = []
    while True:
        last = (folder / "stop").exists()
        if most:
            answer(folder, left, most, wrong)
        take(folder, taken, wrong)
        (folder / "taken.tmp").write_text(json.dumps({"taken": taken, "wrong": wrong}))
        os.replace(folder / "taken.tmp", folder / "taken.json")
        if last:
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
