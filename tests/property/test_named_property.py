"""Named ranges: whatever someone else wrote, the axis holds every event of every range exactly once, under its name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import random
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from droid.holding import Holding
from droid.pace import Pace
from eventrange.axis import Axis
from eventrange.ledger import Ledger
from yoda.allot import Allotment
from yoda.droids import Droid
from yoda.sources import named_axis

NAMES = st.text(st.characters(blacklist_characters="/", blacklist_categories=("Cc", "Cs")), min_size=1, max_size=12)


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[int], list[dict[str, Any]]]:
    """Events of some files, and ranges in them: {eventRangeID, file, first, last}, in any order."""
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    found: list[dict[str, Any]] = []
    for number, count in enumerate(counts):
        edges = sorted(draw(st.sets(st.integers(0, count), max_size=8)))
        for start, stop in pairwise(edges):
            if draw(st.booleans()):
                found.append({"file": number, "first": start + 1, "last": stop})
    names = draw(st.lists(NAMES, min_size=len(found), max_size=len(found), unique=True))
    for name, entry in zip(names, found, strict=True):
        entry["eventRangeID"] = name
    return counts, draw(st.permutations(found))


def write(folder: Path, counts: list[int], named: list[dict[str, Any]], form: str, numbering: str, packed: bool) -> str:
    before = [sum(counts[:number]) if numbering == "inputs" else 0 for number in range(len(counts))]
    entries = [
        {
            "eventRangeID": entry["eventRangeID"],
            "LFN": f"f{entry['file']}",
            "startEvent": before[entry["file"]] + entry["first"],
            "lastEvent": before[entry["file"]] + entry["last"],
        }
        for entry in named
    ]
    if form == "csv":
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(entries[0]))
        writer.writeheader()
        writer.writerows(entries)
        text = out.getvalue()
    elif form == "lines":
        text = "\n".join(json.dumps(entry) for entry in entries)
    else:
        text = json.dumps({"1": entries} if form == "groups" else entries, ensure_ascii=form == "list")
    path = folder / "ranges"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return str(path)


@settings(max_examples=150, deadline=None)
@given(data=lists(), forms=st.data())
def test_the_axis_is_the_named_ranges(data: tuple[list[int], list[dict[str, Any]]], forms: st.DataObject) -> None:
    counts, named = data
    if not named:
        return
    whole = Axis([(f"d/f{number}", count) for number, count in enumerate(counts)])
    form = forms.draw(st.sampled_from(["list", "groups", "lines", "csv"]))
    numbering, packed = forms.draw(st.sampled_from(["file", "inputs"])), forms.draw(st.booleans())
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), counts, named, form, numbering, packed)
        axis = named_axis(whole, path, folder, numbering)
        other = named_axis(whole, write(Path(folder), counts, named, "list", "file", False), folder)
        assert [entry.name for entry in Path(folder).glob("ranges-*")] == [Path(axis.to_dict()["ranges"]["path"]).name]
    assert other == axis, "neither format nor numbering are part of what the ranges are"
    ranges = axis.ranges
    assert ranges is not None and ranges.count == len(named)
    ranges.check()
    written_out = []
    positions = {}
    for entry in sorted(named, key=lambda entry: (entry["file"], entry["first"])):
        begin = len(written_out)
        written_out += [(entry["file"], event - 1) for event in range(entry["first"], entry["last"] + 1)]
        positions[entry["eventRangeID"]] = begin, len(written_out)
    assert axis.total == len(written_out) == sum(file.events for file in axis.files)
    assert [axis.locate(position) for position in range(axis.total)] == written_out
    assert [axis.origin(position) for position in range(axis.total)] == [
        whole.files[number].start + event for number, event in written_out
    ]
    for number, (name, (start, stop)) in enumerate(sorted(positions.items(), key=lambda item: item[1])):
        assert ranges.name(number) == name and ranges.find(name) == number
        assert ranges.bounds(number) == (start, stop)
        assert ranges.group(number) == ("1" if form == "groups" else "")
        assert name != name.strip() or axis.parse(name) == (start, stop)
        assert all(ranges.number(position) == number for position in range(start, stop))
        assert axis.member("task", start, stop) == f"task.{name}"
        if stop - start > 1:
            first = written_out[start][1] + 1
            assert axis.member("task", start, stop - 1) == f"task.{name}.{first}-{first + stop - start - 2}"
    assert ranges.find("nobody is called that") is None and ranges.find("") is None
    start = forms.draw(st.integers(0, axis.total))
    stop = forms.draw(st.integers(start, axis.total))
    pieces = axis.pieces(start, stop)
    assert [(n, e) for n, a, b in pieces for e in range(a, b)] == written_out[start:stop]
    assert all(one[0] != two[0] or one[2] < two[1] for one, two in pairwise(pieces)), "no piece could be longer"
    if not any(set(name) <= set("0123456789-#f:") for name in positions):  # a name comes before what it looks like
        assert sum(b - a for a, b in map(axis.parse, axis.names(start, stop))) == stop - start
    edges = sorted(forms.draw(st.sets(st.integers(0, axis.total), max_size=6)))
    pairs = np.array(edges[: len(edges) // 2 * 2], np.int64).reshape(-1, 2)
    inside = sum(any(a <= low and high <= b for a, b in pairs.tolist()) for low, high in positions.values())
    assert ranges.inside(pairs[:, 0], pairs[:, 1]) == inside
    again = pickle.loads(pickle.dumps(ranges)) if Path(ranges.path).exists() else ranges
    assert again.sha256 == ranges.sha256


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(0, 1 << 30))
def test_ranges_are_worked_on_as_they_stand(lengths: list[int], seed: int) -> None:
    """Droids are granted, hand to workers, give back, and are cut off in the middle of ranges: every event is done
    once, no worker's range crosses an edge, and what was never begun stays whole."""
    rng = random.Random(seed)
    cuts = memoryview(np.cumsum([0, *lengths], dtype=np.int64))
    total = cuts[-1]
    ledger = Ledger(total)
    ledger.pending.add(0, total)
    allot = Allotment(ledger, cuts, 4, total, whole=True)
    droids = [(Droid(number, "host", 1, allot.cursor(number)), Holding(2, Pace(2))) for number in range(3)]
    wholes = set(pairwise(cuts))
    begun: set[tuple[int, int]] = set()
    done = np.zeros(total, int)
    for _, holding in droids:
        holding.cuts, holding.size = cuts, -(-total // len(lengths))
        for worker in holding.workers:
            worker.state = "ready"
    while ledger.open:
        droid, holding = rng.choice(droids)
        droid.want = rng.randrange(1, 20)
        holding.backlog.extend(allot.take(droid, 0, 3))
        holding.pace.measure(1e-3, rng.randrange(1, 20))
        for start, stop, _ in holding.tail(rng.choice([0, 0, 5])):
            assert start in cuts or any(low < start < high for low, high in begun)
            ledger.give_back(droid.rank, start, stop)
        for assigned in holding.assign():
            for start, stop, _ in assigned.ranges:
                (owner,) = [pair for pair in wholes if pair[0] <= start and stop <= pair[1]]
                assert (start, stop) == owner or owner in begun
                middle = rng.choice([stop, stop, rng.randrange(start, stop + 1)])
                if start < middle:
                    done[start:middle] += 1
                    ledger.finish(droid.rank, start, middle)
                if middle < stop:
                    begun |= {owner} if start < middle or owner in begun else set()
                    ledger.give_back(droid.rank, middle, stop)
            holding.answered(assigned.worker, total)
    assert (done == 1).all()
