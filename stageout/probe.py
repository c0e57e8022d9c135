"""Is an endpoint fit for use? A probe object is written, read, read in part and deleted; `yoda doctor` shows it.

Costs about ten requests and a megabyte per endpoint, retries nothing for long, and removes what it wrote.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import os
import socket
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from eventrange.errors import StorageError, StorageMissing, StoragePermanent, YodaError
from stageout.endpoint import Endpoint, Tools
from stageout.opening import open_endpoint
from stageout.site import EndpointSite

SIZE = (1 << 20) + 13  # of the probe object: more than one block of anything
SKEW_WARN, SKEW_FAIL = 60.0, 900.0  # seconds; S3 refuses signatures that are 15 minutes off
SLOW = 1 << 20  # bytes per second


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `level` is ok, warn or fail; `todo` says what to do about it."""

    level: str
    what: str
    todo: str = ""


def probe_all(
    sites: Sequence[EndpointSite], open_one: Callable[[EndpointSite], Endpoint] | None = None
) -> list[tuple[str, list[Finding]]]:
    """(name, findings) of every endpoint, in order."""
    return [(site.name, probe(site, open_one)) for site in sites]


def probe(site: EndpointSite, open_one: Callable[[EndpointSite], Endpoint] | None = None) -> list[Finding]:
    """What is well and what is wrong with one endpoint. Never raises for what the endpoint does."""
    quick = msgspec.structs.replace(
        site,
        attempts=min(site.attempts, 2),
        backoff=min(site.backoff, 0.2),
        connect_timeout=min(site.connect_timeout, 10.0),
        read_timeout=min(site.read_timeout, 20.0),
    )
    out = [*_server(quick), *_credentials(quick)]
    if any(finding.level == "fail" for finding in out):
        return out
    try:
        endpoint = open_one(quick) if open_one else open_endpoint(quick, Tools())
    except (YodaError, OSError, ValueError) as error:
        return [*out, Finding("fail", _text(error), "correct the endpoint in the site file")]
    try:
        return out + _object(endpoint)
    finally:
        endpoint.close()


def same_place(one: Endpoint, other: Endpoint, key: str) -> bool:
    """Whether what is written to `one`, under a name that begins with `key`, is on `other`: two gateways to one bucket,
    a folder that is mounted twice. Raises StorageError when that cannot be told."""
    data = os.urandom(16)
    name, sha = f"{key}.probe-{data.hex()}", hashlib.sha256(data).hexdigest()
    one.put(data, name, size=len(data), adler32=zlib.adler32(data), sha256=sha)
    try:
        return other.head(name).size == len(data)
    except StorageMissing:
        return False
    finally:
        with contextlib.suppress(StorageError):
            one.delete(name)


def _object(endpoint: Endpoint) -> list[Finding]:
    """The life of a probe object, step by step; the first failure ends it."""
    data = os.urandom(SIZE)
    sha, key = hashlib.sha256(data).hexdigest(), f"yoda-probe/{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    out: list[Finding] = []
    step = "write"
    try:
        begun = time.monotonic()
        endpoint.put(data, key, size=SIZE, adler32=zlib.adler32(data), sha256=sha)
        rate = SIZE / max(1e-6, time.monotonic() - begun)
        out.append(Finding("ok" if rate >= SLOW else "warn", f"write: {rate / 1e6:.1f} MB/s with one small object"))
        step = "head"
        stat = endpoint.head(key)
        kept = stat.size == SIZE and stat.sha256 in (None, sha)
        out.append(Finding("ok", "size and checksums are kept") if kept else _wrong("size or checksum of the object"))
        step = "read"
        same = endpoint.digest(key).sha256 == sha
        out.append(Finding("ok", "read: the same bytes") if same else _wrong("what was read back"))
        step = "ranged read"
        same = endpoint.get_range(key, 1000, 5000) == data[1000:6000]
        out.append(Finding("ok", "ranged read") if same else _wrong("a ranged read"))
        step = "overwrite"
        out.append(_overwrite(endpoint, key))
        step = "delete"
        endpoint.delete(key)
        out.append(Finding("ok", "delete"))
    except StorageError as error:
        refused = isinstance(error, StoragePermanent)
        todo = "check credentials, bucket and rights" if refused else "see whether the server runs and can be reached"
        out.append(Finding("fail", f"{step}: {_text(error)}", todo))
        if step != "write":
            with contextlib.suppress(StorageError):
                endpoint.delete(key)
    return out


