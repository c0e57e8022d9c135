"""Warnings that come while a rank is still starting: they kill nobody, and the run drains at once (L9)."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from runs import Place

# Holds every rank just before MPI is loaded, until the test says go.
HOLD = """
import os, sys, time
FOLDER = os.environ["YODA_TEST_HOLD"]

class Hold:
    def find_spec(self, name, path=None, target=None):
        if name == "mpi4py.MPI":
            open(os.path.join(FOLDER, f"held-{os.getpid()}"), "w").close()
            while not os.path.exists(os.path.join(FOLDER, "go")):
                time.sleep(0.02)
        return None

if "OMPI_COMM_WORLD_RANK" in os.environ or "PMI_RANK" in os.environ:
    sys.meta_path.insert(0, Hold())
"""


@pytest.mark.parametrize("who", ["yoda", "droid"])
def test_signals_before_mpi_are_remembered(place: Place, who: str) -> None:
    hold = place.folder / "hold"
    hold.mkdir()
    (hold / "sitecustomize.py").write_text(HOLD)
    exit_file = place.folder / "exit"
    place.job(inputs={"format": "generate", "events": 5_000_000})
    env = {"PYTHONPATH": str(hold), "YODA_TEST_HOLD": str(hold), "YODA_EXIT_FILE": str(exit_file)}
    run = place.start(ranks=2, env=env)
    run.until(lambda: len(list(hold.glob("held-*"))) == 2, "both ranks at the door of MPI")
    (rank,) = run.find(who)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        run.signal(rank.pid, number)
        time.sleep(0.02)  # or the kernel makes one of two
    assert [p.pid for p in run.find(who)] == [rank.pid]
    (hold / "go").touch()
    run.wait()
    assert exit_file.read_text() == "75", run.said()
    told = {(note["rank"], note["signal"]) for note in place.notes("signal")}
    assert told == {(0 if who == "yoda" else 1, name) for name in ("SIGTERM", "SIGUSR1")}
    assert place.notes("end")[0]["exit_code"] == 75
    assert place.done() < 5_000_000


def test_exit_code_is_there_after_four_signals_while_at_work(place_here: Place) -> None:
    """TERM and USR1 mixed, to all ranks, as Slurm does it: one drain, and everything that was reported is durable."""
    exit_file = place_here.folder / "exit"
    place_here.job(inputs={"format": "generate", "events": 5_000_000})
    run = place_here.start(ranks=3, env={"YODA_EXIT_FILE": str(exit_file)})
    run.until(lambda: place_here.done() > 100, "some events durable")
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        for process in [*run.find("yoda"), *run.find("droid")]:
            run.signal(process.pid, number)
        time.sleep(0.02)
    run.wait()
    assert exit_file.read_text() == "75", run.said()
    end = place_here.notes("end")[0]
    assert end["done"] == place_here.done() and len(place_here.notes("drain")) == 1
    assert not Path(f"{exit_file}.new").exists()
