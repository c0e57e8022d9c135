"""`yoda submit` does not feed a queue whose allocations do nothing; from outputs of jobs as Slurm and our script write
them, with recorded answers of Slurm."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from eventrange import records
from eventrange.errors import QueueOff
from eventrange.history import Story
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from slurm.commands import Ran
from slurm.ending import Ended
from stageout import breakerfile
from yoda import queues
from yoda.nodes import Nodes
from yoda.queues import starts_of, verdict
from yoda.setting import Request
from yoda.submit import Asked, show, submit_task
from yoda.task import need_task

HOUR = 3600.0


class Cluster:
    """A task with a site, the jobs that ran for it, and a Slurm that numbers what is submitted and forgets the rest."""

    def __init__(self, folder: Path) -> None:
        (folder / "payload.py").write_text("def light(event, random):\n    return {'x': 1.0}\n")
        job = {"task": "zjets", "seed": 1, "inputs": {"format": "generate", "events": 30}}
        (folder / "job.yaml").write_text(yaml.safe_dump({**job, "payload": {"python": "payload.py:light"}}))
        self.told = folder / "told"
        site = {
            "site": "s",
            "slurm": {"partition": "low", "qos": "preempt", "cpus_per_node": 1},
            "stageout_rules": {"alert_command": ["sh", "-c", f"cat >> {self.told}"]},
        }
        (folder / "site.yaml").write_text(yaml.safe_dump(site))
        self.request = Request(str(folder / "job.yaml"), str(folder / "site.yaml"), str(folder / "task"))
        self.task = TaskDir(str(folder / "task"))
        self.last, self.sent = 10, list[list[str]]()
        self.states: dict[str, str] = {}  # of jobs that Slurm remembers

    def __call__(self, argv: Sequence[str], stdin: str | None = None) -> Ran:
        if argv[0] == "scontrol" and argv[-1] in self.states:
            return Ran(0, f"JobId={argv[-1]} JobState={self.states[argv[-1]]} Reason=None Restarts=0\n")
        if argv[0] == "sinfo" and "-N" in argv:
            return Ran(0, "n7\nn8\n")
        if argv[0] != "sbatch" or "--test-only" in argv:
            return Ran(1, "", "slurm_load_jobs error: Invalid job id specified")
        self.sent.append(list(argv))
        self.last += 1
        return Ran(0, f"{self.last}\n")

    def submit(self, allocations: int = 1, force: bool = False) -> list[int]:
        return submit_task(self.request, Asked(allocations, force=force), self).jobs

    def ran(self, job: int, said: str, ago: float = 0.0, start: int = 0) -> None:
        """Start `start` of job `job` ended `ago` seconds ago; `said` is the last line of its script."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - ago))
        path = Path(self.task.slurm, f"slurm-{job}.out")
        with open(path, "a") as out:
            for line in ("starts on n1", said):
                out.write(f"{when} allocation {job}.{start}: {line}\n")
        os.utime(path, (time.time() - ago,) * 2)

    def did(self, job: int, start: int = 0) -> None:
        """An event was done in that start."""
        fingerprint = need_task(self.task).fingerprint
        name = f"20260101T{job:06d}000Z-slurm-{job}-r{start}"
        os.makedirs(self.task.journals, exist_ok=True)
        out = JournalWriter(self.task.journal(name), fingerprint, name)
        out.append(records.new(1, kind=Kind.DONE, start=job, stop=job + 1))
        out.flush()
        out.file.close()

    def changes(self) -> list[tuple[str, str]]:
        story = Story(self.task, need_task(self.task).fingerprint).whole()
        notes = [entry for _, entry in story if isinstance(entry, dict) and entry.get("note") == "breaker"]
        return [(note["key"], note["after"]) for note in notes]


LEFT = "work is left; for Slurm the job is RUNNING, reason None, preempted None"
GAVE_UP = "gives up: 5 starts in a row ended and no event was done; see above why"
PREEMPTED = "work is left; for Slurm the job is RUNNING, reason None, preempted 2026-01-01T11:00:00"
KEY = "queue:s/low/preempt"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize(
    ("ended", "done", "said"),
    [
        (Ended.FINISHED, False, False),
        (Ended.WALLTIME, False, False),
        (Ended.WALLTIME, True, True),
        (Ended.PREEMPTED, False, None),
        (Ended.PREEMPTED, True, True),
        (Ended.CANCELLED, False, None),
        (Ended.NODE_FAILURE, False, None),
        (Ended.REQUEUED, False, None),
        (Ended.UNKNOWN, False, None),
    ],
)
def test_what_speaks_for_a_queue_and_what_against_it(ended: Ended, done: bool, said: bool | None) -> None:
    assert verdict(ended, done) is said


