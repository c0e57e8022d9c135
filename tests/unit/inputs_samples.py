"""Small input files of every format and dialect for the tests of droid.inputs, and where the real ones are."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

DATA = Path(os.environ.get("YODA_TEST_DATA") or Path(__file__).parents[3] / "shared/data")


def real(name: str) -> str:
    """The path of a real event file, or skip the test."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set YODA_TEST_DATA to the directory of the real event files")
    return str(path)


HEADER = """<?xml version="1.0"?>
<LesHouchesEvents version="3.0">
<!-- a comment with <event> and <init> in it,
  over two lines -->
<header>
<![CDATA[ <event> 1 2 3 </event> </header> ]]>
<initrwgt><weightgroup name="s"><weight id="1001"> a </weight><weight id="1002"> b </weight></weightgroup></initrwgt>
 # a card that is no XML: <event> & x < y
</header>
<init>
  2212 2212 0.65D+04 6.5E+03 0 0 10800 10800 -4 1
  5.0E+01 8.9E-02 5.0E+01 66
<generator name="g" version="1">text</generator>
</init>
"""


def lhe_event(i: int, dialect: str = "plain") -> str:
    n = i % 4
    particles = "".join(
        f"  {21 - k} -1 0 0 50{k} 0 {i}.5E+00 -.25E+01 {k}.0 {100 + i}.0 0.0 0. {9 if k else -1}.\n" for k in range(n)
    )
    first = f" {n} 66 {i}.25E+00 0.914E+02 0.75E-02 0.118E+00\n"
    if dialect == "plain":
        return f"<event>\n{first}{particles}</event>\n"
    if dialect == "rwgt":
        wgt = f"<mgrwt>\n<rscale> 0 0.9E+02</rscale>\n</mgrwt>\n<rwgt>\n<wgt id='1001'> {i}.0 </wgt>\n"
        wgt += '<wgt id="1002"> 2.0D+00 </wgt>\n</rwgt>\n'
        return f"<event npLO=\" {i} \" npNLO=' -1 '>\n{first}{particles}{wgt}</event>\n"
    if dialect == "weights":
        return f"<event>\n{first}{particles}<weights> {i}.0 3.0E0 </weights>\n<scales muf='1.0'></scales>\n</event>\n"
    if dialect == "powheg":
        return f"<event>\n{first.replace('E', 'D')}{particles.replace('E', 'D')}#rwgt 1 2 <event> 3\n</event>\n"
    if dialect == "oneline":
        return f"<EVENT> {first}{particles}# a comment\n\n</Event>"
    if dialect == "comments":
        return (
            f"<!-- before <event> {i} -->\n<event>\n# first a comment\n{first}{particles}<!-- </event> -->\n</event>\n"
        )
    raise ValueError(dialect)


DIALECTS = ("plain", "rwgt", "weights", "powheg", "oneline", "comments")


def lhe_text(events: int, dialect: str = "plain", header: str = HEADER, crlf: bool = False) -> bytes:
    body = "".join(lhe_event(i, DIALECTS[i % len(DIALECTS)] if dialect == "mixed" else dialect) for i in range(events))
    text = (header + body + "</LesHouchesEvents>\n").encode()
    return text.replace(b"\n", b"\r\n") if crlf else text


def write(path: Path, text: bytes) -> str:
    """Write a file, as gzip if its name says so; returns its path."""
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def hepmc_text(events: int, version: int = 3, weights: tuple[str, ...] = ("nominal", "up"), first: int = 0) -> bytes:
    pyhepmc = pytest.importorskip("pyhepmc")
    import io

    if events == 0:
        return b"HepMC::Version 3.02.05\nHepMC::Asciiv3-START_EVENT_LISTING\nHepMC::Asciiv3-END_EVENT_LISTING\n\n"
    run = pyhepmc.GenRunInfo()
    run.weight_names = list(weights)
    run.tools = [("maker", "1.0", "of tests")]
    out = io.BytesIO()
    with pyhepmc.open(out, "w", format=f"HepMC{version}") as file:
        for i in range(first, first + events):
            event = pyhepmc.GenEvent(pyhepmc.Units.MEV, pyhepmc.Units.CM)
            event.event_number = i
            event.run_info = run
            event.weights = [1.0 * i + k for k in range(len(weights))]
            vertex = pyhepmc.GenVertex((0, 0, 0, 0))
            vertex.add_particle_in(pyhepmc.GenParticle((0, 0, 10 + i, 10 + i), 2212, 4))
            for k in range(1 + i % 5):
                vertex.add_particle_out(pyhepmc.GenParticle((0.5, 0, k, 2 + k), 211, 1))
            event.add_vertex(vertex)
            file.write(event)
    return out.getvalue()


def write_hdf5(path: Path, events: int) -> str:
    import h5py

    with h5py.File(path, "w") as file:
        file["x"] = np.arange(events) * 1.5
        file["vector"] = np.arange(events * 3, dtype="f4").reshape(events, 3)
        counts = np.arange(events) % 4
        file["hits_count"] = counts.astype("u4")
        file["hits"] = np.arange(counts.sum() * 2).reshape(-1, 2)
        file["scalar"] = 7
        file["deep/y"] = np.arange(events).astype("S4")
    return str(path)


def write_root(path: Path, events: int, kind: str = "ttree") -> str:
    uproot = pytest.importorskip("uproot")
    awkward = pytest.importorskip("awkward")
    data = {
        "x": np.arange(events) * 1.5,
        "n": np.arange(events, dtype="i4"),
        "jagged": awkward.values_astype(
            awkward.Array([[i + 0.25 * k for k in range(i % 4)] for i in range(events + 4)])[:events], "float64"
        ),
    }
    with uproot.recreate(path) as file:
        if kind == "ttree":
            file.mktree("t", {"x": "f8", "n": "i4", "jagged": "var * float64", "vector": ("f4", (3,))})
            vector = np.arange(events * 3, dtype="f4").reshape(-1, 3)
            for begin in range(0, events, 10):
                part = {name: values[begin : begin + 10] for name, values in data.items()}
                file["t"].extend(part | {"vector": vector[begin : begin + 10]})
        else:
            file.mkrntuple("t", data | {"name": awkward.Array([f"event {i}" for i in range(events + 1)])[:events]})
    return str(path)
