"""The stage-out process with file endpoints: driven through its pipes as a Droid does, killed, orphaned, flooded."""

from __future__ import annotations

import hashlib
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventrange.errors import StagerGone
from stageout import protocol, stager
from stageout.endpoint import Endpoint
from stageout.opening import open_endpoint
from stageout.protocol import Drain, Ended, Failed, Ready, Recorded, Removed, Segment, Staged, Start, Stop, Submit
from stageout.site import EndpointSite, StageoutRules
from stageout.stagerclient import StagerProcess

Parent = Callable[..., StagerProcess]


def seg(folder: Path, name: str, data: bytes) -> Segment:
    path = folder / f"{name}.tar"
    path.write_bytes(data)
    return Segment(name, str(path), f"task/{name}.tar", len(data), zlib.adler32(data), hashlib.sha256(data).hexdigest())


def disk(folder: Path, name: str, **keys: Any) -> EndpointSite:
    return EndpointSite(name=name, url=f"file://{folder}/{name}", **keys)


def until(process: StagerProcess, done: Callable[[Any], bool], record: bool = True) -> list[Any]:
    """Reports up to the first that is what the test waits for; records what is staged as a Droid would."""
    reports: list[Any] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        select.select([process], [], [], 1)
        for report in process.receive():
            reports.append(report)
            if isinstance(report, Staged) and record:
                process.send(Recorded(report.segment, report.endpoint))
            if isinstance(report, Removed) and report.endpoint and record:
                process.send(Recorded(report.segment, report.endpoint, removed=True))
        if any(done(report) for report in reports):
            return reports
    raise AssertionError(f"still waiting after {reports}")


def of(reports: list[Any], kind: type) -> list[Any]:
    return [r for r in reports if isinstance(r, kind)]


@pytest.fixture
def start() -> Iterator[Parent]:
    processes: list[StagerProcess] = []

    def call(*endpoints: EndpointSite, mine: tuple[str, ...] = (), task: str | None = None, **rules: Any) -> Any:
        rules = {"nice": 0, "backoff": 0.01, **rules}
        processes.append(StagerProcess(Start(endpoints, StageoutRules(**rules), mine=mine, task=task)))
        return processes[-1]

    yield call
    for process in processes:
        process.close()


def test_what_is_submitted_is_staged_and_the_end_is_said(start: Parent, tmp_path: Path) -> None:
    process = start(disk(tmp_path, "primary"), delete_local=True)
    segments = [seg(tmp_path, f"s{i}", os.urandom(5000)) for i in range(5)]
    for segment in segments:
        process.send(Submit(segment))
    process.send(Drain(30))
    reports = until(process, lambda r: isinstance(r, Ended))
    assert isinstance(reports[0], Ready) and reports[0].pid == process.pid
    assert sorted(r.segment for r in of(reports, Staged)) == [s.name for s in segments]
    assert sorted(r.segment for r in of(reports, Removed)) == [s.name for s in segments]
    assert of(reports, Ended)[0].left == () and process.ended
    assert not any(os.path.exists(s.path) for s in segments)
    assert len(list(open_endpoint(disk(tmp_path, "primary")).list("task/"))) == 5


def test_a_primary_that_fails_from_the_start_costs_nothing(start: Parent, tmp_path: Path) -> None:
    process = start(EndpointSite(name="primary", url="file:///no/such/folder/at/all"), disk(tmp_path, "failover"))
    for i in range(10):
        process.send(Submit(seg(tmp_path, f"s{i}", os.urandom(100))))
    process.send(Drain(30))
    reports = until(process, lambda r: isinstance(r, Ended))
    assert {r.endpoint for r in of(reports, Staged)} == {"failover"} and len(of(reports, Staged)) == 10
    assert [r.after for r in of(reports, protocol.Breaker)] == ["open"]
    assert len(of(reports, Failed)) < 10  # once its breaker is open, it is left alone
    assert of(reports, Ended)[0].breaker["keys"]["endpoint:primary"]["state"] == "open"


def test_both_down_then_a_later_process_stages_and_re_homes(start: Parent, tmp_path: Path) -> None:
    segment = seg(tmp_path, "s", b"data")
    sites = disk(tmp_path / "later", "primary"), disk(tmp_path / "soon", "failover")
    first = start(*sites, tries=1)
    first.send(Submit(segment))
    (blocked,) = of(until(first, lambda r: isinstance(r, protocol.Blocked)), protocol.Blocked)
    assert blocked.waiting == 1
    first.send(Drain(0))
    assert of(until(first, lambda r: isinstance(r, Ended)), Ended)[0].left == ("s",)
    (tmp_path / "soon").mkdir()
    second = start(*sites, tries=1, delete_local=True, delete_failover=True)
    second.send(Submit(segment))
    until(second, lambda r: isinstance(r, Removed))
    second.send(Stop())
    until(second, lambda r: isinstance(r, Ended))
    (tmp_path / "later").mkdir()
    third = start(*sites, delete_failover=True)
    third.send(Submit(segment, ("failover",)))  # its local copy is gone
    third.send(Drain(30, rehome=True))
    reports = until(third, lambda r: isinstance(r, Ended))
    assert [(r.endpoint, r.rehomed) for r in of(reports, Staged)] == [("primary", True)]
    assert (tmp_path / "later" / "primary" / "task" / "s.tar").read_bytes() == b"data"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == []


