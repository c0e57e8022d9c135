"""Time axis and lanes: sums on the grid are the sums of what was added."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from sample_task import BEGIN, frozen, merged_task, sample_task

from eventrange import records
from eventrange.journal import JournalWriter
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from yoda.chronicle import LANES, _spread, chronicle
from yoda.core_seconds import Account
from yoda.lanes import Grid
from yoda.report_facts import gather
from yoda.timeaxis import TimeAxis


def test_one_stretch_is_linear() -> None:
    axis = TimeAxis([(100.0, 200.0)], 50)
    assert axis.scale == 2.0 and not axis.gaps() and axis.inside().all()
    assert axis.place([100.0, 150.0, 200.0, 999.0]).tolist() == [0.0, 25.0, 50.0, 50.0]


def test_long_pauses_are_cut_and_short_ones_kept() -> None:
    axis = TimeAxis([(0.0, 100.0), (101.0, 200.0), (9000.0, 9200.0), (9050.0, 9100.0)], 800)
    assert axis.pieces == [(0.0, 200.0), (9000.0, 9200.0)]
    ((begin, end, pause),) = axis.gaps()
    assert pause == 8800.0 and 0 < end - begin < 20
    assert axis.place(9200.0) == pytest.approx(800) and axis.time(axis.place(9100.0)) == pytest.approx(9100.0)
    assert (~axis.inside()).sum() == pytest.approx(end - begin, abs=2)


@pytest.mark.parametrize("lives", [[], [(5.0, 5.0)], [(5.0, 4.0)], [(n * 1000.0, n * 1000.0 + 20) for n in range(500)]])
def test_any_lives(lives: list[tuple[float, float]]) -> None:
    axis = TimeAxis(lives, 800)
    assert axis.scale > 0 and axis.inside().any()
    assert axis.place(1e12) == pytest.approx(800)


def test_grid_against_counting_by_hand() -> None:
    random = np.random.default_rng(3)
    lane, begin = random.integers(-1, 4, 300), random.uniform(0, 50, 300)
    end = begin + random.exponential(2.0, 300)
    grid = Grid(4, 50)
    grid.add("alive", lane, begin, end)
    want = np.zeros((4, 50))
    for row, a, b in zip(lane, begin, np.minimum(end, 50), strict=True):
        for column in range(50) if row >= 0 else ():
            want[row, column] += max(0.0, min(b, column + 1) - max(a, column))
    assert np.allclose(grid.sums()["alive"], want)


def test_no_more_work_than_time() -> None:
    grid = Grid(1, 10)
    grid.add("alive", 0, 0, 10)
    grid.add("productive", [0, 0], [0, 0], [8, 8])
    grid.add("draining", 0, 5, 10)
    sums = grid.sums()
    assert sums["productive"].sum() == 8 and sums["drained"].sum() == 2 and sums["idle"].sum() == 0


@pytest.mark.parametrize("merged", [False, True])
def test_lanes_agree_with_the_accounting(tmp_path: Path, merged: bool) -> None:
    task = sample_task(tmp_path)
    if merged:
        merged_task(task)
    facts = gather(task, BEGIN + 90000)
    c = facts.chronicle
    parts = facts.state["core_seconds"]
    for grid in (c.nodes, c.cores):
        sums = {state: values.sum() * c.axis.scale for state, values in grid.sums().items()}
        assert sums["alive"] == pytest.approx(parts["total"], rel=1e-6)
        assert sums["productive"] == pytest.approx(parts["productive"], rel=1e-6)
        assert sums["startup"] == pytest.approx(parts["startup"], rel=1e-6)
        assert sums["lost"] == pytest.approx(parts["lost_in_flight"], rel=0.02)
        assert sums["drained"] > 0
        assert sums["merge"] == pytest.approx(10.0 if merged else 0.0)
        assert sums["merge"] == pytest.approx(facts.state["core_seconds_detail"]["merge"])
    assert c.node_labels[1] == "n2" and len(c.core_labels) == 8


def test_many_droids_share_lanes(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from bench_report import make_task

    facts = gather(make_task(tmp_path, 20_000, 20_000), BEGIN + 9e6)
    c = facts.chronicle
    assert c.nodes.lanes <= LANES and c.cores.lanes <= LANES and c.droids_total == 312
    total = c.nodes.sums()["alive"].sum() * c.axis.scale
    assert total == pytest.approx(facts.account.core_seconds.total, rel=1e-6)


def test_spread() -> None:
    assert _spread(5, 5) == [0, 1, 2, 3, 4] and _spread(1, 1) == [0] and _spread(100, 2) == [0, 99]


def test_chronicle_of_nothing(tmp_path: Path) -> None:
    facts = gather(sample_task(tmp_path), BEGIN)
    account = Account([], facts.account.core_seconds, facts.account.fold)
    empty = chronicle(TaskDir(str(tmp_path / "none")), "f", account)
    assert empty.done.sum() == 0


def test_what_was_lost_with_a_droid_is_on_the_lanes_that_were_silent(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    journal = JournalWriter(task.journal("3"), frozen(tmp_path).fingerprint, "3", created=BEGIN + 6000, host="n1")
    journal.note("joined", time=BEGIN + 6000, droid=1, host="n1", workers=3, startup=1.0)
    rows = records.new(3, kind=Kind.DONE, droid=1, size=10)
    rows["worker"], rows["time"], rows["wall"] = [0, 1, 2], BEGIN + 6000, [2.0, 20.0, 18.0]
    rows["start"], rows["stop"] = [350, 360, 370], [360, 370, 380]
    back = records.new(1, kind=Kind.RETURNED, code=Code.DROID_LOST, droid=1, start=380, stop=390, wall=19.0)
    back["time"] = BEGIN + 6020
    journal.append(np.concatenate([rows, back]))
    journal.note("left", time=BEGIN + 6020, droid=1, host="n1", reason="lost: its process died")
    journal.note("end", time=BEGIN + 6021, reason="x", exit_code=75)
    journal.flush()
    c = gather(task, BEGIN + 90000).chronicle
    here = slice(int(c.axis.place(BEGIN + 6000)), int(c.axis.place(BEGIN + 6021)))
    lost = c.cores.sums()["lost"][:3, here].sum(axis=1) * c.axis.scale
    assert lost == pytest.approx([18.0, 0.0, 1.0], abs=0.1)
    assert c.nodes.sums()["lost"][:, here].sum() * c.axis.scale == pytest.approx(19.0, abs=0.1)
