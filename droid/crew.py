"""A Droid's workers as processes: the zygote's control socket, and a socket to each worker.

Turns what arrives on sockets into calls of the owner, and orders into messages. Knows nothing of ranges or MPI.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from droid import wire
from droid.slots import Slots
from eventrange.errors import RUN_AGAIN

RECEIVE = 1 << 20
TOGETHER = 0.005  #: seconds of results that are taken in before who sent them gets more work
SEND_SECONDS = 5.0  #: an order to a worker is a few kilobytes; one that cannot take it for so long is stuck
TEXT = 4000  #: characters of a worker's last output kept as evidence


@dataclass(frozen=True)
class Last:
    """What a worker that ended was on: `event` (-1: nothing), one of `count`; seconds spent on it, seconds before that
    on the range it belongs to, and seconds of CPU since about the event's beginning."""

    event: int
    count: int
    seconds: float
    before: float
    cpu: float


class Owner(Protocol):
    """What a crew tells: the Droid."""

    def zygote_ready(self, message: dict[str, Any], again: bool) -> None: ...
    def zygote_failed(self, text: str, exit_code: int) -> None: ...
    def worker_frame(self, index: int, kind: int, payload: memoryview) -> None: ...
    def collected(self) -> None: ...
    def worker_exited(self, index: int, how: str, last: Last) -> None: ...
    def worker_unforked(self, index: int, why: str) -> None: ...


@dataclass
class _Peer:
    """One worker's socket; `open` until its end of file."""

    sock: socket.socket
    reader: wire.FrameReader
    pid: int = 0
    open: bool = True
    heard: bool = False  #: whether it is in the owner's poll set


