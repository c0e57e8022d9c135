"""The S3 endpoint against real servers: what it stores, refuses, finds again and cleans up."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers
from buckets import Bucket

from stageout.endpoint import Conflict, Corrupt, Full, Missing, Permanent, SegmentDamaged, Transient
from stageout.opening import open_endpoint

BIG = os.urandom((11 << 20) + 17)  # three parts
Put = Callable[..., Any]


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(5 << 20), BIG], ids=["empty", "byte", "one-part", "parts"])
def test_what_is_put_can_be_had_back_whole_and_in_pieces(bucket: Bucket, put: Put, tmp_path: Path, data: bytes) -> None:
    endpoint = bucket.endpoint()
    stat = put(endpoint, data, "a/segment.tar")
    assert endpoint.head("a/segment.tar") == stat == endpoint.digest("a/segment.tar")
    assert bucket.keys() == ["some/prefix/a/segment.tar"]
    endpoint.get("a/segment.tar", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == data
    middle, count = len(data) // 2, min(len(data), 1000) // 2
    assert endpoint.get_range("a/segment.tar", middle, count) == data[middle : middle + count]
    assert endpoint.url("a/segment.tar") == f"s3://{bucket.name}/some/prefix/a/segment.tar"
    assert os.listdir(tmp_path) == ["copy"]


@pytest.mark.parametrize("data", [b"small", BIG], ids=["whole", "parts"])
def test_a_key_is_never_overwritten_and_the_same_content_is_success(bucket: Bucket, put: Put, data: bytes) -> None:
    endpoint = bucket.endpoint()
    put(endpoint, data, "key")
    writes = bucket.proxy.count("PUT")
    assert put(endpoint, data, "key").size == len(data)
    assert bucket.proxy.count("PUT") == writes
    for other in (data[:-1], data[:-1] + b"\0" if data[-1] else data[:-1] + b"\1"):
        with pytest.raises(Conflict):
            put(endpoint, other, "key")
    assert endpoint.digest("key").sha256 == hashlib.sha256(data).hexdigest()


def test_an_object_that_others_put_there_is_compared_by_its_bytes(bucket: Bucket, put: Put) -> None:
    for key, data in (("same", BIG), ("other", BIG[::-1])):
        bucket.plain.put_object(Bucket=bucket.name, Key=f"some/prefix/{key}", Body=data)
    endpoint = bucket.endpoint()
    assert put(endpoint, BIG, "same").size == len(BIG)
    with pytest.raises(Conflict):
        put(endpoint, BIG, "other")


@pytest.mark.parametrize("data", [b"ours", BIG], ids=["whole", "parts"])
def test_if_none_match_settles_a_race(
    swift_bucket: Bucket, put: Put, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """The first look comes before the other's write."""
    endpoint = swift_bucket.endpoint()
    swift_bucket.plain.put_object(Bucket=swift_bucket.name, Key="some/prefix/key", Body=data[::-1])
    looks = iter([False])
    monkeypatch.setattr(endpoint, "_is_there", lambda key: next(looks, True))
    with pytest.raises(Conflict):
        put(endpoint, data, "key")
    assert endpoint.digest("key").sha256 == hashlib.sha256(data[::-1]).hexdigest()
    assert swift_bucket.uploads() == []


def test_a_server_without_conditions_is_used_without(swift_bucket: Bucket, put: Put) -> None:
    from faultproxy import Fault

    swift_bucket.proxy.faults = [Fault("501", "PUT", times=1)]
    endpoint = swift_bucket.endpoint()
    put(endpoint, b"data", "key")
    assert endpoint.digest("key").size == 4


def test_missing_short_and_foreign(bucket: Bucket, put: Put) -> None:
    endpoint = bucket.endpoint()
    put(endpoint, b"0123456789", "key")
    for call in (endpoint.head, endpoint.digest, lambda key: endpoint.get_range(key, 0, 1)):
        with pytest.raises(Missing):
            call("nothing")
    for offset in (5, 50):
        with pytest.raises(Corrupt):
            endpoint.get_range("key", offset, 20)
    endpoint.delete("key")
    endpoint.delete("key")
    assert bucket.keys() == []
    for bad in ("", "/etc", "a/../b", "a//b", "."):
        with pytest.raises(ValueError):
            endpoint.head(bad)


def test_list_is_complete_and_in_order(bucket: Bucket, put: Put) -> None:
    endpoint = bucket.endpoint()
    for name in ("b/2", "b/1", "a b+ü", "b/3%"):
        put(endpoint, name.encode(), name)
    assert [s.key for s in endpoint.list("")] == ["a b+ü", "b/1", "b/2", "b/3%"]
    assert [(s.key, s.size) for s in endpoint.list("b/")] == [("b/1", 3), ("b/2", 3), ("b/3%", 4)]


