"""The S3 endpoint behind a proxy that spoils requests and answers; the server behind it is real."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from buckets import Bucket
from faultproxy import Fault

from stageout.endpoint import Corrupt, Full, Permanent, Tools, Transient
from stageout.opening import open_endpoint

BIG = os.urandom((11 << 20) + 17)
Put = Callable[..., Any]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", ["500", "503", "429", "reset", "lost", "garbage", "flip"])
@pytest.mark.parametrize("data", [b"small object", BIG], ids=["whole", "parts"])
def test_one_bad_answer_of_each_kind_is_survived(swift_bucket: Bucket, put: Put, kind: str, data: bytes) -> None:
    swift_bucket.proxy.faults = [Fault(kind, method, times=1) for method in ("HEAD", "PUT", "POST")]
    endpoint = swift_bucket.endpoint()
    put(endpoint, data, "key")
    assert endpoint.digest("key").sha256 == sha256(data)
    assert swift_bucket.keys() == ["some/prefix/key"] and swift_bucket.uploads() == []


@pytest.mark.parametrize("target", ["uploads", "partNumber=2", "uploadId=[^&]*$"])
def test_lost_answers_of_every_step_of_an_upload_in_parts(swift_bucket: Bucket, put: Put, target: str) -> None:
    """The server did it, we do not know: done again, or found done; an upload begun twice is not left over."""
    swift_bucket.proxy.faults = [Fault("lost", "POST", target, 1), Fault("lost", "PUT", target, 1)]
    put(swift_bucket.endpoint(), BIG, "key")
    assert swift_bucket.keys() == ["some/prefix/key"]
    swift_bucket.endpoint().clean("")
    assert swift_bucket.uploads() == []


def test_a_server_that_stays_down_is_asked_with_growing_back_off(swift_bucket: Bucket, put: Put) -> None:
    swift_bucket.proxy.faults = [Fault("503")]
    endpoint = swift_bucket.endpoint(attempts=6, backoff=1, backoff_max=5)
    with pytest.raises(Transient, match="503"):
        put(endpoint, b"data", "key")
    assert swift_bucket.waits == [1, 2, 4, 5, 5]
    assert len(swift_bucket.proxy.seen) == 6


@pytest.mark.parametrize(
    ("kind", "error"), [("403", Permanent), ("expired", Permanent), ("skew", Permanent), ("507", Full)]
)
def test_answers_that_waiting_does_not_change(
    swift_bucket: Bucket, put: Put, kind: str, error: type[Exception]
) -> None:
    swift_bucket.proxy.faults = [Fault(kind, "PUT"), Fault(kind, "POST")]
    for data in (b"data", BIG):
        with pytest.raises(error):
            put(swift_bucket.endpoint(), data, "key")
    assert swift_bucket.waits == [] and swift_bucket.uploads() == []


def test_a_wrong_clock_is_named(swift_bucket: Bucket, put: Put) -> None:
    swift_bucket.proxy.faults = [Fault("skew", "PUT")]
    with pytest.raises(Permanent, match=r"RequestTimeTooSkewed.* clock is 7[12].. s behind"):
        put(swift_bucket.endpoint(), b"data", "key")


def test_renewed_credentials_are_read_again_once(swift_bucket: Bucket, put: Put) -> None:
    swift_bucket.proxy.faults = [Fault("expired", "PUT", times=1)]
    put(swift_bucket.endpoint(), b"data", "key")
    assert swift_bucket.proxy.count("PUT") == 1 and swift_bucket.waits == []


@pytest.mark.parametrize("data", [b"small object", BIG], ids=["whole", "parts"])
def test_a_wrong_etag_makes_us_read_it_back(swift_bucket: Bucket, put: Put, data: bytes) -> None:
    """Of a part that is not possible: the server refuses to complete the upload, and all of it is done again."""
    swift_bucket.proxy.faults = [Fault("etag", "PUT", "partNumber=2", 2)]  # the second time the server checks, too
    swift_bucket.proxy.faults += [Fault("etag", "PUT", "key$"), Fault("etag", "POST", "uploadId=[^&]*$")]
    endpoint = swift_bucket.endpoint()
    if len(data) > 5 << 20:
        with pytest.raises(Corrupt):
            put(endpoint, data, "key")
        assert swift_bucket.keys() == [] == swift_bucket.uploads()
    put(endpoint, data, "key")
    assert swift_bucket.proxy.count("GET") >= 1
    assert endpoint.digest("key").sha256 == sha256(data)


def test_a_server_that_stored_other_bytes_is_not_believed(swift_bucket: Bucket, put: Put) -> None:
    """Another object takes the place of ours after the upload; it must not stay there with our checksums."""
    endpoint: Any = swift_bucket.endpoint()
    swift_bucket.proxy.faults = [Fault("etag", "PUT")]
    once = endpoint._unless_taken

    def write(*args: Any, **values: Any) -> Any:
        reply = once(*args, **values)
        meta = values["Metadata"]
        swift_bucket.plain.put_object(Bucket=swift_bucket.name, Key="some/prefix/key", Body=b"dat4", Metadata=meta)
        return reply

    endpoint._unless_taken = write
    with pytest.raises(Corrupt):
        put(endpoint, b"data", "key")
    assert swift_bucket.keys() == []


def test_a_damaged_object_with_our_metadata_is_found_out_later(bucket: Bucket, put: Put) -> None:
    """Nobody trusts metadata alone: a copy found there is compared by ETag or by its bytes, and replaced if bad."""
    meta = {"yoda-sha256": sha256(BIG)}
    bucket.plain.put_object(Bucket=bucket.name, Key="some/prefix/key", Body=BIG[::-1], Metadata=meta)
    endpoint = bucket.endpoint()
    with pytest.raises(Corrupt):
        put(endpoint, BIG, "key")
    put(endpoint, BIG, "key")
    assert endpoint.digest("key").sha256 == sha256(BIG)


def test_reading_goes_on_where_truncated_answers_stopped(swift_bucket: Bucket, put: Put, tmp_path: Path) -> None:
    endpoint = swift_bucket.endpoint()
    put(endpoint, BIG, "key")
    swift_bucket.proxy.faults = [Fault("truncated", "GET", times=3)]
    endpoint.get("key", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == BIG
    swift_bucket.proxy.faults = [Fault("truncated", "GET", times=1), Fault("reset", "GET", times=1)]
    assert endpoint.get_range("key", 1000, 100_000) == BIG[1000:101_000]
    swift_bucket.proxy.faults = [Fault("reset", "GET")]
    with pytest.raises(Transient):
        endpoint.get("key", str(tmp_path / "other"))
    assert os.listdir(tmp_path) == ["copy"]


def test_a_server_that_drips_is_given_up(swift_bucket: Bucket, put: Put) -> None:
    """Each byte comes in time for the socket's timeout; only the rate tells."""
    times = iter(range(1_000_000))
    site = swift_bucket.site(min_rate=1000, attempts=2)
    endpoint = open_endpoint(site, Tools(clock=lambda: float(next(times)), sleep=lambda s: None))
    put(endpoint, BIG[:5000], "key")
    swift_bucket.proxy.faults = [Fault("drip", "GET")]
    swift_bucket.proxy.drip = 0.001
    with pytest.raises(Transient, match="too slow"):
        endpoint.digest("key")
    endpoint.close()


