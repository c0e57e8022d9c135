"""One S3 connection: credentials from boto3's own chain, our retries, and every failure turned into a typed error.

boto3's retries are switched off: ours take clock and random numbers from outside, stop when the endpoint is closed, and
say which kind of failure is left at the end. No text that leaves this module can hold a secret: known credential values
and signatures are blanked, boto3's exceptions are not chained, and its debug logs (which print signed headers) are cut.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from stageout.endpoint import Conflict, Corrupt, Full, Missing, Permanent, StorageError, Tools, Transient
from stageout.site import EndpointSite

_MISSING = {"NoSuchKey", "NoSuchUpload", "404", "NotFound"}
_FULL = {
    "QuotaExceeded",
    "InsufficientStorage",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "EntityTooLarge",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_TRANSIENT = {
    "BadDigest",  # damaged on the way: the bytes in memory were compared with the seal
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_TRANSIENT_STATUS = {408, 409, 423, 425, 429}
_SIGNED = re.compile(
    r"(?i)((?:X-Amz-)?(?:Signature|Credential|Security-Token)|AWSAccessKeyId)([\"']?\s*[=:]\s*[\"']?)[^\s&,;\"'<>]+"
)
_TALKATIVE = (
    "auth",
    "credentials",
    "endpoint",
    "hooks",
    "httpsession",
    "parsers",
    "client",
    "retryhandler",
    "utils",
    "awsrequest",
)
SKEW = 300.0  # seconds; S3 refuses signatures from clocks that differ by more than 15 minutes


class S3Client:
    """A boto3 client made on first use, shared by the threads of one endpoint."""

    def __init__(self, site: EndpointSite, tools: Tools, connections: int) -> None:
        self.site, self.tools = site, tools
        self._connections = connections
        self._client: Any = None
        self._secrets: set[str] = set()
        self._lock = threading.Lock()
        self.closed = threading.Event()

    def __repr__(self) -> str:
        return f"S3Client({self.site.name!r}, {self.site.url!r})"

    def call(
        self, operation: str, key: str, method: str, *, attempts: int | None = None, **values: Any
    ) -> dict[str, Any]:
        """Call a client method until it works or waiting no longer helps; raises the errors of `stageout.endpoint`."""

        def once() -> dict[str, Any]:
            return dict(getattr(self._connect(), method)(**values))

        return self.retry(operation, key, once, attempts)

    def retry(self, operation: str, key: str, once: Callable[[], Any], attempts: int | None = None) -> Any:
        """Call `once` up to `attempts` times (the site's number by default), with full jitter in between."""
        last = (attempts or self.site.attempts) - 1
        renewed = False
        for attempt in range(1_000_000):
            if self.closed.is_set() and attempts != 1:  # the tidying up of a stopped upload may still go out
                raise self.error(Transient, operation, key, "stopped")
            try:
                with self.errors(operation, key):
                    return once()
            except StorageError as error:
                if error.values.get("code") in _EXPIRED and not renewed:
                    renewed = True  # short-lived credentials are often renewed in place: read them again, once
                    self._forget()
                    continue
                if not error.retry or attempt >= last + renewed:
                    raise
                self.pause(attempt, error)
        raise AssertionError("unreachable")

    def error(self, kind: type[StorageError], operation: str, key: str, detail: str, code: str = "") -> StorageError:
        """An error whose text holds no secret."""
        text = " ".join(self.scrub(detail).split())[:400]
        return kind(endpoint=self.site.name, operation=operation, key=key, detail=text, code=code)

    def scrub(self, text: str) -> str:
        """`text` without credentials and signatures."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return _SIGNED.sub(r"\1\2***", text)

    @contextlib.contextmanager
    def errors(self, operation: str, key: str) -> Iterator[None]:
        """Turn the failures of boto3, urllib3 and sockets into typed errors."""
        import botocore.exceptions as boto
        import urllib3.exceptions

        try:
            yield
        except boto.ClientError as error:
            typed = self._answered(operation, key, error.response)
        except (
            boto.NoCredentialsError,
            boto.PartialCredentialsError,
            boto.CredentialRetrievalError,
            boto.ProfileNotFound,
            boto.TokenRetrievalError,
            boto.UnauthorizedSSOTokenError,
            boto.SSOTokenLoadError,
        ) as error:
            typed = self.error(Permanent, operation, key, f"no credentials: {error}")
        except boto.SSLError as error:
            text, hint = str(error), ""
            if "CERTIFICATE_VERIFY_FAILED" in text:
                hint = "its certificate is not trusted; name the file of its authority with `ca_bundle`: "
            elif "doesn't match" in text:
                hint = "its certificate is for another name, or `path_style` is wrong: "
            typed = self.error(Permanent if hint else Transient, operation, key, f"TLS: {hint}{text}")
        except (
            boto.ConnectionError,
            boto.HTTPClientError,
            boto.IncompleteReadError,
            boto.ResponseStreamingError,
        ) as error:
            typed = self.error(Transient, operation, key, f"{type(error).__name__}: {error}")
        except boto.BotoCoreError as error:
            # A reply that does not parse is a broken proxy or server; everything else here is our settings.
            garbled = "Pars" in type(error).__name__ and "Param" not in type(error).__name__
            typed = self.error(Transient if garbled else Permanent, operation, key, f"{type(error).__name__}: {error}")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            typed = self.error(Transient, operation, key, f"{type(error).__name__}: {error}")
        else:
            return
        raise typed from None

    # --- inside -------------------------------------------------------------------------------------------------------

    def _answered(self, operation: str, key: str, response: Any) -> StorageError:
        """The error for a reply that says no."""
        body, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        code, status = str(body.get("Code", "")), int(meta.get("HTTPStatusCode", 0) or 0)
        headers = meta.get("HTTPHeaders", {})
        detail = f"{status} {code}: {body.get('Message', '')}"
        kind: type[StorageError] = Permanent
        if code in _FULL or status in (413, 507):
            kind = Full
        elif code in _MISSING:
            kind = Missing
        elif code == "PreconditionFailed" or status == 412:
            kind, code = Conflict, "PreconditionFailed"
        elif code == "InvalidRange" or status == 416:
            kind, code = Corrupt, "InvalidRange"
        elif code.startswith("InvalidPart"):
            kind = Corrupt
        elif code == "NotImplemented" or status == 501:
            code = "NotImplemented"
        elif code in _TRANSIENT or status in _TRANSIENT_STATUS or status >= 500 or status == 200:
            kind = Transient
        elif status in (401, 403) or code in _EXPIRED:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                skew = self.tools.wall() - parsedate_to_datetime(headers["date"]).timestamp()
                if abs(skew) > SKEW:
                    side = "ahead of" if skew > 0 else "behind"
                    detail += f" (this machine's clock is {abs(skew):.0f} s {side} the server's)"
        error = self.error(kind, operation, key, detail, code)
        with contextlib.suppress(KeyError, TypeError, ValueError):
            error.values["retry_after"] = float(headers["retry-after"])
        return error

    def pause(self, attempt: int, error: StorageError) -> None:
        """Wait as long as the number of earlier failures and the server's Retry-After ask for."""
        limit = self.site.backoff_max
        wait = self.tools.random() * min(limit, self.site.backoff * 2.0 ** min(attempt, 60))
        self.tools.sleep(max(wait, min(limit, float(error.values.get("retry_after", 0.0)))))

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client

    def _forget(self) -> None:
        with self._lock:
            self._client = None

    def _make(self) -> Any:
        import boto3
        from botocore.config import Config

        for name in ("boto3", "botocore", "s3transfer", "urllib3", *(f"botocore.{part}" for part in _TALKATIVE)):
            logging.getLogger(name).setLevel(logging.WARNING)
        site = self.site
        if site.ca_bundle is not None:
            import ssl

            try:
                ssl.create_default_context(cafile=site.ca_bundle)
            except OSError as error:
                why = error.strerror or type(error).__name__
                raise self.error(Permanent, "open", site.url, f"ca_bundle {site.ca_bundle}: {why}") from None
        path_style = site.path_style if site.path_style is not None else site.endpoint_url is not None
        session = boto3.session.Session(profile_name=site.profile)
        credentials = session.get_credentials()
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            self._secrets |= {value for value in (frozen.access_key, frozen.secret_key, frozen.token) if value}
        config = Config(
            signature_version="s3v4",
            s3={
                "addressing_style": "path" if path_style else "virtual",
                # The signature covers Content-MD5, and that the body; a sha256 of every body on both sides costs more.
                "payload_signing_enabled": site.sign_payload,
            },
            retries={"total_max_attempts": 1, "mode": "standard"},
            # urllib3 applies the connect timeout to the sending of the whole request too: it must cover one part.
            connect_timeout=site.connect_timeout,
            read_timeout=site.read_timeout,
            max_pool_connections=self._connections,
            tcp_keepalive=True,
            # Content-MD5 goes with every body instead: every server checks it, and it can be compared with the ETag.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        region = site.region or session.region_name or "us-east-1"
        return session.client(
            "s3", endpoint_url=site.endpoint_url, region_name=region, config=config, verify=site.ca_bundle or None
        )