def test_starts_are_told_apart() -> None:
    lines = ("7.0: starts on n1", "7.0: work is left", "8.0: starts on n1", "7.1: starts on n1")
    stamps = (f"2026-01-01 1{hour}:00:00" for hour in range(9))
    text = "\n".join(f"{stamp} allocation {line}" for stamp, line in zip(stamps, lines, strict=False))
    first, second = starts_of(7, text, 1e9)
    assert (first.number, first.last, first.told) == (0, False, True)
    assert (second.number, second.last, second.told, second.end) == (1, True, False, 1e9)


def test_a_queue_in_which_nothing_is_done_is_not_fed(cluster: Cluster) -> None:
    for job in cluster.submit(3):
        cluster.ran(job, GAVE_UP)
    with pytest.raises(QueueOff, match="s/low/preempt") as caught:
        cluster.submit()
    assert caught.value.exit_code == 75 and "tried again in" in str(caught.value) and len(cluster.sent) == 3
    assert cluster.changes() == [(KEY, "open")]
    assert "0 bad: finished by itself" in Path(cluster.task.slurm, "slurm-11.queue").read_text()
    dry = show(submit_task(cluster.request, Asked(dry_run=True), cluster))
    assert "nothing would be submitted" in dry
    assert cluster.submit(2, force=True) == [14, 15] and cluster.changes()[-1] == (KEY, "closed")
    assert cluster.submit(1) == [16]


def test_preempted_jobs_and_jobs_that_did_something_are_no_reason(cluster: Cluster) -> None:
    jobs = cluster.submit(8)
    for job in jobs[:4]:
        cluster.ran(job, PREEMPTED)
    for job in jobs[4:]:
        cluster.ran(job, LEFT)
        cluster.did(job)
    assert cluster.submit(2) == [19, 20] and cluster.changes() == []


def test_jobs_that_fail_before_the_ranks_are_started(cluster: Cluster) -> None:
    """The site's set-up ends the script: nothing is in the output that we wrote, but Slurm knows."""
    for job in cluster.submit(4):
        Path(cluster.task.slurm, f"slurm-{job}.out").write_text("module: command not found\n")
        cluster.states[str(job)] = "RUNNING"
    assert cluster.submit() == [15]
    cluster.states = dict.fromkeys(cluster.states, "FAILED")
    with pytest.raises(QueueOff):
        cluster.submit()


def test_jobs_that_wait_or_run_are_not_judged(cluster: Cluster) -> None:
    for job in cluster.submit(5):
        cluster.ran(job, "is at work")
    assert cluster.submit() == [16]


def test_after_a_wait_one_allocation_tries_whether_the_queue_is_well(cluster: Cluster) -> None:
    for job in cluster.submit(3):
        cluster.ran(job, GAVE_UP, ago=7 * HOUR)
    trial = submit_task(cluster.request, Asked(4), cluster)
    assert trial.jobs == [14] and "tried again, with one allocation" in show(trial)
    assert cluster.changes() == [(KEY, "open"), (KEY, "half-open")]
    with pytest.raises(QueueOff, match="on trial"):
        cluster.submit()
    cluster.ran(14, LEFT)
    cluster.did(14)
    assert len(cluster.submit(4)) == 4 and cluster.changes()[-1] == (KEY, "closed")


def test_a_queue_that_fails_every_trial_is_off_for_good_and_people_are_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, now = cluster.submit(3), time.time()
    for hours in (0, 6, 12, 18):
        for job in jobs:
            cluster.ran(job, GAVE_UP, ago=-hours * HOUR)
        clock = type("Clock", (), {"time": staticmethod(lambda h=hours: now + (h + 6.1) * HOUR)})
        monkeypatch.setattr("yoda.submit.time", type("T", (), {**vars(time), "time": clock.time}))
        if hours < 18:
            jobs = cluster.submit(3)
            assert len(jobs) == 1
    with pytest.raises(QueueOff, match="for good"):
        cluster.submit()
    assert json.loads(cluster.told.read_text())["queue"] == "s/low/preempt"
    assert cluster.submit(force=True)


def test_a_queue_of_another_name_is_fed(cluster: Cluster) -> None:
    for job in cluster.submit(3):
        cluster.ran(job, GAVE_UP)
    site = Path(str(cluster.request.site))
    site.write_text(site.read_text().replace("preempt", "regular"))
    assert cluster.submit() == [14] and queues.KIND + "s/low/regular" not in dict(cluster.changes())


def test_nodes_on_which_payloads_failed_are_not_asked_for(cluster: Cluster) -> None:
    """As far as Slurm knows them, and unless too few were left."""
    cluster.submit()
    nodes = Nodes()
    for host in ("n7.cluster.org", "laptop"):
        nodes.doubted(time.time(), host, "bad")
    state = os.path.join(cluster.task.root, "breaker.json")
    breakerfile.save(state, nodes.state)
    got = submit_task(cluster.request, Asked(), cluster)
    assert "--exclude=n7" in cluster.sent[-1] and "n7: payloads failed there" in show(got)
    nodes.doubted(time.time(), "n8", "bad")
    breakerfile.save(state, nodes.state)
    assert cluster.submit() and not any("exclude" in word for word in cluster.sent[-1])
