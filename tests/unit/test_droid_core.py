"""The rules of the Droid's core, one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from droid.core import (
    BARREN,
    FORK_AGAIN,
    GAP,
    LONG,
    START_FAILURES,
    Assign,
    Cut,
    Discard,
    DroidCore,
    Failure,
    Instruction,
    Kill,
    Rows,
    SetSchema,
    Sick,
    Spawn,
)
from droid.holding import BATCH_RANGES
from droid.pace import FAR, FIRST_LIMIT, GROWTH, LIMIT_FACTOR, LIMIT_FLOOR, RETRY_LIMIT_FACTOR
from droid.slots import SLOT
from eventrange import records
from eventrange.messages import Grant, Range, pack_ranges
from eventrange.records import Code, Kind
from eventrange.times import edge, time_bin


class Droid:
    """A core with `workers` ready workers, and short words for what happens to it."""

    def __init__(self, workers: int = 1, timeout: float | None = None, ready: bool = True) -> None:
        self.core = DroidCore(workers, timeout)
        self.slots: NDArray[Any] = np.zeros(workers, SLOT)
        self.slots["event"] = -1
        self.now = 100.0
        self.core.start()
        for index in range(workers if ready else 0):
            self.core.worker_ready(index)

    def granted(self, *ranges: tuple[int, int], size: int = 0, seconds: float = 1.0, **more: Any) -> list[Instruction]:
        values: dict[str, Any] = {"remaining": 1000, "workers": 1000, "schema": "", "attempt": 0, "apart": 0.25, **more}
        work = pack_ranges([(a, b, values["attempt"]) for a, b in ranges])
        grant = Grant(work, size, seconds, values["apart"], values["remaining"], values["workers"], values["schema"])
        return self.core.granted(self.now, grant)

    def results(self, worker: int, *rows: tuple[Kind, int, int], wall: float = 0.0, schema: str = "") -> Any:
        made = records.new(len(rows))
        for made_row, (kind, start, stop) in zip(made, rows, strict=True):
            made_row["kind"], made_row["start"], made_row["stop"] = kind, start, stop
            made_row["size"] = 100 if kind == Kind.DONE else 0
            made_row["wall"] = wall
        keep, todo = self.core.results(worker, made, {}, schema)
        return made, keep, todo + self.core.assign()

    def measured(self, seconds: float, events: int = 10_000) -> None:
        """As if `events` of `seconds` each had been done."""
        self.core.pace.measure(seconds * events, events)

    def on(self, worker: int, event: int, count: int = 1) -> None:
        self.slots["event"][worker], self.slots["count"][worker] = event, count

    def after(self, seconds: float, step: float = 1.0, **more: Any) -> list[Instruction]:
        out: list[Instruction] = []
        for _ in range(round(seconds / step)):
            self.now += step
            out += self.core.tick(self.now, self.slots, **more)
        return out

    def died(self, worker: int, event: int = -1, count: int = 0, **more: Any) -> list[Instruction]:
        return self.core.worker_exited(worker, "signal 11", event, count, **more)


def ranges(todo: list[Instruction], kind: type = Assign) -> list[tuple[int, int]]:
    """What is assigned, or returned (Rows), by `todo`."""
    out = []
    for step in todo:
        if isinstance(step, Assign) and kind is Assign:
            out += [(a, b) for a, b, _ in step.ranges]
        elif isinstance(step, Rows) and kind is Rows:
            assert (step.rows["kind"] == Kind.RETURNED).all()
            out += list(zip(step.rows["start"].tolist(), step.rows["stop"].tolist(), strict=True))
    return out


def of(todo: list[Instruction], kind: type) -> list[Any]:
    return [step for step in todo if isinstance(step, kind)]


def backlog(droid: Droid) -> list[Range]:
    return list(droid.core.holding.backlog)


# -- asking and giving out ---------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_before_a_worker_is_ready() -> None:
    d = Droid(2, ready=False)
    assert d.core.want(d.now) == 0
    d.core.worker_ready(0)
    assert d.core.want(d.now) == 2


def test_asks_once_and_waits_for_the_answer() -> None:
    d = Droid(2)
    assert d.core.want(d.now) == 4 and d.core.waiting_for_yoda
    assert d.core.want(d.now + 60) == 0
    d.granted((0, 2))
    assert not d.core.waiting_for_yoda
    assert d.core.want(d.now) > 0  # both are at work and the backlog is empty


def test_an_empty_grant_is_an_answer_and_yoda_will_write_again() -> None:
    d = Droid(1)
    d.core.want(d.now)
    d.granted(remaining=0)
    assert not d.core.waiting_for_yoda
    assert d.core.want(d.now + 60) == 0
    d.granted((0, 1))
    assert d.core.want(d.now) > 0


def test_the_low_water_mark_follows_the_round_trip_and_the_time_per_event() -> None:
    d = Droid(4)
    d.measured(0.01)
    assert d.core.pace.marks(4, 0.05, 0) == (40, 840)  # 0.1 s ahead, and two seconds for each
    assert d.core.pace.marks(4, 2.0, 0) == (200, 1000)  # who comes next finds a range of two seconds
    for _ in range(60):
        d.core.pace.answered(1.0)
    assert d.core.pace.marks(4, 1.0, 0)[0] == pytest.approx(1600, rel=0.01)


def test_a_suspension_is_no_round_trip() -> None:
    """Who believes it asks for ten seconds of work in advance; and all that is done twice if its lease is gone."""
    d = Droid(4)
    for seconds in (0.01, 0.01, 0.01, 3600.0, 0.01, 3600.0):
        d.core.pace.answered(seconds)
    assert d.core.pace.round_trip == 0.01


@pytest.mark.parametrize("seconds", [-1e9, 0.0, 1e12])
def test_a_clock_that_jumps_leaves_the_round_trip_sane(seconds: float) -> None:
    d = Droid(1)
    d.core.want(d.now)
    d.now += seconds
    d.granted((0, 1))
    assert 0 < d.core.pace.round_trip < 10


def test_ranges_grow_with_what_was_measured_not_faster() -> None:
    d = Droid(1)
    assert ranges(d.granted((0, 10_000))) == [(0, 1)]
    _, _, todo = d.results(0, (Kind.DONE, 0, 1), wall=1e-4)
    assert max(b - a for a, b in ranges(todo)) == GROWTH
    d = Droid(1)
    d.measured(0.01)
    assert ranges(d.granted((0, 10_000), seconds=2.0))[0] == (0, 200)


def test_ranges_leave_no_crumbs() -> None:
    """What is left over by whole ranges is shared out among them: a crumb would cost as much as a range."""
    for events, first in ((90, 90), (110, 110), (149, 149), (150, 75), (210, 105), (1010, 101)):
        d = Droid(1)
        d.measured(0.01)
        assert ranges(d.granted((0, events), seconds=1.0))[0] == (0, first)


def test_idle_workers_share_what_there_is() -> None:
    """The first grants are small, and ranges already may be long: one must not take all while others wait."""
    d = Droid(2)
    d.measured(0.01)
    assert ranges(d.granted((0, 23), seconds=1.0)) == [(0, 12), (12, 23)]


def test_tiny_ranges_travel_together_long_ones_alone() -> None:
    d = Droid(1)
    d.measured(1e-4)
    assert len(ranges(d.granted((0, 100_000), size=1))) > 100
    d = Droid(1)
    d.measured(1.1)
    assert ranges(d.granted((0, 100_000), size=1)) == [(0, 1)]


def test_fixed_sizes_are_kept() -> None:
    d = Droid(2)
    assert ranges(d.granted((0, 25), size=10)) == [(0, 10), (10, 20)]
    assert backlog(d) == [(20, 25, 0)]


def follows(todo: list[Instruction]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Worker and ranges of what is queued behind what it has."""
    return [(step.worker, ranges([step])) for step in of(todo, Assign) if step.follow]


