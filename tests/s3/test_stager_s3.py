"""The stage-out process against a real S3 server: killed in the middle, failed over, and silent about secrets."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from buckets import Bucket, client
from faultproxy import Fault

from eventrange.errors import StagerGone
from stageout.protocol import Drain, Ended, Failed, Recorded, Segment, Staged, Start, Submit
from stageout.site import EndpointSite, StageoutRules
from stageout.stagerclient import StagerProcess

BIG = os.urandom((11 << 20) + 17)


def seg(folder: Path, name: str, data: bytes) -> Segment:
    path = folder / f"{name}.tar"
    path.write_bytes(data)
    return Segment(name, str(path), f"task/{name}.tar", len(data), zlib.adler32(data), hashlib.sha256(data).hexdigest())


def until(process: StagerProcess, done: Callable[[Any], bool]) -> list[Any]:
    reports: list[Any] = []
    deadline = time.monotonic() + 100
    while not any(done(report) for report in reports):
        assert time.monotonic() < deadline, reports
        select.select([process], [], [], 1)
        for report in process.receive():
            reports.append(report)
            if isinstance(report, Staged):
                process.send(Recorded(report.segment, report.endpoint))
    return reports


def of(reports: list[Any], kind: type) -> list[Any]:
    return [r for r in reports if isinstance(r, kind)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., StagerProcess]]:
    processes: list[StagerProcess] = []

    def call(*endpoints: EndpointSite, mine: tuple[str, ...] = (), **rules: Any) -> StagerProcess:
        with open(tmp_path / "stager.log", "ab") as log:
            first = Start(endpoints, StageoutRules(nice=0, **{"backoff": 0.01, **rules}), mine=mine)
            processes.append(StagerProcess(first, stderr=log))
        return processes[-1]

    yield call
    for process in processes:
        process.close()


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("HEAD", ""),
        ("GET", "uploads"),
        ("POST", "uploads"),
        ("PUT", "partNumber=1"),
        ("PUT", "partNumber=3"),
        ("POST", "uploadId"),
    ],
)
def test_killed_in_every_request_of_an_upload(
    swift_bucket: Bucket, start: Callable[..., StagerProcess], tmp_path: Path, method: str, target: str
) -> None:
    """SIGKILL while the server does not answer that request: the next start aborts and uploads, and there is one."""
    fault = Fault("hang", method, target)
    swift_bucket.proxy.faults = [fault]
    segment = seg(tmp_path, "s", BIG)
    process = start(swift_bucket.site(concurrency=1))
    process.send(Submit(segment))
    deadline = time.monotonic() + 60
    while not any(kind == "hang" for _, _, kind in swift_bucket.proxy.seen):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(StagerGone):
        while True:
            assert not of(process.receive(), Staged)
            select.select([process], [], [], 1)
    assert swift_bucket.keys() == []
    swift_bucket.proxy.faults = []
    again = start(swift_bucket.site(), mine=("task/",))
    again.send(Submit(segment))
    again.send(Drain(60))
    reports = until(again, lambda r: isinstance(r, Ended))
    assert [r.sha256 for r in of(reports, Staged)] == [segment.sha256]
    assert swift_bucket.keys() == ["some/prefix/task/s.tar"] and swift_bucket.uploads() == []
    assert swift_bucket.endpoint().digest("task/s.tar").sha256 == segment.sha256


def test_killed_after_the_upload_and_before_anyone_knows(
    swift_bucket: Bucket, start: Callable[..., StagerProcess], tmp_path: Path
) -> None:
    """The object is there, the journal does not say so: the next one finds it and sends nothing again."""
    segment = seg(tmp_path, "s", BIG)
    first = start(swift_bucket.site())
    first.send(Submit(segment))
    until(first, lambda r: isinstance(r, Staged))
    os.kill(first.pid, signal.SIGKILL)
    puts = swift_bucket.proxy.count("PUT")
    second = start(swift_bucket.site())
    second.send(Submit(segment))
    until(second, lambda r: isinstance(r, Staged))
    assert swift_bucket.proxy.count("PUT") == puts


def test_a_primary_that_answers_503_from_the_start_loses_nothing(
    swift_bucket: Bucket, rclone: servers.Server, start: Callable[..., StagerProcess], tmp_path: Path
) -> None:
    """Swift is the primary, rclone the failover; when Swift is back, all is re-homed."""
    client(rclone.url).create_bucket(Bucket=swift_bucket.name)
    keys: dict[str, Any] = {"attempts": 2, "backoff": 0.01}
    failover = EndpointSite(name="failover", url=f"s3://{swift_bucket.name}/f", endpoint_url=rclone.url, **keys)
    swift_bucket.proxy.faults = [Fault("503")]
    process = start(swift_bucket.site(**keys), failover, rehome_after=0.0, tries=1, parallel=1)
    segments = [seg(tmp_path, f"s{i}", os.urandom(1000)) for i in range(4)]
    for segment in segments:
        process.send(Submit(segment))
    reports = until(process, lambda r: isinstance(r, Staged) and r.segment == "s3")
    assert {r.endpoint for r in of(reports, Staged)} == {"failover"} and of(reports, Failed)
    swift_bucket.proxy.faults = []
    process.send(Drain(60, rehome=True))
    reports = until(process, lambda r: isinstance(r, Ended))
    assert all(r.endpoint == "primary" and r.rehomed for r in of(reports, Staged))
    assert of(reports, Ended)[0].left == ()
    assert set(swift_bucket.keys()) == {f"some/prefix/{s.key}" for s in segments}


def test_secrets_are_in_no_file_and_no_report(
    swift_bucket: Bucket, start: Callable[..., StagerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "TOKENfortests0")
    process = start(
        swift_bucket.site(name="a", url="s3://nosuchbucket/x"),
        swift_bucket.site(name="b", profile="wrong"),
        swift_bucket.site(name="c", endpoint_url="http://127.0.0.1:9", attempts=1),
        tries=1,
    )
    process.send(Submit(seg(tmp_path, "s", BIG)))
    reports = until(process, lambda r: isinstance(r, Failed) and r.endpoint == "c")
    process.send(Drain(2))
    reports += until(process, lambda r: isinstance(r, Ended))
    process.close()
    assert len({r.endpoint for r in of(reports, Failed)}) == 3
    texts = [repr(reports), Path(f"/proc/{os.getpid()}/cmdline").read_text()]
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    for text in texts:
        assert "fortests0" not in text and servers.ACCESS not in text
