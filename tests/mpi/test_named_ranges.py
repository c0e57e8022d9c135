"""Ranges that someone else named, end to end: killed and resumed, drained, with a bad event; names, bytes, errors."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_harvester
import h5py
import numpy as np
import pytest
import runs
from runs import Place

from eventrange.axis import Axis
from eventrange.segment import scan
from yoda.task import need_task

EVENTS = 2000
LISTED = '''
import os, time
import numpy as np

def listed(event, random):
    """Says which event it is; slow where the test wants to hit it, and bad where it wants that."""
    time.sleep(float(os.environ.get("SLOW", "0")))
    if str(event) == os.environ.get("BAD"):
        raise ValueError("bad")
    return {"at": np.int64(event), "x": random.normal(size=event % 3)}
'''


def named(place: Place, seed: int = 1, most: int = 12, form: str = "list", **keys: Any) -> list[tuple[str, int, int]]:
    """A job with ranges of 1 to `most` events and gaps between them; returns (name, first, last), 1-based, in order."""
    rng = random.Random(seed)
    found, first = [], 1
    while (last := first + rng.randrange(most)) < EVENTS:
        found.append((f"8848710-3005-{first}-{rng.randrange(10)}", first, last))
        first = last + 1 + rng.choice([0, 0, 0, rng.randrange(20)])
    entries = [{"eventRangeID": n, "LFN": "generate", "startEvent": a, "lastEvent": b} for n, a, b in found]
    rng.shuffle(entries)
    content: Any = {"3005": entries} if form == "groups" else entries
    (place.folder / "ranges.json").write_text(json.dumps(content))
    place.job(LISTED, "listed", inputs={"format": "generate", "events": EVENTS}, ranges={"file": "ranges.json"} | keys)
    return found


def events(ranges: list[tuple[str, int, int]]) -> list[int]:
    return [event for _, first, last in ranges for event in range(first - 1, last)]


def members(place: Place, task: str = "task") -> list[str]:
    folder = Path(place.task(task).root) / "segments"
    return [member.name for path in sorted(folder.glob("*/*.tar")) for member in scan(str(path)) if member.intact]


def merged(place: Place, task: str = "task") -> dict[str, np.ndarray[Any, Any]]:
    (path,) = Path(place.task(task).merged).glob("*.h5")
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def said(place: Place, *words: str, task: str = "task") -> str:
    command = [place.mpi.python, runs.ENTRY, words[0], place.task(task).root, *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_killed_and_resumed_every_named_event_is_there_once(place: Place) -> None:
    """Same bytes as undisturbed; images called by their names; the random numbers of a task with all events."""
    ranges = named(place)
    done = place.run(task="one", workers=1)
    assert done.code == 0, done.text
    assert sorted(members(place, "one")) == sorted(f"test.{name}" for name, _, _ in ranges)
    assert merged(place, "one")["at"].tolist() == events(ranges)
    before = -1
    for _ in range(2):
        run = place.start(task="two", ranks=3, env={"SLOW": "0.003"})
        after = before + random.randrange(1, (len(events(ranges)) - before) // 3)  # there are more when it is killed
        run.until(lambda: place.done("two") > after, f"more than {after} events done")  # noqa: B023
        run.kill_everything()
        before = place.done("two")
    done = place.run(task="two", ranks=3)
    assert done.code == 0, done.text
    assert place.sha256("two") == place.sha256("one")
    assert not runs.granted_again(place.story("two"))
    assert {name.removeprefix("test.") for name in members(place, "two")} == {name for name, _, _ in ranges}
    place.job(LISTED, "listed", inputs={"format": "generate", "events": EVENTS})
    done = place.run(task="all", workers=2)
    assert done.code == 0, done.text
    everything, some = merged(place, "all"), merged(place, "one")
    ends = np.cumsum(everything["x_count"])
    x = [everything["x"][ends[at] - everything["x_count"][at] : ends[at]] for at in events(ranges)]
    assert np.array_equal(np.concatenate(x), some["x"]), "an event is the same whichever ranges are named"


def test_drained_and_with_a_bad_event(place_here: Place) -> None:
    """Long ranges are cut by a drain, and what was done of them is kept; a bad event costs itself alone."""
    place = place_here
    ranges = named(place, most=400, form="groups", max_attempts=2)
    bad = ranges[1][1]  # the second of its range, counted from 0
    run = place.start(task="task", workers=2, env={"SLOW": "0.005"})
    run.until(lambda: place.done() > 0, "a range is done")  # and its worker is on the next
    run.signal(run.process.pid, signal.SIGTERM)
    done = run.wait()
    assert done.code == 75, done.text
    kept = place.done()
    assert 0 < kept < len(events(ranges)), "the beginnings of ranges are kept"
    state = json.loads(said(place, "status", "--json"))["named_ranges"]
    assert state["total"] == len(ranges) and state["failed"] == 0 and state["done"] < len(ranges)
    done = place.run(env={"BAD": str(bad)})
    assert done.code in (0, 65), done.text
    lines = [json.loads(line) for line in said(place, "ranges", "--json").splitlines()[1:]]
    assert [(row["range"], row["first"], row["last"], row["group"]) for row in lines] == [
        (name, first, last, "3005") for name, first, last in ranges
    ]
    failed = {row["range"] for row in lines if row["state"] == "failed"}
    assert failed == ({ranges[1][0]} if done.code == 65 else set())
    parts = [row for row in lines if len(row["members"]) > 1]
    assert parts, "somebody was interrupted"
    for row in lines:
        names = [member["member"] for member in row["members"]]
        if len(names) == 1:
            assert names == [f"test.{row['range']}"]
            continue
        assert all(name.startswith(f"test.{row['range']}.") for name in names)
        numbers = [tuple(map(int, name.rpartition(".")[2].split("-"))) for name in names]
        covered = [event for first, last in numbers for event in range(first, last + 1)]
        assert covered == [e for e in range(row["first"], row["last"] + 1) if row["state"] == "done" or e != bad + 1]
    assert set(members(place)) >= {member["member"] for row in lines for member in row["members"]}
    state = json.loads(said(place, "status", "--json"))["named_ranges"]
    assert state == {"total": len(ranges), "done": len(ranges) - len(failed), "failed": len(failed)}
    assert merged(place)["at"].tolist() == [e for e in events(ranges) if not failed or e != bad]
    assert ranges[0][0] in said(place, "explain", ranges[0][0])
    assert not runs.granted_again(place.story())


def test_a_changed_list_is_refused_and_a_lost_copy_is_made_again(place_here: Place) -> None:
    place = place_here
    named(place)
    done = place.run(workers=1)
    assert done.code == 0, done.text
    frozen = need_task(place.task())
    copy = Path(frozen.axis["ranges"]["path"])
    text = (place.folder / "ranges.json").read_text()
    (place.folder / "ranges.json").write_text(json.dumps(json.loads(text), indent=1))
    assert place.run(workers=1).code == 0, "the same list, written in another way"
    copy.unlink()
    assert place.run(workers=1).code == 0
    assert Axis.from_dict(need_task(place.task()).axis).total == Axis.from_dict(frozen.axis).total
    (place.folder / "ranges.json").write_text(json.dumps(json.loads(text)[:-1]))
    done = place.run(workers=1)
    assert done.code == 78 and "ranges.file: ranges.json" in done.text, done.text
    assert [path.name for path in copy.parent.glob("ranges-*")] == [copy.name]
    place.job(LISTED, "listed", inputs={"format": "generate", "events": EVENTS})
    done = place.run(workers=1)
    assert done.code == 78 and "(not there)" in done.text, done.text


def test_harvester_gives_ranges_and_takes_what_is_done(place_here: Place) -> None:
    """Through its files, with a process on the other side: drained, killed, gone on; each range is reported once."""
    place = place_here
    ranges = named(place, most=60, form="groups", max_attempts=2)
    point = place.folder / "access"
    point.mkdir()
    source = (place.folder / "ranges.json").rename(place.folder / "source.json")
    words = [sys.executable, fake_harvester.__file__, str(point), str(source)]
    with subprocess.Popen(words) as harvester:
        try:
            until = time.monotonic() + 20
            while not (point / "fed").exists() and time.monotonic() < until:
                time.sleep(0.05)
            place.job(
                LISTED,
                "listed",
                inputs={"format": "generate", "events": EVENTS},
                ranges={"file": "access/JobsEventRanges.json", "max_attempts": 2},
            )
            dump = str(point / "event_status.dump.json")
            bad = str(ranges[-1][1])
            for number in (signal.SIGTERM, signal.SIGKILL, 0):
                run = place.start(env={"SLOW": "0.003" if number else "0", "BAD": bad})
                if number:
                    before = place.done()
                    run.until(lambda: place.done() > before + 150, "some events are done")  # noqa: B023
                    run.signal(run.process.pid, number) if number == signal.SIGTERM else run.kill_everything()
                if number != signal.SIGKILL:
                    assert run.wait().code in (75, 65)
                until = time.monotonic() + 20
                while Path(dump).exists() and time.monotonic() < until:
                    time.sleep(0.05)
                print(said(place, "ranges", "--harvester", dump))
        finally:
            (point / "stop").touch()
            assert harvester.wait(20) == 0
    seen = json.loads((point / "taken.json").read_text())
    assert seen["wrong"] == []
    failed = [name for name, first, last in ranges if first <= int(bad) + 1 <= last]
    assert seen["taken"] == {name: ["3005 failed" if name in failed else "3005 finished"] for name, _, _ in ranges}
    gathered = [member.name for path in point.glob("*.tar") for member in scan(str(path))]
    assert gathered, "there were ranges in parts, and an open segment"
    assert said(place, "ranges", "--harvester", dump).startswith("0 ranges finished")
    assert not Path(dump).exists()


def test_a_range_in_parts_is_gathered_as_if_done_in_one_go(place_here: Place) -> None:
    """Whichever way its parts were cut, the image that Harvester gets has the same bytes."""
    place = place_here
    named(place, most=400)
    done = place.run(task="one", workers=1)
    assert done.code == 0, done.text
    run = place.start(task="two", env={"SLOW": "0.004"})
    run.until(lambda: place.done("two") > 0 or run.process.poll() is not None, "it is at work")
    run.signal(run.process.pid, signal.SIGTERM)
    assert run.wait().code == 75
    assert place.run(task="two").code == 0
    parts = [
        row
        for row in map(json.loads, said(place, "ranges", "--json", task="two").splitlines()[1:])
        if len(row["members"]) > 1
    ]
    assert parts, "somebody was interrupted"
    dump = place.folder / "event_status.dump.json"
    said(place, "ranges", "--harvester", str(dump), "--panda-id", "7", task="two")
    (archive,) = place.folder.glob("event_status.dump.*.tar")
    whole = {
        row["range"]: row["members"][0]
        for row in map(json.loads, said(place, "ranges", "--json", task="one").splitlines()[1:])
    }
    found = {member.name: member for member in scan(str(archive))}
    assert set(found) == {f"test.{row['range']}" for row in parts}
    for row in parts:
        assert f"{found['test.' + row['range']].crc:08x}" == whole[row["range"]]["checksum"]


@pytest.mark.slow
def test_harvest_asks_for_ranges_until_there_are_no_more(place_here: Place) -> None:
    """With a process that plays Harvester on the other side of the files: stopped in between, gone on, all reported."""
    place = place_here
    ranges = named(place, most=30, form="groups")
    point = place.folder / "access"
    point.mkdir()
    source = (place.folder / "ranges.json").rename(place.folder / "source.json")
    (point / "HPCJobs.json").write_text(json.dumps({"3005": {"taskID": 8848710, "jobsetID": 77, "jobPars": "-x"}}))
    place.job(LISTED, "listed", inputs={"format": "generate", "events": EVENTS}, output={"merge": False})
    most = len(ranges) // 3 + 1
    words = [
        place.mpi.python,
        runs.ENTRY,
        "harvest",
        str(place.job_file),
        "--access-point",
        str(point),
        "--workers",
        "2",
    ]
    words += ["--task", str(place.folder / "deliveries")]

    def start(slow: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, env={**place.mpi.environment(), "SLOW": slow})

    with subprocess.Popen([sys.executable, fake_harvester.__file__, str(point), str(source), str(most)]) as harvester:
        try:
            first = start("0.01")
            until = time.monotonic() + 60
            while not list(place.folder.glob("deliveries/0001/task/journal/*")) and time.monotonic() < until:
                time.sleep(0.1)
            time.sleep(2.0)
            first.send_signal(signal.SIGTERM)
            assert first.wait(90) == 75
            assert start("0").wait(200) == 0
            until = time.monotonic() + 30
            while (point / "event_status.dump.json").exists() and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            (point / "stop").touch()
            assert harvester.wait(30) == 0
    seen = json.loads((point / "taken.json").read_text())
    assert seen["wrong"] == []
    assert seen["taken"] == {name: ["3005 finished"] for name, _, _ in ranges}
    assert [path.name for path in sorted((place.folder / "deliveries").iterdir())] == ["0001", "0002", "0003"]
    assert (point / "worker_heartbeat.json").exists() and not (point / "JobsEventRanges.json").exists()
