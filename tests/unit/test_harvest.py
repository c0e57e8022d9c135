"""The loop of `yoda harvest`, with Harvester played by what happens while it sleeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventrange.errors import BAD_DATA, CANNOT_WRITE, OK, RUN_AGAIN, ConfigError, HarvesterBusy
from yoda.harvest import AccessPoint, Harvest, Ids

ONE: dict[str, Any] = {"eventRangeID": "x", "startEvent": 1, "lastEvent": 2}


class Play:
    """A work that takes `ticks` looks for each delivery, and a Harvester that answers questions from `deliveries`."""

    def __init__(self, folder: Path, deliveries: list[int], codes: list[int] | None = None, ticks: int = 3) -> None:
        self.folder, self.deliveries, self.codes, self.ticks = folder, deliveries, codes or [], ticks
        self.story: list[str] = []
        self.left = self.busy = 0
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

    def report(self, folder: str, dump: str, panda_id: str) -> None:
        assert dump == str(self.folder / "event_status.dump.json") and panda_id == "1"
        if self.busy:
            self.busy -= 1
            raise HarvesterBusy(path=dump)
        self.story.append(f"report {Path(folder).name}")

    def sleep(self, seconds: float) -> None:
        question, answer = self.folder / "worker_requestevents.json", self.folder / "JobsEventRanges.json"
        if answer.exists() and not answer.read_text().endswith("}"):
            answer.write_text(answer.read_text() + "}")  # the second half of a write
        elif question.exists():
            asked = json.loads(question.read_text())
            assert asked == {"1": {"pandaID": "1", "taskID": "2", "jobsetID": "3", "nRanges": 50}}
            self.story.append("asked")
            answer.write_text(json.dumps({"1": [ONE] * self.deliveries.pop(0)})[:-1])
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


def test_the_job_is_named_by_harvester(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tells of no job"):
        AccessPoint(str(tmp_path))
    (tmp_path / "HPCJobs.json").write_text(json.dumps({"9": {"taskID": 8, "jobsetID": 7}}))
    assert AccessPoint(str(tmp_path)).ids == Ids("9", "8", "7")
