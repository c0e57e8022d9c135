"""`s3://` endpoints: Amazon's and everybody else's, told apart only by what they answer.

Small objects go in one request, large ones in parts. The ETag the server answers is compared with the MD5 of what was
sent; when that does not fit (encrypted buckets have other ETags), the server checks a Content-MD5 and the object is
read back. Our own checksums travel as object metadata. `If-None-Match` keeps other writers from being overwritten;
servers that ignore or refuse it are asked with HEAD first, which leaves a moment in which both could write.
An interrupted upload in parts is invisible, costs room, and is aborted when its key is uploaded again or by `clean`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, MutableSequence, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from stageout.endpoint import (
    CHUNK,
    Conflict,
    Corrupt,
    Missing,
    Permanent,
    Stat,
    StorageError,
    Summer,
    Throttle,
    Tools,
    Transient,
    check_key,
    compare_source,
    read_source,
)
from stageout.s3client import S3Client
from stageout.s3read import Reader
from stageout.site import EndpointSite

SHA256, ADLER32 = "yoda-sha256", "yoda-adler32"  # metadata keys; some servers change their case
MAX_PARTS = 9_000  # S3 allows 10,000


class S3Endpoint:
    """Objects in one bucket below one prefix; see `stageout.endpoint.Endpoint` for the verbs."""

    def __init__(self, site: EndpointSite, tools: Tools) -> None:
        self.name, self.site, self._tools = site.name, site, tools
        parts = urlsplit(site.url)
        self.bucket, self.prefix = parts.netloc, parts.path.strip("/")
        self._client = S3Client(site, tools, site.concurrency + 4)
        self._throttle = Throttle(site.max_bandwidth, tools)
        self._reader = Reader(self._client, self._throttle, self._get_object)
        self._pool = ThreadPoolExecutor(site.concurrency, f"s3-{site.name}")
        self._slots = threading.Semaphore(site.concurrency + 1)  # parts in memory, of all objects together
        self._conditional = site.conditional
        self._active: set[str] = set()  # keys that are being written; their unfinished uploads are our own
        self._etag_is_md5 = True  # until one was read back and found good
        self._told_md5 = False  # whether the server wants Content-MD5 with every part

    def __repr__(self) -> str:
        return f"S3Endpoint({self.name!r}, {self.site.url!r})"

    def put(self, source: str | bytes, key: str, *, size: int, adler32: int, sha256: str) -> Stat:
        """See `Endpoint.put`."""
        wanted = Stat(check_key(key), size, adler32, sha256)
        self._active.add(key)
        try:
            return self._put(source, wanted)
        finally:
            self._active.discard(key)

    def _put(self, source: str | bytes, wanted: Stat) -> Stat:
        key, size = wanted.key, wanted.size
        part = max(self.site.part_size, -(-size // MAX_PARTS))
        if self._is_there(key):
            return self._taken(source, wanted, part)
        try:
            if size <= part:
                sure = self._put_whole(source, wanted)
            else:
                sure = self._put_parts(source, wanted, part)
        except (Conflict, Missing):
            # Taken by someone else meanwhile, or by ourselves in a request whose answer was lost on the way.
            if self._is_there(key):
                return self._taken(source, wanted, part)
            raise self._error(Transient, "put", key, "the upload was aborted by someone else") from None
        if not sure:
            self._read_back(wanted)
        return wanted

    def get(self, key: str, path: str) -> Stat:
        """See `Endpoint.get`."""
        stored, summer, temporary = self.head(key), Summer(), f"{path}.yoda-part.{os.getpid()}-{threading.get_ident()}"
        try:
            with open(temporary, "wb") as file:
                for data in self._reader.read("get", key, 0, None):
                    summer.update(data)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._compare("get", summer.stat(key), stored)
            os.rename(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return summer.stat(key)

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """See `Endpoint.get_range`."""
        return b"".join(self._reader.read("get_range", key, offset, size)) if size else b""

    def head(self, key: str) -> Stat:
        """See `Endpoint.head`."""
        return self._stat(key, self._call("head", key, "head_object"))

    def digest(self, key: str) -> Stat:
        """See `Endpoint.digest`."""
        summer = Summer()
        for data in self._reader.read("digest", key, 0, None):
            summer.update(data)
        return summer.stat(key)

    def delete(self, key: str) -> None:
        """See `Endpoint.delete`."""
        with contextlib.suppress(Missing):
            self._call("delete", key, "delete_object")

    def list(self, prefix: str) -> Iterator[Stat]:
        """See `Endpoint.list`; checksums are not known."""
        more: dict[str, Any] = {}
        while True:
            values = {"Bucket": self.bucket, "Prefix": self._full(prefix), **more}
            page = self._client.call("list", prefix, "list_objects_v2", **values)
            for item in page.get("Contents", ()):
                yield Stat(self._short(item["Key"]), int(item["Size"]))
            if not page.get("IsTruncated") or not page.get("NextContinuationToken"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def url(self, key: str) -> str:
        """See `Endpoint.url`."""
        return self.site.address(key)

    def clean(self, prefix: str, older_than: float = 0.0) -> int:
        """See `Endpoint.clean`. A bucket that forbids listing uploads is left to its own lifecycle rule."""
        return self._abort_uploads(prefix, older_than, exact=False)

    def close(self) -> None:
        """See `Endpoint.close`."""
        self._client.closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- writing ------------------------------------------------------------------------------------------------------

    def _is_there(self, key: str) -> bool:
        try:
            self.head(key)
        except Missing:
            return False
        except Permanent as error:
            # Amazon answers 403 for a missing object to those who may not list; then the conditional write must tell.
            if error.values.get("code") not in ("403", "AccessDenied") or not self._conditional:
                raise
            return False
        return True

    def _put_whole(self, source: str | bytes, wanted: Stat) -> bool:
        """One request. True when the server's ETag proves that it has these bytes."""
        body = b"".join(read_source(source, self.name, wanted.key, CHUNK))
        self._check(wanted, [body])
        self._throttle.take(len(body))
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        reply = self._unless_taken(
            "put", wanted.key, "put_object", Body=body, ContentMD5=_text(md5), Metadata=_meta(wanted)
        )
        return self._etag_fits(reply, md5.hex())

    def _put_parts(self, source: str | bytes, wanted: Stat, part: int) -> bool:
        """An upload in parts, aborted on any failure. True when the server's ETags prove that it has these bytes."""
        key = wanted.key

        def begin() -> str:
            # Whoever is given a segment is its only uploader: what is unfinished under this key is from before a kill,
            # or from a request of ours whose answer was lost.
            self._abort_uploads(key, 0.0, exact=True)
            return str(self._call("put", key, "create_multipart_upload", 1, Metadata=_meta(wanted))["UploadId"])

        upload = self._client.retry("put", key, begin)
        try:
            sent = self._send_parts(source, wanted, part, upload)
            parts = [{"PartNumber": number, "ETag": etag} for number, (etag, _) in enumerate(sent, 1)]
            reply = self._unless_taken(
                "put", key, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            with contextlib.suppress(StorageError):
                self._call("abort", key, "abort_multipart_upload", attempts=1, UploadId=upload)
            raise
        if str(reply.get("ETag", "")).strip('"') == _joined([md5 for _, md5 in sent]):
            return True
        # Not Amazon's kind of ETag: size and metadata must fit, and each part's ETag must be what was sent.
        stored = self.head(key)
        if stored.size != wanted.size or stored.sha256 not in (None, wanted.sha256):
            self._throw_away(wanted, f"uploaded {wanted.size} bytes, the server has {stored.size}")
        same_kind = str(reply.get("ETag", "")).strip('"').endswith(f"-{len(sent)}")
        if same_kind and self._etag_is_md5:
            return False
        return all(self._etag_fits({"ETag": etag}, md5.hex()) for etag, md5 in sent)

    def _send_parts(self, source: str | bytes, wanted: Stat, part: int, upload: str) -> Sequence[tuple[str, bytes]]:
        """ETag and MD5 of each part. This thread reads and sums; MD5, signature and sending are the pool's.

        MD5 proves that the server has what we read, adler32 that we read what was sealed. sha256 would say no more of
        accidents, and half of an upload's CPU time would be its.
        """
        summer = Summer(sha=False)
        pending: MutableSequence[Future[tuple[str, bytes]]] = []
        failed = threading.Event()

        def send(number: int, body: bytes) -> tuple[str, bytes]:
            try:
                return self._send_part(wanted.key, body, UploadId=upload, PartNumber=number)
            except BaseException:
                failed.set()
                raise
            finally:
                self._slots.release()

        try:
            for number, body in enumerate(read_source(source, self.name, wanted.key, part), 1):
                self._throttle.take(len(body))
                self._slots.acquire()
                if failed.is_set() or self._client.closed.is_set():
                    self._slots.release()
                    break
                summer.update(body)
                try:
                    pending.append(self._pool.submit(send, number, body))
                except RuntimeError:  # the pool was closed
                    self._slots.release()
                    raise self._error(Transient, "put", wanted.key, "stopped") from None
        finally:
            wait(pending, return_when=FIRST_EXCEPTION)
            for future in pending:
                if future.cancel():
                    self._slots.release()
            wait(pending)
        sent = [future.result() for future in pending if not future.cancelled()]
        if self._client.closed.is_set():
            raise self._error(Transient, "put", wanted.key, "stopped")
        compare_source(summer.stat(wanted.key), wanted, self.name)
        return sent

    def _send_part(self, key: str, body: bytes, **which: Any) -> tuple[str, bytes]:
        """ETag and MD5. Either the ETag proves that the part arrived whole, or the server is told what to check.

        With Content-MD5 most servers hash every part twice, and where they share a CPU with us that is a quarter of it.
        """
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        if self._etag_is_md5 and not self._told_md5:
            try:
                reply = self._call("put", key, "upload_part", Body=body, **which)
            except Permanent as error:
                if error.values.get("code") not in ("InvalidRequest", "MissingContentMD5"):
                    raise
                self._told_md5 = True  # buckets with retention insist on it
            else:
                if self._etag_fits(reply, md5.hex()):
                    return str(reply["ETag"]), md5
                # Damaged on the way, or another kind of ETag: this time the server is to find out.
        reply = self._call("put", key, "upload_part", Body=body, ContentMD5=_text(md5), **which)
        return str(reply["ETag"]), md5

    def _unless_taken(self, operation: str, key: str, method: str, **values: Any) -> dict[str, Any]:
        """A write that the server refuses when the key is taken, where it can."""
        if self._conditional:
            try:
                return self._call(operation, key, method, IfNoneMatch="*", **values)
            except Permanent as error:
                if error.values.get("code") not in ("NotImplemented", "InvalidArgument"):
                    raise
                self._conditional = False
        return self._call(operation, key, method, **values)

    def _abort_uploads(self, prefix: str, older_than: float, exact: bool) -> int:
        count, more = 0, dict[str, Any]()
        try:
            while True:
                values = {"Bucket": self.bucket, "Prefix": self._full(prefix), **more}
                page = self._client.call("clean", prefix, "list_multipart_uploads", **values)
                for item in page.get("Uploads", ()):
                    old = self._tools.wall() - item["Initiated"].timestamp() >= older_than if older_than else True
                    mine = item["Key"] == self._full(prefix) if exact else self._short(item["Key"]) not in self._active
                    if old and mine:
                        with contextlib.suppress(Missing):
                            where = {"Bucket": self.bucket, "Key": item["Key"], "UploadId": item["UploadId"]}
                            self._client.call("clean", item["Key"], "abort_multipart_upload", **where)
                            count += 1
                if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                    return count
                more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}
        except (Permanent, Missing):
            return count

    # --- comparing ----------------------------------------------------------------------------------------------------

    def _taken(self, source: str | bytes, wanted: Stat, part: int) -> Stat:
        """Success if the object that has this key is the wanted one: proved by ETag, or by reading it."""
        reply = self._call("head", wanted.key, "head_object")
        found = self._stat(wanted.key, reply)
        if found.size != wanted.size or found.sha256 not in (None, wanted.sha256):
            raise self._error(Conflict, "put", wanted.key, f"another object of {found.size} bytes has this name")
        md5s, summer = [], Summer()
        for body in read_source(source, self.name, wanted.key, part):
            summer.update(body)
            md5s.append(hashlib.md5(body, usedforsecurity=False).digest())
        compare_source(summer.stat(wanted.key), wanted, self.name)
        etag = str(reply.get("ETag", "")).strip('"')
        if etag == (_joined(md5s) if len(md5s) > 1 else md5s[0].hex() if md5s else None):
            return wanted
        if self.digest(wanted.key) != wanted:
            if found.sha256 is None:
                raise self._error(Conflict, "put", wanted.key, "another object of the same size has this name")
            self._throw_away(wanted, "an earlier upload of ours is damaged there")
        return wanted

    def _read_back(self, wanted: Stat) -> None:
        """The ETag was not the checksum of what was sent: only the bytes can tell."""
        if self.digest(wanted.key) != wanted:
            self._throw_away(wanted, "uploaded, but the server gives back other bytes")
        self._etag_is_md5 = False

    def _throw_away(self, wanted: Stat, detail: str) -> None:
        """Remove a damaged object that carries our checksums, lest anyone believe them; then Corrupt."""
        with contextlib.suppress(StorageError):
            self.delete(wanted.key)
        raise self._error(Corrupt, "put", wanted.key, detail)

    def _etag_fits(self, reply: dict[str, Any], md5: str) -> bool:
        return not self._etag_is_md5 or str(reply.get("ETag", "")).strip('"').lower() == md5

    def _check(self, wanted: Stat, bodies: Sequence[bytes]) -> None:
        summer = Summer()
        for body in bodies:
            summer.update(body)
        compare_source(summer.stat(wanted.key), wanted, self.name)

    def _compare(self, operation: str, found: Stat, stored: Stat) -> None:
        if found.size != stored.size or stored.sha256 not in (None, found.sha256):
            raise self._error(Corrupt, operation, found.key, f"got {found.size} bytes with sha256 {found.sha256}")

    # --- small things -------------------------------------------------------------------------------------------------

    def _call(
        self, operation: str, key: str, method: str, attempts: int | None = None, **values: Any
    ) -> dict[str, Any]:
        return self._client.call(
            operation, key, method, attempts=attempts, Bucket=self.bucket, Key=self._full(check_key(key)), **values
        )

    def _get_object(self, operation: str, key: str, span: dict[str, Any]) -> dict[str, Any]:
        return self._call(operation, key, "get_object", **span)

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _short(self, key: str) -> str:
        return key[len(self.prefix) + 1 :] if self.prefix else key

    def _stat(self, key: str, reply: dict[str, Any]) -> Stat:
        meta = {name.lower(): value for name, value in reply.get("Metadata", {}).items()}
        adler = meta.get(ADLER32)
        return Stat(key, int(reply["ContentLength"]), int(adler, 16) if adler else None, meta.get(SHA256))

    def _error(self, kind: type[StorageError], operation: str, key: str, detail: str) -> StorageError:
        return self._client.error(kind, operation, key, detail)


def _meta(wanted: Stat) -> dict[str, str]:
    return {SHA256: wanted.sha256 or "", ADLER32: f"{wanted.adler32 or 0:08x}"}


def _text(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _joined(md5s: Sequence[bytes]) -> str:
    """The ETag of an object uploaded in parts, as Amazon and Swift form it."""
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"