def test_far_from_the_tail_workers_have_their_next_ranges_queued() -> None:
    d = Droid(2)
    d.measured(0.01)
    todo = d.granted((0, 1000), seconds=0.5, remaining=10_000, workers=2)
    assert ranges(todo) == [(0, 50), (50, 100), (100, 150), (150, 200)]
    assert follows(todo) == [(0, [(100, 150)]), (1, [(150, 200)])]
    _, _, todo = d.results(0, (Kind.DONE, 0, 50), wall=0.5)
    assert follows(todo) == [(0, [(200, 250)])]
    d.core.holding.unseen = 0.4  # so long nobody looks: there must be work for twice that
    _, _, todo = d.results(1, (Kind.DONE, 50, 100), wall=0.5)
    assert follows(todo) == [(0, [(250, 300)]), (1, [(300, 350)]), (1, [(350, 400)])]


def test_what_is_queued_is_shared_and_has_a_limit() -> None:
    d = Droid(2)
    d.measured(0.01)
    d.core.holding.unseen = 10.0
    todo = d.granted((0, 300), seconds=0.5, remaining=10_000, workers=2)
    assert [worker for worker, _ in follows(todo)] == [0, 1, 0, 1]
    d = Droid(1)
    d.measured(1e-5)
    d.core.holding.unseen = 10.0
    d.granted((0, 1_000_000), size=1, remaining=10_000_000, workers=1)
    assert BATCH_RANGES < len(d.core.workers[0].given) <= 2 * BATCH_RANGES


def test_nothing_is_queued_behind_a_fixed_size_that_takes_long() -> None:
    """It can neither be cut nor reclaimed, and a worker may be slow."""
    for size, queued in ((90, True), (110, False)):
        d = Droid(2)
        d.measured(0.01)
        assert bool(follows(d.granted((0, 1000), size=size, remaining=100_000, workers=2))) is queued


