"""The catalogue of segments, their keys, the breakers' file, and the storage page of `yoda status`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from eventrange.taskdir import TaskDir
from slurm.environment import read_allocation
from stageout import breakerfile
from stageout.breaker import Breaker
from stageout.catalogue import Catalogue, Copy, Known, SegmentId, key_of, prefix_of, read_catalogue, task_prefix
from stageout.site import BreakerRules, EndpointSite, StageoutRules
from yoda.stageout import command_name
from yoda.storage_view import explain_switched, render, render_switched, storage_view, switched_view

SUMS: dict[str, Any] = {"size": 10, "adler32": "0000000a", "sha256": "ab" * 32}
KEY = StageoutRules().key


def sealed(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"note": "sealed", "droid": 1, "segment": number, **SUMS, "members": 3, **more}


def staged(endpoint: str, number: int = 0, **more: Any) -> dict[str, Any]:
    where = {"endpoint": endpoint, "key": f"k{number}", "url": f"s3://b/{endpoint}/k{number}"}
    return {"note": "staged", "droid": 1, "segment": number, **where, **SUMS, **more}


def removed(endpoint: str | None) -> dict[str, Any]:
    return {"note": "removed", "droid": 1, "segment": 0, "endpoint": endpoint}


def catalogue(*notes: dict[str, Any]) -> Catalogue:
    return read_catalogue([("a", note) for note in notes])


def test_copies_come_and_go() -> None:
    found = catalogue(sealed(), staged("failover"), staged("primary"), removed("failover"), removed(None))
    known = found.segments[SegmentId("a", 1, 0)]
    assert known.copies == {"primary": Copy("k0", "s3://b/primary/k0")} and not known.local
    assert (known.size, known.adler32, known.sha256) == (10, 10, "ab" * 32)


def test_notes_of_another_allocation_name_the_segment() -> None:
    found = read_catalogue([("a", sealed()), ("b", staged("primary", allocation="a"))])
    assert list(found.segments) == [SegmentId("a", 1, 0)]


def test_a_lost_note_of_sealing_costs_nothing_once_there_is_a_copy() -> None:
    known = catalogue(staged("primary")).segments[SegmentId("a", 1, 0)]
    assert known.sealed and known.size == 10


def test_what_grew_after_it_was_staged_has_no_copy_yet() -> None:
    """The notes of the writer, who slept, come before those of the repair in one reading, and after them in another."""
    part, whole = {"file": "r.tar", "sha256": "cd" * 32, "size": 5}, sealed()
    repair = [sealed(**part), staged("failover", **part), staged("primary", **part, key="r"), removed("failover")]
    for notes in ([whole, *repair], [*repair, whole]):
        for more in ([], [removed(None)]):
            known = catalogue(*notes, *more).segments[SegmentId("a", 1, 0)]
            assert (known.size, known.file, known.copies, set(known.partial)) == (10, "", {}, {"primary"})
            assert known.repaired and known.local
        known = catalogue(*notes, staged("primary"), removed(None)).segments[SegmentId("a", 1, 0)]
        assert known.copies == {"primary": Copy("k0", "s3://b/primary/k0")} and not known.local
        known = catalogue(*notes, staged("primary"), {**removed("primary"), "key": "r"}).segments[SegmentId("a", 1, 0)]
        assert set(known.copies) == {"primary"} and not known.partial


@pytest.mark.parametrize(
    "note",
    [{"note": "staged"}, {"note": "sealed", "droid": "x", "segment": 0}, {"note": "breaker"}, {"note": "joined"}],
)
def test_notes_that_make_no_sense_are_passed_over(note: dict[str, Any]) -> None:
    assert catalogue(note, sealed()).segments.keys() == {SegmentId("a", 1, 0)}


def test_names_of_segments() -> None:
    id = SegmentId("20260101T000000000Z-slurm-1-r0", 12, 3)
    assert SegmentId.parse(str(id)) == id


def test_keys(tmp_path: Path) -> None:
    id = SegmentId("alloc", 2, 7)
    known = Known(id, **{**SUMS, "adler32": 10})
    taskdir = TaskDir(str(tmp_path))
    assert known.segment(taskdir, KEY, "task").key == "task/alloc/00002-0007.tar"
    assert key_of(KEY, "task", id, "x/00002-0007.repaired.tar") == "task/alloc/00002-0007.repaired.tar"
    assert key_of(KEY, "task", id, "x/00002-0007.repaired-99.tar") == "task/alloc/00002-0007.repaired-99.tar"
    assert key_of("{allocation}/{droid}.{number}", "task", id, "00002-0007.repaired.zip") == "alloc/2.repaired.7"
    known.copies["primary"] = Copy("as/it/was.tar", "s3://b/as/it/was.tar")
    assert known.segment(taskdir, KEY, "task").key == "as/it/was.tar"


def test_a_copy_is_on_an_endpoint_only_where_that_is_now() -> None:
    old = EndpointSite(name="primary", url="s3://b/p", endpoint_url="https://old")
    new, moved = replace(old, endpoint_url="https://new/"), replace(old, url="s3://b/q")
    failover = EndpointSite(name="failover", url="file:///f f/")
    known, both = Known(SegmentId("a", 1, 0)), StageoutRules(delete_local=True, delete_failover=True)
    known.copies["failover"] = Copy("k", "file:///f%20f/k")
    for service in (old.service, None):
        known.copies["primary"] = Copy("k", "s3://b/p/k", service)
        assert known.on((old, failover)) == ("primary", "failover")
        assert known.on((moved, failover)) == ("failover",)
        assert known.on((replace(old, name="failover"), replace(failover, name="primary"))) == ()
        assert not known.unfinished((old, failover), StageoutRules())
        assert known.unfinished((moved, failover), StageoutRules())
        assert known.unfinished((moved,), StageoutRules(rehome=False))  # it is nowhere now
    known.copies["primary"] = known.copies["primary"]._replace(service=old.service)
    assert known.on((new, failover)) == ("failover",)
    assert not known.unfinished((new, failover), replace(both, rehome=False, delete_local=False))


def test_prefixes_are_only_given_where_nobody_else_begins_so() -> None:
    assert prefix_of(KEY, "t", "a") == "t/a/" and task_prefix(KEY, "t") == "t/"
    assert prefix_of("{allocation}-{droid}-{number}", "t", "a") is None
    assert prefix_of("{task}/{droid}/{allocation}/{number}", "t", "a") is None
    assert task_prefix("{allocation}/{task}/{droid}/{number}", "t") is None
    assert prefix_of(KEY, "t", "a", 1) == "t/a/00001-"
    assert prefix_of("{droid}/{allocation}/{number}", "t", "a", 1) == "1/a/"
    assert prefix_of("{allocation}/{droid}{number}", "t", "a", 1) is None  # 1 and 11
    assert prefix_of("{allocation}-{droid}-{number}", "t", "a", 1) is None  # a-1 may be another allocation
    assert prefix_of("{allocation}/{number}-{droid}", "t", "a", 1) is None


@pytest.mark.parametrize("key", ["{task}.tar", "{allocation}-{droid}", "/{allocation}-{droid}-{number}", "{what}"])
def test_key_templates_that_would_clash_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        StageoutRules(key=key)


def test_breakers_share_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    assert breakerfile.load(path) == {}
    rules = BreakerRules(samples=1)
    one, other = Breaker(rules), Breaker(rules)
    one.failure("endpoint:a", 100.0)
    other.success("endpoint:a", 50.0)
    other.failure("endpoint:b", 60.0)
    breakerfile.save(path, one.to_dict())
    breakerfile.save(path, other.to_dict())
    found = Breaker(rules, breakerfile.load(path))
    assert found.state("endpoint:a") == "open" == found.state("endpoint:b")  # of each key the latest counts
    assert list(tmp_path.iterdir()) == [tmp_path / "state.json"]
    now = Breaker(rules, breakerfile.tried_now(breakerfile.load(path)))
    assert now.state("endpoint:a") == "closed" and now.would_allow("endpoint:a", 101.0)


def test_what_is_off_for_good_stays_off_for_who_asks_now(tmp_path: Path) -> None:
    rules = BreakerRules(samples=1, opens=1)
    breaker = Breaker(rules)
    breaker.failure("endpoint:a", 100.0)
    assert Breaker(rules, breakerfile.tried_now(breaker.to_dict())).state("endpoint:a") == "exhausted"


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"version": 99}', b'{"version": 1, "keys": 3}', b"\xff\x00"])
def test_a_damaged_breaker_file_is_no_state(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    assert breakerfile.load(str(path)) == {}
    breakerfile.save(str(path), Breaker().to_dict())
    assert breakerfile.load(str(path))["version"] == 1


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    breakerfile.save(str(tmp_path / "missing" / "state.json"), Breaker().to_dict())


def test_status_shows_endpoints_copies_and_who_waits() -> None:
    change = {
        "note": "breaker",
        "key": "endpoint:primary",
        "before": "closed",
        "after": "exhausted",
        "reason": "5 of 5",
    }
    found = catalogue(
        {
            "note": "endpoints",
            "endpoints": [{"name": "primary", "url": "s3://a"}, {"name": "failover", "url": "s3://b"}],
        },
        sealed(0),
        sealed(1),
        {"note": "upload_failed", "endpoint": "primary", "count": 3, "kind": "StorageFull", "detail": "no room"},
        {**change, "alert": True, "time": 5.0, "state": {"big": 1}},
        staged("failover", 0),
        {"note": "blocked", "by": 1, "waiting": 1, "until": None, "time": 6.0},
    )
    view = storage_view(found)
    assert view is not None
    json.dumps(view)
    assert view["segments"] == {"sealed": 2, "staged": 1, "waiting": 1, "unusable": 0, "deleted_here": 0}
    primary, failover = view["endpoints"]
    assert (primary["state"], primary["alert"], primary["copies"], primary["failures"]) == ("exhausted", True, 0, 3)
    assert (failover["state"], failover["copies"], failover["bytes"]) == ("closed", 1, 10)
    assert view["blocked"] and "state" not in view["changes"][0]
    text = "\n".join(render(view))
    assert "OFF FOR GOOD" in text and "--reset primary" in text and "processing goes on" in text


def test_status_shows_nodes_and_queues_that_are_off_and_all_changes() -> None:
    def change(key: str, after: str, time: float) -> dict[str, Any]:
        return {"note": "breaker", "key": key, "before": "closed", "after": after, "reason": "bad", "time": time}

    found = catalogue(
        change("node:n1", "open", 1.0),
        change("node:n2", "open", 2.0),
        change("queue:s/low/preempt", "exhausted", 3.0),
        change("node:n1", "closed", 4.0),
        change("endpoint:primary", "open", 5.0),
    )
    view = switched_view(found)
    assert view is not None and len(view["changes"]) == 5
    assert [(one["name"], one["state"], one["since"]) for one in view["now"]] == [
        ("n1", "closed", 4.0),
        ("n2", "open", 2.0),
        ("s/low/preempt", "exhausted", 3.0),
    ]
    text = render_switched(view)
    assert len(text) == 2 and "n2  off for now: bad" in text[0] and "OFF FOR GOOD" in text[1]
    told = explain_switched(
        {"changes": [*view["changes"], change("node:n2", "half-open", 6.0), change("node:n2", "open", 7.0)]}
    )
    assert "Node n2 is off for now since 1970-01-01 00:00:07 UTC, switched off 2 times: bad." in told
    assert len(told) == 3 and any(text.startswith("Storage primary is off for now") for text in told)


def test_no_storage_is_no_page() -> None:
    assert storage_view(catalogue(sealed())) is None and switched_view(catalogue(sealed())) is None


def test_no_two_commands_journals_of_one_process_have_the_same_name(tmp_path: Path) -> None:
    names = [command_name(TaskDir(str(tmp_path)), "submit") for _ in range(300)]  # several within each millisecond
    assert len(set(names)) == 300 and names == sorted(names)


def test_the_journal_of_a_command_comes_behind_one_whose_clock_was_ahead(tmp_path: Path) -> None:
    """Names tell the order: what comes before cannot take back what comes after it."""
    task = TaskDir(str(tmp_path))
    task.make()
    for ahead in (3600.0, 0.0, 400 * 86400.0):
        theirs = read_allocation({}, time.time() + ahead, "host", 1).name
        Path(task.journal(theirs)).touch()
        Path(task.journal("zz-not-a-date")).touch()
        ours = read_allocation({}, task.after(time.time()), "host", 2).name
        command = command_name(task, "salvage")
        assert theirs < ours and theirs < command
    Path(task.journal("99999999T999999999Z-x")).touch()
    assert task.after(5.0) == 5.0  # no date: nothing can be said
