"""The loop in one worker process: ranges in, images out.

A worker knows no MPI, opens no files but its inputs, and keeps no results: what it has finished is sent at the latest
when it has nothing more to do, and otherwise every few milliseconds, so a batch of tiny ranges costs one message.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import socket
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from math import floor, log2
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from droid import wire
from droid.line import Line, Orders
from droid.payload import Worker
from droid.settled import settled
from droid.slots import Slot
from eventrange import image, records
from eventrange.errors import FieldRefused, FieldsChanged, ImageTooBig, PayloadFailed, YodaError
from eventrange.messages import Evidence, Range
from eventrange.records import Code, Kind
from eventrange.times import PER_OCTAVE, SHORTEST, time_bin

FLUSH_SECONDS = 0.02  #: results wait this long at most while there is more to do
FLUSH_BYTES = 8 << 20  #: and images no longer than this
TEXT = 4000  #: characters of traceback and stderr kept as evidence
CPU_SECONDS = 0.01  #: the CPU time used is noted at the first event after so long: asking for it costs a system call
OUTPUT_BYTES = 1 << 20  #: a worker's captured output is cut back when it grows beyond this


class Events(Protocol):
    """The task's input as a worker sees it."""

    def read(self, start: int, stop: int) -> Sequence[Any]: ...


class Work(Protocol):
    """A payload as a worker sees it (droid.payload.Payload)."""

    per_event: bool
    needs_events: bool

    def each(self, positions: Sequence[int]) -> Callable[[Any], dict[str, Any]]: ...

    def process_events(self, events: Sequence[Any], positions: Sequence[int]) -> list[dict[str, Any]]: ...


