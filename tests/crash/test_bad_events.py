"""Bad events under a real mpiexec (L6): each costs itself and nothing else, and what is known of it is kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from runs import Place

from eventrange.records import Code, Kind

#: One payload for every way an event can go wrong. `BAD` says which event does what; removing its entry is the fix.
BAD = """
import ctypes, os, signal, sys, time
import numpy as np

BAD = {bad}

def process(event, random):
    what = BAD.get(event)
    out = {{"x": random.normal(size=2), "n": np.int64(event)}}
    if what is None:
        return out
    print("now comes", what, file=sys.stderr, flush=True)
    if what == "raise":
        raise RuntimeError("event of no good")
    if what == "exit":
        os._exit(3)
    if what == "sys.exit":
        sys.exit(3)
    if what == "late":
        begun = time.process_time()
        while time.process_time() < begun + 0.3:
            pass
    if what in ("segfault", "late"):
        ctypes.string_at(0)
    if what == "abort":
        os.abort()
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "memory":
        kept = [np.empty(1 << 24) for _ in range(1000)]
    if what == "hang":
        while True:
            pass
    if what == "sleep":
        time.sleep(1000)
    if what == "nan":
        raise ValueError("NaN in x is forbidden here")
    if what == "fields":
        return {{"x": out["x"]}}
    if what == "dtype":
        return {{**out, "n": np.float32(1)}}
    if what == "rank":
        return {{**out, "x": np.ones((2, 2))}}
    if what == "nothing":
        return None
    if what == "no dict":
        return 5
    if what == "object":
        return {{**out, "n": object()}}
    if what == "recursion":
        def again(): again()
        again()
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "babble":
        for _ in range(300):
            sys.stdout.write("much ado " * 1000)
            os.write(2, b"about nothing " * 1000)
        sys.stdout.flush()
    return out
"""

CODES = {
    "raise": Code.EXCEPTION,
    "exit": Code.EXITED,
    "sys.exit": Code.EXCEPTION,
    "segfault": Code.EXITED,
    "abort": Code.EXITED,
    "kill": Code.EXITED,
    "memory": Code.MEMORY,
    "hang": Code.TIMEOUT,
    "sleep": Code.TIMEOUT,
    "nan": Code.EXCEPTION,
    "fields": Code.FIELDS,
    "dtype": Code.FIELDS,
    "rank": Code.FIELDS,
    "nothing": Code.FIELDS,
    "no dict": Code.FIELDS,
    "object": Code.FIELDS,
    "recursion": Code.EXCEPTION,
    "interrupt": Code.EXCEPTION,
}


def job(place: Place, bad: dict[int, str], events: int, **keys: Any) -> None:
    place.job(BAD.format(bad=bad), "process", inputs={"format": "generate", "events": events}, **keys)


def merged_events(place: Place) -> list[int]:
    with h5py.File(Path(place.task().merged) / "test.h5") as file:
        return file["event"][:].tolist()


def test_every_kind_of_bad_event_costs_itself(place_here: Place) -> None:
    """All kinds at once, far apart and side by side: exactly these are quarantined, each with what is known of it."""
    place = place_here
    kinds = list(CODES)
    bad = {10 * i + 5: what for i, what in enumerate(kinds)} | {
        191: "raise",
        192: "segfault",
        193: "exit",
        194: "abort",
    }
    bad |= {0: "raise", 199: "raise"}
    job(place, bad | {7: "babble", 8: "babble"}, 200, payload={"memory": "3GiB"}, ranges={"timeout": 1.5})
    done = place.run()
    assert done.code == 65, done.text
    known = place.progress()
    assert known.quarantined.total == len(bad), (list(known.quarantined), done.text)
    assert {event for pair in known.quarantined for event in range(*pair)} == set(bad)
    assert merged_events(place) == [event for event in range(200) if event not in bad]
    evidence: dict[int, list[dict[str, Any]]] = {}
    for note in place.notes("evidence"):
        evidence.setdefault(note["event"], []).append(note)
    assert set(evidence) == set(bad)
    for event, what in bad.items():
        for note in evidence[event]:
            assert note["code"] == CODES[what], (what, note)
            assert f"now comes {what}" in note["stderr"], (what, note)
            assert note["text"], what
        assert sorted(note["attempt"] for note in evidence[event]) == [0, 1, 2], what
    said = {what: evidence[event][0]["text"] for event, what in bad.items()}
    assert "RuntimeError: event of no good" in said["raise"] and "payload.py" in said["raise"]
    assert "ValueError: NaN in x is forbidden here" in said["nan"]
    assert "status 3" in said["exit"]
    assert "SIGSEGV" in said["segfault"] and "SIGABRT" in said["abort"] and "SIGKILL" in said["kill"]
    assert "MemoryError" in said["memory"]
    assert "limit" in said["hang"]
    hang = evidence[next(e for e, what in bad.items() if what == "hang")]
    assert all(note["cpu"] > 0 and note["wall"] > 1 for note in hang), hang
    assert all(re.search("[0-9]", note["host"]) or note["host"] for note in hang)


def test_one_bad_event_of_twenty_costs_exactly_one_and_a_fix_completes(place_here: Place) -> None:
    """In one range of twenty: the segfault is found, nineteen are done; after the repair the task completes."""
    place = place_here
    job(place, {13: "late"}, 20, ranges={"events": 20})
    done = place.run()
    assert done.code == 65, done.text
    assert "13" in done.err, "the quarantined event is named"
    assert list(place.progress().quarantined) == [(13, 14)]
    assert merged_events(place) == [event for event in range(20) if event != 13]
    failed = np.concatenate([rows[rows["kind"] == Kind.FAILED] for _, rows in place.story()])
    assert len(failed) == 3
    for seconds in (*failed["cpu"].tolist(), *(note["cpu"] for note in place.notes("evidence"))):
        assert 0.29 <= seconds < 1, "CPU of the event, not of the worker's life"
    assert all(failed["wall"] >= 0.29), "known to better than a tick"
    assert place.notes("spent")[-1]["starting"] > 0
    (merged,) = place.notes("merged")
    assert merged["exit_code"] == 0 and place.notes("merging"), "the journal tells of the merge"
    assert sum(events for _, events in place.notes("times")[-1]["times"]) == 19, "of single events, though one range"
    done = place.run()
    assert done.code == 65, "nothing to do but to say so\n" + done.text
    job(place, {}, 20, ranges={"events": 20})
    done = place.run("--retry-quarantined")
    assert done.code == 0, done.text
    assert merged_events(place) == list(range(20))
    assert place.progress().quarantined.total == 0


def test_bad_events_in_groups_are_found_one_by_one(place_here: Place) -> None:
    """process_range: a group that raises, or kills its worker, is taken apart until the event to blame is alone."""
    place = place_here
    code = (
        BAD.format(bad={31: "raise", 57: "segfault", 58: "raise"})
        + """
