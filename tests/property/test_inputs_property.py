"""Any range of any format is the slice of the whole file that it names, however the file is cut up inside."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from inputs_samples import DIALECTS, hepmc_text, lhe_text, write, write_hdf5, write_root

from droid.inputs import InputSet, blocks, hdf5, index_file, open_input, plan_axis, root

COUNTS = (31, 0, 44, 7)
TOTAL = sum(COUNTS)


def plain(event: Any) -> Any:
    """An event as values that can be compared."""
    if isinstance(event, dict):
        return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in event.items()}
    if hasattr(event, "raw"):
        return event.raw
    if hasattr(event, "particles"):
        return event.event_number, [(p.pid, p.momentum.e) for p in event.particles], list(event.run_info.weight_names)
    return event


def make(format: str, directory: Path, number: int, events: int) -> str:
    if format == "lhe":
        return write(directory / f"{number}.lhe", lhe_text(events, "mixed"))
    if format == "lhe.gz":
        return write(directory / f"{number}.lhe.gz", lhe_text(events, "mixed", crlf=number == 2))
    if format == "hepmc":
        return write(directory / f"{number}.hepmc", hepmc_text(events, 2 if number == 3 else 3))
    if format == "hepmc.gz":
        return write(directory / f"{number}.hepmc.gz", hepmc_text(events) + hepmc_text(events))
    if format == "hdf5":
        return write_hdf5(directory / f"{number}.h5", events)
    return write_root(directory / f"{number}.root", events, format)


@pytest.fixture(scope="module", params=["lhe", "lhe.gz", "hepmc", "hepmc.gz", "hdf5", "ttree", "rntuple", "generate"])
def task(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[InputSet, list[Any]]]:
    """A set of four small files, cut up finely inside, and all of its events read file by file."""
    kind: str = request.param
    format = {"ttree": "root", "rntuple": "root"}.get(kind, kind.removesuffix(".gz"))
    directory = tmp_path_factory.mktemp(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 700)
        patch.setattr(blocks, "CHUNK", 1999)
        patch.setattr(hdf5, "EVERY", 5)
        patch.setattr(root, "FIRST_WINDOW", 8)
        patch.setattr(root, "MOST_ENTRIES", 6)
        for module in ("lhe", "hepmc"):
            patch.setattr(f"droid.inputs.{module}.MOST_OFFSETS", 16)
        if format == "generate":
            axis = plan_axis(format, [], TOTAL, {}, directory)
            yield InputSet(format, axis, directory), list(range(TOTAL))
            return
        files = [make(kind, directory, number, events) for number, events in enumerate(COUNTS)]
        axis = plan_axis(format, files, None, {}, directory / "index", 2)
        whole: list[Any] = []
        for path in files:
            index = index_file(format, path)
            whole += [plain(event) for event in open_input(format, path, index).read(0, index.count)]
        assert len(whole) == axis.total
        yield InputSet(format, axis, directory / "index"), whole


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_range_is_a_slice_of_the_whole(task: tuple[InputSet, list[Any]], data: st.DataObject) -> None:
    inputs, whole = task
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, min(len(whole), start + 50)))
        assert [plain(event) for event in inputs.read(start, stop)] == whole[start:stop]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_lhe_found_in_pieces_of_any_size(data: st.DataObject) -> None:
    """The first pass finds the same events wherever its buffers happen to end."""
    from droid.inputs.lhe import _Scanner

    text = lhe_text(data.draw(st.integers(0, 6)), data.draw(st.sampled_from([*DIALECTS, "mixed"])))
    whole: list[tuple[int, int]] = []
    _Scanner("whole", lambda a, b: whole.append((a, b))).feed(text, 0, True)
    pieces: list[tuple[int, int]] = []
    scanner = _Scanner("pieces", lambda a, b: pieces.append((a, b)))
    buffer, base, place = b"", 0, 0
    while place < len(text):
        step = data.draw(st.integers(1, 400))
        buffer, place = buffer + text[place : place + step], place + step
        used = scanner.feed(buffer, base, False)
        buffer, base = buffer[used:], base + used
    scanner.feed(buffer, base, True)
    assert pieces == whole


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 10**6), change=st.binary(min_size=0, max_size=3))
def test_a_damaged_lhe_file_is_refused_or_read_but_never_a_crash(place: int, change: bytes) -> None:
    from droid.inputs.lhe import _Scanner
    from eventrange.errors import InputDamaged

    text = lhe_text(5, "mixed")
    place %= len(text)
    spans: list[tuple[int, int]] = []
    try:
        _Scanner("a", lambda a, b: spans.append((a, b))).feed(text[:place] + change + text[place + 2 :], 0, True)
    except InputDamaged as error:
        assert "\n  -> " in str(error)
    else:
        assert len(spans) <= 5 and all(a < b for a, b in spans)
