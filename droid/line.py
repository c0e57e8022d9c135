"""A worker's end of the line to its Droid: what is sent, when the Droid is woken for it, and what it has ordered."""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from droid import wire
from eventrange.messages import Range, unpack_ranges

_MOST_PARTS = 512  #: buffers in one system call; the kernel takes 1,024


class Line:
    """A worker's way to its Droid: a socket for frames, and a pipe into which a byte wakes it."""

    def __init__(self, sock: socket.socket, bell: int) -> None:
        self.sock, self.bell = sock, bell

    def send(self, parts: list[Any], ring: bool = True) -> None:
        """Send a frame, all at once: the Droid, which may share this core, is to be woken once, if at all. It must be
        where the frame does not fit."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        for at in range(0, len(views), _MOST_PARTS):
            some = views[at : at + _MOST_PARTS]
            try:
                sent = self.sock.sendmsg(some, (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            for view in some:
                if sent < len(view):
                    self.wake()
                    self.sock.sendall(view[sent:])
                sent = max(0, sent - len(view))
        if ring:
            self.wake()

    def wake(self) -> None:
        with suppress(OSError):  # the pipe is full of rings; or the payload closed what it does not know
            os.write(self.bell, b"w")


class Orders:
    """What the Droid has sent a worker. `todo` are ranges, and whether each follows on what was there before;
    `learn` is told the schema."""

    def __init__(self, sock: socket.socket, learn: Callable[[str], None]) -> None:
        self.sock, self.learn = sock, learn
        self.todo: deque[tuple[Range, bool]] = deque()
        self._reader = wire.FrameReader()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    @property
    def waiting(self) -> bool:
        """Whether there is something to take."""
        return bool(self._poll.poll(0))

    def take(self) -> bool:
        """Take what there is, or wait for it; False if the Droid is gone."""
        data = self.sock.recv(1 << 16)
        for kind, payload in self._reader.feed(data):
            if kind in (wire.RANGES, wire.NEXT):
                self.todo.extend((work, kind == wire.NEXT) for work in unpack_ranges(bytes(payload)))
            elif kind == wire.SCHEMA:
                self.learn(bytes(payload).decode())
        return bool(data)