def test_a_long_backlog_is_far_from_the_tail_too() -> None:
    d = Droid(2)
    d.measured(0.01)
    d.granted((0, 1000), size=10, remaining=0, workers=2)
    assert d.core.holding.far, "five seconds for each worker"
    while d.core.holding.far and d.core.holding.waiting:
        start, stop, _ = d.core.workers[0].given[0]
        d.results(0, (Kind.DONE, start, stop), wall=0.01 * (stop - start))
    assert 300 < d.core.holding.waiting < 2 * FAR / 0.01


def test_what_is_queued_leaves_the_tail_as_far_as_it_was() -> None:
    """With nothing pending at Yoda it is only the backlog that others can have."""
    for size in (0, 10):
        d = Droid(8)
        d.measured(0.01)
        d.core.holding.unseen = 1.0
        d.granted((0, 2000), size=size, seconds=0.5, remaining=0, workers=8)
        assert d.core.holding.far and d.core.holding.near == pytest.approx(8 * FAR / 0.01)
        assert d.core.holding.near - 100 < d.core.holding.waiting < 2000 - 8 * 10


def test_queued_or_not_follows_the_pace_between_grants() -> None:
    d = Droid(2)
    d.measured(0.01)
    d.granted((0, 1000), size=10, remaining=10_000, workers=2)
    assert d.core.holding.near < 0
    d.measured(1.0, 100_000)
    d.after(1.0)
    assert d.core.holding.near == math.inf, "a range of ten takes ten seconds now"
    d.core.reclaimed(1, d.slots)
    d.measured(0.01, 10_000_000)
    d.after(1.0)
    assert d.core.holding.near == math.inf, "others have nothing"


def test_nothing_is_queued_when_all_is_to_end_or_others_have_nothing() -> None:
    for ends in (lambda d: d.core.drain(d.now, 9.0), lambda d: d.core.reclaimed(1, d.slots)):
        d = Droid(2)
        d.measured(0.01)
        d.granted((0, 1000), seconds=0.5, remaining=10_000, workers=2)
        assert d.core.holding.far
        ends(d)
        assert not d.core.holding.far
    d = Droid(2)
    d.measured(0.01)
    d.core.drain(d.now, 9.0)
    d.granted((0, 1000), seconds=0.5, remaining=10_000, workers=2)
    assert not d.core.holding.far


@pytest.mark.parametrize(
    ("seconds", "remaining", "workers", "slowest"),
    [
        (0.01, 0, 2, 0.01),  # nothing is left
        (0.01, 200, 2, 0.01),  # not two seconds for each
        (0.01, 10_000, 100, 0.01),  # nor among so many
        (0.01, 10_000, 2, 60.0),  # some events take as long as all that is left
        (1.1, 10_000, 2, 1.1),  # what is queued behind such an event could not be had back for long
    ],
)
def test_near_the_tail_nothing_is_queued(seconds: float, remaining: int, workers: int, slowest: float) -> None:
    d = Droid(2)
    d.measured(seconds)
    d.core.times[time_bin(slowest)] = 1
    todo = d.granted((0, 150), seconds=0.5, remaining=remaining, workers=workers)
    assert len(of(todo, Assign)) == 2 and not follows(todo)


def test_only_whole_ranges_are_queued_and_not_behind_what_is_to_come_back() -> None:
    for events, queued in ((150, [(0, [(100, 150)])]), (140, [])):
        d = Droid(2)
        d.measured(0.01)
        assert follows(d.granted((0, events), seconds=0.5, remaining=10_000, workers=2)) == queued
    d = Droid(2)
    d.measured(0.01)
    d.granted((0, 100), seconds=0.5, remaining=10_000, workers=2)
    d.core.workers[0].cut = "yoda"
    assert follows(d.granted((100, 1000), seconds=0.5, remaining=10_000, workers=2)) == [(1, [(100, 150)])]


def test_moments_count_when_somebody_has_nothing_to_do_at_the_tail() -> None:
    d = Droid(2)
    d.granted((0, 2), size=1, remaining=0)
    assert not d.core.hurried
    d.results(0, (Kind.DONE, 0, 1))
    assert d.core.hurried
    d = Droid(2)
    d.granted((0, 2), size=1, remaining=0)
    d.core.reclaimed(5, d.slots)
    assert d.core.hurried, "another Droid has nothing"
    d = Droid(2)
    assert not d.core.hurried
    d.core.drain(d.now, 10.0)
    assert d.core.hurried


def test_commits_are_as_far_apart_as_yoda_says_until_all_is_to_end() -> None:
    d = Droid(2)
    d.granted((0, 4), apart=0.125, size=2, remaining=0)
    assert d.core.apart == 0.125
    d.results(0, (Kind.DONE, 0, 2))
    assert d.core.hurried and d.core.apart == 0, "somebody waits for work, and Yoda for what is done"
    d.granted((4, 9), apart=0.125, size=2, remaining=99)
    assert d.core.apart == 0.125
    d.core.drain(d.now, 10.0)
    assert d.core.apart == 0


def test_at_the_tail_ranges_shrink() -> None:
    d = Droid(4)
    d.measured(0.01)
    todo = d.granted((0, 80), remaining=0)
    assert all(b - a <= 10 for a, b in ranges(todo))
    assert len(ranges(todo)) >= 4