class WorkerLoop:
    """Processes ranges and collects results; `send` takes the buffers of a frame, and whether to wake the Droid."""

    def __init__(
        self,
        payload: Work,
        events: Events,
        slot: Slot,
        send: Callable[[list[Any], bool], None],
        attributes: dict[str, Any],
        images: bool = True,
        stderr: int = -1,
    ) -> None:
        self.payload, self.events, self.slot, self.send = payload, events, slot, send
        self.attributes, self.images, self.stderr = attributes, images, stderr
        self.expected: str | None = None
        self._rows: list[Any] = []
        self._blobs: list[bytes] = []
        self._bytes = 0
        self._evidence: list[Evidence] = []
        self._times: dict[int, int] = {}
        self._schema = ""
        self._flushed = time.monotonic()
        self.waited = self.again = 0.0  # for input; on groups that failed

    # -- results -----------------------------------------------------------------------------------------------------

    def flush(self, ring: bool = True) -> None:
        """Send what is finished."""
        self._flushed = time.monotonic()
        if not self._rows:
            return
        rows = np.array(self._rows, records.RECORD)
        extra = wire.Extra(self._evidence, self._times, self._schema, self.waited, self.again)
        self.send(wire.batch(rows, extra, self._blobs), ring)
        self._rows, self._blobs, self._bytes = [], [], 0
        self._evidence, self._times, self.waited, self.again = [], {}, 0.0, 0.0
        if self.stderr >= 0 and os.fstat(self.stderr).st_size > OUTPUT_BYTES:
            os.ftruncate(self.stderr, 0)

    def maybe_flush(self, ring: bool) -> None:
        if self._bytes > FLUSH_BYTES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush(ring)

    def learn(self, schema: str) -> None:
        """The task's fields are these."""
        self.expected = schema or None

    def give_back(self, work: Range) -> None:
        """Of `work` nothing was begun."""
        self._row(Kind.RETURNED, Code.DRAINED, work, _now())

    def _row(self, kind: Kind, code: Code, work: Range, begun: tuple[float, float, float], data: bytes = b"") -> None:
        clock, wall, cpu = begun
        start, stop, attempt = work
        if self._bytes and self._bytes + len(data) > FLUSH_BYTES:  # a frame holds less than 4 GiB
            self.flush()
        self._rows.append(
            (
                *(kind, code, attempt, 0, 0, 0, zlib.crc32(data) if data else 0, start, stop),
                *(clock, time.monotonic() - wall, cpu_seconds() - cpu, 0, len(data), 0),
            )
        )
        if data:
            self._blobs.append(data)
            self._bytes += len(data)

    def _failed(self, event: int, attempt: int, code: Code, text: str, begun: tuple[float, float, float]) -> None:
        self._row(Kind.FAILED, code, (event, event + 1, attempt), begun)
        cpu, wall = cpu_seconds() - begun[2], time.monotonic() - begun[1]
        self._evidence.append(Evidence(event, attempt, int(code), text[-TEXT:], tail(self.stderr), cpu, wall, 0))

    # -- work --------------------------------------------------------------------------------------------------------

    def process(self, work: Range) -> None:
        """Process one range: DONE rows for what went well, FAILED rows for single events, RETURNED for what was cut
        off.

        Together the rows cover the range exactly once, in order.
        """
        start, stop, attempt = work
        begun = (time.time(), time.monotonic(), cpu_seconds())
        self.slot.begin(start, stop - start, *begun[1:])  # reading is for all of them
        try:
            events = self._read(start, stop, begun) if self.payload.needs_events else range(start, stop)
        except Exception as error:
            if stop - start > 1:  # find the event that cannot be read
                for event in range(start, stop):
                    self.process((event, event + 1, attempt))
            else:
                self._failed(start, attempt, Code.INPUT, text_of(error), begun)
            self.slot.leave()
            return
        if self.payload.per_event:
            self._per_event(work, events, begun)
        else:
            self._grouped(work, events, begun)
        self.slot.leave()

    def _read(self, start: int, stop: int, begun: tuple[float, float, float]) -> Sequence[Any]:
        events = self.events.read(start, stop)
        self.waited += max(0.0, time.monotonic() - begun[1] - (cpu_seconds() - begun[2]))
        return events

    def _per_event(self, work: Range, events: Sequence[Any], begun: tuple[float, float, float]) -> None:
        start, stop, attempt = work
        process, enter, slot, times = self.payload.each(range(start, stop)), self.slot.enter, self.slot, self._times
        made: list[dict[str, Any]] = []
        first = start
        before = asked = time.monotonic()  # of the first, too: reading was for all of them
        used = begun[2]
        for at in range(start, stop):
            if slot.cut:
                self._done(first, made, attempt, begun)
                self.give_back((at, stop, attempt))
                return
            enter(at, 1, before)
            if before - asked > CPU_SECONDS:
                asked, used = before, cpu_seconds()
                slot.used(used)
            try:
                fields = process(events[at - start])
                if _forked:
                    os._exit(0)
                made.append(settled(fields) if at + 1 < stop else fields)
            except BaseException as error:  # sys.exit() in a payload ends an event, not a worker
                if _forked:
                    _end_child(error)
                text = text_of(error)
                clock, wall, cpu = time.time(), time.monotonic() - before, cpu_seconds() - used
                self._done(first, made, attempt, (begun[0], begun[1] + wall, begun[2] + cpu))  # its time is another's
                _, now, spent = _now()
                self._failed(at, attempt, _code(error), text, (clock - wall, now - wall, spent - cpu))
                made, first, begun = [], at + 1, _now()
                used = begun[2]
            after = time.monotonic()
            bin_ = floor(PER_OCTAVE * log2(after - before)) if after - before > 1e-7 else SHORTEST
            times[bin_] = times.get(bin_, 0) + 1
            before = after
        self._done(first, made, attempt, begun)

    def _grouped(self, work: Range, events: Sequence[Any], begun: tuple[float, float, float]) -> None:
        start, stop, attempt = work
        if self.slot.cut:
            self.give_back(work)
            return
        try:
            made = self.payload.process_events(events, range(start, stop))
            if _forked:
                os._exit(0)
        except BaseException as error:
            if _forked:
                _end_child(error)
            if stop - start == 1:
                self._failed(start, attempt, _code(error), text_of(error), begun)
                return
            self.again += time.monotonic() - begun[1]
            for at in range(start, stop):  # one of them is bad: find it, the others are fine
                self.process((at, at + 1, attempt))  # as read again: the payload may have changed what it was given
            return
        each = (time.monotonic() - begun[1]) / (stop - start)
        bin_ = time_bin(each)
        self._times[bin_] = self._times.get(bin_, 0) + stop - start
        self._done(start, made, attempt, begun)

    def _done(self, start: int, made: list[dict[str, Any]], attempt: int, begun: tuple[float, float, float]) -> None:
        """Rows and image for events [start, start + len(made)); an event whose fields are wrong becomes a FAILED
        row."""
        if not made:
            return
        work = (start, start + len(made), attempt)
        if not self.images or _empty(made[0]):
            others = [fields for fields in made if not _empty(fields)]
            if self.images and (self.expected or others):
                if self.expected is None:
                    with contextlib.suppress(FieldRefused, ValueError, TypeError):
                        self.expected = image.schema(others[0])
                self._split(start, made, attempt, begun, FieldsChanged, "this event has no fields, others have")
                return
            self._row(Kind.DONE, Code.NONE, work, begun)
            return
        try:
            if self.expected is None:
                self.expected = image.schema(made[0])
            data = image.build(start, None, made, self.attributes, self.expected)
        except ImageTooBig as error:
            self._split(start, made, attempt, begun, ImageTooBig, text_of(error))
            return
        except MemoryError as error:
            self._split(start, made, attempt, begun, MemoryError, text_of(error))
            return
        except (FieldsChanged, FieldRefused, ValueError, TypeError) as error:
            self._split(start, made, attempt, begun, FieldsChanged, text_of(error))
            return
        self._schema = self.expected
        self._row(Kind.DONE, Code.NONE, work, begun, data)

    def _split(
        self,
        start: int,
        made: list[dict[str, Any]],
        attempt: int,
        begun: tuple[float, float, float],
        why: type[YodaError | MemoryError],
        text: str,
    ) -> None:
        """No image can be made of these events together: halve until the ones that are to blame stand alone."""
        if len(made) == 1:
            code = {ImageTooBig: Code.TOO_BIG, MemoryError: Code.MEMORY}.get(why, Code.FIELDS)
            self._failed(start, attempt, code, text, begun)
            return
        half = len(made) // 2
        self._done(start, made[:half], attempt, begun)
        self._done(start + half, made[half:], attempt, _now())


