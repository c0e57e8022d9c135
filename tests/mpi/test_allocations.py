"""Several allocations on one task at once: real runs that start together, join late, are killed, frozen and woken."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import runs
from runs import Place, Running

from eventrange.history import done_records
from eventrange.records import Kind
from yoda.leasedir import Seen, overview
from yoda.status import render, status

EVENTS = 1500
SLOW = runs.LIGHT.replace("    n = int(", "    import time; time.sleep(0.01)\n    n = int(")


#: Says when it begins which event, and in which allocation: one short line in one write.
TELLING = SLOW.replace(
    "    import time;",
    """    import os, time
    begun = b"%d %f %s\\n" % (event, time.monotonic(), os.environ["YODA_TEST_MARK"].encode())
    told = os.open(os.path.join(os.path.dirname(__file__), "begun"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(told, begun)
    os.close(told)
   """,
)


def prepare(place: Place, lease_timeout: float = 3.0) -> str:
    """A job of some ten seconds on one core; returns the sha256 of what an undisturbed run makes of it."""
    place.job(inputs={"format": "generate", "events": EVENTS})
    done = place.run(task="alone")
    assert done.code == 0, done.text
    place.job(SLOW, inputs={"format": "generate", "events": EVENTS})
    place.site(lease_timeout=lease_timeout, grace=5)
    return place.sha256("alone")


def start(place: Place) -> Running:
    return place.start(workers=1)


def twice(place: Place) -> int:
    """Events done more often than once, counted that often."""
    rows, _, _ = done_records(place.task(), place.fingerprint())
    rows = rows[rows["kind"] == Kind.DONE]
    done = int((rows["stop"] - rows["start"]).sum())
    covered = np.zeros(EVENTS, bool)
    for begin, end in zip(rows["start"], rows["stop"], strict=True):
        covered[begin:end] = True
    assert covered.all()
    return done - EVENTS


def done_by(place: Place) -> dict[str, int]:
    rows, index, names = done_records(place.task(), place.fingerprint())
    return {
        name: int((rows["stop"] - rows["start"])[(index == number) & (rows["kind"] == Kind.DONE)].sum())
        for number, name in enumerate(names)
    }


def all_of(run: Running, number: int) -> None:
    """A signal to every process of a run."""
    for process in runs.processes(run.mark):
        run.signal(process.pid, number)


def seen(place: Place) -> dict[str, Seen]:
    return {one.state: one for one in overview(place.task())}


def test_started_together(place: Place) -> None:
    reference = prepare(place)
    both = [start(place), start(place)]
    done = [run.wait() for run in both]
    assert [one.code for one in done] == [0, 0], "\n".join(one.text for one in done)
    assert place.sha256() == reference
    assert twice(place) <= 10
    shares = done_by(place)
    assert len(shares) == 2 and min(shares.values()) > EVENTS // 5, shares
    assert os.listdir(place.task().leases) == [] or seen(place) == {}


@pytest.mark.slow
def test_one_joins_late(place_here: Place) -> None:
    place = place_here
    reference = prepare(place)
    first = start(place)
    first.until(lambda: place.done() > EVENTS // 5, "a fifth is done")
    assert seen(place)["working"].parts > 0
    [lease] = status(place.task())["leases"]
    assert (lease["state"], lease["merges"]) == ("working", False) and lease["parts"] > 0
    assert f"holds {lease['parts']} parts of the axis" in render(status(place.task()), 200)
    second = start(place)
    done = [first.wait(), second.wait()]
    assert [one.code for one in done] == [0, 0], "\n".join(one.text for one in done)
    assert place.sha256() == reference
    assert twice(place) <= 10
    shares = done_by(place)
    assert len(shares) == 2 and min(shares.values()) > EVENTS // 10, shares


@pytest.mark.slow
def test_one_leaves_early(place_here: Place) -> None:
    place = place_here
    reference = prepare(place, lease_timeout=60.0)  # what it held must be free without waiting for that
    leaving, staying = start(place), start(place)
    leaving.until(lambda: place.done() > EVENTS // 5, "a fifth is done")
    for yoda in leaving.find("yoda"):
        leaving.signal(yoda.pid, signal.SIGTERM)
    assert leaving.wait().code == 75
    done = staying.wait(patience=50.0)
    assert done.code == 0, done.text
    assert place.sha256() == reference
    assert twice(place) == 0


@pytest.mark.slow
def test_one_is_killed(place_here: Place) -> None:
    place = place_here
    reference = prepare(place, lease_timeout=60.0)  # on this machine a dead process is noticed without waiting for that
    victim, staying = start(place), start(place)
    victim.until(lambda: place.done() > EVENTS // 3, "a third is done")
    victim.kill_everything()
    done = staying.wait(patience=50.0)
    assert done.code == 0, done.text
    assert "taken over from" in done.err
    assert place.sha256() == reference
    assert twice(place) <= 10


@pytest.mark.slow
def test_killed_and_run_again_at_once(place_here: Place) -> None:
    """The dead one's leases delay nobody (L8), however long the timeout."""
    place = place_here
    reference = prepare(place, lease_timeout=3600.0)
    for part in (1, 2, 3):
        run = start(place)
        run.until(lambda: place.done() > part * EVENTS // 5, f"{part} fifths are done")  # noqa: B023
        run.kill_everything()
        told = status(place.task())  # at once, though its last sign of life is a moment old
        assert {one["state"] for one in told["allocations"]} == {"killed"}, told["allocations"]
        assert "dead; holds" in render(told, 200) and "nothing is running" in render(told, 200)
    done = start(place).wait(patience=60.0)
    assert done.code == 0, done.text
    assert place.sha256() == reference
    assert twice(place) == 0


def test_a_sleeper_wakes_after_its_lease(place_here: Place) -> None:
    """Frozen past its lease; the other takes over; woken, it sees that and goes on with nothing of what it lost."""
    place = place_here
    reference = prepare(place, lease_timeout=2.0)
    (place.folder / "payload.py").write_text(TELLING)
    sleeper, other = start(place), start(place)
    sleeper.until(lambda: place.done() > EVENTS // 5, "a fifth is done")
    all_of(sleeper, signal.SIGSTOP)
    other.until(lambda: any(note.get("from") for note in place.notes("claimed")), "its parts are taken over")
    woken = time.monotonic()
    all_of(sleeper, signal.SIGCONT)
    done: list[Any] = [sleeper.wait(), other.wait()]
    assert [one.code for one in done] == [0, 0], "\n".join(one.text for one in done)
    assert place.sha256() == reference
    assert place.notes("lost_parts"), done[0].text
    # What was in flight when it froze is done twice: it is not durable, and the other cannot know of it.
    assert twice(place) <= EVENTS // 4
    # What had not begun then is not, but for the moment in which the news comes to the workers.
    lines = [line.split() for line in (place.folder / "begun").read_text().splitlines()]
    theirs = {event for event, _, mark in lines if mark == other.mark}
    late = [event for event, when, mark in lines if mark == sleeper.mark and float(when) > woken and event in theirs]
    assert len(late) <= EVENTS // 20, late


@pytest.mark.slow
def test_no_work_left_while_another_holds_it(place_here: Place) -> None:
    """An allocation is not burnt idle: it ends with 75 and says who is at work."""
    place = place_here
    code = SLOW.replace("0.01", "300.0 if event == 7 else 0.0")
    place.job(code, inputs={"format": "generate", "events": 8}, ranges={"events": 1})
    place.site(lease_timeout=1.0, grace=1)
    busy = start(place)
    busy.until(lambda: place.done() == 7, "one event is left")
    done = start(place).wait()
    assert done.code == 75, done.text
    assert "being worked on by" in done.err
    busy.kill_everything()
