"""Servers and buckets for the S3 tests; every test gets a bucket of its own on a server shared by the session."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from faultproxy import FaultProxy

from stageout.endpoint import Endpoint, Tools, open_endpoint
from stageout.site import EndpointSite

_number = itertools.count(1)


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


@pytest.fixture(params=["swift", "rclone"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    """Each of the real servers."""
    found: servers.Server = request.getfixturevalue(request.param)
    return found


def client(url: str) -> Any:
    """A plain boto3 client, to look behind the endpoint's back."""
    import boto3
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config)


class Bucket:
    """A fresh bucket on a server, reached directly or through a fault proxy."""

    def __init__(self, server: servers.Server, proxy: FaultProxy) -> None:
        self.server, self.proxy = server, proxy
        self.name = f"bucket{next(_number)}"
        self.plain = client(server.url)
        self.plain.create_bucket(Bucket=self.name)
        self.waits: list[float] = []
        self.opened: list[Endpoint] = []

    def site(self, direct: bool = False, **keys: Any) -> EndpointSite:
        """A site entry for it."""
        defaults: dict[str, Any] = {"part_size": 5 << 20, "attempts": 3, "name": "primary"}
        defaults["url"] = f"s3://{self.name}/some/prefix"
        defaults["endpoint_url"] = self.server.url if direct else self.proxy.url
        return EndpointSite(**{**defaults, **keys})

    def endpoint(self, direct: bool = False, **keys: Any) -> Endpoint:
        """An endpoint that never really sleeps; what it would have slept is in `waits`."""
        endpoint = open_endpoint(self.site(direct, **keys), Tools(sleep=self.waits.append, random=lambda: 1.0))
        self.opened.append(endpoint)
        return endpoint

    def uploads(self) -> list[str]:
        """Keys of the uploads in parts that are under way."""
        return [u["Key"] for u in self.plain.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]

    def keys(self) -> list[str]:
        """Keys of all objects."""
        return [o["Key"] for o in self.plain.list_objects_v2(Bucket=self.name).get("Contents", [])]


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
