"""What payloads see where someone else named the ranges: the right events of the right files, and their numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import inputs_samples as samples
import numpy as np

from droid.channel import CommandPayload
from droid.inputs import InputSet, plan_axis
from droid.payload import Payload, Worker
from droid.randoms import random_for
from eventrange.axis import Axis
from yoda.sources import named_axis


def laid(tmp_path: Path, whole: Axis) -> Axis:
    path = tmp_path / "ranges.json"
    rows = [("p", "a.lhe", 2, 3), ("q", "a.lhe", 7, 9), ("r", "b.lhe", 1, 1), ("s", "b.lhe", 4, 6)]
    entries = [dict(zip(("eventRangeID", "LFN", "startEvent", "lastEvent"), row, strict=True)) for row in rows]
    path.write_text(json.dumps(entries))
    return named_axis(whole, str(path), str(tmp_path))


WANTED = [(0, 1), (0, 2), (0, 6), (0, 7), (0, 8), (1, 0), (1, 3), (1, 4), (1, 5)]  # (file, event), from 0


def test_events_are_read_from_their_places(tmp_path: Path) -> None:
    files = [samples.write(tmp_path / name, samples.lhe_text(10)) for name in ("a.lhe", "b.lhe")]
    whole = plan_axis("lhe", files, None, None, tmp_path / "index")
    axis = laid(tmp_path, whole)
    events = InputSet("lhe", axis, tmp_path / "index")
    everything = [InputSet("lhe", whole, tmp_path / "index").read(start, start + 10) for start in (0, 10)]
    for start in range(axis.total + 1):
        for stop in range(start, axis.total + 1):
            found = [event.text for event in events.read(start, stop)]
            assert found == [everything[file][event].text for file, event in WANTED[start:stop]]
    assert events.input(6) is events.input(5) is not events.input(4)


def test_random_numbers_are_those_of_the_event_in_the_inputs(tmp_path: Path) -> None:
    axis = laid(tmp_path, Axis([("a.lhe", 10), ("b.lhe", 10)]))
    drawn = [random_for(7, 10 * file + event).random() for file, event in WANTED]
    for grouped in (False, True):

        class Draws:
            def process_range(self, events: list[int], randoms: list[np.random.Generator]) -> dict[str, list[float]]:
                return {"x": [random.random() for random in randoms]}

        payload = Payload("draws", Draws() if grouped else lambda event, random: {"x": random.random()})
        payload.start(Worker(0, 1, tmp_path, 7))
        payload.origin = axis.origin
        made = payload.process_events(range(axis.total), range(axis.total))
        assert [fields["x"] for fields in made] == drawn


def test_a_program_is_told_the_events_of_one_stretch_of_a_file(tmp_path: Path) -> None:
    axis = laid(tmp_path, Axis([("in/a.lhe", 10), ("in/b.lhe", 10)]))
    program = tmp_path / "prog"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\nfile, first, last, position, output = sys.argv[1:]\n"
        "with open(output, 'w') as out:\n"
        "    for event in range(int(first), int(last) + 1):\n"
        "        print(json.dumps({'file': file, 'event': event, 'position': int(position)}), file=out)\n"
    )
    program.chmod(0o755)
    words = ["{input}", "{first}", "{last}", "{position}", "{output}"]
    payload = CommandPayload(["./prog", *words], tmp_path, None, axis)
    payload.setup()
    payload.start(Worker(0, 1, tmp_path, 42))
    made = payload.process_events(range(1, 8), range(1, 8))
    told = [(str(fields["file"]), int(fields["event"]), int(fields["position"])) for fields in made]
    a, b = "in/a.lhe", "in/b.lhe"
    assert told == [(a, 3, 2), (a, 7, 6), (a, 8, 6), (a, 9, 6), (b, 1, 10), (b, 4, 13), (b, 5, 13)]