class Groups:
    def process_range(self, events, randoms):
        made = [process(event, random) for event, random in zip(events, randoms)]
        return {name: [fields[name] for fields in made] for name in made[0]}
"""
    )
    place.job(code, "Groups", inputs={"format": "generate", "events": 80}, ranges={"events": 20})
    done = place.run()
    assert done.code == 65, done.text
    assert list(place.progress().quarantined) == [(31, 32), (57, 59)], done.text
    assert merged_events(place) == [e for e in range(80) if e not in (31, 57, 58)]


def test_an_event_that_fails_now_and_then_is_done_in_the_end(place_here: Place) -> None:
    """A first attempt that fails is no quarantine: other attempts follow, on another worker."""
    place = place_here
    code = f"""
import os, pathlib
SEEN = pathlib.Path({str(place.folder / "seen")!r})

def process(event, random):
    if event in (3, 4, 50):
        SEEN.mkdir(exist_ok=True)
        tried = len(list(SEEN.glob(f"{{event}}-*")))
        (SEEN / f"{{event}}-{{tried}}").touch()
        if tried < 2:
            os._exit(1) if event == 4 else 1 / 0
    return {{"x": random.normal()}}
"""
    place.job(code, "process", inputs={"format": "generate", "events": 60})
    done = place.run()
    assert done.code == 0, done.text
    assert merged_events(place) == list(range(60))


def test_output_of_a_payload_never_fills_the_disk(place_here: Place) -> None:
    """Megabytes printed by every event are cut back, also while one range lasts."""
    place = place_here
    job(place, {event: "babble" for event in range(40)}, 40, ranges={"events": 1})
    done = place.run()
    assert done.code == 0, done.text
    assert len(done.err) < 100_000 and "about nothing" not in done.out


@pytest.mark.parametrize(
    ("code", "name", "words"),
    [
        ("import nothing_of_that_name", "light", ["nothing_of_that_name", "payload.py"]),
        ("class A:\n    def process(self, e, r): pass\n    def setup(self): 1 / 0", "A", ["setup", "ZeroDivision"]),
        ("class A:\n    def process(self, e, r): pass\n    def start(self, w): 1 / 0", "A", ["start", "ZeroDivision"]),
        ("import ctypes\nclass A:\n    def process(self, e, r): pass\n    def setup(self): ctypes.string_at(0)", "A",
         ["SIGSEGV"]),
        ("import os\nclass A:\n    def process(self, e, r): pass\n    def start(self, w): os._exit(9)", "A",
         ["status 9"]),
    ],
    ids=["import", "setup", "start", "setup-segfault", "start-exit"],
)  # fmt: skip
def test_a_payload_that_cannot_begin_is_said_at_once(place_here: Place, code: str, name: str, words: list[str]) -> None:
    """Nothing is processed, the reason is on the screen, exit 78, and no process is left."""
    place = place_here
    place.job(code, name, inputs={"format": "generate", "events": 50})
    done = place.run()
    assert done.code == 78, done.text
    for word in words:
        assert word in done.err, (word, done.text)
    assert place.progress().done.total == 0
    assert place.progress().attempts == {}


#: Every other event has a child, which ends in one of the ways that lead back into the code that called the payload.
FORKS = """
import os, sys
import numpy as np

def process(event, random):
    x = random.normal(size=20_000)
    if event % 2 == 0:
        pid = os.fork()
        if pid == 0:
            if event % 6 == 0:
                sys.exit(0)
            if event % 6 == 2:
                raise RuntimeError("only the child's affair")
            return {"x": -x}
        os.waitpid(pid, 0)
    return {"x": x}
"""


def test_children_of_a_payload_have_no_part_in_what_it_is_to_do(place_here: Place) -> None:
    place_here.job(FORKS, "process", inputs={"format": "generate", "events": 40})
    done = place_here.run(workers=2)
    assert done.code == 0, done.text
    assert place_here.notes("failed") == []
    with h5py.File(Path(place_here.task().merged) / "test.h5") as file:
        assert file["event"][:].tolist() == list(range(40)) and file["x"].shape == (40, 20_000)
        found = file["x"][:]
    place_here.job(FORKS.replace("event % 2 == 0", "False"), "process", inputs={"format": "generate", "events": 40})
    assert place_here.run(task="calm", workers=2).code == 0
    with h5py.File(Path(place_here.task("calm").merged) / "test.h5") as file:
        assert (file["x"][:] == found).all()
    assert place_here.run(command="verify").code == 0