class Crew:
    """The worker processes of one Droid. `poll` is the owner's, for the zygote; a worker that wants to be heard rings,
    with a byte into `bell`."""

    def __init__(
        self, control: socket.socket, slots: Slots, scratch: str, owner: Owner, poll: select.poll, bell: int
    ) -> None:
        self.control, self.slots, self.scratch, self.owner, self.poll = control, slots, scratch, owner, poll
        self.bell = bell
        self._sockets = select.poll()
        self.ready = False  #: the zygote has made the payload
        self._peers: dict[int, _Peer] = {}
        self._by_fd: dict[int, int] = {}
        self._ending = False
        self._unsent: deque[tuple[bytes, tuple[int, ...], int]] = deque()  # message, descriptors, the one to close
        self._buffer = bytearray(RECEIVE)
        poll.register(control, select.POLLIN)

    # -- orders ------------------------------------------------------------------------------------------------------

    def set_task(self, task: dict[str, Any]) -> None:
        """Tell the zygote what workers need to know of the task."""
        fd = os.memfd_create("task", os.MFD_CLOEXEC)
        with open(fd, "wb", closefd=False) as file:
            file.write(msgspec.msgpack.encode(task))
        self._tell({"task": True}, fd, close=fd)

    def spawn(self, index: int) -> None:
        """Have the zygote fork worker `index`."""
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RECEIVE)
        ours.setblocking(False)
        fd = theirs.detach()
        self._tell({"spawn": index}, fd, self.bell, close=fd)
        self._peers[index] = _Peer(ours, wire.FrameReader())
        self._by_fd[ours.fileno()] = index
        self._sockets.register(ours, select.POLLIN)

    def program(self, words: list[str], environment: dict[str, str], fds: tuple[int, int, int]) -> bool:
        """Have the zygote start a program with `fds` as stdin, stdout and stderr; False: not yet, or no more."""
        if not self.ready or self._ending or self._unsent:
            return False
        return self._sent(msgspec.msgpack.encode({"program": words, "environment": environment}), fds)

    def kill(self, index: int) -> None:
        """SIGKILL worker `index`; its exit will be told."""
        self._tell({"kill": index})

    def kill_all(self) -> None:
        for index in self._peers:
            self.kill(index)

    def send(self, index: int, parts: list[Any]) -> None:
        """Send a frame to worker `index`; one that is dead gets nothing, its exit is on the way."""
        peer = self._peers.get(index)
        if peer is None or not peer.open:
            return
        data = b"".join(parts)
        try:
            sent = peer.sock.send(data)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            return
        if sent < len(data):
            self._send_slowly(peer, index, data[sent:])

    def _send_slowly(self, peer: _Peer, index: int, data: bytes) -> None:
        peer.sock.settimeout(SEND_SECONDS)
        try:
            peer.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError:
            self.kill(index)
        finally:
            peer.sock.setblocking(False)

    def send_all(self, parts: list[Any]) -> None:
        for index in list(self._peers):
            self.send(index, parts)

    def output(self, index: int) -> str:
        """The last of what worker `index` printed."""
        try:
            with open(os.path.join(self.scratch, f"worker-{index}.out"), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TEXT))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def stopped(self, index: int) -> bool:
        """Whether the kernel says that worker `index` is stopped (SIGSTOP, a debugger, a suspended job)."""
        peer = self._peers.get(index)
        if peer is None or not peer.pid:
            return False
        try:
            with open(f"/proc/{peer.pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] in ("T", "t")
        except (OSError, IndexError):
            return False

    def end(self) -> None:
        """Let the zygote go. Workers end with it."""
        self._ending = True
        self._forget_unsent()
        self.control.close()

    # -- what arrives ------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Take what workers have sent, whether or not they rang for it."""
        since = 0.0
        for fd, _ in self._sockets.poll(0):
            if fd not in self._by_fd:
                continue
            since = since or time.monotonic()
            self._receive(self._by_fd[fd])
            if time.monotonic() - since > TOGETHER:  # who came first waits for work
                self.owner.collected()
                since = 0.0
        if since:
            self.owner.collected()

    def _tell(self, message: dict[str, Any], *fds: int, close: int = -1) -> None:
        """Send a message to the zygote, or as soon as it has read what it has; `close` is closed then. Its socket holds
        some two hundred, and a node may have more workers."""
        data = msgspec.msgpack.encode(message)
        if self._unsent or not self._sent(data, fds):
            if not self._unsent:
                self.poll.modify(self.control, select.POLLIN | select.POLLOUT)
            self._unsent.append((data, fds, close))
        elif close >= 0:
            os.close(close)

    def _sent(self, data: bytes, fds: tuple[int, ...]) -> bool:
        try:
            if fds:
                socket.send_fds(self.control, [data], fds)
            else:
                self.control.send(data)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            pass  # its end of file says the same
        return True

    def _send_rest(self) -> None:
        while self._unsent and self._sent(*self._unsent[0][:2]):
            close = self._unsent.popleft()[2]
            if close >= 0:
                os.close(close)
            if not self._unsent:
                self.poll.modify(self.control, select.POLLIN)

    def _forget_unsent(self) -> None:
        while self._unsent:
            close = self._unsent.popleft()[2]
            if close >= 0:
                os.close(close)

    def hear(self) -> None:
        """The zygote has something to say, or takes more."""
        self._send_rest()
        try:
            data = self.control.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._forget_unsent()
            self.poll.unregister(self.control)
            if not self._ending:
                self.owner.zygote_failed("the zygote and its guardian are gone", RUN_AGAIN)
            return
        message = msgspec.msgpack.decode(data)
        if "failed" in message:
            output = message.get("output") or ""
            text = message["failed"] + (f"\nwhat it printed last:\n{output[-2000:]}" if output else "")
            self.owner.zygote_failed(text, message["code"])
        elif "ready" in message:
            again, self.ready = self.ready, True
            if again:  # workers die with their zygote
                for index in list(self._peers):
                    self._receive(index, everything=True)
                    self._drop(index)
            self.owner.zygote_ready(message, again)
        elif "spawned" in message:
            peer = self._peers.get(message["spawned"])
            if peer is not None:
                peer.pid = message["pid"]
        elif "unforked" in message:
            self._drop(message["unforked"])
            self.owner.worker_unforked(message["unforked"], message["why"])
        elif "exit" in message:
            self._exited(message)

    def _receive(self, index: int, everything: bool = False) -> None:
        """Take what worker `index` sent, one read or everything. Its end of file is explained by the zygote's
        `exit`."""
        peer = self._peers[index]
        while peer.open:
            try:
                size = peer.sock.recv_into(self._buffer)
            except BlockingIOError:
                break
            except ConnectionResetError:
                size = 0
            if not size:
                self._close(peer)
                return
            for kind, payload in peer.reader.feed(memoryview(self._buffer)[:size]):
                self.owner.worker_frame(index, kind, payload)
            if size < RECEIVE and not everything:
                break
        self._listen(peer)

    def _listen(self, peer: _Peer) -> None:
        """While a part of a frame is missing, its worker waits for us to take it, and does not ring again."""
        if peer.open and peer.reader.partial != peer.heard:
            peer.heard = peer.reader.partial
            if peer.heard:
                self.poll.register(peer.sock, select.POLLIN)
            else:
                self.poll.unregister(peer.sock)

    def _exited(self, message: dict[str, Any]) -> None:
        index = message["exit"]
        peer = self._peers.get(index)
        if peer is None or peer.pid not in (0, message["pid"]):
            return  # one that has been replaced
        self._receive(index, everything=True)  # results it sent before it died count
        self._drop(index)
        slot = self.slots.snapshot()[index]
        event, count, since, begun, cpu = slot[["event", "count", "since", "begun", "cpu"]].item()
        self.slots.clear(index)
        how = _how(message["status"], message["cpu"], message["rss"])
        seconds = max(0.0, time.monotonic() - since)
        last = Last(event, count, seconds, max(0.0, since - begun), max(0.0, message["cpu"] - cpu))
        self.owner.worker_exited(index, how, last if event >= 0 else Last(-1, 0, 0.0, 0.0, 0.0))

    def _close(self, peer: _Peer) -> None:
        if peer.open:
            peer.open = False
            self._sockets.unregister(peer.sock)
            if peer.heard:
                self.poll.unregister(peer.sock)
            del self._by_fd[peer.sock.fileno()]
            peer.sock.close()

    def _drop(self, index: int) -> None:
        peer = self._peers.pop(index, None)
        if peer is not None:
            self._close(peer)


def _how(status: int, cpu: float, rss: int) -> str:
    if status < 0:
        how = f"killed by signal {-status} ({signal_name(-status)})"
    else:
        how = f"exited with status {status}"
    return f"{how} after {cpu:.1f} s of CPU, {rss / 1e6:.0f} MB at most"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
