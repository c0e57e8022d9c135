"""`yoda submit` and a real Slurm: a queue whose jobs do nothing is not fed, nodes that are off are not asked for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from cluster import Cluster

from eventrange.errors import QueueOff
from eventrange.taskdir import TaskDir
from stageout import breakerfile
from yoda.nodes import Nodes
from yoda.setting import Request
from yoda.submit import Asked, submit_task


def test_a_queue_whose_jobs_fail_at_once_and_a_node_that_is_off(slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "payload.py").write_text("def light(event, random):\n    return {'x': 1.0}\n")
    job = {"task": "t", "seed": 1, "inputs": {"format": "generate", "events": 30}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "payload": {"python": "payload.py:light"}}))
    asked = {"partition": "low", "nodes": 1, "time": "5min", "signal_before_end": "60s", "setup": ["exit 3"]}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"site": "s", "slurm": asked}))
    request = Request(str(tmp_path / "job.yaml"), str(tmp_path / "site.yaml"), str(tmp_path / "task"))
    task = TaskDir(str(tmp_path / "task"))
    for number in submit_task(request, Asked(3), slurm.runner).jobs:
        slurm.wait(number, "FAILED")
    with pytest.raises(QueueOff, match="s/low/default"):
        submit_task(request, Asked(), slurm.runner)
    nodes = Nodes()
    for host in (slurm.nodes[0], "elsewhere"):
        nodes.doubted(time.time(), host, "bad")
    breakerfile.save(os.path.join(task.root, "breaker.json"), nodes.state)
    (number,) = submit_task(request, Asked(force=True), slurm.runner).jobs
    slurm.wait(number, "FAILED")
    assert slurm.job(number)["ExcNodeList"] == slurm.nodes[0] not in slurm.nodes_of(number)
    verdicts = [path.read_text().splitlines()[1:] for path in sorted(Path(task.slurm).glob("*.queue"))]
    assert verdicts == [["0 bad: finished by itself"]] * 3 + [[]]
