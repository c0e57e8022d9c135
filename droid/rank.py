"""Shell of a Droid: MPI, worker sockets, the segment and signals around core.py.

One loop, one thread (and the Syncer's). It sleeps in poll() on everything that can wake it; MPI has nothing to sleep on, so it
is probed whenever the loop wakes and with back-off otherwise.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from droid import core, wire
from droid.slots import Slots
from droid.transport import Transport
from droid.worker import TEXT
from eventrange import messages, records
from eventrange.durable import FILES, DurableFile, Files, Syncer, explain
from eventrange.errors import CANNOT_WRITE, CannotWrite
from eventrange.messages import Evidence
from eventrange.records import Code, Kind
from eventrange.segment import SegmentWriter, ZipWriter, member_name
from eventrange.taskdir import TaskDir

TICK = 0.25  #: seconds between looks at the clock: limits, grace, heartbeat
HEARTBEAT = 5.0  #: seconds between reports when there is nothing to report
REPORT_GAP = 0.005  #: seconds between reports at least
PROBE_FIRST, PROBE_LAST = 0.0002, 0.02  #: seconds between MPI probes: back-off while nothing comes
RECEIVE = 1 << 20
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGINT)


@dataclass
class Options:
    """What the site and the job decide about a Droid."""

    workers: int
    timeout: float | None = None
    segment_bytes: int = 1 << 30
    segment_seconds: float = 1800.0
    segment_format: str = "tar"
    commit_seconds: float = 0.25
    commit_bytes: int = 64 << 20
    grace: float = 30.0


@dataclass
class _Peer:
    """One worker process as the shell sees it."""

    sock: socket.socket
    reader: wire.FrameReader
    pid: int = 0


class DroidShell:
    """Runs one Droid until Yoda says Stop. `control` is the zygote's socket, `begun` when the process started (monotonic)."""

    def __init__(
        self,
        transport: Transport,
        taskdir: TaskDir,
        options: Options,
        control: socket.socket,
        slots: Slots,
        scratch: str,
        begun: float,
        files: Files = FILES,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.transport, self.taskdir, self.options = transport, taskdir, options
        self.control, self.slots, self.scratch, self.begun, self.files = control, slots, scratch, begun, files
        self.log = log or (lambda text: print(text, file=sys.stderr, flush=True))
        self.core = core.DroidCore(options.workers, options.timeout)
        self.welcome: messages.Welcome | None = None
        self.zygote_ready = False
        self.peers: dict[int, _Peer] = {}
        self.segment: SegmentWriter | None = None
        self.segment_number = -1
        self.segment_begun = 0.0
        self.unsynced: list[NDArray[Any]] = []  # rows whose images are in the segment but not durable
        self.unsynced_since = 0.0
        self.unsynced_bytes = 0
        self.syncing = 0
        self.out: list[NDArray[Any]] = []  # rows that may be reported
        self.evidence: list[Evidence] = []
        self.notes: list[dict[str, Any]] = []
        self.times_sent: dict[int, int] = {}
        self.reported = 0.0
        self.busy_told = -1
        self.sick: tuple[str, int] | None = None
        self.bye_said = False
        self.stopping = False
        self.signalled: list[int] = []
        self.first_sign = True
        wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake = wake
        self.syncer = Syncer(self._ring)
        self.poll = select.poll()
        self.poll.register(wake, select.POLLIN)
        self.poll.register(control, select.POLLIN)
        self._by_fd: dict[int, int] = {}

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until Yoda says Stop, or is gone. Returns the exit code of this rank, which is 0: Yoda's counts."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda n, _: self.signalled.append(n))
        self._hello()
        pause = PROBE_FIRST
        tick_at = time.monotonic()
        while not self.stopping:
            now = time.monotonic()
            timeout = max(0.0, min(pause, tick_at - now, self._sync_in(now)))
            moved = False
            for fd, what in self.poll.poll(timeout * 1000):
                moved = True
                self._readable(fd, what)
            got = self.transport.receive()
            while got is not None:
                moved = True
                self._message(messages.decode(got[1]))
                got = self.transport.receive()
            now = time.monotonic()
            if now >= tick_at:
                tick_at = now + TICK
                self._tick(now)
            self._sync(now)
            self._report(now)
            eager = self.transport.sending or self.core.waiting_for_yoda
            limit = PROBE_LAST if not eager else PROBE_LAST / 4
            pause = PROBE_FIRST if moved and eager else min(max(pause, PROBE_FIRST) * 2, limit)
        return self._end()

    def _readable(self, fd: int, what: int) -> None:
        if fd == self._wake:
            os.read(self._wake, 4096)
            for number in self.signalled:
                self._signal(number)
            self.signalled.clear()
        elif fd == self.control.fileno():
            self._zygote()
        elif fd in self._by_fd:  # else its worker was dropped by what was read before it in the same round
            self._worker(self._by_fd[fd])

    def _ring(self) -> None:
        try:
            os.write(self._waker, b"s")
        except BlockingIOError:
            pass

    def _tick(self, now: float) -> None:
        if self.core.stopped:
            return
        table = self.slots.snapshot()
        stopped = frozenset(
            i for i, peer in self.peers.items() if peer.pid and self._near_limit(i) and _is_stopped(peer.pid)
        )
        self._do(self.core.tick(now, table, stopped))
        if 0 in self.transport.failed():
            # Yoda is dead, and with it this allocation; what is not committed is lost whatever we do.
            self.log("rank 0 is dead; this Droid ends")
            self._kill_all()
            os.kill(os.getpid(), signal.SIGKILL)

    def _near_limit(self, worker: int) -> bool:
        return self.core.workers[worker].watched[1] > 0.5 * self.core.limit(0)

    # -- MPI ---------------------------------------------------------------------------------------------------------

    def _send(self, message: messages.Message) -> None:
        self.transport.send(0, messages.encode(message))

    def _hello(self) -> None:
        versions = {"python": sys.version.split()[0], "numpy": np.__version__}
        self._send(
            messages.Hello(
                socket.gethostname(),
                os.getpid(),
                self.options.workers,
                os.cpu_count() or 1,
                time.monotonic() - self.begun,
                versions,
            )
        )

    def _message(self, message: messages.AnyMessage) -> None:
        now = time.monotonic()
        if isinstance(message, messages.Welcome):
            self.welcome = message
            self.core.schema = message.schema
            fd = os.memfd_create("task", os.MFD_CLOEXEC)
            with open(fd, "wb", closefd=False) as file:
                file.write(msgspec.msgpack.encode(message.task))
            self._tell_zygote({"task": True}, fd)
            os.close(fd)
            self._start_workers()
        elif isinstance(message, messages.Grant):
            ranges = messages.unpack_ranges(message.ranges)
            if self.sick is not None:
                self.out.append(core.returned(ranges, Code.DROID_LOST))
                return
            self._do(
                self.core.granted(now, ranges, message.size, message.range_seconds, message.remaining, message.schema)
            )
        elif isinstance(message, messages.Drain):
            if message.reason != "complete":
                self.log(f"draining within {message.grace:.1f} s: {message.reason}")
            self._do(self.core.drain(now, message.grace))
        elif isinstance(message, messages.Reclaim):
            self._do(self.core.reclaimed(message.events, self.slots.snapshot()))
        elif isinstance(message, messages.Revoke):
            self._do(self.core.revoked(messages.unpack_ranges(message.ranges)))
        elif isinstance(message, messages.Stop):
            self.stopping = True

    def _report(self, now: float) -> None:
        """Tell Yoda what is durable and what is wanted. Rate-limited; at the latest every HEARTBEAT."""
        if self.bye_said or self.welcome is None:
            return
        if self.sick is not None:
            self._report_rows(now, 0)
            self._send(messages.Sick(*self.sick))
            self.bye_said = True
            return
        since = now - self.reported
        if since < REPORT_GAP:
            return
        want = self.core.want(now)
        quiet = HEARTBEAT if self.core.remaining else 1.0  # at the tail Yoda needs to know who is on what
        if self.out or self.evidence or self.notes or want or since >= quiet:
            self._report_rows(now, want)
        if self.core.finished and not self.unsynced and not self.syncing and not self.out:
            self._seal()
            if not self.unsynced and not self.syncing:
                self._report_rows(now, 0)
                self._send(messages.Bye("drained"))
                self.bye_said = True

    def _report_rows(self, now: float, want: int) -> None:
        rows = np.concatenate(self.out) if self.out else records.new(0)
        table = self.slots.snapshot()
        on = table["event"] >= 0
        running = sorted(
            zip(table["event"][on].tolist(), (now - table["since"][on]).tolist(), strict=True), key=lambda p: -p[1]
        )
        times = {b: n - self.times_sent.get(b, 0) for b, n in self.core.times.items() if n != self.times_sent.get(b, 0)}
        self.times_sent = dict(self.core.times)
        backlog = sum(stop - start for start, stop, _ in self.core.backlog)
        self._send(
            messages.Report(
                rows.tobytes(),
                self.evidence,
                want,
                backlog,
                self.core.busy,
                self.core.seconds_per_event,
                [(e, s) for e, s in running[:16]],
                times,
                self.core.schema,
                self.notes,
            )
        )
        self.out, self.evidence, self.notes, self.reported = [], [], [], now

    # -- zygote and workers ------------------------------------------------------------------------------------------

    def _tell_zygote(self, message: dict[str, Any], fd: int | None = None) -> None:
        data = msgspec.msgpack.encode(message)
        try:
            if fd is None:
                self.control.send(data)
            else:
                socket.send_fds(self.control, [data], [fd])
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise

    def _zygote(self) -> None:
        data = self.control.recv(1 << 16)
        if not data:
            self.poll.unregister(self.control)
            if not self.stopping:
                self._fall_sick("the zygote is gone and could not be replaced", 1)
            return
        message = msgspec.msgpack.decode(data)
        if "failed" in message:
            text = message["failed"]
            output = message.get("output") or ""
            self._fall_sick(text + (f"\nwhat it printed last:\n{output[-2000:]}" if output else ""), message["code"])
        elif "ready" in message:
            if "jagged" in message:
                self.notes.append({"note": "payload", "jagged": message["jagged"], "versions": message["versions"]})
            if self.zygote_ready:
                self.log("the zygote died and was replaced")
                for index in list(self.peers):
                    self._drop(index)
                if self.welcome is not None:
                    self._message(self.welcome)
                self._do(self.core.zygote_restarted())
            else:
                self.zygote_ready = True
                self._start_workers()
        elif "spawned" in message:
            peer = self.peers.get(message["spawned"])
            if peer is not None:
                peer.pid = message["pid"]
        elif "exit" in message:
            self._exited(message)

    def _start_workers(self) -> None:
        if self.zygote_ready and self.welcome is not None and self.first_sign:
            self.first_sign = False
            self._do(self.core.start())

    def _spawn(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.setblocking(False)
        self._tell_zygote({"spawn": index}, theirs.fileno())
        theirs.close()
        self.peers[index] = _Peer(ours, wire.FrameReader())
        self._by_fd[ours.fileno()] = index
        self.poll.register(ours, select.POLLIN)

    def _drop(self, index: int) -> None:
        peer = self.peers.pop(index, None)
        if peer is not None:
            self.poll.unregister(peer.sock)
            del self._by_fd[peer.sock.fileno()]
            peer.sock.close()

    def _worker(self, index: int) -> None:
        """Take what worker `index` sent; its end of file is the zygote's to explain."""
        peer = self.peers[index]
        while True:
            try:
                data = peer.sock.recv(RECEIVE)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self.poll.unregister(peer.sock)
                del self._by_fd[peer.sock.fileno()]
                self.poll_closed(index)
                return
            for kind, payload in peer.reader.feed(data):
                self._frame(index, kind, payload)
            if len(data) < RECEIVE:
                return

    def poll_closed(self, index: int) -> None:
        """The worker's socket is at its end; `exit` from the zygote follows."""
        self.peers[index].sock.close()
        del self.peers[index]

    def _frame(self, index: int, kind: int, payload: memoryview) -> None:
        if kind == wire.READY:
            if self.core.schema:
                self._to_worker(index, wire.frame(wire.SCHEMA, self.core.schema.encode()))
            self._do(self.core.worker_ready(index))
        elif kind == wire.CANNOT:
            self._fall_sick(bytes(payload).decode(errors="replace"), 78)
        elif kind == wire.BATCH:
            rows, extra, images = wire.unbatch(payload)
            rows["worker"] = index
            sizes = rows["size"].copy()
            keep, todo = self.core.results(index, rows, extra.times, extra.schema)
            if self.core.workers[index].idle:
                self.slots.cut(index, False)
            self._store(rows, sizes, keep, images)
            self.evidence += [msgspec.structs.replace(e, worker=index) for e in extra.evidence]
            self._do(todo)

    def _exited(self, message: dict[str, Any]) -> None:
        index = message["exit"]
        peer = self.peers.get(index)
        if peer is not None and peer.pid not in (0, message["pid"]):
            return  # an older one
        if peer is not None:  # it may have sent results before it died
            self._worker(index)
        self._drop(index)
        slot = self.slots.snapshot()[index]
        self.slots.clear(index)
        status = message["status"]
        if status < 0:
            how = f"killed by signal {-status} ({_signal_name(-status)})"
            if status == -signal.SIGKILL:
                how += "; not by us: out of memory?" if not self.core.workers[index].killed else ""
        else:
            how = f"exited with status {status}"
        how += f" after {message['cpu']:.1f} s of CPU, {message['rss'] / 1e6:.0f} MB at most"
        self._how = how
        self._do(self.core.worker_exited(index, how, int(slot["event"]), int(slot["count"])))

    def _to_worker(self, index: int, parts: list[Any]) -> None:
        peer = self.peers.get(index)
        if peer is None:
            return
        peer.sock.setblocking(True)  # a few kilobytes into an empty buffer; a worker at work never lets it fill
        try:
            peer.sock.settimeout(5.0)
            peer.sock.sendall(b"".join(bytes(p) for p in parts))
        except (BrokenPipeError, ConnectionResetError):
            pass  # its exit is on the way
        except TimeoutError:
            self._tell_zygote({"kill": index})
        finally:
            peer.sock.setblocking(False)

    def _do(self, todo: list[core.Instruction]) -> None:
        for step in todo:
            if isinstance(step, core.Spawn):
                self._spawn(step.worker)
            elif isinstance(step, core.Assign):
                self._to_worker(step.worker, wire.frame(wire.RANGES, messages.pack_ranges(step.ranges)))
            elif isinstance(step, core.Cut):
                self.slots.cut(step.worker, True)
            elif isinstance(step, core.Kill):
                self._tell_zygote({"kill": step.worker})
                self.log(f"worker {step.worker} is killed: {step.why}")
            elif isinstance(step, core.SetSchema):
                for index in list(self.peers):
                    self._to_worker(index, wire.frame(wire.SCHEMA, step.schema.encode()))
            elif isinstance(step, core.Rows):
                self.out.append(step.rows)
            elif isinstance(step, core.Failure):
                self._failure(step)
            elif isinstance(step, core.Sick):
                self._fall_sick(step.reason + "\n" + self._output(0), step.exit_code)

    def _failure(self, failure: core.Failure) -> None:
        row = records.new(
            1,
            kind=Kind.FAILED,
            code=failure.code,
            attempt=failure.attempt,
            worker=failure.worker,
            start=failure.event,
            stop=failure.event + 1,
            time=time.time() - failure.wall,
            wall=failure.wall,
        )
        self.out.append(row)
        text = failure.text if failure.code != Code.TIMEOUT else f"it took longer than its limit; {failure.text}"
        self.evidence.append(
            Evidence(
                failure.event,
                failure.attempt,
                int(failure.code),
                text,
                self._output(failure.worker),
                0.0,
                failure.wall,
                failure.worker,
            )
        )

    def _output(self, worker: int) -> str:
        """The last of what a worker printed."""
        try:
            with open(os.path.join(self.scratch, f"worker-{worker}.out"), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TEXT))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    # -- segment and commit ------------------------------------------------------------------------------------------

    def _store(self, rows: NDArray[Any], sizes: NDArray[Any], keep: NDArray[np.bool_], images: memoryview) -> None:
        """Append the images of the rows that are kept; those rows wait for the sync, the others are ready at once."""
        at = 0
        stored = []
        now = time.monotonic()
        assert self.welcome is not None
        try:
            for number in np.flatnonzero(sizes).tolist():
                data = images[at : at + int(sizes[number])]
                at += len(data)
                row = rows[number]
                if not keep[number] or row["kind"] != Kind.DONE:
                    continue
                segment = self._segment(now)
                name = member_name(self.welcome.task["name"], int(row["start"]) + 1, int(row["stop"]))
                row["segment"] = self.segment_number
                row["offset"] = segment.append(name, data, int(row["checksum"]))
                self.unsynced_bytes += len(data)
                stored.append(number)
        except CannotWrite as error:
            lost = keep & (rows["kind"] == Kind.DONE) & (sizes > 0)
            rows["kind"][lost], rows["size"][lost], rows["code"][lost] = Kind.RETURNED, 0, Code.DROID_LOST
            self._give_up_segment(error)
            self.out.append(rows[keep])
            return
        waiting = np.zeros(len(rows), bool)
        waiting[stored] = True
        ready = rows[keep & ~waiting]
        if len(ready):
            self.out.append(ready)
        if stored:
            if not self.unsynced:
                self.unsynced_since = now
            self.unsynced.append(rows[waiting])

    def _segment(self, now: float) -> SegmentWriter:
        assert self.welcome is not None
        if self.segment is not None and (
            self.segment.size >= self.options.segment_bytes or now - self.segment_begun >= self.options.segment_seconds
        ):
            self._sync_now()
            self._seal()
        if self.segment is None:
            self.segment_number += 1
            path = self.taskdir.segment(self.welcome.allocation, self.transport.rank, self.segment_number)
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            except OSError as error:
                raise explain(error, os.path.dirname(path)) from error
            kind = ZipWriter if self.options.segment_format == "zip" else SegmentWriter
            self.segment = kind(path, self.files)
            self.segment_begun = now
        return self.segment

    def _sync_in(self, now: float) -> float:
        """Seconds until the next group commit is due."""
        if not self.unsynced or self.syncing:
            return TICK
        if self.unsynced_bytes >= self.options.commit_bytes or not self.core.busy:
            return 0.0
        return max(0.0, self.unsynced_since + self.options.commit_seconds - now)

    def _sync(self, now: float) -> None:
        for token, error in self.syncer.done():
            self.syncing -= 1
            rows: NDArray[Any] = token
            if error is not None:
                # What an fsync refused is not on disk, whatever a later one says: those events are open again.
                rows["kind"], rows["size"], rows["code"] = Kind.RETURNED, 0, Code.DROID_LOST
                self._give_up_segment(error)
            self.out.append(rows)
        if self.unsynced and not self.syncing and self._sync_in(now) <= 0:
            assert self.segment is not None
            self._request_sync(self.segment.file)

    def _request_sync(self, file: DurableFile) -> None:
        rows, self.unsynced, self.unsynced_bytes = np.concatenate(self.unsynced), [], 0
        self.syncing += 1
        self.syncer.request(rows, file)

    def _sync_now(self) -> None:
        """Wait for everything appended so far; used before a segment is sealed."""
        if self.unsynced and self.segment is not None:
            self._request_sync(self.segment.file)
        while self.syncing:
            time.sleep(0.001)
            self._sync(time.monotonic())

    def _give_up_segment(self, error: CannotWrite) -> None:
        """A segment that failed is never written again. No space is final; after anything else a new one is tried, once."""
        self.log(str(error))
        if self.segment is not None:
            self.segment.close()
            self.segment = None
        for rows in self.unsynced:
            rows["kind"], rows["size"], rows["code"] = Kind.RETURNED, 0, Code.DROID_LOST
            self.out.append(rows)
        self.unsynced, self.unsynced_bytes = [], 0
        self._write_errors = getattr(self, "_write_errors", 0) + 1
        cause = error.__cause__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if full or self._write_errors > 1:
            self._fall_sick(str(error), CANNOT_WRITE)

    def _seal(self) -> None:
        """Finish the segment, if there is one; everything in it is durable already."""
        segment, self.segment = self.segment, None
        if segment is None:
            return
        try:
            sealed = segment.seal()
        except (
            CannotWrite
        ) as error:  # the images in it are durable and recorded; only the end of the archive is missing
            self.log(f"segment not sealed: {error}")
            return
        self.notes.append(
            {
                "note": "sealed",
                "droid": self.transport.rank,
                "segment": self.segment_number,
                "size": sealed.size,
                "adler32": f"{sealed.adler32:08x}",
                "sha256": sealed.sha256,
                "members": sealed.members,
            }
        )

    # -- ends --------------------------------------------------------------------------------------------------------

    def _signal(self, number: int) -> None:
        again = self.core.draining and number == signal.SIGINT
        self._send(messages.Warned(number))
        self.log(f"received {_signal_name(number)}")
        self._do(self.core.drain(time.monotonic(), 0.0 if again else self.options.grace))

    def _fall_sick(self, reason: str, exit_code: int) -> None:
        if self.sick is not None:
            return
        self.log(f"this Droid can do no work: {reason}")
        self.sick = (reason, exit_code)
        self.core.stopped = True
        self._kill_all()

    def _kill_all(self) -> None:
        for index in list(self.peers):
            self._tell_zygote({"kill": index})

    def _end(self) -> int:
        self.core.stopped = True
        self._kill_all()
        self._tell_zygote({"end": True})
        self.control.close()
        if self.segment is not None:
            self.segment.close()
        self.syncer.close()
        until = time.monotonic() + 5.0
        while self.transport.sending and time.monotonic() < until:
            time.sleep(0.001)
        return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _is_stopped(pid: int) -> bool:
    """Whether the kernel says that process `pid` is stopped (SIGSTOP, a debugger, a suspended job)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
