"""Reading from S3 over connections that break, stall and drip: goes on where it stopped, and gives up in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from stageout.endpoint import CHUNK, Corrupt, Throttle, Transient
from stageout.s3client import S3Client

SLOW_AFTER = 10.0  # seconds of reading before the minimum rate counts


class Reader:
    """Reads objects; `ask(operation, key, span)` is one GET, with what of a `Range` belongs to it."""

    def __init__(
        self,
        client: S3Client,
        throttle: Throttle,
        ask: Callable[[str, str, dict[str, Any]], dict[str, Any]],
    ) -> None:
        self._client, self._throttle, self._ask = client, throttle, ask

    def read(self, operation: str, key: str, offset: int, size: int | None) -> Iterator[bytes]:
        """The bytes from `offset`, `size` of them or all; goes on where a broken connection stopped."""
        done, failures, failed_at, etag = 0, 0, 0, None
        while size is None or done < size:
            last = "" if size is None else str(offset + size - 1)
            span: dict[str, Any] = (
                {} if offset + done == 0 and size is None else {"Range": f"bytes={offset + done}-{last}"}
            )
            reply = self._ask(operation, key, span)
            if etag not in (None, reply.get("ETag")):
                raise self._client.error(Corrupt, operation, key, "the object changed while it was read")
            etag, expected = reply.get("ETag"), int(reply["ContentLength"])
            if size is None:
                size = done + expected  # of the first reply: the whole
            try:
                for data in self._body(operation, key, reply["Body"], min(expected, size - done)):
                    done += len(data)
                    yield data
                if done < size and expected < size - done:
                    raise self._client.error(
                        Corrupt, operation, key, f"ends {size - done} bytes before {offset}+{size}"
                    )
            except Transient as error:
                # Headway forgives earlier failures, but not a few bytes at a time.
                failures, failed_at = 1 if done - failed_at >= CHUNK else failures + 1, done
                if failures >= self._client.site.attempts:
                    raise
                self._client.pause(failures - 1, error)

    def _body(self, operation: str, key: str, body: Any, size: int) -> Iterator[bytes]:
        """A reply's body in pieces; Transient when it ends early or drips slower than the site's minimum rate."""
        raw = getattr(body, "_raw_stream", body)
        read = getattr(raw, "read1", None) or raw.read  # read1 returns what is there, so that a drip can be noticed
        done, spent = 0, 0.0
        try:
            while done < size:
                if self._client.closed.is_set():
                    raise self._client.error(Transient, operation, key, "stopped")
                self._throttle.take(min(CHUNK, size - done))
                start = self._client.tools.clock()
                with self._client.errors(operation, key):
                    data = read(min(CHUNK, size - done))
                spent += self._client.tools.clock() - start
                if not data:
                    raise self._client.error(
                        Transient, operation, key, f"the reply broke off after {done} of {size} bytes"
                    )
                done += len(data)
                if spent > SLOW_AFTER and done < self._client.site.min_rate * spent:
                    raise self._client.error(Transient, operation, key, f"too slow: {done} bytes in {spent:.0f} s")
                yield data
        finally:
            body.close()