def test_a_server_that_never_answers_times_out(swift_bucket: Bucket, put: Put) -> None:
    swift_bucket.proxy.faults = [Fault("hang")]
    with pytest.raises(Transient, match="imeout"):
        put(swift_bucket.endpoint(read_timeout=0.2, attempts=2), b"data", "key")


def test_closing_breaks_off_and_aborts(swift_bucket: Bucket, put: Put) -> None:
    swift_bucket.proxy.faults = [Fault("503", "PUT")]
    entered = threading.Event()
    endpoint = open_endpoint(swift_bucket.site(attempts=100), Tools(sleep=lambda s: entered.set()))
    errors: list[BaseException] = []

    def run() -> None:
        try:
            put(endpoint, BIG, "key")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert entered.wait(30)
    endpoint.close()
    thread.join(30)
    assert isinstance(errors[0], Transient)
    assert swift_bucket.uploads() == []


def test_bandwidth_is_bounded(swift_bucket: Bucket, put: Put) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    site = swift_bucket.site(max_bandwidth=1 << 20, concurrency=1)
    endpoint = open_endpoint(site, Tools(clock=lambda: now[0], sleep=sleep))
    put(endpoint, BIG, "key")
    assert now[0] >= len(BIG) / (1 << 20) - 1
    endpoint.close()
