"""The stage-out part of the site file, typed: which endpoints there are and by which rules they are used.

Credentials are never keys here: boto3's own chain (profile, environment, instance) finds them. Unknown keys are
refused, so a secret pasted into the site file stops the run by the key's name, without the value being shown.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal
from urllib.parse import quote, unquote, urlsplit

import msgspec

from eventrange.quantity import Duration, Size

KiB, MiB = 1 << 10, 1 << 20


class EndpointSite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One storage endpoint of the site file. `url` is `s3://bucket/prefix` or `file:///folder`."""

    name: str
    url: str
    endpoint_url: str | None = None  # None: Amazon's own
    profile: str | None = None  # of ~/.aws/config; None: boto3's default chain
    region: str | None = None
    path_style: bool | None = None  # None: path style as soon as endpoint_url is given
    ca_bundle: str | None = None
    max_bandwidth: Size | None = None  # bytes per second, all transfers of one process together
    part_size: Size = 8 * MiB  # larger objects go in parts of this size
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8  # parts in flight; memory is this x part_size
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5  # per request
    backoff: Duration = 0.5  # seconds; doubles, with full jitter
    backoff_max: Duration = 20.0
    connect_timeout: Duration = 30.0  # also bounds the sending of one part
    read_timeout: Duration = 60.0
    min_rate: Size = 64 * KiB  # bytes/s; slower transfers are broken off
    conditional: bool = True  # False: the server is known not to understand If-None-Match
    sign_payload: bool = False  # True: sha256 of every body in the signature, for servers that insist
    verify: Literal["read", "size"] = "read"  # file endpoints: read the copy back, or trust fsync and the size

    def __post_init__(self) -> None:
        if self.max_bandwidth == 0:
            raise ValueError("max_bandwidth must be positive; leave it out for no limit")
        if self.part_size < 64 * KiB:
            raise ValueError("part_size must be at least 64KiB (S3 itself wants 5MiB)")
        if min(self.backoff, self.connect_timeout, self.read_timeout) <= 0:
            raise ValueError("backoff, connect_timeout and read_timeout must be longer than nothing")
        for key, url in (("url", self.url), ("endpoint_url", self.endpoint_url or "")):
            parts = urlsplit(url)
            if parts.username or parts.password or parts.query or parts.fragment:
                raise ValueError(
                    f"{key} must not hold a user, password or query; credentials come from profile or environment"
                )
        parts = urlsplit(self.url)
        if parts.scheme not in ("s3", "file"):
            raise ValueError("url must begin with s3:// or file:///")
        if parts.scheme == "s3" and not parts.netloc:
            raise ValueError("url must name a bucket: s3://bucket/prefix")
        if parts.scheme == "file" and (parts.netloc not in ("", "localhost") or not parts.path.startswith("/")):
            raise ValueError("url must hold an absolute path: file:///folder")
        if self.endpoint_url and urlsplit(self.endpoint_url).scheme not in ("http", "https"):
            raise ValueError("endpoint_url must begin with http:// or https://")
        try:
            _ = self.service
        except ValueError as error:
            raise ValueError(f"endpoint_url names no server: {error}") from None

    @property
    def scheme(self) -> str:
        """`s3` or `file`."""
        return urlsplit(self.url).scheme

    @property
    def service(self) -> str:
        """The server that has the bucket of `url`, always spelled alike; empty for files and for Amazon's own."""
        if not self.endpoint_url:
            return ""
        parts = urlsplit(self.endpoint_url)
        if not parts.hostname:
            raise ValueError("there is no host in it")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"

    def address(self, key: str) -> str:
        """The URL of the object of that name here; with `service` it tells where that is."""
        parts = urlsplit(self.url)
        if parts.scheme == "file":
            return "file://" + quote(f"{unquote(parts.path).rstrip('/')}/{key}")
        return "/".join(filter(None, (f"s3://{parts.netloc}", parts.path.strip("/"), key)))

    @property
    def place(self) -> tuple[str, ...]:
        """Equal for two endpoints that are one place, as far as their addresses tell."""
        parts = urlsplit(self.url)
        if parts.scheme == "file":
            return "file", os.path.realpath(unquote(parts.path))
        # a profile may be a tenant of its own
        return "s3", self.service, self.profile or "", parts.netloc, parts.path.strip("/")


class BreakerRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When something is switched off and tried again. Times in seconds; the defaults are the Event Service's."""

    window: Duration = 2 * 3600.0
    share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5  # more than this share of failures opens
    samples: Annotated[int, msgspec.Meta(ge=1)] = 5  # but never on fewer results than this
    recovery: Duration = 6 * 3600.0
    opens: Annotated[int, msgspec.Meta(ge=1)] = 4  # this many openings ...
    opens_window: Duration = 24 * 3600.0  # ... within this time: exhausted
    probe_timeout: Duration = 3600.0  # a probe without an answer is forgotten after this

    def __post_init__(self) -> None:
        if min(self.window, self.recovery, self.opens_window, self.probe_timeout) <= 0:
            raise ValueError("window, recovery, opens_window and probe_timeout must be longer than nothing")


class NodeBreakerRules(BreakerRules, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For nodes: a doubt is the verdict on many events, so one is enough."""

    window: Duration = 24 * 3600.0
    samples: Annotated[int, msgspec.Meta(ge=1)] = 1


class QueueBreakerRules(BreakerRules, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For queues: what is counted are starts of jobs."""

    window: Duration = 24 * 3600.0
    samples: Annotated[int, msgspec.Meta(ge=1)] = 3


class StageoutRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How segments are moved, for all endpoints together."""

    parallel: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2  # segments in flight in one process
    tries: Annotated[int, msgspec.Meta(ge=1)] = 2  # on one endpoint before the next one is asked
    backoff: Duration = 5.0
    backoff_max: Duration = 600.0
    rehome: bool = True  # copy to the primary what had to go elsewhere
    rehome_after: Duration = 600.0  # seconds after the primary's last failure
    delete_local: bool = False  # the local copy, once a verified copy is recorded
    delete_failover: bool = False  # the failover copy, once the re-homed one is recorded
    orphan_age: Duration = 24 * 3600.0  # unfinished uploads below the task's prefix, this old, are nobody's
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 15
    breaker: BreakerRules = BreakerRules()
    key: str = "{task}/{allocation}/{droid:05d}-{number:04d}.{format}"  # object names
    wait: Duration = 600.0  # seconds a finished run waits for uploads at most; it does not for endpoints that are down
    breaker_state: str | None = None  # file that tasks of a site share; None: one per task
    alert_command: tuple[str, ...] = ()  # told as JSON on its stdin when an endpoint is off for good
    alert_url: str | None = None  # the same as a POST

    def __post_init__(self) -> None:
        parts = {"task": "t", "allocation": "a", "droid": 1, "number": 1, "format": "tar"}
        try:
            key = self.key.format(**parts)
            other: tuple[tuple[str, object], ...] = (("allocation", "b"), ("droid", 2), ("number", 2))
            others = [self.key.format(**{**parts, name: value}) for name, value in other]
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            names = "{task} {allocation} {droid} {number} {format}"
            raise ValueError(f"key may use {names} only: {error}") from None
        if key in others:
            raise ValueError("key must contain {allocation}, {droid} and {number}: every segment needs its own name")
        if key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError("key must be a relative name without '.', '..' and empty parts")
        if self.alert_url is not None:
            url = urlsplit(self.alert_url)
            if url.scheme not in ("http", "https") or url.username or url.password:
                raise ValueError("alert_url must begin with http:// or https:// and hold no user or password")
