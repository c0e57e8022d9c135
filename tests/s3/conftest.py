"""Servers and buckets for the S3 tests; every test gets a bucket of its own on a server shared by the session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from buckets import Bucket
from faultproxy import FaultProxy

from stageout.endpoint import Endpoint


@pytest.fixture(scope="session", autouse=True)
def _credentials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A credentials file of the test servers alone; nothing of the person who runs the tests is read."""
    folder = tmp_path_factory.mktemp("aws")
    (folder / "credentials").write_text(
        f"[default]\naws_access_key_id = {servers.ACCESS}\naws_secret_access_key = {servers.SECRET}\n"
        "[wrong]\naws_access_key_id = yoda:droid\naws_secret_access_key = WRONGKEYfortests0\n"
    )
    names = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            patch.delenv(name)
        for name, file in names.items():
            patch.setenv(name, str(folder / file))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


def _server(kind: str, folder: Path) -> Iterator[servers.Server]:
    try:
        with servers.running(kind, folder / kind) as server:
            yield server
    except servers.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """rclone serve s3."""
    yield from _server("rclone", tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """OpenStack Swift with s3api."""
    yield from _server("swift", tmp_path_factory.mktemp("server"))


@pytest.fixture(params=["swift", pytest.param("rclone", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> servers.Server:
    """Each of the real servers."""
    found: servers.Server = request.getfixturevalue(request.param)
    return found


def _bucket(server: servers.Server) -> Iterator[Bucket]:
    with FaultProxy(server.url) as proxy:
        bucket = Bucket(server, proxy)
        yield bucket
        for endpoint in bucket.opened:
            endpoint.close()


@pytest.fixture
def bucket(server: servers.Server) -> Iterator[Bucket]:
    """A bucket on each of the real servers in turn."""
    yield from _bucket(server)


@pytest.fixture
def swift_bucket(swift: servers.Server) -> Iterator[Bucket]:
    """A bucket on Swift."""
    yield from _bucket(swift)


@pytest.fixture
def put() -> Callable[..., Any]:
    """`put(endpoint, data, key)` with the sums computed."""
    import hashlib
    import zlib

    def call(endpoint: Endpoint, data: bytes, key: str, source: str | None = None) -> Any:
        sums = {"size": len(data), "adler32": zlib.adler32(data), "sha256": hashlib.sha256(data).hexdigest()}
        return endpoint.put(source or data, key, **sums)

    return call
