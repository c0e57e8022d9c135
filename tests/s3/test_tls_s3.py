"""TLS with the site's own authority, buckets in the host name, and clocks that differ: with real servers."""

from __future__ import annotations

import hashlib
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from buckets import Bucket

from stageout import probe
from stageout.endpoint import Endpoint, Permanent, Tools
from stageout.opening import open_endpoint
from stageout.site import EndpointSite

DATA = os.urandom((11 << 20) + 17)  # three parts
SUMS: dict[str, Any] = {"size": len(DATA), "adler32": zlib.adler32(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}
NAME = "s3.test"  # a name that no resolver knows


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> servers.Certificate:
    try:
        return servers.certificate(tmp_path_factory.mktemp("tls") / "ours", NAME, f"*.{NAME}")
    except servers.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def secure(tls: servers.Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """rclone behind TLS, with the bucket in the host name."""
    try:
        server = servers.rclone(tmp_path_factory.mktemp("secure"), tls, virtual=True)
    except servers.Unavailable as reason:
        pytest.skip(str(reason))
    (server.folder / "data" / "bucket").mkdir()
    yield server
    server.stop()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names below `NAME` are here; those that were asked for."""
    found: list[str] = []
    real = socket.getaddrinfo

    def here(host: Any, *rest: Any, **more: Any) -> Any:
        if str(host).endswith(NAME):
            found.append(str(host))
            host = "127.0.0.1"
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    return found


@pytest.fixture
def open_one(secure: servers.Server) -> Iterator[Callable[..., Endpoint]]:
    opened: list[Endpoint] = []

    def call(**keys: Any) -> Endpoint:
        opened.append(open_endpoint(site(secure, **keys), Tools(sleep=lambda seconds: None)))
        return opened[-1]

    yield call
    for endpoint in opened:
        endpoint.close()


def site(server: servers.Server, **keys: Any) -> EndpointSite:
    address = server.url.replace("127.0.0.1", NAME)
    defaults = {"name": "primary", "url": "s3://bucket/some/prefix", "endpoint_url": address, "path_style": False}
    return EndpointSite(**{**defaults, "attempts": 2, "part_size": 5 << 20, **keys})


def levels(found: list[probe.Finding]) -> dict[str, str]:
    return {one.what: one.level for one in found}


def test_the_sites_own_authority_and_the_bucket_in_the_host_name(
    tls: servers.Certificate, secure: servers.Server, asked: list[str], open_one: Callable[..., Endpoint]
) -> None:
    endpoint = open_one(ca_bundle=str(tls.authority))
    endpoint.put(DATA, "a/segment.tar", **SUMS)
    assert endpoint.digest("a/segment.tar").sha256 == SUMS["sha256"]
    assert endpoint.get_range("a/segment.tar", 5 << 20, 1000) == DATA[5 << 20 :][:1000]
    assert [one.key for one in endpoint.list("a/")] == ["a/segment.tar"]
    assert set(asked) == {f"bucket.{NAME}"}
    assert (secure.folder / "data" / "bucket" / "some" / "prefix" / "a" / "segment.tar").read_bytes() == DATA
    found = probe.probe(site(secure, ca_bundle=str(tls.authority)))
    assert levels(found)["TLS certificate"] == "ok" and not [one for one in found if one.level == "fail"]


@pytest.mark.parametrize("which", ["none", "another", "missing", "no certificate"])
def test_a_server_that_cannot_be_trusted_gets_nothing_and_the_way_out_is_said(
    secure: servers.Server, asked: list[str], open_one: Callable[..., Endpoint], tmp_path: Path, which: str
) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    bundles = {"none": None, "missing": str(tmp_path / "missing.pem"), "no certificate": str(tmp_path / "text.pem")}
    bundle = bundles[which] if which in bundles else str(servers.certificate(tmp_path / "other").authority)
    with pytest.raises(Permanent) as caught:
        open_one(ca_bundle=bundle).put(
            b"x", "k", size=1, adler32=zlib.adler32(b"x"), sha256=hashlib.sha256(b"x").hexdigest()
        )
    text = str(caught.value)
    assert "ca_bundle" in text and (bundle is None or which == "another" or bundle in text)
    assert not list((secure.folder / "data").rglob("k"))
    failed = [one for one in probe.probe(site(secure, ca_bundle=bundle)) if one.level == "fail"]
    assert len(failed) == 1 and "CA" in failed[0].todo


def test_a_certificate_for_another_name_is_refused(
    tls: servers.Certificate, secure: servers.Server, open_one: Callable[..., Endpoint]
) -> None:
    address = secure.url.replace("127.0.0.1", "localhost")
    endpoint = open_one(ca_bundle=str(tls.authority), endpoint_url=address, path_style=True)
    with pytest.raises(Permanent, match="localhost"):
        endpoint.head("k")


def test_clocks_that_differ_from_a_real_servers(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(probe.probe(bucket.site(direct=True)))["clocks agree"] == "ok"
    real = time.time
    monkeypatch.setattr(probe, "time", type("Clock", (), {**vars(time), "time": staticmethod(lambda: real() + 1200)}))
    (wrong,) = [one for one in probe.probe(bucket.site(direct=True)) if "apart" in one.what]
    assert wrong.level == "fail" and "1200 s" in wrong.what.replace("1199", "1200") and "NTP" in wrong.todo


def test_a_signature_from_a_clock_that_is_off_is_refused_and_the_reason_said(
    swift_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime

    auth = pytest.importorskip("botocore.auth")
    if not hasattr(auth, "get_current_datetime"):
        pytest.skip("this botocore reads its clock elsewhere")
    ahead = datetime.timedelta(seconds=1200)
    now = auth.get_current_datetime
    monkeypatch.setattr(auth, "get_current_datetime", lambda *a, **k: now(*a, **k) + ahead)
    endpoint = open_endpoint(swift_bucket.site(direct=True), Tools(wall=lambda: time.time() + 1200))
    with pytest.raises(Permanent, match=r"clock is 1[12]\d\d s ahead of the server's"):
        endpoint.get_range("k", 0, 1)
    endpoint.close()
