"""HepMC: ranges against pyhepmc reading from the start; the run is right in the middle; damage is named."""

from __future__ import annotations

import gzip
import io
import re
from pathlib import Path
from typing import Any

import pytest
from inputs_samples import hepmc_text, write

from droid.inputs import blocks, index_file, open_input
from droid.inputs.hepmc import HepMCInput
from eventrange.errors import ExtraMissing, InputDamaged

pyhepmc = pytest.importorskip("pyhepmc")


def opened(path: str, cache: Path | None = None, **options: object) -> HepMCInput:
    found = open_input("hepmc", path, index_file("hepmc", path, options, cache))
    assert isinstance(found, HepMCInput)
    return found


def facts(event: Any) -> tuple[Any, ...]:
    return (
        event.event_number,
        list(event.weights),
        list(event.run_info.weight_names),
        [tool.name for tool in event.run_info.tools],
        str(event.momentum_unit),
        str(event.length_unit),
        [(p.id, p.pid, p.status, p.momentum.px, p.momentum.e) for p in event.particles],
        [(v.id, len(v.particles_in), len(v.particles_out)) for v in event.vertices],
    )


@pytest.mark.parametrize("suffix", ["hepmc", "hepmc.gz"])
@pytest.mark.parametrize("version", [3, 2])
def test_any_range_is_as_read_from_the_start(version: int, suffix: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr(blocks, "CHUNK", 777)
    text = hepmc_text(23, version)
    with pyhepmc.open(io.BytesIO(text)) as reader:
        expected = [facts(event) for event in reader]
    assert len(expected) == 23 and expected[7][2] == ["nominal", "up"]
    file = opened(write(tmp_path / f"a.{suffix}", text), tmp_path / "index")
    assert file.count() == 23
    for start in range(23):
        for stop in (start, start + 1, start + 5, 23):
            if stop <= 23:
                assert [facts(event) for event in file.read(start, stop)] == expected[start:stop]
    assert "MEV" in str(file.read(12, 13)[0].momentum_unit)
    for start, stop in [(-1, 2), (20, 24)]:
        with pytest.raises(IndexError):
            file.read(start, stop)


def test_files_joined_by_cat_keep_their_own_runs(tmp_path: Path) -> None:
    text = hepmc_text(4, weights=("a", "b")) + hepmc_text(0 + 3, weights=("c",), first=4) + hepmc_text(5, first=7)
    file = opened(write(tmp_path / "a.hepmc", text))
    assert [event.event_number for event in file.read(0, 12)] == list(range(12))
    assert [list(event.run_info.weight_names) for event in file.read(3, 8)] == [
        ["a", "b"], ["c"], ["c"], ["c"], ["nominal", "up"],
    ]  # fmt: skip


def test_very_many_events_keep_every_kth_offset(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("droid.inputs.hepmc.MOST_OFFSETS", 4)
    text = hepmc_text(30, weights=("a",)) + hepmc_text(23, weights=("b",), first=30)
    file = opened(write(tmp_path / "a.hepmc.gz", text), tmp_path / "index")
    assert file.index.meta["stride"] == 16
    for start, stop in [(0, 53), (1, 2), (28, 33), (52, 53), (31, 32)]:
        assert [event.event_number for event in file.read(start, stop)] == list(range(start, stop))
    assert [list(event.run_info.weight_names) for event in file.read(29, 31)] == [["a"], ["b"]]


def test_no_events(tmp_path: Path) -> None:
    text = b"HepMC::Version 3.02.05\nHepMC::Asciiv3-START_EVENT_LISTING\nHepMC::Asciiv3-END_EVENT_LISTING\n\n"
    assert opened(write(tmp_path / "a.hepmc", text)).read(0, 0) == []
    assert opened(write(tmp_path / "b.hepmc", text.rstrip())).count() == 0, "no line feed at the end"


TEXT = hepmc_text(6)
END = TEXT.index(b"HepMC::Asciiv3-END")


@pytest.mark.parametrize("suffix", ["hepmc", "hepmc.gz"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT[: END - 50], "in or after event 6"),
        (TEXT[:END], "no END_EVENT_LISTING"),
        (TEXT[:END] + TEXT, "another listing starts there"),
        (re.sub(rb"HepMC::Asciiv3-START.*\n", b"", TEXT), "outside of a START_EVENT_LISTING"),
        (b"HepMC::Version 3\n", "no START_EVENT_LISTING"),
        (b"\0\1\2" * 99999, "is no HepMC ascii file"),
        (b"x", "is no HepMC ascii file"),
    ],
)
def test_damage_is_named(text: bytes, says: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(InputDamaged) as caught:
        index_file("hepmc", write(tmp_path / f"a.{suffix}", text), {}, tmp_path / "index")
    assert says in str(caught.value) and "\n  -> " in str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_known_to_be_whole(version: int, tmp_path: Path) -> None:
    text = hepmc_text(6, version)
    end = text.index(b"-END_EVENT")
    end = text.rindex(b"\n", 0, end) + 1
    file = opened(write(tmp_path / "a.hepmc", text[:end]), allow_unclosed=True)
    assert [event.event_number for event in file.read(4, 6)] == [4, 5]
    last_line = text.rindex(b"\n", 0, end - 1) + 1
    cuts = [end - 3] + ([last_line, last_line - 3] if version == 3 else [text.rindex(b"\nV ") + 1])
    for cut in cuts:
        with pytest.raises(InputDamaged, match="event 6 is cut in its middle"):
            opened(write(tmp_path / "b.hepmc", text[:cut]), allow_unclosed=True)


def test_a_bad_event_costs_its_range(tmp_path: Path) -> None:
    lines = TEXT.split(b"\n")
    bad = [i for i, line in enumerate(lines) if line.startswith(b"E ")][3]
    lines[bad] = b"E x y z"
    file = opened(write(tmp_path / "a.hepmc", b"\n".join(lines)))
    assert [event.event_number for event in file.read(0, 3)] == [0, 1, 2]
    assert [event.event_number for event in file.read(4, 6)] == [4, 5]
    with pytest.raises(InputDamaged, match="event 4 cannot be read"):
        file.read(2, 5)


def test_truncated_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(hepmc_text(200))
    path = tmp_path / "a.hepmc.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputDamaged, match="gzip stream ends early"):
        index_file("hepmc", str(path))


def test_without_pyhepmc(tmp_path: Path, monkeypatch: Any) -> None:
    import sys

    path = write(tmp_path / "a.hepmc", TEXT)
    index = index_file("hepmc", path)
    monkeypatch.setitem(sys.modules, "pyhepmc", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'yoda-droid\[hepmc\]'"):
        open_input("hepmc", path, index)