def _empty(fields: Any) -> bool:
    return isinstance(fields, Mapping) and not fields


#: Whether this process is a child of a worker: a payload forked, and its child got back into our code.
_forked = False


def _end_child(error: BaseException) -> NoReturn:
    """End as a child of a Python program would: it has no part in what its parent is to do."""
    code: Any = error.code if isinstance(error, SystemExit) else error
    if code is not None and not isinstance(code, int):
        code = 1
        with contextlib.suppress(Exception):
            traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit((code or 0) & 0xFF)


def cpu_seconds() -> float:
    """CPU seconds of this process, and of the programs it has started and waited for."""
    programs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + programs.ru_utime + programs.ru_stime


def _now() -> tuple[float, float, float]:
    return time.time(), time.monotonic(), cpu_seconds()


def _code(error: BaseException) -> Code:
    if isinstance(error, MemoryError):
        return Code.MEMORY
    return Code.COMMAND if isinstance(error, PayloadFailed) else Code.EXCEPTION


def text_of(error: BaseException) -> str:
    """The traceback of `error` below our own frames, or our own message for errors we raised ourselves. Always text
    that can be encoded: it may quote what was read from a damaged file."""
    if isinstance(error, YodaError):
        return _encodable(str(error))
    trace = error.__traceback__
    while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == os.path.dirname(__file__):
        trace = trace.tb_next
    return _encodable("".join(traceback.format_exception(type(error), error, trace)))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def tail(fd: int) -> str:
    """The end of a worker's captured output."""
    if fd < 0:
        return ""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the payload may have closed it, or the disk is full
            stream.flush()
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, TEXT, max(0, size - TEXT)).decode(errors="replace")
    except OSError:
        return ""


def serve(sock: socket.socket, loop: WorkerLoop) -> None:
    """Take ranges from `sock` until the Droid is gone."""
    sock.setblocking(True)
    orders = Orders(sock, loop.learn)
    todo, slot = orders.todo, loop.slot
    while True:
        while not todo:
            loop.flush()
            if not orders.take():
                return
        if not slot.cut:
            loop.process(todo.popleft()[0])
        cut = slot.take_cut()  # first: what was sent before it is there now
        while orders.waiting:
            if not orders.take():
                return
        if cut:
            while todo:
                loop.give_back(todo.popleft()[0])
        loop.maybe_flush(ring=not (todo and todo[0][1]))


def worker_main(
    sock: socket.socket,
    slot: Slot,
    index: int,
    payload: Any,
    make_events: Callable[[], Events],
    settings: dict[str, Any],
    bell: int,
) -> None:
    """Body of a forked worker; a byte into `bell` wakes the Droid. Never returns normally into the zygote's code: the
    caller exits when this is over."""
    sock.setblocking(True)
    faulthandler.enable()

    def alone() -> None:  # in a child of the payload's: it must not speak for us
        global _forked
        if _forked:  # a child of a child: what has these numbers now is its own
            return
        _forked = True
        os.close(sock.fileno())
        os.close(bell)

    os.register_at_fork(after_in_child=alone)
    line = Line(sock, bell)
    begun = time.monotonic()
    try:
        scratch = Path(settings["scratch"]) / f"worker-{index}"
        scratch.mkdir(exist_ok=True)
        payload.start(Worker(index, settings["workers"], scratch, settings["seed"]))
        events = make_events()
    except BaseException as error:
        line.send(wire.frame(wire.CANNOT, (text_of(error) + tail(2))[-2 * TEXT :].encode()))
        return
    line.send(wire.frame(wire.READY, f"{time.monotonic() - begun:.6f}".encode()))
    loop = WorkerLoop(payload, events, slot, line.send, settings["attributes"], settings["images"], stderr=2)
    try:
        serve(sock, loop)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the Droid is gone, and nobody is left to tell