def test_every_idle_worker_gets_something_first() -> None:
    d = Droid(3)
    assert [step.worker for step in of(d.granted((0, 3)), Assign)] == [0, 1, 2]


# -- workers that die --------------------------------------------------------------------------------------------------


def test_a_dead_worker_is_replaced_and_only_its_event_is_to_blame() -> None:
    d = Droid(1)
    d.granted((0, 10), size=10)
    todo = d.died(0, event=3, count=1)
    (failure,) = of(todo, Failure)
    assert (failure.event, failure.code) == (3, Code.EXITED)
    assert of(todo, Spawn) == [Spawn(0)]
    assert backlog(d) == [(0, 3, 0), (4, 10, 0)]


def test_results_it_sent_before_it_died_count() -> None:
    d = Droid(1)
    d.granted((0, 10), size=10)
    d.results(0, (Kind.DONE, 0, 4))
    d.died(0, event=5, count=1)
    assert backlog(d) == [(4, 5, 0), (6, 10, 0)]


def test_a_group_is_split_when_it_is_unclear_who_is_to_blame() -> None:
    d = Droid(1)
    d.granted((0, 3), size=3)
    todo = d.died(0, event=0, count=3)
    assert not of(todo, Failure)
    assert backlog(d) == [(0, 1, 0), (1, 2, 0), (2, 3, 0)]


def test_a_worker_that_was_on_nothing_blames_nothing() -> None:
    d = Droid(1)
    d.granted((0, 3), size=3)
    assert not of(d.died(0), Failure)
    assert backlog(d) == [(0, 3, 0)]


def test_workers_that_die_before_they_are_ready_make_the_droid_sick() -> None:
    d = Droid(2, ready=False)
    todo: list[Instruction] = []
    for _ in range(START_FAILURES):
        assert not of(todo, Sick)
        todo = d.died(0)
    assert of(todo, Sick)
    assert not of(todo, Spawn)
    assert d.core.stopped


def test_one_that_starts_well_starts_the_count_anew() -> None:
    d = Droid(2, ready=False)
    for _ in range(10):
        for _ in range(START_FAILURES - 1):
            assert not of(d.died(0), Sick)
        d.core.worker_ready(1)


def test_who_cannot_be_forked_is_tried_again_later_and_others_go_on() -> None:
    d = Droid(3)
    d.died(1)
    d.died(2)
    for _ in range(2 * START_FAILURES):
        assert d.core.worker_unforked(d.now, 1, "full") == []
        assert d.core.worker_unforked(d.now + 1, 2, "full") == []
        assert not of(d.after(FORK_AGAIN - 1), Spawn)
        assert of(d.after(1), Spawn) == [Spawn(1), Spawn(2)]
        assert not of(d.after(2 * FORK_AGAIN), Spawn), "they are being forked"
    assert ranges(d.granted((0, 3), size=1))


def test_where_nobody_can_be_forked_the_droid_is_sick_after_some_time() -> None:
    d = Droid(4, ready=False)
    for _ in range(START_FAILURES - 1):
        for worker in range(4):
            assert d.core.worker_unforked(d.now, worker, "full") == []
        assert len(of(d.after(FORK_AGAIN), Spawn)) == 4
    todo = [step for worker in range(4) for step in d.core.worker_unforked(d.now, worker, "full")]
    assert [type(step) for step in todo] == [Sick] and d.core.stopped


def test_while_draining_nobody_is_forked() -> None:
    d = Droid(2)
    d.core.worker_unforked(d.now, 0, "full")
    d.core.drain(d.now, 60.0)
    d.core.worker_unforked(d.now, 1, "full")
    assert not of(d.after(2 * FORK_AGAIN), Spawn)


def test_workers_that_keep_dying_on_nothing_make_the_droid_sick() -> None:
    d = Droid(1)
    d.granted((0, 3), size=3)
    for _ in range(BARREN - 1):
        assert not of(d.died(0), Sick)
        d.core.worker_ready(0)
    d.results(0, (Kind.DONE, 0, 1))
    for _ in range(BARREN - 1):
        assert not of(d.died(0), Sick)
        d.core.worker_ready(0)
    assert of(d.died(0), Sick)


def test_the_workers_of_a_sick_droid_died_of_that() -> None:
    d = Droid(2)
    d.granted((0, 2), size=1)
    d.core.stopped = True
    todo = d.died(0, event=0, count=1)
    assert not of(todo, Failure) and ranges(todo, Rows) == [(0, 1)]


def test_a_zygote_that_dies_costs_nobody_an_attempt() -> None:
    d = Droid(2)
    d.granted((0, 4), size=2)
    d.on(0, 1)
    todo = d.core.zygote_restarted()
    assert of(todo, Spawn) == [Spawn(0), Spawn(1)]
    assert not of(todo, Failure) and not of(todo, Sick)
    assert sorted(backlog(d)) == [(0, 2, 0), (2, 4, 0)]


