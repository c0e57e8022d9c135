"""The stage-out process of one node: `python -m stageout.stager`, started before MPI, told what to do on its stdin.

A thin shell around `staging.Staging`: one thread reads commands, each upload has one, the main thread owns the core and
writes reports. It lowers its own priority, since it shares cores with the workers, and it dies with its parent: by
the kernel's signal, and by the end of its stdin. It holds no files of its own, so it may be killed at any point.
An upload that makes no headway (a server that drips) is abandoned after a time, and its endpoint opened anew.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import glob
import logging
import os
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from eventrange.errors import SegmentDamaged, StorageError
from stageout import protocol
from stageout.alert import alert
from stageout.endpoint import Endpoint, Tools
from stageout.opening import open_endpoint
from stageout.protocol import Segment
from stageout.site import EndpointSite
from stageout.staging import Instruction, RemoveCopy, RemoveLocal, Staging, Tell, Upload

log = logging.getLogger("stageout")

PATIENCE = 900.0  # seconds an upload may take beyond its size divided by the site's minimum rate
GRACE = 5.0  # seconds for breaking off uploads at the end
PR_SET_PDEATHSIG = 1


@dataclass
class _Job:
    order: Upload
    deadline: float


@dataclass(frozen=True)
class _Done:
    """What an upload's thread has to say: an error, or nothing when it worked."""

    job: int
    error: BaseException | None = None
    source: str | None = None


