"""What a launcher has read is handed on to its ranks as it is, and to nobody else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from yoda.frozen import Frozen
from yoda.prepared import prepare
from yoda.setting import HANDED, Request, Setting, hand_on, handed, read

JOB = """
task: t
seed: 7
inputs: {format: generate, events: 10}
payload: {python: p.py:f, options: %s}
ranges: {timeout: 90s}
"""
SITE = "site: here\nstageout: [{name: one, url: s3://bucket/there}]\nslurm: {time: 4h}\ngrace: 0.5\n"


def setting(tmp_path: Path, options: str = "{x: 1.5, y: [a, 2, null], z: {k: true}}") -> Setting:
    (tmp_path / "job.yaml").write_text(JOB % options)
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "p.py").write_text("def f(event):\n    return {}\n")
    request = Request(str(tmp_path / "job.yaml"), str(tmp_path / "site.yaml"), sets=("ranges.max_attempts=5",))
    return read(request)


def test_ranks_have_what_their_launcher_read_and_read_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = setting(tmp_path)
    prepared = prepare(ours)
    warned = msgspec.structs.replace(prepared.frozen, warnings=("the payload has changed",))
    environ = hand_on(ours, warned, str(tmp_path / "handed"))
    (tmp_path / "job.yaml").write_text("edited meanwhile")
    theirs = handed(ours.request, environ)
    assert (theirs.request, theirs.job, theirs.site) == (ours.request, ours.job, ours.site)
    assert theirs.taskdir == ours.taskdir and theirs.job.ranges.max_attempts == 5
    found = prepare(theirs)
    assert isinstance(found.frozen, Frozen) and found.frozen == warned and found.total == 10


def test_who_has_not_been_handed_this_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = setting(tmp_path)
    environ = hand_on(ours, prepare(ours).frozen, str(tmp_path / "handed"))
    other = replace(ours.request, task=str(tmp_path / "other.task"))  # a payload that runs Yoda
    assert handed(other, environ).taskdir.root == str(tmp_path / "other.task")
    assert handed(ours.request, {}).frozen is None and handed(ours.request, environ).frozen is not None
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(tmp_path.parent)  # the same words mean another job there
        assert handed(ours.request, environ).frozen is None
    assert handed(ours.request, {HANDED: str(tmp_path / "gone")}).job == ours.job
    (tmp_path / "handed").write_bytes(b"\xff")
    assert handed(ours.request, environ).job == ours.job


def test_what_cannot_be_handed_on_is_read_by_every_rank(tmp_path: Path) -> None:
    ours = setting(tmp_path, "{large: 123456789012345678901234567890}")
    frozen = prepare(ours).frozen
    assert hand_on(ours, frozen, str(tmp_path / "handed")) == {} and handed(ours.request, {}).job == ours.job
    assert hand_on(setting(tmp_path), frozen, str(tmp_path / "no" / "folder")) == {}


def test_ranks_need_no_yaml() -> None:
    """Thousands of them would read it from a shared file system."""
    code = "import sys, yoda.rank0, droid.rank, droid.zygote; sys.exit('yaml' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