# -- events that take too long -----------------------------------------------------------------------------------------


def test_the_limit_is_fixed_or_follows_the_measured_tail() -> None:
    assert DroidCore(1, timeout=5.0).limit(3) == 5.0
    core = DroidCore(1)
    assert core.limit(0) == FIRST_LIMIT
    core.times[time_bin(1.0)] = 100
    assert core.limit(0) == LIMIT_FLOOR
    core.times[time_bin(100.0)] = 100
    assert core.limit(0) == LIMIT_FACTOR * edge(time_bin(100.0))


def test_slow_is_not_wrong_so_each_attempt_gets_longer() -> None:
    core = DroidCore(1)
    core.times[time_bin(1.0)] = 100
    assert core.limit(2) == LIMIT_FLOOR * RETRY_LIMIT_FACTOR**2
    d = Droid(1)
    d.core.times[time_bin(1.0)] = 100
    d.granted((7, 8), attempt=1)
    d.on(0, 7)
    assert not of(d.after(3 * LIMIT_FLOOR), Kill)
    assert of(d.after(2 * LIMIT_FLOOR), Kill)


def test_a_hanging_event_is_killed_and_blamed() -> None:
    d = Droid(1, timeout=10.0)
    d.granted((0, 3), size=3)
    d.on(0, 1)
    assert not of(d.after(10.0), Kill)
    assert [k.worker for k in of(d.after(5.0), Kill)] == [0]
    (failure,) = of(d.died(0, event=1, count=1, seconds=15.0, before=3.0), Failure)
    assert (failure.event, failure.code, failure.wall) == (1, Code.TIMEOUT, 15.0)
    assert d.core.again == 3.0  # event 0 begins again


def test_what_is_broken_off_is_lost_once() -> None:
    d = Droid(2)
    d.granted((0, 4), (4, 8), size=4)
    d.died(0, event=2, count=4, seconds=2.0)  # a group: its events are tried one by one
    assert d.core.again == 2.0
    d.core.drain(d.now, 10.0)
    (rows,) = of(d.died(1, event=6, count=1, seconds=1.0, before=4.0), Rows)
    assert rows.rows["wall"].sum() == 5.0 and d.core.again == 2.0


def test_one_that_got_on_to_the_next_event_before_the_kill_blames_nobody() -> None:
    d = Droid(1, timeout=10.0)
    d.granted((0, 3), size=3)
    d.on(0, 1)
    assert of(d.after(15.0), Kill)
    assert not of(d.died(0, event=2, count=1), Failure)
    assert backlog(d) == [(0, 3, 0)]


def test_a_group_has_the_time_of_all_its_events() -> None:
    d = Droid(1, timeout=10.0)
    d.granted((0, 4), size=4)
    d.on(0, 0, count=4)
    assert not of(d.after(40.0), Kill)
    assert of(d.after(5.0), Kill)


def test_hours_in_which_we_did_not_run_are_no_hang() -> None:
    d = Droid(1, timeout=10.0)
    d.granted((0, 1))
    d.on(0, 0)
    d.after(2.0)
    d.now += 7 * 3600
    assert not d.core.tick(d.now, d.slots)
    assert d.core.workers[0].seconds <= 2.0 + GAP


def test_the_time_of_a_group_that_failed_is_not_its_first_events() -> None:
    d = Droid(1, timeout=10.0)
    d.granted((0, 5), size=5)
    d.slots["since"] = d.now
    d.on(0, 0, count=5)
    assert not of(d.after(45.0), Kill)
    d.slots["since"] = d.now  # one of them failed: now each alone
    d.on(0, 0)
    assert not of(d.after(9.0), Kill)
    assert of(d.after(3.0), Kill)


def test_a_worker_that_the_kernel_stopped_does_not_hang() -> None:
    d = Droid(1, timeout=10.0)
    d.granted((0, 1))
    d.on(0, 0)
    assert not of(d.after(3600.0, stopped=frozenset({0})), Kill)


def test_a_clock_that_runs_back_kills_nobody() -> None:
    d = Droid(1, timeout=10.0)
    d.granted((0, 1))
    d.on(0, 0)
    d.after(3.0)
    d.now -= 1e6
    assert not d.after(5.0)
    assert 0 <= d.core.workers[0].seconds <= 8.0


# -- the end of an allocation ------------------------------------------------------------------------------------------


def test_drain_returns_the_backlog_and_cuts_the_workers() -> None:
    d = Droid(1)
    d.granted((0, 100), size=10)
    todo = d.core.drain(d.now, 30.0)
    assert ranges(todo, Rows) == [(10, 100)]
    assert of(todo, Cut) == [Cut(0)]
    assert not d.core.finished
    rows, keep, todo = d.results(0, (Kind.DONE, 0, 3), (Kind.RETURNED, 3, 10))
    assert keep.all() and rows["kind"].tolist() == [Kind.DONE, Kind.RETURNED]
    assert not todo and d.core.finished