@pytest.mark.parametrize("pause", [0.0, 0.002, 0.01, 0.05])
def test_killed_at_any_point_leaves_no_false_truth(start: Parent, tmp_path: Path, pause: float) -> None:
    site = disk(tmp_path, "primary")
    segments = {f"s{i}": seg(tmp_path, f"s{i}", os.urandom(3 << 20)) for i in range(8)}
    process = start(site)
    until(process, lambda r: isinstance(r, Ready))
    for segment in segments.values():
        process.send(Submit(segment))
    time.sleep(pause)
    os.kill(process.pid, signal.SIGKILL)
    staged: set[str] = set()
    with pytest.raises(StagerGone):
        while True:
            staged |= {r.segment for r in process.receive() if isinstance(r, Staged)}
            select.select([process], [], [], 1)
    endpoint = open_endpoint(site)
    for name in staged:
        assert endpoint.digest(segments[name].key).sha256 == segments[name].sha256
    for stat in endpoint.list(""):
        assert endpoint.digest(stat.key).sha256 == segments[stat.key[5:7]].sha256
    again = start(site, mine=("task/",))
    for segment in segments.values():
        again.send(Submit(segment, ("primary",) if segment.name in staged else ()))
    again.send(Drain(60))
    reports = until(again, lambda r: isinstance(r, Ended))
    assert staged | {r.segment for r in of(reports, Staged)} == set(segments)
    assert sorted(os.listdir(tmp_path / "primary" / "task")) == sorted(f"{name}.tar" for name in segments)


def test_it_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the parent: the kernel tells it, even while it is stopped in the middle of nothing."""
    code = (
        "import time\nfrom stageout.stagerclient import StagerProcess\nfrom stageout.protocol import Start\n"
        "p = StagerProcess(Start(()))\nprint(p.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    watch = os.pidfd_open(pid)
    parent.kill()
    parent.wait()
    assert select.select([watch], [], [], 30)[0]
    os.close(watch)
    parent.stdout.close()


def test_it_goes_when_its_stdin_ends_and_ignores_the_jobs_signals(start: Parent, tmp_path: Path) -> None:
    process = start(disk(tmp_path, "primary"))
    until(process, lambda r: isinstance(r, Ready))
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(process.pid, number)
    process.send(Submit(seg(tmp_path, "s", b"data")))
    until(process, lambda r: isinstance(r, Staged))
    watch = os.pidfd_open(process.pid)
    process.close()
    assert select.select([watch], [], [], 30)[0]
    os.close(watch)


def test_a_stopped_process_never_blocks_its_parent(start: Parent, tmp_path: Path) -> None:
    process = start(disk(tmp_path, "primary"))
    until(process, lambda r: isinstance(r, Ready))
    os.kill(process.pid, signal.SIGSTOP)
    segment = seg(tmp_path, "s", b"data")
    for i in range(2000):  # far more than a pipe holds
        process.send(Submit(Segment(f"s{i}", segment.path, f"k{i}", segment.size, segment.adler32, segment.sha256)))
    assert process.unsent > 0
    os.kill(process.pid, signal.SIGCONT)
    until(process, lambda r: isinstance(r, Staged) and r.segment == "s1999")
    assert process.unsent == 0


def test_nonsense_on_its_stdin_is_logged_and_skipped(start: Parent, tmp_path: Path) -> None:
    process = start(disk(tmp_path, "primary"))
    os.write(process._in, b'nonsense\n{"do":"nothing"}\n')
    process.send(Submit(seg(tmp_path, "s", b"data")))
    until(process, lambda r: isinstance(r, Staged))


def test_a_damaged_segment_is_reported(start: Parent, tmp_path: Path) -> None:
    process = start(disk(tmp_path, "primary"))
    segment = seg(tmp_path, "s", b"data")
    Path(segment.path).write_bytes(b"dat4")
    process.send(Submit(segment))
    (damaged,) = of(until(process, lambda r: isinstance(r, protocol.Damaged)), protocol.Damaged)
    assert damaged.segment == "s" and segment.sha256 in damaged.detail


def test_an_upload_without_headway_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first endpoint object hangs for ever; it is closed, another is opened in its place."""
    monkeypatch.setattr(stager, "PATIENCE", 0.2)
    release, opened = threading.Event(), []

    def open_one(site: EndpointSite, tools: Any) -> Endpoint:
        endpoint: Any = open_endpoint(site, tools)
        opened.append(endpoint)
        if len(opened) == 1:
            endpoint.put = lambda *_, **__: release.wait()
        return endpoint  # type: ignore[no-any-return]

    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    lines: list[bytes] = []
    rules = StageoutRules(backoff=0.01)
    inbox.put(Submit(seg(tmp_path, "s", b"data")))
    inbox.put(Drain(30))

    def write(line: bytes) -> None:
        lines.append(line)
        report = protocol.decode_report(line)
        if isinstance(report, Staged):
            inbox.put(Recorded(report.segment, report.endpoint))

    stager.Shell(Start((disk(tmp_path, "primary", min_rate=1 << 40),), rules), write, inbox, open_one).run()
    release.set()
    reports = [protocol.decode_report(line) for line in lines]
    assert "no headway" in of(reports, Failed)[0].detail and of(reports, Ended)[0].left == ()
    assert len(opened) == 2


def test_it_is_not_busy_while_it_waits(start: Parent, tmp_path: Path) -> None:
    process = start(disk(tmp_path, "primary"))
    until(process, lambda r: isinstance(r, Ready))

    def cpu() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = cpu()
    time.sleep(1.0)
    assert cpu() - before <= 2  # clock ticks of 10 ms