class Shell:
    """Runs the core: carries out its instructions and tells it what came of them."""

    def __init__(
        self,
        start: protocol.Start,
        write: Callable[[bytes], None],
        inbox: queue.SimpleQueue[protocol.AnyCommand | _Done | None],
        open_one: Callable[[EndpointSite, Tools], Endpoint] = open_endpoint,
    ) -> None:
        self.start, self._write, self._inbox, self._open = start, write, inbox, open_one
        self._stopping = threading.Event()
        # Waiting for back-off or bandwidth must end when the process does.
        self._tools = Tools(sleep=self._wait)
        self._sites = {site.name: site for site in start.endpoints}
        self._endpoints = {name: open_one(site, self._tools) for name, site in self._sites.items()}
        self._jobs: dict[int, _Job] = {}
        self._removals: list[threading.Thread] = []
        self._same: dict[str, bool] = {}  # endpoint -> whether it is the primary at another address
        self._number = 0
        self._until: float | None = None
        self.core = Staging(list(self._sites), start.rules, random.SystemRandom().random, start.breaker)

    def run(self) -> None:
        """Until drained, stopped, or the parent is gone."""
        self._tell(protocol.Ready(os.getpid()))
        threading.Thread(target=self._clean, daemon=True).start()
        while not self.core.ended:
            now = time.time()
            times = [job.deadline for job in self._jobs.values()] + [t for t in (self.core.wake(now),) if t is not None]
            if self._until is not None:
                times.append(self._until)
            try:
                event = self._inbox.get(timeout=max(0.0, min(times) - now) if times else None)
            except queue.Empty:
                self._do(self.core.tick(time.time()))
            else:
                if event is None:
                    break
                self._do(self._handle(event, time.time()))
            self._check_deadlines(time.time())
        self._break_off()

    def _wait(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    # --- events -------------------------------------------------------------------------------------------------------

    def _handle(self, event: protocol.AnyCommand | _Done, now: float) -> list[Instruction]:
        match event:
            case protocol.Submit():
                return self.core.submit(event.segment, event.copies, now)
            case protocol.Recorded():
                return self.core.recorded(event.segment, event.endpoint, event.removed, now)
            case protocol.Reset():
                return self.core.reset(event.endpoint, now)
            case protocol.Drain():
                self._until = now + event.seconds
                return self.core.drain(self._until, event.rehome, now)
            case protocol.Stop():
                self._until = now
                return self.core.drain(now, False, now)
            case _Done():
                return self._finished(event, now)
        return []

    def _finished(self, done: _Done, now: float) -> list[Instruction]:
        job = self._jobs.pop(done.job, None)
        if job is None:  # abandoned long ago
            return []
        order = job.order
        name, where = order.segment.name, order.endpoint
        if done.error is None:
            return self.core.uploaded(name, where, self._endpoints[where].url(order.segment.key), now)
        kind, detail = "StorageTransient", f"{type(done.error).__name__} in the stage-out process"
        if isinstance(done.error, StorageError):
            kind, detail = type(done.error).__name__, str(done.error.values.get("detail", ""))
        else:
            log.error("upload of %s to %s: unexpected %s", name, where, type(done.error).__name__)
        return self.core.failed(name, where, kind, detail, now, done.source)

    def _check_deadlines(self, now: float) -> None:
        if self._until is not None and now >= self._until and self._jobs:
            self._until = None
            self._stopping.set()
            for endpoint in self._endpoints.values():
                endpoint.close()
            for job in self._jobs.values():
                job.deadline = now + GRACE
        for number, job in [(n, j) for n, j in self._jobs.items() if now >= j.deadline]:
            del self._jobs[number]
            name = job.order.endpoint
            self._endpoints[name].close()
            self._endpoints[name] = self._open(self._sites[name], self._tools)
            self._do(self.core.failed(job.order.segment.name, name, "StorageTransient", "no headway, given up", now))

    # --- instructions -------------------------------------------------------------------------------------------------

    def _do(self, orders: list[Instruction]) -> None:
        for order in orders:
            match order:
                case Tell():
                    self._tell(order.report)
                    if isinstance(order.report, protocol.Breaker) and order.report.alert:
                        self._alert(order.report)
                case Upload():
                    self._upload(order)
                case RemoveLocal():
                    with contextlib.suppress(OSError):
                        os.unlink(order.segment.path)
                    self._do(self.core.removed_local(order.segment.name, time.time()))
                case RemoveCopy():
                    self._removals.append(threading.Thread(target=self._remove, args=(order,), daemon=True))
                    self._removals[-1].start()

    def _upload(self, order: Upload) -> None:
        self._number += 1
        site = self._sites[order.endpoint]
        slowest = min(site.min_rate or 1 << 62, (site.max_bandwidth or 1 << 62) / (2 * self.start.rules.parallel))
        deadline = time.time() + PATIENCE + order.segment.size / max(1.0, slowest)
        self._jobs[self._number] = _Job(order, deadline)
        endpoints = dict(self._endpoints)
        threading.Thread(target=self._carry, args=(self._number, order, endpoints), daemon=True).start()

    def _carry(self, number: int, order: Upload, endpoints: dict[str, Endpoint]) -> None:
        """In a thread: one upload."""
        segment, source = order.segment, order.source
        path, wanted = segment.path, {"size": segment.size, "adler32": segment.adler32, "sha256": segment.sha256}
        failed: BaseException | None = None
        if source is not None:
            for old in glob.glob(glob.escape(segment.path) + ".rehome-*"):  # of a process that was killed
                with contextlib.suppress(OSError):
                    os.unlink(old)
            path = f"{segment.path}.rehome-{os.getpid()}"
            try:
                _fetch(endpoints[source], segment, path)
            except BaseException as error:
                failed = error
        if failed is None:
            try:
                endpoints[order.endpoint].put(path, segment.key, **wanted)  # type: ignore[arg-type]
            except BaseException as error:
                failed, source = error, None
            else:
                source = None
        if path != segment.path:  # before anyone hears of the end: the process may be gone a moment later
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._inbox.put(_Done(number, failed, source))

    def _remove(self, order: RemoveCopy) -> None:
        """In a thread: delete a copy that the journal has given up; should that fail, it only costs room.

        First it is found out whether the primary still has it, and whether that is a copy at all, or the primary's
        object at another address.
        """
        from stageout.probe import same_place  # late: hardly ever needed

        primary, other = self._endpoints[next(iter(self._sites))], self._endpoints[order.endpoint]
        try:
            if primary.head(order.segment.key).size != order.segment.size:
                log.warning("%s has another %s: that on %s stays", primary.name, order.segment.key, other.name)
                return
            if order.endpoint not in self._same:
                self._same[order.endpoint] = same_place(primary, other, order.segment.key)
            if self._same[order.endpoint]:
                log.warning("%s and %s are the same place: nothing is deleted there", primary.name, other.name)
            else:
                other.delete(order.segment.key)
        except StorageError as error:
            log.warning("%s", error)

    def _alert(self, change: protocol.Breaker) -> None:
        """An endpoint is off for good: tell people, in a thread. The parent may not start programs."""
        text = {"endpoint": change.key.partition(":")[2], "state": change.after, "reason": change.reason}
        threading.Thread(
            target=alert, args=(self.start.rules, {**text, "time": change.time, "task": self.start.task}), daemon=True
        ).start()

    def _clean(self) -> None:
        """In a thread, once: remove what earlier kills left on the endpoints."""
        for name, endpoint in self._endpoints.items():
            with contextlib.suppress(StorageError):
                count = sum(endpoint.clean(prefix) for prefix in self.start.mine)
                if self.start.task is not None:
                    count += endpoint.clean(self.start.task, self.start.rules.orphan_age)
                if count:
                    log.info("%s: %d unfinished uploads of earlier runs removed", name, count)

    def _break_off(self) -> None:
        """Stop what is under way; give uploads in parts a moment to be aborted, and deletions to be done."""
        until = time.monotonic() + GRACE
        for thread in self._removals:
            thread.join(max(0.0, until - time.monotonic()))
        self._stopping.set()
        for endpoint in self._endpoints.values():
            endpoint.close()
        until = time.monotonic() + GRACE
        while self._jobs and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                event = self._inbox.get(timeout=left)
                if isinstance(event, _Done):
                    self._jobs.pop(event.job, None)

    def _tell(self, report: protocol.Report) -> None:
        self._write(protocol.encode(report))


def _fetch(endpoint: Endpoint, segment: Segment, path: str) -> None:
    """The copy on another endpoint, into `path`; raises when it is not what was sealed."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    found = endpoint.get(segment.key, path)
    if (found.size, found.sha256) != (segment.size, segment.sha256):
        raise SegmentDamaged(
            endpoint=endpoint.name, operation="get", key=segment.key, detail="the copy there is not what was sealed"
        )


def die_with(parent: int | None) -> None:
    """Have the kernel kill this process when its parent dies, and leave at once if that has happened already."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(0)


def _read_commands(file: int, inbox: queue.SimpleQueue[protocol.AnyCommand | _Done | None]) -> None:
    """In a thread: always reading, so that the parent's writes never wait for us. None: the parent is gone."""
    with contextlib.suppress(OSError), os.fdopen(file, "rb") as lines:
        for line in lines:
            try:
                inbox.put(protocol.decode_command(line))
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                log.error("not a command: %s", error)
    inbox.put(None)


def main() -> None:
    """Entry point of the process. Never returns normally: threads that hang in a read must not keep it."""
    parser = argparse.ArgumentParser(prog="stager", description="stage-out process of one node")
    parser.add_argument("--parent", type=int, help="process id of the parent, without which there is nothing to do")
    die_with(parser.parse_args().parent)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # signals go to the whole job; what to do about them the Droid says
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="stager: %(levelname)s %(message)s")
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not end up between the reports
    inbox: queue.SimpleQueue[protocol.AnyCommand | _Done | None] = queue.SimpleQueue()
    threading.Thread(target=_read_commands, args=(os.dup(0), inbox), daemon=True).start()

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(out, view) :]

    code = 0
    try:
        start = inbox.get()
        if isinstance(start, protocol.Start):
            with contextlib.suppress(OSError):
                os.nice(start.rules.nice)
            Shell(start, write, inbox).run()
    except BrokenPipeError:
        pass
    except BaseException as error:
        code = 1
        log.error("stage-out stopped by a bug: %s", type(error).__name__, exc_info=True)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
