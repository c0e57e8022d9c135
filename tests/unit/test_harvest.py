"""The loop of `yoda harvest`, with Harvester played by what happens while it sleeps; reports of what is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sample_task import frozen

from eventrange import image, records
from eventrange.axis import Axis
from eventrange.errors import BAD_DATA, CANNOT_WRITE, OK, RUN_AGAIN, ConfigError, HarvesterBusy
from eventrange.history import read_progress
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.segment import checksum, scan, writer
from eventrange.taskdir import TaskDir
from stageout.site import EndpointSite, StageoutRules
from yoda.harvest import AccessPoint, Harvest, Ids
from yoda.harvester import Dumped, dump
from yoda.ranges_view import RangesView
from yoda.sources import named_axis
from yoda.stageout import endpoints_note, stage_out

ONE: dict[str, Any] = {"eventRangeID": "x", "startEvent": 1, "lastEvent": 2}


class Play:
    """A work that takes `ticks` looks for each delivery, and a Harvester that answers questions from `deliveries`."""

    def __init__(self, folder: Path, deliveries: list[int], codes: list[int] | None = None, ticks: int = 3) -> None:
        self.folder, self.deliveries, self.codes, self.ticks = folder, deliveries, codes or [], ticks
        self.story: list[str] = []
        self.left = self.busy = self.left_out = 0
        self.ended = False
        self.each: Callable[[], None] = lambda: None
        folder.mkdir(exist_ok=True)
        self.point = AccessPoint(str(folder), Ids("1", "2", "3"))
        self.harvest = Harvest(self.point, str(folder / "task"), self, 50, self.sleep)

    def start(self, folder: str) -> None:
        self.story.append(f"start {Path(folder).name}")
        self.left, self.ended = self.ticks, False

    def poll(self) -> int | None:
        self.left -= 1
        if self.ended:
            return RUN_AGAIN
        return (self.codes.pop(0) if self.codes else OK) if self.left < 0 else None

    def stop(self) -> None:
        self.story.append("stop")
        self.ended = True

    def report(self, folder: str, dump: str, panda_id: str) -> int:
        assert dump == str(self.folder / "event_status.dump.json") and panda_id == "1"
        if self.busy:
            self.busy -= 1
            raise HarvesterBusy(path=dump)
        self.story.append(f"report {Path(folder).name}")
        return self.left_out

    def sleep(self, seconds: float) -> None:
        question, answer = self.folder / "worker_requestevents.json", self.folder / "JobsEventRanges.json"
        if answer.exists() and not answer.read_text().endswith("}"):
            answer.write_text(answer.read_text() + "}")  # the second half of a write
        elif question.exists():
            asked = json.loads(question.read_text())
            assert asked == {"1": {"pandaID": "1", "taskID": "2", "jobsetID": "3", "nRanges": 50}}
            self.story.append("asked")
            names = (f"{len(self.story)}-{n}" for n in range(self.deliveries.pop(0)))  # of each delivery its own
            answer.write_text(json.dumps({"1": [{**ONE, "eventRangeID": name} for name in names]})[:-1])
            question.unlink()
        self.each()


def test_asks_ahead_works_and_reports_until_there_are_no_more(tmp_path: Path) -> None:
    play = Play(tmp_path / "ap", [2, 1, 0], codes=[OK, BAD_DATA], ticks=9)
    play.busy = 2
    assert play.harvest.run() == BAD_DATA
    assert play.story == [
        *("asked", "start 0001", "asked", "report 0001"),
        *("start 0002", "asked", "report 0002"),
    ]
    lists = sorted((tmp_path / "ap" / "task").glob("*/ranges.json"))
    assert [len(json.loads(path.read_text())["1"]) for path in lists] == [2, 1]
    assert not (tmp_path / "ap" / "JobsEventRanges.json").exists()
    assert (tmp_path / "ap" / "worker_heartbeat.json").exists()


def test_one_delivery_ahead_is_enough(tmp_path: Path) -> None:
    play = Play(tmp_path / "ap", [1, 1, 1, 0], ticks=50)
    assert play.harvest.run() == OK
    assert play.story[:4] == ["asked", "start 0001", "asked", "report 0001"]


def test_what_harvester_puts_there_unasked_is_taken_first(tmp_path: Path) -> None:
    play = Play(tmp_path / "ap", [0])
    (tmp_path / "ap" / "JobsEventRanges.json").write_text(json.dumps({"1": [ONE]}))
    assert play.harvest.run() == OK
    assert play.story == ["start 0001", "asked", "report 0001"]


@pytest.mark.parametrize("ahead", [False, True])
def test_killed_while_it_takes_a_delivery_it_takes_that_once(tmp_path: Path, ahead: bool) -> None:
    """What has been written is also still where Harvester put it."""
    play = Play(tmp_path / "ap", [2, 0])
    for number in range(1, 2 + ahead):
        left = json.dumps({"1": [{**ONE, "eventRangeID": f"r{number}"}]})
        (play.folder / "task" / f"{number:04d}").mkdir(parents=True)
        (play.folder / "task" / f"{number:04d}" / "ranges.json").write_text(left)
        (play.folder / "JobsEventRanges.json").write_text(left)
    assert play.harvest.run() == OK
    lists = [path.read_text() for path in sorted(play.folder.glob("task/*/ranges.json"))]
    assert len(lists) == len(set(lists)) == 2 + ahead
    assert play.story.count("asked") == 2, "what was there answered nothing"


@pytest.mark.parametrize("how", ["signal", "kill_worker.json"])
def test_ends_in_good_order_and_goes_on(tmp_path: Path, how: str) -> None:
    play = Play(tmp_path / "ap", [1, 1], ticks=9)

    def end() -> None:
        if "start 0001" in play.story:
            if how == "signal":
                play.harvest.stopping = True
            else:
                (tmp_path / "ap" / how).touch()

    play.each = end
    assert play.harvest.run() == RUN_AGAIN
    assert play.story[-3:] == ["start 0001", "stop", "report 0001"] or play.story[-2:] == ["stop", "report 0001"]
    (tmp_path / "ap" / "kill_worker.json").unlink(missing_ok=True)
    again = Play(tmp_path / "ap", [0])
    assert again.harvest.run() == OK
    assert again.story[0] == "start 0001", "what was not finished is first"


def test_a_run_that_cannot_goes_no_further(tmp_path: Path) -> None:
    play = Play(tmp_path / "ap", [1, 1, 0], codes=[CANNOT_WRITE])
    assert play.harvest.run() == CANNOT_WRITE
    assert "start 0002" not in play.story and "report 0001" in play.story


def test_what_cannot_be_reported_does_not_hold_up_the_next_delivery(tmp_path: Path) -> None:
    play = Play(tmp_path / "ap", [1, 1, 0])
    play.left_out = 1
    assert play.harvest.run() == RUN_AGAIN
    assert "report 0002" in play.story


def test_the_job_is_named_by_harvester(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tells of no job"):
        AccessPoint(str(tmp_path))
    (tmp_path / "HPCJobs.json").write_text(json.dumps({"9": {"taskID": 8, "jobsetID": 7}}))
    assert AccessPoint(str(tmp_path)).ids == Ids("9", "8", "7")


# --- reports ----------------------------------------------------------------------------------------------------------


class Reported:
    """A task of four ranges of three events, and what Harvester takes."""

    def __init__(self, folder: Path) -> None:
        listed = [
            {"eventRangeID": f"r{n}", "LFN": "generate", "startEvent": 3 * n + 1, "lastEvent": 3 * n + 3}
            for n in range(4)
        ]
        (folder / "ranges.json").write_text(json.dumps({"7": listed}))
        whole = Axis.from_dict({"files": [{"path": "generate", "events": 12}]})
        axis = named_axis(whole, str(folder / "ranges.json"), str(folder / "index"))
        self.frozen = msgspec.structs.replace(frozen(folder, 12), axis=axis.to_dict())
        self.taskdir, self.path = TaskDir(str(folder / "task")), folder / "dump.json"

    def done(
        self, name: str, *numbers: int, note: dict[str, Any] | None = None, rules: StageoutRules | None = None
    ) -> dict[int, int]:
        """An allocation that has done these ranges; {range: where its image is}. With `rules` it has sealed their
        segment, and had an endpoint beside the task."""
        segment, at = self.taskdir.segment(name, 1, 0, "tar"), {}
        os.makedirs(os.path.dirname(segment), exist_ok=True)
        os.makedirs(self.taskdir.journals, exist_ok=True)
        out, journal = writer(segment), JournalWriter(self.taskdir.journal(name), self.frozen.fingerprint, name)
        for n in numbers:
            data = image.build(3 * n, None, [{"x": float(n)}] * 3, {})
            at[n] = out.append(f"t.r{n}", data)
            where = {"droid": 1, "offset": at[n], "size": len(data), "checksum": checksum(data)}
            journal.append(records.new(1, kind=Kind.DONE, start=3 * n, stop=3 * n + 3, **where))
        if note is not None:
            journal.note("staged", **note)
        if rules is not None:
            sealed = out.seal()
            sums = {"size": sealed.size, "adler32": f"{sealed.adler32:08x}", "sha256": sealed.sha256}
            journal.note("sealed", droid=1, segment=0, members=sealed.members, **sums)
            storage = EndpointSite(name="primary", url=f"file://{self.path.parent}/storage")
            journal.note("endpoints", **endpoints_note((storage,), rules))
        else:
            out.close()
        journal.flush()
        journal.file.close()
        return at

    def spoil(self, name: str, offset: int) -> None:
        with open(self.taskdir.segment(name, 1, 0), "r+b") as file:
            file.seek(offset + 20)
            file.write(b"\xff")

    def dump(self) -> tuple[Dumped, list[str]]:
        """What was made, and the names of the ranges in it, which Harvester takes."""
        made = dump(RangesView(self.taskdir, self.frozen), str(self.path), {})
        if not self.path.exists():
            return made, []
        entries = json.loads(self.path.read_text())["7"]
        ids = [entry["eventRangeID"] for entry in entries]
        for archive in {entry["path"] for entry in entries}:
            assert sorted(one.name.rpartition(".")[2] for one in scan(archive) if one.intact) == sorted(ids)
            os.unlink(archive)
        self.path.rename(f"{self.path}.read.{len(list(self.path.parent.iterdir()))}")
        return made, ids

    @property
    def events(self) -> int:
        return read_progress(self.taskdir, self.frozen.fingerprint).done.total


def test_an_image_that_is_damaged_is_made_again_and_the_others_are_reported(tmp_path: Path) -> None:
    task = Reported(tmp_path)
    at = task.done("2020a", 0, 1, 2, 3)
    task.done("2020b", 2)
    for number in (1, 2):  # of 2 there is another image
        task.spoil("2020a", at[number])
    made, ids = task.dump()
    assert (made.finished, made.left_out, made.pending, sorted(ids)) == (3, 1, 3, ["r0", "r2", "r3"])
    assert "3 events are pending again" in str(made) and task.events == 9
    assert task.dump() == (Dumped(0, 0, 0), [])
    task.done("2999", 1)
    assert task.dump() == (Dumped(1, 0, 1), ["r1"])


def test_what_is_on_storage_that_is_away_is_reported_later(tmp_path: Path) -> None:
    task = Reported(tmp_path)
    sums = {"size": 1, "adler32": "0", "sha256": "0" * 64}
    copy: dict[str, Any] = {"droid": 1, "segment": 0, "endpoint": "gone", "key": "k", "url": "s3://b/k"}
    task.done("2020a", 0, 1, note=copy | sums)
    task.done("2020b", 2)
    os.unlink(task.taskdir.segment("2020a", 1, 0))
    made, ids = task.dump()
    assert (made.finished, made.left_out, made.pending, ids) == (1, 2, 0, ["r2"])
    assert "run the same command again" in str(made) and task.events == 9


@pytest.mark.parametrize("delete", [False, True])
def test_what_was_reported_is_there_when_harvester_comes_for_it(tmp_path: Path, delete: bool) -> None:
    """Storage is down while a delivery is reported, and takes the segments before Harvester has."""
    task = Reported(tmp_path)
    task.done("2020a", 0, 1, rules=StageoutRules(delete_local=delete))
    view, segment = RangesView(task.taskdir, task.frozen), task.taskdir.segment("2020a", 1, 0)
    assert dump(view, str(task.path), {}).finished == 2
    (tmp_path / "storage").mkdir()
    assert stage_out(task.taskdir, task.frozen.task, task.frozen.fingerprint, None).staged == 1
    assert os.path.exists(segment) == (not delete)
    archives = {entry["path"] for entry in json.loads(task.path.read_text())["7"]}
    assert [len(list(scan(path))) for path in archives] == [2]
    assert delete or archives == {segment}, "nothing is copied where it stays"