def test_one_that_cuts_only_one_of_its_ranges_is_cut_again() -> None:
    d = Droid(1)
    d.measured(0.01)
    d.granted((0, 20), size=5)
    assert len(d.core.workers[0].given) > 1
    d.core.drain(d.now, 30.0)
    _, _, todo = d.results(0, (Kind.DONE, 0, 2), (Kind.RETURNED, 2, 5))
    assert of(todo, Cut) == [Cut(0)]


def test_a_grant_that_comes_after_the_drain_goes_back() -> None:
    d = Droid(1)
    d.core.drain(d.now, 30.0)
    assert ranges(d.granted((0, 100)), Rows) == [(0, 100)]
    assert d.core.finished


def test_what_is_not_done_in_time_is_killed_and_is_no_failure() -> None:
    d = Droid(1)
    d.granted((0, 10), size=10)
    d.on(0, 0)
    d.core.drain(d.now, 30.0)
    assert not of(d.after(26.0), Kill)
    assert of(d.after(2.0), Kill)
    todo = d.died(0, event=0, count=1)
    assert not of(todo, Failure) and not of(todo, Spawn)
    assert ranges(todo, Rows) == [(0, 10)]
    assert d.core.finished


def test_no_grace_is_no_grace() -> None:
    d = Droid(1)
    d.granted((0, 10), size=10)
    d.core.drain(d.now, 0.0)
    assert of(d.core.tick(d.now, d.slots), Kill)


def test_a_second_drain_can_only_shorten_the_grace() -> None:
    d = Droid(1)
    d.granted((0, 10), size=10)
    d.core.drain(d.now, 30.0)
    assert not d.core.drain(d.now, 300.0)
    assert not d.core.drain(d.now, 4.0)
    assert of(d.after(3.0), Kill)


def test_yodas_word_on_the_end_replaces_what_a_signal_made_us_think() -> None:
    d = Droid(1)
    d.granted((0, 10), size=10)
    d.core.drain(d.now, 10.0)
    d.core.drain(d.now, 100.0, said=True)
    assert not of(d.after(90.0), Kill) and of(d.after(10.0), Kill)


def test_a_crash_while_draining_is_no_failure() -> None:
    d = Droid(1)
    d.granted((0, 10), size=10)
    d.core.drain(d.now, 30.0)
    todo = d.died(0, event=4, count=1)
    assert not of(todo, Failure) and ranges(todo, Rows) == [(0, 10)]


# -- the tail ----------------------------------------------------------------------------------------------------------


def test_an_idle_worker_gets_the_rest_of_the_longest_range() -> None:
    d = Droid(2)
    d.granted((0, 10), remaining=1)
    d.core.holding.backlog.clear()
    d.core.workers[0].given.clear()
    d.core.workers[0].given.append((0, 10, 0))
    d.core.workers[0].events = 10
    d.core.workers[1].given.clear()
    d.core.holding.remaining = 0
    d.on(0, 2)
    assert of(d.core.tick(d.now, d.slots), Cut) == [Cut(0)]
    _, keep, todo = d.results(0, (Kind.DONE, 0, 3), (Kind.RETURNED, 3, 10))
    assert keep.tolist() == [True, False]
    assert {step.worker for step in of(todo, Assign)} == {0, 1}


def test_reclaim_takes_from_the_end_of_the_backlog() -> None:
    d = Droid(1)
    d.granted((0, 1), (1, 10), (20, 30))
    assert ranges(d.core.reclaimed(12, d.slots), Rows) == [(20, 30), (8, 10)]
    assert backlog(d) == [(1, 8, 0)]


def test_reclaim_keeps_fixed_sizes_whole() -> None:
    d = Droid(1)
    d.granted((0, 40), size=10)
    assert ranges(d.core.reclaimed(12, d.slots), Rows) == [(20, 40)]
    d.core.holding.backlog.clear()
    assert not d.core.reclaimed(5, d.slots)  # nor is a range that was begun cut


def test_reclaim_cuts_a_worker_when_there_is_no_backlog_and_new_work_ends_it() -> None:
    d = Droid(1)
    d.granted((0, 10), seconds=1.0)
    d.core.holding.backlog.clear()
    d.core.workers[0].given[0] = (0, 10, 0)
    d.core.workers[0].events = 10
    d.on(0, 0)
    assert d.core.reclaimed(5, d.slots) == [Cut(0)]
    rows, keep, _ = d.results(0, (Kind.DONE, 0, 1), (Kind.RETURNED, 1, 10))
    assert keep.all() and rows["code"][1] == Code.REVOKED
    assert d.core.holding.reclaim == 0
    d.core.holding.reclaim = 7
    d.granted((50, 60))
    assert d.core.holding.reclaim == 0


def test_what_a_worker_returns_unasked_stays_here() -> None:
    """It had finished before it saw that it was to be cut, and took the flag for the next range."""
    d = Droid(1)
    d.granted((0, 5), size=5)
    _, keep, todo = d.results(0, (Kind.RETURNED, 0, 5))
    assert not keep.any()
    assert ranges(todo) == [(0, 5)]


