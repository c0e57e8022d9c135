"""The rules of the Dispatcher, one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eventrange import messages, records
from eventrange.errors import BAD_CONFIG, BAD_DATA, OK, RUN_AGAIN
from eventrange.ledger import Ledger
from eventrange.messages import Drain, Grant, Reclaim, Report, Revoke
from eventrange.records import Code, Kind
from eventrange.times import time_bin
from stageout.site import NodeBreakerRules
from yoda.dispatcher import DRAIN_SHARE, Dispatcher, Instruction, Note, Send, Settings, Write
from yoda.droids import RECENT, Droid, spread
from yoda.ending import COMMIT_MOST, MARGIN_FLOOR
from yoda.nodes import Nodes, off_now
from yoda.rangelength import LONGEST, Past, commit_seconds, range_seconds

Pair = tuple[int, int]


class Yoda:
    """A Dispatcher with `total` pending events and short words for what happens to it."""

    def __init__(self, total: int = 1000, cuts: tuple[int, ...] = (0,), droids: int = 0, **settings: Any) -> None:
        ledger = Ledger(total)
        ledger.pending.add(0, total)
        self.d = Dispatcher(ledger, cuts, Settings(**settings), total)
        self.now = 100.0
        for rank in range(1, droids + 1):
            self.hello(rank)

    @property
    def ledger(self) -> Ledger:
        return self.d.ledger

    def hello(self, rank: int, workers: int = 1) -> list[Instruction]:
        return self.d.hello(self.now, rank, f"node{rank}", workers)

    def report(self, rank: int, rows: NDArray[Any] | None = None, want: int = 0, **fields: Any) -> list[Instruction]:
        values: dict[str, Any] = {"backlog": 0, "busy": 0, "seconds_per_event": 1.0, "running": [], **fields}
        values["running"] = messages.pack_running(values["running"])
        return self.d.report(
            self.now,
            rank,
            Report(b"", [], want, **values),
            records.new(0) if rows is None else rows,
        )

    def wants(self, rank: int, events: int, **fields: Any) -> list[Instruction]:
        return self.report(rank, want=events, **fields)

    def done(self, rank: int, start: int, stop: int, want: int = 0) -> list[Instruction]:
        return self.report(rank, row(Kind.DONE, start, stop), want)

    def fails(self, rank: int, event: int, want: int = 0) -> list[Instruction]:
        return self.report(rank, row(Kind.FAILED, event, event + 1), want)

    def after(self, seconds: float) -> list[Instruction]:
        self.now += seconds
        return self.d.tick(self.now)

    def alive(self, *ranks: int) -> None:
        for rank in ranks:
            self.d.droids[rank].heard = self.now


def row(kind: Kind, start: int, stop: int, size: int = 0) -> NDArray[Any]:
    return records.new(1, kind=kind, start=start, stop=stop, size=size)


def grants(todo: list[Instruction], rank: int) -> list[Pair]:
    out = []
    for step in todo:
        if isinstance(step, Send) and step.droid == rank and isinstance(step.message, Grant):
            out += [(a, b) for a, b, _ in messages.unpack_ranges(step.message.ranges)]
    return out


def sent(todo: list[Instruction], kind: type) -> list[tuple[int, Any]]:
    return [(step.droid, step.message) for step in todo if isinstance(step, Send) and isinstance(step.message, kind)]


def notes(todo: list[Instruction], name: str) -> list[dict[str, Any]]:
    return [step.values for step in todo if isinstance(step, Note) and step.name == name]


def written(todo: list[Instruction], kind: Kind) -> list[Pair]:
    out = []
    for step in todo:
        if isinstance(step, Write):
            out += [(int(r["start"]), int(r["stop"])) for r in step.rows if r["kind"] == kind]
    return out


# -- grants ------------------------------------------------------------------------------------------------------------


def test_grants_are_contiguous_and_recorded() -> None:
    y = Yoda(droids=1)
    todo = y.wants(1, 10)
    assert grants(todo, 1) == [(0, 10)] == written(todo, Kind.GRANTED)
    assert grants(y.wants(1, 10), 1) == [(10, 20)]


def test_no_grant_crosses_a_cut() -> None:
    y = Yoda(30, (0, 7, 20), droids=1)
    assert grants(y.wants(1, 15), 1) == [(0, 7), (7, 15)]


def test_nobody_gets_more_than_its_share_of_half_of_what_is_left() -> None:
    y = Yoda(1000, droids=3)
    y.hello(4, workers=7)
    assert sum(b - a for a, b in grants(y.wants(1, 1000), 1)) == 50  # 1 worker of 10
    assert sum(b - a for a, b in grants(y.wants(4, 1000), 4)) == 333  # 7 of 10, of 950


def test_droids_begin_far_from_each_other() -> None:
    assert [spread(n) for n in range(5)] == [0, 0.5, 0.25, 0.75, 0.125]
    y = Yoda(1000, droids=4)
    assert [grants(y.wants(rank, 1), rank)[0][0] for rank in (1, 2, 3, 4)] == [0, 500, 250, 750]


def test_fixed_sizes_stay_on_the_grid_of_each_file() -> None:
    y = Yoda(100, (0, 25), droids=1, size=10)
    assert grants(y.wants(1, 12), 1) == [(0, 20)]
    assert grants(y.wants(1, 12), 1) == [(20, 25), (25, 35)]


def test_fixed_sizes_find_the_grid_again_behind_a_hole() -> None:
    y = Yoda(100, droids=1, size=10)
    y.ledger.pending.remove(0, 13)
    assert grants(y.wants(1, 12), 1) == [(13, 20), (20, 30)]


def test_ranges_get_longer_when_there_are_more_workers_than_yoda_can_hear() -> None:
    y = Yoda(10**6)
    y.hello(1, workers=16000)
    (_, grant), *_ = sent(y.wants(1, 1), Grant)
    assert grant.range_seconds == 2.0


def test_ranges_and_commits_get_longer_with_the_life_of_an_allocation() -> None:
    y = Yoda(10**6, past=Past(30.0, 3))
    y.hello(1, workers=2)
    found = []
    for seconds in (0, 20, 900):
        y.now += seconds
        (_, grant), *_ = sent(y.wants(1, 1), Grant)
        found.append((grant.range_seconds, grant.commit_seconds))
    between = [(30.0 + age) / 3 for age in (0, 20, 920)]
    assert found == [(range_seconds(x), commit_seconds(x, 2)) for x in between] and found[2][0] == LONGEST


def test_what_the_job_says_of_ranges_holds() -> None:
    y = Yoda(10**6, past=Past(30.0, 3), range_seconds=7.0)
    y.hello(1, workers=2)
    (_, grant), *_ = sent(y.wants(1, 1), Grant)
    assert grant.range_seconds == 7.0 and grant.commit_seconds == commit_seconds(10.0, 2)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_failed_event_goes_alone_to_another_droid() -> None:
    y = Yoda(100, droids=2)
    y.wants(1, 10)
    assert grants(y.fails(1, 3, want=5), 1) != [(3, 4)]
    todo = y.wants(2, 2)
    assert (3, 4) in grants(todo, 2)
    (_, grant), *_ = sent(todo, Grant)
    assert messages.unpack_ranges(grant.ranges)[0] == (3, 4, 1)


def test_the_only_droid_retries_its_own_failures() -> None:
    y = Yoda(10, droids=1)
    y.wants(1, 5)
    assert (3, 4) in grants(y.fails(1, 3, want=5), 1)


def test_retries_wait_for_a_droid_that_is_still_starting() -> None:
    y = Yoda(1, droids=1)
    y.d.roster.awaited = {2}
    y.wants(1, 5)
    assert not grants(y.fails(1, 0, want=5), 1)
    y.hello(2)
    assert grants(y.wants(2, 1), 2) == [(0, 1)]


def test_retries_do_not_wait_for_a_droid_that_died_starting() -> None:
    y = Yoda(1, droids=1)
    y.d.roster.awaited = {2}
    y.wants(1, 5)
    y.fails(1, 0, want=5)
    y.d.lost(y.now, 2, "its process died")
    assert grants(y.after(0.1), 1) == [(0, 1)]


def test_no_more_retries_than_wanted() -> None:
    y = Yoda(100, droids=2)
    y.wants(1, 20)
    for event in range(6):
        y.fails(1, event)
    assert sum(b - a for a, b in grants(y.wants(2, 2), 2)) == 2


def test_quarantine_after_max_attempts() -> None:
    y = Yoda(1, droids=1, max_attempts=3)
    y.wants(1, 1)
    y.fails(1, 0, want=1)
    y.fails(1, 0, want=1)
    assert not y.ledger.quarantined
    todo = y.fails(1, 0, want=1)
    assert written(todo, Kind.QUARANTINED) == [(0, 1)]
    assert y.d.complete
    assert y.d.result()[0] == BAD_DATA


def test_an_event_is_not_given_up_on_the_word_of_a_suspect() -> None:
    y = Yoda(10, droids=2, max_attempts=1)
    y.wants(1, 2)
    assert not written(y.fails(1, 0), Kind.QUARANTINED)
    todo = y.wants(2, 1)
    assert (0, 1) in grants(todo, 2)
    assert written(y.fails(2, 0), Kind.QUARANTINED) == [(0, 1)]


def test_one_that_does_well_is_believed() -> None:
    y = Yoda(100, droids=2, max_attempts=1)
    y.wants(1, 20)
    for event in range(10):
        y.done(1, event, event + 1)
    assert written(y.fails(1, 10), Kind.QUARANTINED) == [(10, 11)]


@pytest.mark.parametrize("how", ["lost", "bye", "returned"])
def test_preemption_and_loss_are_no_attempts(how: str) -> None:
    y = Yoda(1, droids=2, max_attempts=2)
    y.wants(1, 1)
    y.fails(1, 0)
    for _ in range(5):
        assert grants(y.wants(2, 1), 2) == [(0, 1)]
        if how == "lost":
            y.d.lost(y.now, 2, "test")
        elif how == "bye":
            y.d.bye(y.now, 2, "test")
        else:
            y.report(2, row(Kind.RETURNED, 0, 1))
        y.hello(2)
    assert y.ledger.retries[0].attempts == 1


# -- doubt -------------------------------------------------------------------------------------------------------------


def bad_node(y: Yoda) -> list[Instruction]:
    """Everything fails on Droid 1, and Droid 2 can do it; returns what Yoda did."""
    out: list[Instruction] = []
    for _ in range(3):
        for start, stop in grants(y.wants(1, 8), 1):
            for event in range(start, stop):
                out += y.fails(1, event)
        for start, stop in grants(y.wants(2, 8), 2):
            out += y.done(2, start, stop)
    return out


def test_a_droid_whose_failures_others_cannot_repeat_is_doubted_and_they_are_forgiven() -> None:
    y = Yoda(1000, droids=2, max_attempts=3)
    todo = bad_node(y)
    assert [note["droid"] for note in notes(todo, "doubted")] == [1]
    assert [rank for rank, _ in sent(todo, Drain)] == [1]
    assert not y.ledger.quarantined
    assert all(retry.attempts == 0 for retry in y.ledger.retries.values())
    assert y.d.droids[1].state == "doubted"
    assert not grants(y.wants(1, 8), 1)
    event = y.ledger.pending.starts[0]
    y.ledger.grant(1, event, event + 1)
    y.fails(1, event)  # what it was still on
    assert y.ledger.retries[event].attempts == 0


def test_a_damaged_stretch_of_a_file_is_not_the_fault_of_those_who_meet_it() -> None:
    y = Yoda(400, droids=3, max_attempts=2)
    bad = range(0, 200)
    for _ in range(400):
        for rank in (1, 2, 3):
            for start, stop in grants(y.wants(rank, 4), rank):
                for event in range(start, stop):
                    y.fails(rank, event) if event in bad else y.done(rank, event, event + 1)
    assert y.d.complete
    assert [(a, b) for a, b in y.ledger.quarantined] == [(0, 200)]
    assert all(droid.state == "active" for droid in y.d.droids.values())


def test_one_on_which_everything_fails_waits_for_the_verdict_of_others() -> None:
    y = Yoda(1000, droids=2)
    y.done(2, 999, 1000)
    for start, stop in grants(y.wants(1, RECENT), 1):
        for event in range(start, stop):
            y.fails(1, event)
    assert not grants(y.wants(1, 4), 1)
    for start, stop in grants(y.wants(2, RECENT), 2):
        y.done(2, start, stop)
    assert y.d.droids[1].state == "doubted"


def test_a_doubted_droid_that_was_lost_comes_back_doubted() -> None:
    y = Yoda(1000, droids=2)
    bad_node(y)
    y.d.lost(y.now, 1, "silent")
    todo = y.report(1)
    assert y.d.droids[1].state == "doubted"
    assert sent(todo, Drain)


# -- the tail ----------------------------------------------------------------------------------------------------------


def tail(y: Yoda, seconds: float = 10.0) -> None:
    """Droid 1 holds all 10 events and is on the first; Droid 2 has nothing. 100 events of a second are known."""
    y.ledger.grant(1, 0, 10)
    y.report(1, backlog=9, busy=1, running=[(0, seconds)], times={time_bin(1.0): 100})


def test_work_moves_from_the_loaded_to_the_idle() -> None:
    y = Yoda(10, droids=2)
    tail(y)
    todo = y.wants(2, 4)
    ((rank, message),) = sent(todo, Reclaim)
    assert (rank, message.events) == (1, 4)
    assert sent(todo, Grant)[0][1].remaining == 0  # an answer all the same
    assert grants(y.report(1, row(Kind.RETURNED, 6, 10)), 2) == [(6, 7)]


def test_what_is_taken_back_goes_to_the_idle_even_if_the_loaded_wants_more() -> None:
    y = Yoda(10, droids=2)
    tail(y)
    y.wants(1, 5, backlog=9, busy=1)
    y.wants(2, 4)
    todo = y.report(1, row(Kind.RETURNED, 9, 10), backlog=8, busy=1)
    assert grants(todo, 2) == [(9, 10)]
    assert not grants(todo, 1)


def test_a_droid_is_not_asked_to_give_to_itself() -> None:
    y = Yoda(10)
    y.hello(1, workers=4)
    tail(y)
    assert not sent(y.wants(1, 5, backlog=0, busy=1), Reclaim)


def test_one_that_can_give_nothing_is_asked_less_and_less() -> None:
    y = Yoda(10, droids=2)
    tail(y, 0.0)
    y.wants(2, 4)
    asked = 0
    for _ in range(100):
        asked += len(sent(y.after(0.5), Reclaim))
        y.alive(1, 2)
    assert 2 < asked < 12


def slow_event(seconds: float = 10.0) -> Yoda:
    y = Yoda(1, droids=2)
    y.ledger.grant(1, 0, 1)
    y.report(1, busy=1, running=[(0, seconds)], times={time_bin(1.0): 100})
    return y


def test_slow_events_are_copied_once_and_revoked_by_the_first_that_finishes() -> None:
    y = slow_event()
    assert grants(y.wants(2, 1), 2) == [(0, 1)]
    y.hello(3)
    assert not grants(y.wants(3, 1), 3) + grants(y.after(1.0), 3)
    todo = y.done(2, 0, 1)
    ((rank, message),) = sent(todo, Revoke)
    assert rank == 1 and messages.unpack_ranges(message.ranges) == [(0, 1, 0)]
    assert written(todo, Kind.RETURNED) == [(0, 1)] and not written(todo, Kind.GRANTED)
    assert y.d.complete
    late = y.done(1, 0, 1)  # it was too fast to be stopped
    assert written(late, Kind.GRANTED) == written(late, Kind.DONE) == [(0, 1)] and not written(late, Kind.RETURNED)


def test_only_slow_events_are_copied_and_only_at_the_tail() -> None:
    y = slow_event(seconds=1.5)
    assert not grants(y.wants(2, 1), 2)
    assert grants(y.after(2.0), 2) == [(0, 1)]  # it grew slow while nothing was heard
    y = Yoda(2, droids=2)
    y.ledger.grant(1, 0, 1)
    y.report(1, busy=1, running=[(0, 99.0)], times={time_bin(1.0): 100})
    assert grants(y.wants(2, 1), 2) == [(1, 2)]


def test_nothing_is_copied_before_anything_is_measured() -> None:
    y = Yoda(1, droids=2)
    y.ledger.grant(1, 0, 1)
    y.report(1, busy=1, running=[(0, 99.0)])
    assert not grants(y.wants(2, 1), 2) + grants(y.after(5.0), 2)


def test_a_copy_that_comes_back_can_be_made_again() -> None:
    y = slow_event()
    y.wants(2, 1)
    assert written(y.d.bye(y.now, 2, "drained"), Kind.RETURNED) == [(0, 1)]
    assert y.ledger.in_flight == 1
    y.hello(3)
    assert grants(y.wants(3, 1), 3) + grants(y.after(1.0), 3) == [(0, 1)]


def test_a_copy_that_fails_leaves_the_other_running() -> None:
    y = slow_event()
    y.wants(2, 1)
    y.fails(2, 0)
    assert y.ledger.in_flight == 1 and not y.ledger.retries
    y.done(1, 0, 1)
    assert y.d.complete


def test_copies_of_a_hanging_event_do_not_take_turns_for_ever() -> None:
    y = slow_event()
    y.wants(2, 1)
    assert not grants(y.fails(1, 0, want=1), 1)
    y.report(2, busy=1, running=[(0, 50.0)])
    assert not grants(y.after(1.0), 1)
    y.fails(2, 0)
    assert y.ledger.attempts[0].attempts == 2


# -- Droids that go and come -------------------------------------------------------------------------------------------


def test_a_silent_droid_is_lost_and_its_work_given_to_others() -> None:
    y = Yoda(10, droids=2, silent=60.0)
    y.ledger.grant(1, 0, 10)
    y.wants(2, 20)
    y.after(59.0)
    y.alive(2)
    todo = y.after(2.0)
    assert notes(todo, "left")[0]["droid"] == 1
    assert written(todo, Kind.RETURNED) == [(0, 10)]
    assert grants(todo, 2)


def test_silence_while_we_did_not_run_ourselves_means_nothing() -> None:
    y = Yoda(10, droids=1, silent=60.0)
    y.now += 3600
    assert not notes(y.d.tick(y.now, suspended=3595.0), "left")


def test_one_that_comes_back_keeps_what_is_free_and_drops_the_rest() -> None:
    y = Yoda(10, droids=2)
    y.ledger.grant(1, 0, 10)
    y.d.lost(y.now, 1, "silent")
    y.ledger.grant(2, 0, 4)
    todo = y.done(1, 9, 10)
    assert notes(todo, "back")
    ((rank, message),) = sent(todo, Revoke)
    assert rank == 1 and messages.unpack_ranges(message.ranges) == [(0, 4, 0)]
    assert list(y.ledger.granted[1]) == [(4, 9)]
    assert written(todo, Kind.GRANTED) == [(9, 10), (4, 9)], "what was done it had, too, as the journal has it"


def test_one_that_comes_back_still_gets_what_it_asked_for() -> None:
    """It will not ask again: it waits for the answer."""
    y = Yoda(10, droids=2)
    y.ledger.grant(2, 0, 10)
    y.wants(1, 5)
    y.d.lost(y.now, 1, "silent")
    y.report(1)
    assert grants(y.report(2, row(Kind.RETURNED, 0, 10)), 1)


def test_what_another_allocation_has_taken_over_is_taken_from_the_droids() -> None:
    y = Yoda(100, droids=2)
    (first,) = grants(y.wants(1, 20), 1)
    y.wants(2, 20)
    todo = y.d.withdraw([(first[0] + 5, first[1]), (90, 100)])
    ((rank, message),) = sent(todo, Revoke)
    assert rank == 1 and not message.begun
    assert [pair[:2] for pair in messages.unpack_ranges(message.ranges)] == [(first[0] + 5, first[1])]
    assert written(todo, Kind.RETURNED) == [(first[0] + 5, first[1])]
    assert list(y.ledger.granted[1]) == [(first[0], first[0] + 5)] and y.ledger.granted[2].total == 20
    assert y.ledger.elsewhere.total == first[1] - first[0] - 5 + 10
    # What it returns of that later is no business of ours; what it finished all the same counts.
    todo = y.report(1, row(Kind.RETURNED, first[0] + 7, first[1]))
    assert written(todo, Kind.GRANTED) == [(first[0] + 7, first[1])], "or it would come back twice"
    assert y.ledger.elsewhere.covers(first[0] + 7, first[1])
    y.done(1, first[0], first[0] + 7)
    assert y.ledger.done == 7


def test_what_one_that_comes_back_has_done_others_drop() -> None:
    y = Yoda(10, droids=2)
    y.ledger.grant(1, 0, 10)
    y.d.lost(y.now, 1, "silent")
    y.ledger.grant(2, 0, 10)
    todo = y.done(1, 0, 4)
    assert {rank for rank, _ in sent(todo, Revoke)} == {1, 2}
    assert written(todo, Kind.RETURNED) == [(0, 4)] and list(y.ledger.granted[2]) == [(4, 10)]


def test_late_results_of_a_lost_droid_count() -> None:
    y = Yoda(10, droids=2)
    y.ledger.grant(1, 0, 10)
    y.d.lost(y.now, 1, "silent")
    y.done(1, 0, 10)
    assert y.d.complete and y.d.result()[0] == OK


def test_the_last_droid_lost_ends_the_run() -> None:
    y = Yoda(10, droids=1)
    y.d.lost(y.now, 1, "its process died")
    assert y.d.exit_code == RUN_AGAIN
    assert "its process died" in y.d.result()[1]


def test_what_a_lost_droid_was_at_is_lost_with_it() -> None:
    """All that its workers had spent on their ranges, not only on the events they were just at, and since its last
    word."""
    y = Yoda(20, droids=2)
    y.ledger.grant(1, 0, 10)
    y.report(1, busy=2, running=[(3, 0.5), (4, 0.1)], under_way=12.0)
    todo = y.d.lost(y.now + 3.0, 1, "its process died")
    rows = np.concatenate([step.rows for step in todo if isinstance(step, Write)])
    assert rows["wall"].sum() == 12.0 + 2 * 3.0


def test_a_sick_droid_gives_everything_back_and_is_not_waited_for() -> None:
    y = Yoda(10, droids=2)
    y.ledger.grant(1, 0, 10)
    y.wants(2, 5)
    todo = y.d.sick(y.now, 1, "no scratch", BAD_CONFIG)
    assert grants(todo, 2)
    assert y.d.exit_code is None
    y.d.drain(y.now, "test")
    y.d.bye(y.now, 2, "drained")
    assert y.d.drained


def test_when_all_are_sick_the_run_ends_with_their_code() -> None:
    y = Yoda(10, droids=2)
    for rank in (1, 2):
        y.d.sick(y.now, rank, "no scratch", BAD_CONFIG)
    assert y.d.result() == (BAD_CONFIG, "no scratch")


def test_a_droid_that_comes_after_all_others_fell_sick_gets_work() -> None:
    y = Yoda(10, droids=1)
    y.d.sick(y.now, 1, "no scratch", BAD_CONFIG)
    y.hello(2)
    assert grants(y.wants(2, 5), 2)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_drain_goes_to_all_and_a_second_one_can_only_shorten_it() -> None:
    y = Yoda(10, droids=2)
    assert [(rank, m.grace) for rank, m in sent(y.d.drain(y.now, "SIGTERM", 30.0), Drain)] == [(1, 24.0), (2, 24.0)]
    assert not y.d.drain(y.now, "again", 60.0)
    assert [m.grace for _, m in sent(y.d.drain(y.now, "again", 10.0), Drain)] == [8.0, 8.0]
    assert y.d.draining == "SIGTERM"
    assert not grants(y.wants(1, 5), 1)
    for rank in (1, 2):
        assert not y.d.drained
        y.d.bye(y.now, rank, "drained")
    assert y.d.drained
    assert y.d.result() == (RUN_AGAIN, "SIGTERM")


def test_one_that_says_hello_while_we_drain_gets_the_time_that_is_left() -> None:
    y = Yoda(10, droids=1, grace=30.0)
    y.d.drain(y.now, "SIGTERM")
    y.now += 20.0
    ((rank, message),) = sent(y.hello(2), Drain)
    assert rank == 2 and message.grace == pytest.approx(8.0)


def test_the_margin_follows_from_the_tail_of_event_times_and_the_commits() -> None:
    y = Yoda(10, droids=1)
    y.d.deadline = y.now + 1000.0

    def drains(left: float) -> bool:
        other = Yoda(10, droids=1)
        other.d.times, other.d.ending = y.d.times, y.d.ending
        other.d.deadline = other.now + left
        return bool(sent(other.after(0.0), Drain))

    assert not drains(MARGIN_FLOOR + 0.1) and drains(MARGIN_FLOOR - 0.1)
    y.report(1, times={time_bin(50.0): 100})
    assert not drains(90.0) and drains(51.0)
    y.report(1, commits={time_bin(12.0): 9})
    y.d.ending.committed(journal=4.0)
    assert drains(90.0) and not drains(120.0)
    for _ in range(8):
        y.d.ending.committed(journal=5000.0)  # the file server was gone, or we were stopped
    assert not drains(51.0 * 1.2 + 2 * (12.0 + COMMIT_MOST) * 1.2 + 10.0)
    assert Yoda(margin=7.0).d.ending.margin(y.d.times) == 7.0


@pytest.mark.parametrize(
    ("signal", "left", "grace"),
    [
        ("SIGTERM", None, 30.0),
        ("SIGTERM", 1000.0, 30.0),
        ("SIGTERM", 20.0, 18.0),  # never longer than until the end
        ("SIGTERM", -3.0, 30.0),  # past it a batch system warns before it kills, too
        ("SIGUSR1", 1000.0, 30.0),  # a preemption
        ("SIGUSR1", 170.0, 100.0),  # Slurm's warning of the end, which comes up to a minute early
        ("SIGUSR1", 80.0, 72.0),
        ("SIGUSR1", None, 30.0),
    ],
)
def test_a_signal_leaves_the_grace_or_the_time_there_is_until_the_end(
    signal: str, left: float | None, grace: float
) -> None:
    y = Yoda(10, droids=1, grace=30.0, lead=120.0, patience=100.0)
    y.d.deadline = None if left is None else y.now + left
    ((_, message),) = sent(y.d.signalled(y.now, signal), Drain)
    assert message.grace == pytest.approx(DRAIN_SHARE * grace)


def test_drains_at_the_deadline_less_the_margin() -> None:
    y = Yoda(10, droids=1, margin=10.0)
    y.d.deadline = y.now + 30.0
    assert not sent(y.after(19.0), Drain)
    ((_, message),) = sent(y.after(2.0), Drain)
    assert 0 < message.grace < 9.0


def test_a_deadline_that_passed_while_we_were_suspended_drains_at_once() -> None:
    y = Yoda(10, droids=1)
    y.d.deadline = y.now + 30.0
    y.now += 1e6
    ((_, message),) = sent(y.d.tick(y.now, suspended=1e6), Drain)
    assert message.grace == 0.0


def test_at_the_end_nobody_goes_on_repeating_what_is_done() -> None:
    y = Yoda(10, droids=1)
    todo = y.d.finish(y.now, 60.0)
    assert messages.unpack_ranges(sent(todo, Revoke)[0][1].ranges) == [(0, 10, 0)]
    assert sent(todo, Drain)


# -- fields ------------------------------------------------------------------------------------------------------------


def test_the_first_fields_are_the_tasks_and_others_are_returned_and_told() -> None:
    y = Yoda(10, droids=2)
    y.ledger.grant(1, 0, 5)
    y.ledger.grant(2, 5, 10)
    assert notes(y.report(1, row(Kind.DONE, 0, 5, 100), schema="A"), "schema") == [{"schema": "A"}]
    todo = y.report(2, row(Kind.DONE, 5, 10, 100), schema="B")
    assert not written(todo, Kind.DONE) and written(todo, Kind.RETURNED) == [(5, 10)]
    assert [m.schema for rank, m in sent(todo, Grant) if rank == 2] == ["A"]
    assert y.ledger.pending.total == 5


def test_results_without_images_have_no_fields() -> None:
    y = Yoda(5, droids=1)
    y.ledger.grant(1, 0, 5)
    y.d.schema = "A"
    assert written(y.report(1, row(Kind.DONE, 0, 5, 0), schema="B"), Kind.DONE) == [(0, 5)]


# -- cost --------------------------------------------------------------------------------------------------------------


def test_droids_that_know_that_there_is_nothing_are_not_told_again() -> None:
    y = Yoda(10, droids=50)
    y.ledger.grant(1, 0, 10)
    for rank in range(2, 51):
        assert len(sent(y.wants(rank, 4), Grant)) == 1
    assert not sent(y.report(1), Grant)


def test_failed_rows_and_codes_survive_the_way_to_the_journal() -> None:
    y = Yoda(10, droids=1)
    y.wants(1, 5)
    rows = np.concatenate([row(Kind.FAILED, 0, 1), row(Kind.DONE, 1, 5)])
    rows["code"][0] = Code.TIMEOUT
    (write,) = [s for s in y.report(1, rows) if isinstance(s, Write) and s.rows["kind"][0] == Kind.FAILED]
    assert write.rows["code"].tolist() == [Code.TIMEOUT, 0]


# -- nodes that earlier allocations have had trouble with --------------------------------------------------------------


def off(host: str = "node1", now: float = 0.0) -> dict[str, Any]:
    """What the last allocation has saved: payloads failed on `host`."""
    nodes = Nodes()
    nodes.doubted(now, host, "bad")
    return nodes.state


def with_nodes(nodes: Nodes, droids: int, awaited: tuple[int, ...] = ()) -> tuple[Yoda, list[Instruction]]:
    y = Yoda()
    y.d = Dispatcher(y.ledger, (0,), Settings(), 1000, nodes)
    y.d.roster.awaited = {*range(1, droids + 1), *awaited}
    return y, [step for rank in range(1, droids + 1) for step in y.hello(rank)]


def test_a_doubt_is_remembered_by_the_next_allocation() -> None:
    y = Yoda(droids=2)
    bad_node(y)
    assert y.d.nodes.changed and notes(y.d.nodes.doubted(0, "node9", "x"), "breaker")[0]["after"] == "open"
    later, todo = with_nodes(Nodes(state=y.d.nodes.state), 2)
    assert [note["host"] for note in notes(todo, "spare")] == ["node1"]
    later.wants(1, 10)
    assert grants(later.wants(2, 10), 2) and not later.ledger.granted.get(1)


def test_a_droid_on_a_node_that_is_off_stands_in_when_nobody_else_is_left() -> None:
    y, _ = with_nodes(Nodes(state=off()), 2)
    assert not grants(y.wants(1, 10), 1) and grants(y.wants(2, 10), 2)
    todo = y.d.lost(y.now, 2, "dead")
    assert grants(todo, 1) and y.d.exit_code is None


def test_the_only_droid_works_whatever_its_node_did() -> None:
    y, _ = with_nodes(Nodes(state=off()), 1)
    assert grants(y.wants(1, 10), 1)


def test_a_spare_waits_for_those_that_may_come_and_not_for_those_that_do_not() -> None:
    y, _ = with_nodes(Nodes(state=off()), 1, awaited=(2,))
    assert not grants(y.wants(1, 10), 1)
    y.d.roster.awaited.discard(2)
    assert grants(y.d.tick(y.now), 1)


def test_after_some_hours_a_node_is_tried_again_and_comes_back_or_not() -> None:
    day = 86400.0
    for good in (True, False):
        y, todo = with_nodes(Nodes(state=off(), offset=day), 2)
        assert [note["after"] for note in notes(todo, "breaker")] == ["half-open"] and not notes(todo, "spare")
        if good:
            y.wants(1, 10 * RECENT)
            told = [step for n in range(RECENT) for step in y.done(1, n, n + 1)]
            assert [note["after"] for note in notes(told, "breaker")] == ["closed"]
        else:
            told = bad_node(y)
            assert [note["after"] for note in notes(told, "breaker")] == ["open"]
        _, todo = with_nodes(Nodes(state=y.d.nodes.state, offset=day + 1), 2)
        assert bool(notes(todo, "spare")) != good


def test_a_node_that_fails_every_trial_is_off_for_good_and_people_are_told() -> None:
    nodes = Nodes()
    for hours in (0, 6, 12, 18):
        assert nodes.allow(3600.0 * hours, "n")[0]
        nodes.doubted(3600.0 * hours, "n", "bad")
    assert [change.after for change in nodes.alerts] == ["exhausted"] and not nodes.allow(1e9, "n")[0]
    assert off_now(nodes.state, NodeBreakerRules(), 1e9) == ["n"]
    assert nodes.allow(0.0, "another") == (True, []) and "node:another" not in nodes.state["keys"]


class CountedDroid(Droid):
    """A Droid that counts how often anybody asks how busy any of them is."""

    looks = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "busy":
            CountedDroid.looks += 1
        return super().__getattribute__(name)


def test_one_event_for_many_idle_droids_is_no_look_at_all_of_them() -> None:
    """At the tail every report may free an event or two; what that costs must not grow with those that wait."""
    y = Yoda(2000)
    for rank in range(1, 501):
        y.hello(rank)
        y.d.droids[rank].__class__ = CountedDroid
    y.report(1, want=2000)
    while y.d.ledger.pending:
        y.report(1, want=2000)
    for rank in range(2, 501):
        y.report(rank, want=4)
    CountedDroid.looks = 0
    y.d._tail_at = math.inf  # not now
    y.report(1, row(Kind.RETURNED, 5, 6))
    assert y.d.ledger.pending.total == 0
    assert CountedDroid.looks < 20
