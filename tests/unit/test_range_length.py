"""How long ranges are after which past."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from eventrange import records
from eventrange.journal import FRAME_BYTES, JournalWriter
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from yoda.follower import Follower
from yoda.rangelength import (
    COMMIT_COST,
    LONGEST,
    QUIET,
    RANGE_COST,
    SHORTEST,
    UNHURT,
    Past,
    commit_seconds,
    range_seconds,
)


def lives(*seconds: float) -> dict[str, tuple[float, float]]:
    return {str(number): (1e9 * number, 1e9 * number + life) for number, life in enumerate(seconds)}


def test_a_task_that_was_never_killed_gets_long_ranges() -> None:
    assert Past.of({}, (), ()) == Past()
    assert Past.of(lives(5.0, 5.0), {"0": "drained", "1": "drained"}, ()) == Past(10.0, 0)
    assert Past.of(lives(5.0, 5.0), {"0": "drained"}, {"1"}) == Past(10.0, 0)
    assert Past(5.0, 0).between_kills(2.0) == QUIET
    assert Past(10.0, 0).between_kills(QUIET) == UNHURT * (QUIET + 10.0), "it has lived so long"
    assert SHORTEST < range_seconds(QUIET) < LONGEST == range_seconds(UNHURT * QUIET)


def test_kills_make_them_shorter_and_peace_longer() -> None:
    assert Past.of(lives(5.0, 6.0, 7.0), {"2": "drained"}, ()) == Past(18.0, 2)
    assert Past(18.0, 2).between_kills(0.0) == 9.0
    assert Past(18.0, 2).between_kills(6.0) == 12.0
    assert range_seconds(9.0) == pytest.approx(math.sqrt(2 * RANGE_COST * 9.0))
    assert (range_seconds(600.0), range_seconds(0.01)) == (LONGEST, SHORTEST)


BETWEEN = 12.0


@pytest.mark.parametrize(
    ("best", "cost", "workers"),
    [(range_seconds(BETWEEN), RANGE_COST, 1)]
    + [(commit_seconds(BETWEEN, workers), COMMIT_COST, workers) for workers in (2, 64)],
)
def test_nothing_shorter_or_longer_costs_less(best: float, cost: float, workers: int) -> None:
    """Per second: what one costs over its length, and half of it, for all it is for, over the time between kills."""

    def waste(length: float) -> float:
        return cost / length + workers * length / 2 / BETWEEN

    assert all(waste(best) <= waste(factor * best) for factor in (0.5, 0.8, 0.95, 1.05, 1.3, 2.0))


def test_lives_are_those_of_allocations_until_their_last_word(tmp_path: Path) -> None:
    taskdir = TaskDir(str(tmp_path))
    (tmp_path / "journal").mkdir()
    for name, begin, more in (("a", 100.0, {"mpi": "x"}), ("b", 200.0, {"mpi": "x"}), ("c-stageout-1", 300.0, {})):
        writer = JournalWriter(taskdir.journal(name), "f", name, created=begin, **more)
        writer.note("joined", time=begin + 1)
        writer.note("endless", text="x" * FRAME_BYTES)  # is cut, and has no time then
        if name == "a":
            writer.append(records.new(3, kind=Kind.DONE, start=[0, 1, 2], stop=[1, 2, 3], time=[103.0, 104.5, 102.0]))
        else:
            writer.note("end", time=begin + 9, reason="drained")
        writer.flush()
        writer.file.close()
    follower = Follower(taskdir, "f", "d")
    follower.read(lambda name: True)
    known = follower.progress()
    assert known.lives == {"a": (100.0, 104.5), "b": (200.0, 209.0)}
    assert Past.of(known.lives, known.ended, ()) == Past(pytest.approx(13.5), 1)