def test_revoked_ranges_are_dropped_and_their_worker_is_freed() -> None:
    d = Droid(2)
    d.granted((0, 2), (5, 9), size=2)
    todo = d.core.revoked(d.now, [(0, 2, 0), (7, 9, 0)], d.slots)
    assert [k.worker for k in of(todo, Kill)] == [0]
    assert not backlog(d)
    todo = d.died(0, event=0, count=1)
    assert not of(todo, Failure) and of(todo, Spawn)
    assert d.core.holding.events == 2


def test_revoked_while_its_result_is_on_the_way() -> None:
    d = Droid(1)
    d.granted((0, 2), size=2)
    assert of(d.core.revoked(d.now, [(0, 2, 0)], d.slots), Kill)
    _, keep, todo = d.results(0, (Kind.DONE, 0, 2))
    assert keep.all() and not of(todo, Assign)  # first record wins; no work for one that is being killed
    d.granted((4, 6), size=2)
    assert ranges(d.died(0)) == []
    assert ranges(d.core.worker_ready(0)) == [(4, 6)]


def test_a_worker_that_has_more_than_what_was_revoked_lives() -> None:
    d = Droid(1)
    d.measured(0.01)
    d.granted((0, 10), size=2)
    assert not of(d.core.revoked(d.now, [(0, 2, 0)], d.slots), Kill)


def test_who_hangs_on_what_others_have_done_is_freed_for_what_it_has_besides() -> None:
    d = Droid(1)
    d.measured(0.4)
    d.granted((0, 10), seconds=0.5, remaining=10_000, workers=1)
    assert [r[:2] for r in d.core.workers[0].given] == [(0, 1), (1, 2)]
    d.on(0, 0)
    d.slots["since"] = d.now - 0.5 * LONG
    assert not of(d.core.revoked(d.now, [(0, 1, 0)], d.slots), Kill)
    d.now += LONG
    assert of(d.core.revoked(d.now, [(0, 1, 0)], d.slots), Kill)
    todo = d.died(0, event=0, count=1, seconds=9.0)
    assert not of(todo, Failure) and of(todo, Spawn)
    assert ranges(d.core.worker_ready(0))[0] == (1, 2) and d.core.holding.events == 9


def test_what_others_work_on_is_dropped_and_the_event_at_hand_finished() -> None:
    d = Droid(2)
    d.measured(0.2)
    d.granted((0, 40), (60, 80), size=10)
    held = [list(w.given) for w in d.core.workers]
    assert held[0][0] == (0, 10, 0) and held[1][0] == (10, 20, 0) and backlog(d)
    todo = d.core.revoked(d.now, [(0, 5, 0), (30, 70, 0)], d.slots, begun=False)
    assert of(todo, Cut) == [Cut(0)] and not of(todo, Kill)
    assert all(not (start < 70 and stop > 30) for start, stop, _ in backlog(d))
    # It comes back in the middle of a range, of which a part is still ours.
    _, keep, todo = d.results(0, (Kind.DONE, 0, 3), (Kind.RETURNED, 3, 10))
    assert keep.tolist() == [True, False]
    assert ranges(todo)[0] == (5, 10) and d.core.holding.events == 10 + 5 + 10 + 10


def test_a_worker_is_cut_until_it_has_nothing_of_what_others_work_on() -> None:
    d = Droid(1)
    d.measured(0.001)
    d.granted((0, 40), size=2)
    given = list(d.core.workers[0].given)
    assert len(given) > 2
    assert of(d.core.revoked(d.now, [(*given[-1][:2], 0)], d.slots, begun=False), Cut) == [Cut(0)]
    _, _, todo = d.results(0, (Kind.RETURNED, 0, 2))
    assert Cut(0) in todo  # it saw the first request within a range that is still ours
    rest = [(Kind.RETURNED, start, stop) for start, stop, _ in given[1:]]
    _, keep, todo = d.results(0, *rest)
    assert not keep.any() and not of(todo, Cut)
    lost = given[-1][:2]
    mine = {*ranges(todo), *((a, b) for a, b, _ in backlog(d))}
    assert lost not in mine and sum(b - a for a, b in mine) == 38


def test_what_was_revoked_does_not_come_back_with_a_dead_worker() -> None:
    """It may have been granted anew by then, and would be there twice."""
    d = Droid(1)
    d.granted((0, 10), size=10)
    assert d.core.revoked(d.now, [(4, 10, 0)], d.slots, begun=False)
    todo = d.died(0, event=2, count=1)
    assert [f.event for f in of(todo, Failure)] == [2]
    assert backlog(d) == [(0, 2, 0), (3, 4, 0)]
    d.core.worker_ready(0)
    assert not d.core.workers[0].unwanted


