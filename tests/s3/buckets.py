"""A bucket of its own for every test, and a plain client to look behind the endpoint's back."""

from __future__ import annotations

import itertools
from typing import Any

import servers
from faultproxy import FaultProxy

from stageout.endpoint import Endpoint, Tools
from stageout.opening import open_endpoint
from stageout.site import EndpointSite

_number = itertools.count(1)


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
