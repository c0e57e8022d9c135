"""The stage-out part of the site file, typed: which endpoints there are and by which rules they are used.

Credentials are never keys here: boto3's own chain (profile, environment, instance) finds them. Unknown keys are
refused, so a secret pasted into the site file stops the run by the key's name, without the value being shown.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*$")
_STEP = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: int | str) -> int:
    """Bytes from `8388608`, `"8MiB"` or `"8 MB"`; ValueError says what was wrong."""
    if isinstance(text, int):
        return text
    match = _SIZE.match(text.replace("K", "k"))
    if not match:
        raise ValueError(f"{text!r} is not a size; write for example 64MiB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _STEP[prefix])


class EndpointSite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One storage endpoint of the site file. `url` is `s3://bucket/prefix` or `file:///folder`."""

    name: str
    url: str
    endpoint_url: str | None = None  # None: Amazon's own
    profile: str | None = None  # of ~/.aws/config; None: boto3's default chain
    region: str | None = None
    path_style: bool | None = None  # None: path style as soon as endpoint_url is given
    ca_bundle: str | None = None
    max_bandwidth: int | str | None = None  # bytes per second, all transfers of one process together
    part_size: int | str = 8 * MiB  # larger objects go in parts of this size
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=64)] = (
        4  # parts of one object in flight; memory is this x part_size
    )
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5  # per request
    backoff: Annotated[float, msgspec.Meta(gt=0)] = 0.5  # seconds; doubles, with full jitter
    backoff_max: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    connect_timeout: Annotated[float, msgspec.Meta(gt=0)] = 30.0  # also bounds the sending of one part
    read_timeout: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    min_rate: Annotated[int, msgspec.Meta(ge=0)] = 64 * KiB  # bytes/s; slower transfers are broken off
    conditional: bool = True  # False: the server is known not to understand If-None-Match
    verify: Literal["read", "size"] = "read"  # file endpoints: read the copy back, or trust fsync and the size

    def __post_init__(self) -> None:
        if self.max_bandwidth is not None:
            msgspec.structs.force_setattr(self, "max_bandwidth", parse_size(self.max_bandwidth))
            if self.bandwidth is not None and self.bandwidth <= 0:
                raise ValueError("max_bandwidth must be positive; leave it out for no limit")
        msgspec.structs.force_setattr(self, "part_size", parse_size(self.part_size))
        if self.part_bytes < 64 * KiB:
            raise ValueError("part_size must be at least 64KiB (S3 itself wants 5MiB)")
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

    @property
    def scheme(self) -> str:
        """`s3` or `file`."""
        return urlsplit(self.url).scheme

    @property
    def bandwidth(self) -> int | None:
        """The bandwidth limit in bytes per second."""
        return None if self.max_bandwidth is None else parse_size(self.max_bandwidth)

    @property
    def part_bytes(self) -> int:
        """The part size in bytes."""
        return parse_size(self.part_size)


class BreakerRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When something is switched off and tried again. Times in seconds; the defaults are the Event Service's."""

    window: Annotated[float, msgspec.Meta(gt=0)] = 2 * 3600.0
    share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5  # more than this share of failures opens
    samples: Annotated[int, msgspec.Meta(ge=1)] = 5  # but never on fewer results than this
    recovery: Annotated[float, msgspec.Meta(gt=0)] = 6 * 3600.0
    opens: Annotated[int, msgspec.Meta(ge=1)] = 4  # this many openings ...
    opens_window: Annotated[float, msgspec.Meta(gt=0)] = 24 * 3600.0  # ... within this time: exhausted
    probe_timeout: Annotated[float, msgspec.Meta(gt=0)] = 3600.0  # a probe without an answer is forgotten after this


class StageoutRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How segments are moved, for all endpoints together."""

    parallel: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2  # segments in flight in one process
    tries: Annotated[int, msgspec.Meta(ge=1)] = 2  # on one endpoint before the next one is asked
    backoff: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    backoff_max: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    rehome: bool = True  # copy to the primary what had to go elsewhere
    rehome_after: Annotated[float, msgspec.Meta(ge=0)] = 600.0  # seconds after the primary's last failure
    delete_local: bool = False  # the local copy, once a verified copy is recorded
    delete_failover: bool = False  # the failover copy, once the re-homed one is recorded
    orphan_age: Annotated[float, msgspec.Meta(ge=0)] = (
        24 * 3600.0
    )  # unfinished uploads in the task's prefix older than this
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 15
    breaker: BreakerRules = BreakerRules()