def test_what_is_granted_anew_comes_back_with_a_dead_worker() -> None:
    """Who was believed lost is told that all it had was done by others; part of it may become its own again."""
    d = Droid(1)
    d.measured(0.01)
    d.granted((10, 12), (70, 72), size=2)
    assert len(d.core.workers[0].given) == 2
    assert not of(d.core.revoked(d.now, [(0, 50, 0), (60, 100, 0)], d.slots), Kill)
    d.results(0, (Kind.DONE, 10, 12))
    d.granted((20, 30), size=10)
    assert (20, 30, 0) in d.core.workers[0].given
    d.died(0)
    assert backlog(d) == [(20, 30, 0)]


# -- fields ------------------------------------------------------------------------------------------------------------


def test_the_first_fields_are_told_to_all_workers() -> None:
    d = Droid(2)
    d.granted((0, 2), size=1)
    _, keep, todo = d.results(0, (Kind.DONE, 0, 1), schema="A")
    assert keep.all() and of(todo, SetSchema) == [SetSchema("A")]


def test_a_worker_with_other_fields_tries_again() -> None:
    d = Droid(2)
    d.granted((0, 2), size=1)
    d.results(0, (Kind.DONE, 0, 1), schema="A")
    _, keep, todo = d.results(1, (Kind.DONE, 1, 2), schema="B")
    assert not keep.any() and of(todo, SetSchema) == [SetSchema("A")]
    assert ranges(todo) == [(1, 2)]


def test_images_on_the_way_to_disk_are_discarded_when_yoda_knows_other_fields() -> None:
    d = Droid(1)
    d.granted((0, 2), size=1)
    d.results(0, (Kind.DONE, 0, 1), schema="B")
    todo = d.granted((5, 6), schema="A")
    assert todo[:2] == [Discard(), SetSchema("A")]
    assert not of(d.granted((6, 7), schema="A"), Discard)


def test_the_first_word_of_yoda_about_fields_discards_nothing() -> None:
    d = Droid(1)
    assert not of(d.granted((0, 2), schema="A"), Discard)


def test_what_was_just_given_is_not_taken_back() -> None:
    """At the tail a Droid looks at once whom to take work from: not from the one it was given to a moment ago."""
    d = Droid(4)
    d.granted((0, 4), remaining=0)
    _, _, todo = d.results(0, (Kind.DONE, 0, 1))
    assert not of(todo, Assign) and d.core.holding.busy == 3
    d.slots["event"] = -1
    assert not of(d.core.balance(d.slots), Cut), "one event each, none of them begun"
    d.results(1, (Kind.DONE, 1, 2))
    d.granted((10, 40), remaining=0)
    assert d.core.holding.busy == 4
    for _ in range(3):
        assert not of(d.core.balance(d.slots), Cut)


def test_as_many_are_asked_for_work_as_there_are_idle() -> None:
    d = Droid(8)
    d.measured(1.0)
    d.granted((0, 80), seconds=10.0, remaining=100)
    for worker in range(8):
        d.on(worker, d.core.workers[worker].given[0][0])
    d.granted(remaining=0, seconds=10.0)
    start, stop, _ = d.core.workers[7].given[0]
    while backlog(d):
        d.core.holding.backlog.clear()
    d.results(7, (Kind.DONE, start, stop))
    d.on(7, -1)
    asked = [step for _ in range(10) for step in of(d.core.balance(d.slots), Cut)]
    assert len(asked) == 1, "one is idle"


def test_no_more_is_asked_back_than_yoda_wants() -> None:
    d = Droid(8)
    d.measured(1.0)
    d.granted((0, 80), seconds=10.0, remaining=100)
    d.core.holding.backlog.clear()
    for worker in range(8):
        d.on(worker, d.core.workers[worker].given[0][0])
    asked = of(d.core.reclaimed(3, d.slots), Cut)
    asked += [step for _ in range(10) for step in of(d.core.balance(d.slots), Cut)]
    assert len(asked) == 1 and d.core.holding.reclaim == 3
    (worker,) = [step.worker for step in asked]
    start, stop, _ = d.core.workers[worker].given[0]
    d.results(worker, (Kind.DONE, start, start + 1), (Kind.RETURNED, start + 1, stop))
    assert d.core.holding.reclaim == 0


def test_yoda_is_not_refused_because_nobody_has_begun_yet() -> None:
    d = Droid(2)
    d.measured(1.0)
    d.granted((0, 20), seconds=10.0, remaining=100)
    d.core.holding.backlog.clear()
    assert not of(d.core.reclaimed(3, d.slots), Cut) and d.core.holding.reclaim == 3
    d.on(0, d.core.workers[0].given[0][0])
    assert of(d.core.balance(d.slots), Cut) == [Cut(0)]


def test_an_event_that_was_given_twice_to_a_worker_is_blamed_once() -> None:
    """A retry, and the copy of it that came before."""
    d = Droid(1)
    d.measured(0.01)
    d.core.workers[0].given.extend([(22, 23, 0), (22, 23, 1)])
    d.core.workers[0].events = 2
    todo = d.core.worker_exited(0, "killed", 22, 1)
    assert [failed.event for failed in of(todo, Failure)] == [22]
    assert list(d.core.holding.backlog) == [(22, 23, 1)]
