"""The number by which the batch script sees whether anything is being done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from eventrange.intervals import IntervalSet
from yoda.tally import INTERVAL, Tally


def test_done_and_quarantined_are_told_now_and_then(tmp_path: Path) -> None:
    now = [100.0]
    ledger = SimpleNamespace(done=0, quarantined=IntervalSet())
    dispatcher = SimpleNamespace(ledger=ledger)
    path = tmp_path / "done"
    tally = Tally(str(path), lambda: now[0])
    tally(dispatcher, 0.0)
    assert path.read_text() == "0\n"
    ledger.done = 7
    tally(dispatcher, 0.0)
    assert path.read_text() == "0\n"
    now[0] += INTERVAL
    ledger.quarantined.add(20, 22)
    tally(dispatcher, 0.0)
    assert path.read_text() == "9\n"
    ledger.done = 8
    tally.write(dispatcher)
    assert path.read_text() == "10\n"


def test_without_a_batch_script_or_a_place_nothing_is_told(tmp_path: Path) -> None:
    dispatcher = SimpleNamespace(ledger=SimpleNamespace(done=1, quarantined=IntervalSet()))
    for path in (None, str(tmp_path / "no" / "such" / "folder")):
        Tally(path)(dispatcher, 0.0)
        Tally(path).write(dispatcher)
    assert list(tmp_path.iterdir()) == []