def _overwrite(endpoint: Endpoint, key: str) -> Finding:
    """That other content under the same name is refused."""
    other = b"other"
    try:
        endpoint.put(other, key, size=5, adler32=zlib.adler32(other), sha256=hashlib.sha256(other).hexdigest())
    except StorageError:
        return Finding("ok", "an object that is there is not replaced")
    return Finding("fail", "an object that is there was replaced", "use another server, or a prefix nobody else writes")


def _wrong(what: str) -> Finding:
    return Finding("fail", f"{what} is not as written", "do not use this server before somebody has looked at it")


def _server(site: EndpointSite) -> list[Finding]:
    """Clock and TLS of an S3 server, without credentials: any answer has a Date."""
    if site.scheme != "s3":
        return []
    url = site.endpoint_url or f"https://s3.{site.region or 'us-east-1'}.amazonaws.com"
    context = None
    out: list[Finding] = []
    if urlsplit(url).scheme == "https":
        import ssl

        try:
            context = ssl.create_default_context(cafile=site.ca_bundle)
        except (OSError, ssl.SSLError) as error:
            return [Finding("fail", f"ca_bundle {site.ca_bundle}: {error}", "name a file with the server's CA")]
    elif urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1"):
        out.append(Finding("warn", "data travels unencrypted (http)", "use https if the server has it"))
    begun = time.time()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10, context=context) as reply:
            date = reply.headers.get("Date")
    except urllib.error.HTTPError as error:
        date = error.headers.get("Date")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        todo = "name the site's CA with ca_bundle" if "CERTIFICATE" in str(reason) else "check endpoint_url and network"
        return [*out, Finding("fail", f"{url} cannot be reached: {reason}", todo)]
    if context is not None:
        out.append(Finding("ok", "TLS certificate"))
    return [*out, *_clock(date, begun, time.time())]


def _clock(date: str | None, begun: float, ended: float) -> list[Finding]:
    """How far the server's clock is from ours, which were `begun` and `ended` when asking."""
    try:
        server = email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return [Finding("warn", "the server does not tell its time", "")]
    skew = max(0.0, server - ended, begun - server - 1.0)  # its date has whole seconds
    if skew < SKEW_WARN:
        return [Finding("ok", "clocks agree")]
    level = "fail" if skew >= SKEW_FAIL else "warn"
    return [Finding(level, f"our clock and the server's are {skew:.0f} s apart", "set the clock of this machine (NTP)")]


def _credentials(site: EndpointSite) -> list[Finding]:
    """Whether boto3's chain finds any; their values are not looked at."""
    if site.scheme != "s3":
        return []
    try:
        import boto3
        from botocore.exceptions import BotoCoreError

        try:
            found = boto3.Session(profile_name=site.profile).get_credentials()
        except BotoCoreError as error:
            return [Finding("fail", f"profile {site.profile}: {error}", "write it into ~/.aws, or correct `profile`")]
    except ImportError:
        return [Finding("fail", "boto3 is not installed", "pip install boto3")]
    if found is None:
        todo = "put them into ~/.aws/credentials or the environment; never into the site file"
        return [Finding("fail", "no credentials were found", todo)]
    return [Finding("ok", f"credentials found ({found.method})")]


def _text(error: BaseException) -> str:
    if isinstance(error, YodaError):
        return str(error.values.get("detail", error))
    return f"{type(error).__name__}: {error}"
