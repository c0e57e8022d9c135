"""The pure core of stage-out: where a segment goes when endpoints fail, and what may be deleted when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stageout.protocol import Blocked, Breaker, Damaged, Ended, Failed, Removed, Report, Segment, Staged
from stageout.site import BreakerRules, StageoutRules
from stageout.staging import Instruction, RemoveCopy, RemoveLocal, Staging, Tell, Upload

RULES: dict[str, Any] = {"parallel": 1, "tries": 2, "backoff": 10.0, "rehome_after": 100.0}


def core(**keys: Any) -> Staging:
    return Staging(["primary", "failover"], StageoutRules(**{**RULES, **keys}), lambda: 1.0)


def seg(name: str) -> Segment:
    return Segment(name, f"/task/{name}.tar", f"task/{name}.tar", 10, 1, "00")


def uploads(orders: Sequence[Instruction]) -> list[tuple[str, str, str | None]]:
    return [(o.segment.name, o.endpoint, o.source) for o in orders if isinstance(o, Upload)]


def told(orders: Sequence[Instruction], *kinds: type[Report]) -> list[Any]:
    return [o.report for o in orders if isinstance(o, Tell) and isinstance(o.report, kinds)]


def test_segments_go_to_the_primary_in_order_one_at_a_time() -> None:
    staging = core()
    assert uploads(staging.submit(seg("a"), (), 0)) == [("a", "primary", None)]
    assert uploads(staging.submit(seg("b"), (), 1)) == []
    assert uploads(staging.submit(seg("a"), (), 1)) == []
    orders = staging.uploaded("a", "primary", "url", 2)
    (staged,) = told(orders, Staged)
    assert (staged.segment, staged.endpoint, staged.url, staged.size, staged.time) == ("a", "primary", "url", 10, 2)
    assert uploads(orders) == [("b", "primary", None)]
    assert staging.left() == ("a", "b")  # not known to the journal yet
    staging.recorded("a", "primary", False, 3)
    assert staging.left() == ("b",)


def test_a_failing_primary_is_tried_again_then_the_failover_takes_over() -> None:
    staging = core()
    staging.submit(seg("a"), (), 0)
    orders = staging.failed("a", "primary", "StorageTransient", "503", 1)
    assert told(orders, Failed) and uploads(orders) == [] and told(orders, Blocked) == []
    assert staging.wake(1) == 11
    assert uploads(staging.tick(10)) == []
    assert uploads(staging.tick(11)) == [("a", "primary", None)]
    assert uploads(staging.failed("a", "primary", "StorageTransient", "503", 12)) == [("a", "failover", None)]


def test_where_waiting_does_not_help_the_failover_takes_over_at_once() -> None:
    for kind in ("StoragePermanent", "StorageFull", "StorageConflict"):
        staging = core()
        staging.submit(seg("a"), (), 0)
        assert uploads(staging.failed("a", "primary", kind, "no", 1)) == [("a", "failover", None)]


def test_an_open_breaker_sends_all_to_the_failover_and_six_hours_later_one_back() -> None:
    staging = core(breaker=BreakerRules(samples=2), rehome=False)
    now = 0.0
    for name in "ab":
        staging.submit(seg(name), (), now)
        orders = staging.failed(name, "primary", "StoragePermanent", "403", now)
        staging.uploaded(name, "failover", "url", now)
        staging.recorded(name, "failover", False, now)
    (change,) = told(orders, Breaker)
    assert (change.key, change.after, change.alert) == ("endpoint:primary", "open", False)
    assert change.state["keys"]["endpoint:primary"]["state"] == "open"
    assert uploads(staging.submit(seg("c"), (), now + 60)) == [("c", "failover", None)]
    staging.uploaded("c", "failover", "url", now + 61)
    staging.recorded("c", "failover", False, now + 61)
    orders = staging.submit(seg("d"), (), now + 6 * 3600)
    assert uploads(orders) == [("d", "primary", None)] and told(orders, Breaker)[0].after == "half-open"
    assert told(staging.uploaded("d", "primary", "url", now + 6 * 3600 + 1), Breaker)[0].after == "closed"


def test_a_conflict_is_not_the_endpoints_fault() -> None:
    staging = core(breaker=BreakerRules(samples=1))
    staging.submit(seg("a"), (), 0)
    assert told(staging.failed("a", "primary", "StorageConflict", "taken", 1), Breaker) == []
    assert staging.breaker.state("endpoint:primary") == "closed"
    orders = staging.failed("a", "failover", "StorageConflict", "taken", 2)
    assert uploads(orders) == [] and staging.wake(2) is None
    assert [report.until for report in told(orders, Blocked)] == [None]  # both are well, and of no use to it
    assert told(staging.drain(1e9, False, 3), Ended)[0].left == ("a",)


def test_an_endpoint_that_is_well_but_cannot_have_it_does_not_hide_that_the_other_is_down() -> None:
    staging = core(tries=1)
    staging.submit(seg("a"), (), 0)
    assert told(staging.failed("a", "primary", "StorageConflict", "taken", 1), Blocked) == []
    orders = staging.failed("a", "failover", "StorageTransient", "503", 2)
    assert [report.until for report in told(orders, Blocked)] == [12]


def test_both_down_is_said_once_and_work_goes_on_when_one_is_back() -> None:
    staging = core(tries=1)
    staging.submit(seg("a"), (), 0)
    staging.failed("a", "primary", "StorageTransient", "503", 1)
    orders = staging.failed("a", "failover", "StorageTransient", "503", 2)
    (blocked,) = told(orders, Blocked)
    assert (blocked.waiting, blocked.until) == (1, 11)
    orders = staging.tick(11)
    assert uploads(orders) == [("a", "primary", None)]
    assert told(staging.failed("a", "primary", "StorageTransient", "503", 12), Blocked) == []
    staging.tick(13)
    assert told(staging.uploaded("a", "failover", "url", 14), Staged)


def test_re_homing_comes_last_and_after_the_primary_had_time_to_recover() -> None:
    staging = core(tries=1)
    staging.submit(seg("a"), (), 0)
    staging.failed("a", "primary", "StorageTransient", "503", 1)
    staging.uploaded("a", "failover", "url", 2)
    assert uploads(staging.recorded("a", "failover", False, 2)) == []
    assert staging.wake(2) == 101
    assert uploads(staging.submit(seg("b"), (), 100)) == [("b", "primary", None)]
    orders = staging.uploaded("b", "primary", "url", 101)
    assert uploads(orders) == [("a", "primary", None)]
    (staged,) = told(staging.uploaded("a", "primary", "url", 102), Staged)
    assert staged.rehomed
    staging.recorded("a", "primary", False, 103)
    staging.recorded("b", "primary", False, 103)
    assert staging.left() == () and staging.wake(200) is None


def test_re_homing_from_the_failover_when_the_local_copy_is_gone() -> None:
    staging = core()
    assert uploads(staging.submit(seg("a"), ("failover",), 0)) == [("a", "primary", None)]
    orders = staging.failed("a", "primary", "SegmentDamaged", "gone", 1)
    assert uploads(orders) == [("a", "primary", "failover")] and told(orders, Damaged) == []
    orders = staging.failed("a", "primary", "SegmentDamaged", "bad copy", 2, source="failover")
    assert uploads(orders) == [] and told(orders, Failed)[0].endpoint == "failover"
    assert staging.wake(3) is None and staging.breaker.counts("endpoint:primary") == (0, 0)


def test_local_copies_are_deleted_only_when_recorded_and_asked_for() -> None:
    for asked in (False, True):
        staging = core(delete_local=asked)
        staging.submit(seg("a"), (), 0)
        orders = staging.uploaded("a", "primary", "url", 1)
        assert not any(isinstance(o, RemoveLocal) for o in orders)
        orders = staging.recorded("a", "primary", False, 2)
        assert [o for o in orders if isinstance(o, RemoveLocal)] == ([RemoveLocal(seg("a"))] if asked else [])


def test_failover_copies_are_deleted_only_when_their_end_is_recorded() -> None:
    staging = core(delete_failover=True)
    staging.submit(seg("a"), ("failover",), 0)
    staging.uploaded("a", "primary", "url", 1)
    orders = staging.recorded("a", "primary", False, 2)
    assert [r.endpoint for r in told(orders, Removed)] == ["failover"]
    assert not any(isinstance(o, RemoveCopy) for o in orders)
    assert RemoveCopy(seg("a"), "failover") in staging.recorded("a", "failover", True, 3)
    assert staging.recorded("a", "failover", True, 4) == []


def test_a_damaged_segment_is_reported_once_and_given_up() -> None:
    staging = core()
    staging.submit(seg("a"), (), 0)
    orders = staging.failed("a", "primary", "SegmentDamaged", "other bytes", 1)
    assert told(orders, Damaged) and staging.wake(1) is None and staging.left() == ()
    assert staging.breaker.counts("endpoint:primary") == (0, 0)


def test_a_segment_that_cannot_be_read_now_is_tried_again_and_is_not_the_endpoints_fault() -> None:
    staging = core(breaker=BreakerRules(samples=1))
    staging.submit(seg("a"), (), 0)
    orders = staging.failed("a", "primary", "SegmentUnreadable", "stale", 1)
    assert told(orders, Damaged, Breaker) == [] and told(orders, Blocked)[0].until == 11
    assert uploads(staging.tick(11)) == [("a", "primary", None)]
    staging = core()
    staging.submit(seg("a"), ("failover",), 0)  # there is a copy to take instead
    assert uploads(staging.failed("a", "primary", "SegmentUnreadable", "stale", 1)) == [("a", "primary", "failover")]


def test_drain_ends_when_nothing_can_be_done_in_time() -> None:
    staging = core(tries=1)
    assert told(staging.drain(50, False, 0), Ended)[0].left == ()
    staging = core(tries=1)
    staging.submit(seg("a"), (), 0)
    assert told(staging.drain(50, False, 1), Ended) == []
    staging.failed("a", "primary", "StorageTransient", "503", 2)
    orders = staging.uploaded("a", "failover", "url", 3)
    assert told(orders, Ended) == []  # the record is not written yet
    (ended,) = told(staging.recorded("a", "failover", False, 4), Ended)
    assert ended.left == () and staging.ended
    staging = core(tries=1, backoff=100)
    staging.submit(seg("a"), (), 0)
    staging.drain(50, False, 1)
    staging.failed("a", "primary", "StorageTransient", "503", 2)
    (ended,) = told(staging.failed("a", "failover", "StorageTransient", "503", 3), Ended)
    assert ended.left == ("a",)


def test_reset_tries_again_at_once() -> None:
    staging = core(breaker=BreakerRules(samples=1, opens=1), tries=1)
    staging.submit(seg("a"), (), 0)
    staging.failed("a", "primary", "StorageTransient", "503", 1)
    orders = staging.failed("a", "failover", "StorageTransient", "503", 2)
    assert told(orders, Breaker)[0].alert and staging.wake(3) is None
    assert uploads(staging.reset("failover", 4)) == [("a", "failover", None)]