def test_a_damaged_local_segment_is_not_uploaded(bucket: Bucket, put: Put, tmp_path: Path) -> None:
    endpoint = bucket.endpoint()
    for data in (b"small", BIG):
        (tmp_path / "segment").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(SegmentDamaged):
            put(endpoint, data, "key", str(tmp_path / "segment"))
        with pytest.raises(SegmentDamaged):
            put(endpoint, data, "key", str(tmp_path / "gone"))
    assert bucket.keys() == [] and bucket.uploads() == []


def test_orphans_are_aborted_on_the_next_start_and_by_the_next_upload(bucket: Bucket, put: Put) -> None:
    for key in ("task/a/1", "task/a/2", "task/b/1", "other"):
        bucket.plain.create_multipart_upload(Bucket=bucket.name, Key=f"some/prefix/{key}")
    endpoint = bucket.endpoint()
    put(endpoint, BIG, "task/a/1")
    assert sorted(bucket.uploads()) == ["some/prefix/other", "some/prefix/task/a/2", "some/prefix/task/b/1"]
    assert endpoint.clean("task/a/") == 1
    assert endpoint.clean("task/", older_than=3600) == 0
    assert sorted(bucket.uploads()) == ["some/prefix/other", "some/prefix/task/b/1"]


def test_no_bucket_no_credentials_wrong_credentials(
    bucket: Bucket, put: Put, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for endpoint in (
        bucket.endpoint(url="s3://nosuchbucket/x"),
        bucket.endpoint(profile="wrong"),
        bucket.endpoint(profile="nosuchprofile"),
    ):
        for data in (b"data", BIG):
            with pytest.raises(Permanent) as error:
                put(endpoint, data, "key")
            assert "fortests0" not in f"{error.value!r} {error.value} {error.getrepr()}"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(Permanent, match="no credentials"):
        put(bucket.endpoint(), b"data", "key")
    assert bucket.waits == []


def test_full_bucket(swift_bucket: Bucket, put: Put) -> None:
    servers.swift_quota(swift_bucket.server, swift_bucket.name, 1000)
    endpoint = swift_bucket.endpoint()
    with pytest.raises(Full):
        put(endpoint, b"x" * 2000, "key")
    assert swift_bucket.waits == []
    put(endpoint, b"x" * 100, "key")


def test_server_killed_and_restarted_in_the_middle_of_an_upload(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload goes on with the same parts once the server is back: waiting is the only cost."""
    from faultproxy import FaultProxy

    try:
        server = servers.swift(tmp_path / "server")
    except servers.Unavailable as reason:
        pytest.skip(str(reason))
    try:
        with FaultProxy(server.url) as proxy:
            bucket = Bucket(server, proxy)
            down: list[bool] = []

            def wait(seconds: float) -> None:
                if len(down) == 1:  # at the first back-off, the server is started again
                    down.append(True)
                    server.start("proxy", "object")

            from stageout.endpoint import Tools

            endpoint = open_endpoint(bucket.site(concurrency=1, attempts=6), Tools(sleep=wait))
            client = endpoint._client  # type: ignore[attr-defined]
            once = client.call

            def call(operation: str, key: str, method: str, **values: Any) -> Any:
                if method == "upload_part" and values["PartNumber"] == 2 and not down:
                    down.append(True)
                    server.kill("proxy", "object")
                return once(operation, key, method, **values)

            monkeypatch.setattr(client, "call", call)
            put(endpoint, BIG, "key")
            assert len(down) == 2
            assert endpoint.digest("key").sha256 == hashlib.sha256(BIG).hexdigest()
            assert bucket.uploads() == []
            server.kill("proxy")
            with pytest.raises(Transient):
                open_endpoint(bucket.site(direct=True), Tools(sleep=lambda s: None)).head("key")
    finally:
        server.stop()


def test_secrets_reach_no_log(
    swift_bucket: Bucket, put: Put, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "TOKENfortests0")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)
    with caplog.at_level(logging.DEBUG):
        endpoint = swift_bucket.endpoint()
        texts = [repr(endpoint)]
        for data in (b"data", BIG):
            try:
                put(endpoint, data, "key")
            except Exception as error:
                texts.append(f"{error!r} {error}")
    for text in (*texts, caplog.text):
        assert "fortests0" not in text and servers.ACCESS not in text and "Signature=" not in text
