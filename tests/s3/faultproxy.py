"""An HTTP proxy that spoils chosen requests on their way to a real S3 server, and passes on all others untouched.

Signatures cover the Host header, which is passed on unchanged, so the server behind accepts what the client signed.
"""

from __future__ import annotations

import contextlib
import html
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from email.utils import formatdate

ANSWERS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Slow Down", "SlowDown"),
    "429": ("429 Too Many Requests", "TooManyRequests"),
    "403": ("403 Forbidden", "AccessDenied"),
    "expired": ("400 Bad Request", "ExpiredToken"),
    "skew": ("403 Forbidden", "RequestTimeTooSkewed"),
    "507": ("507 Insufficient Storage", "QuotaExceeded"),
    "501": ("501 Not Implemented", "NotImplemented"),
}


@dataclass
class Fault:
    """What is done to the next `times` requests whose method and target match.

    Kinds: a key of ANSWERS (never reaches the server); `echo` (neither: the answer is an error that repeats all headers
    of the request); `reset` (neither); `hang` (no answer at all); `lost` (the server does it, the answer is lost);
    `truncated`, `etag`, `drip`, `garbage` (the answer is spoilt); `flip` (the request is).
    """

    kind: str
    method: str = ""
    target: str = ""
    times: int = 1 << 30


class FaultProxy:
    """Listens on a free loopback port until closed. `faults` may be changed at any time; `seen` lists all requests."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str, str]] = []  # method, target, kind of fault or ""
        self.drip = 0.02  # seconds per byte
        self.closed = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        self.closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def count(self, method: str, kind: str = "") -> int:
        """How many requests of this method met this kind of fault."""
        return sum(m == method and k == kind for m, _, k in self.seen)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _fault(self, method: str, target: str) -> str:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("", method) and re.search(fault.target, target):
                    fault.times -= 1
                    self.seen.append((method, target, fault.kind))
                    return fault.kind
            self.seen.append((method, target, ""))
            return ""

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            reader = client.makefile("rb")
            while head := _head(reader):
                method, target, _ = head[0].split(" ", 2)
                kind = self._fault(method, target)
                if kind == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if _value(head, "expect"):
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = reader.read(int(_value(head, "content-length") or 0))
                if kind == "hang":
                    self.closed.wait(60)
                    return
                if kind in ANSWERS:
                    client.sendall(_answer(*ANSWERS[kind], method, 7200 if kind == "skew" else 0))
                    continue
                if kind == "echo":
                    client.sendall(_answer("400 Bad Request", "Echo", method, 0, html.escape(" ".join(head))))
                    continue
                if kind == "flip" and body:
                    body = body[:-1] + bytes([body[-1] ^ 1])
                answer, content = self._forward(head, body, method)
                if kind == "lost":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if kind == "etag":
                    answer = [re.sub(r'(?i)^(etag: "?)\w', r"\1x", line) for line in answer]
                    content = re.sub(rb'(ETag>(?:"|&quot;)?)\w', rb"\1x", content)
                if kind == "garbage":
                    content = b"<" * len(content)
                client.sendall("\r\n".join([*answer, "", ""]).encode("latin-1"))
                if kind == "truncated":
                    client.sendall(content[: len(content) // 2])
                    return
                if kind == "drip":
                    for start in range(len(content)):
                        client.sendall(content[start : start + 1])
                        if self.closed.wait(self.drip):
                            return
                else:
                    client.sendall(content)

    def _forward(self, head: list[str], body: bytes, method: str) -> tuple[list[str], bytes]:
        """The server's answer: status line and headers with a plain Content-Length, and the body."""
        with socket.create_connection(self._upstream, 30) as server:
            lines = [line for line in head if not line.lower().startswith(("connection:", "expect:"))]
            server.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
            reader = server.makefile("rb")
            answer = _head(reader)
            while answer and answer[0].split()[1] == "100":
                answer = _head(reader)
            if not answer:
                raise OSError("the server hung up")
            content = b"" if method == "HEAD" else _body(reader, answer)
        length = _value(answer, "content-length") if method == "HEAD" else str(len(content))
        drop = ("content-length:", "transfer-encoding:", "connection:")
        kept = [line for line in answer if not line.lower().startswith(drop)]
        return [*kept, f"Content-Length: {length or 0}"], content


def _head(reader: object) -> list[str]:
    lines: list[str] = []
    while True:
        line = reader.readline()  # type: ignore[attr-defined]
        if not line:
            return []
        text = line.decode("latin-1").rstrip("\r\n")
        if text:
            lines.append(text)
        elif lines:
            return lines


def _body(reader: object, head: list[str]) -> bytes:
    read, readline = reader.read, reader.readline  # type: ignore[attr-defined]
    if "chunked" not in (_value(head, "transfer-encoding") or ""):
        length = _value(head, "content-length")
        return bytes(read(int(length)) if length is not None else read())
    pieces = []
    while size := int(readline().split(b";")[0], 16):
        pieces.append(read(size))
        readline()
    return b"".join(pieces)


def _value(head: list[str], name: str) -> str | None:
    for line in head[1:]:
        key, _, value = line.partition(":")
        if key.lower() == name:
            return value.strip()
    return None


def _answer(status: str, code: str, method: str, ahead: float, message: str = "injected") -> bytes:
    body = b"" if method == "HEAD" else f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    date = formatdate(time.time() + ahead, usegmt=True)
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nDate: {date}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
