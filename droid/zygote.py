"""The warm process that workers are forked from, and the guardian that replaces it.

Both are started before MPI (L11): a fork of a process that has MPI, its threads and its registered memory is undefined.
The zygote imports the payload and runs its one-time `setup()`, so that what took seconds and hundreds of megabytes is
paid once per node and shared copy-on-write. The guardian does nothing but wait: if the zygote dies, it forks a new one,
which the Droid, being an MPI process, could not do itself; if the launcher dies, it ends a Droid that does not end by
itself, since while MPI starts no Python of the Droid's can run, and what MPI waits for never comes.

    Droid -- socketpair --> guardian (holds it open) --> zygote (uses it) --> workers (one socketpair each)

Messages on the control socket are MessagePack maps, one per packet. Droid -> zygote: task, spawn (with the worker's
socket and the pipe that wakes the Droid), kill, program (with three descriptors), end. Zygote -> Droid: ready, failed,
spawned, unforked, exit.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from droid.slots import Slots
from eventrange.errors import BAD_CONFIG, RUN_AGAIN

_PACKET = 1 << 16
RESTARTS = 3  #: a zygote that dies this often in a row before it is ready is not started again
BRIEF = 1.0  #: seconds it is to work for; one that dies sooner counts a tenth of that
LONG, LARGE = 0.5, 256 << 20  #: seconds and bytes of a set-up that make it worth 10 ms to look for garbage
BY_ITSELF = 3.0  #: seconds a Droid whose launcher is dead has to end by itself, if it can: its loop looks every second
_PR_SET_PDEATHSIG = 1
_FAILED = -1.0  #: what a zygote has said of itself, instead of when it was ready
#: A worker gets SIGKILL for what its Droid gets SIGTERM for: signals of the batch system reach all processes of a step,
#: and it is the Droid who decides what they mean for the event at hand.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP)


@dataclass
class Blueprint:
    """What the zygote needs to know before MPI: how to make the payload. `load` returns it, `scratch` is node-local."""

    load: Callable[[], Any]
    scratch: str
    imports: tuple[str, ...] = ()
    memory: int | None = None  #: bytes of data a worker may use


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` (its current parent) dies; exit if that has happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def start(blueprint: Blueprint, slots: Slots, launcher: int = 0) -> socket.socket:
    """Fork guardian and zygote; returns the Droid's end of the control socket. Call before importing MPI.

    `launcher` is the process id of the Droid's parent, without which it is to end; 0: it may do without.
    """
    watched = _watched(launcher)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        if watched is not None:
            os.close(watched)
        ours.setblocking(False)
        return ours
    try:
        ours.close()
        die_with_parent(parent)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        _guard(blueprint, slots, theirs, parent, watched)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def _watched(launcher: int) -> int | None:
    """A descriptor that says when our parent `launcher` ends, if the kernel has such; exits if it has ended already."""
    if not launcher:
        return None
    watched = None
    with contextlib.suppress(AttributeError, OSError):  # an old kernel, or no descriptor left
        watched = os.pidfd_open(launcher)
    if os.getppid() != launcher:  # asked last: the number was its own when we used it
        sys.exit(RUN_AGAIN)
    return watched


def _wait(zygote: int, droid: int, launcher: int | None) -> int:
    """Wait for the zygote to end; returns its status. If `launcher` ends before and the Droid does not, end the Droid.

    Where the launcher cannot be watched, the time limit of MPI's start has to do.
    """
    if launcher is not None:
        with contextlib.suppress(OSError):
            ended = os.pidfd_open(zygote)
            poll = select.poll()
            poll.register(launcher, select.POLLIN)
            poll.register(ended, select.POLLIN)
            alone = ended not in dict(poll.poll())
            os.close(ended)
            if alone:
                _end(droid)
    return os.waitpid(zygote, 0)[1]


def _end(droid: int) -> None:
    """The launcher of the Droid is gone: it ends, by itself if it can."""
    time.sleep(BY_ITSELF)
    if os.getppid() == droid:  # still our parent, so the number is not that of another process now
        os.kill(droid, signal.SIGKILL)


def _outlast(droid: int, launcher: int | None) -> None:
    """There is no payload, and the Droid may not know yet, since MPI is starting: see to it that it ends with its
    launcher. We end with it."""
    if launcher is not None:
        poll = select.poll()
        poll.register(launcher, select.POLLIN)
        poll.poll()
        _end(droid)


def _guard(blueprint: Blueprint, slots: Slots, sock: socket.socket, droid: int, launcher: int | None) -> None:
    early, how = 0.0, ""
    while early < RESTARTS:
        parent = os.getpid()
        ready = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")  # [0]: when it was, 0 before
        pid = os.fork()
        if not pid:
            code = 1
            try:
                die_with_parent(parent)
                code = Zygote(blueprint, slots, sock, ready).run()
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        status, since = _wait(pid, droid, launcher), ready[0]
        if status == 0 and since:  # not that of a library that calls exit(0) in setup()
            if since == _FAILED:
                sock.close()
                _outlast(droid, launcher)
            os._exit(0)
        # One that worked for a while and died is no reason to give up; one that dies in setup() will always do so.
        if not since:
            early += 1.0
        else:
            early = early + 0.1 if time.monotonic() - since < BRIEF else 0.0
        code = os.waitstatus_to_exitcode(status)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    try:
        with open(os.path.join(blueprint.scratch, "zygote.out"), "rb") as file:
            output = file.read()[-4000:].decode(errors="replace")
    except OSError:
        output = ""
    text = f"the process that sets up the payload ended {RESTARTS} times in a row ({how})"
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.send(msgspec.msgpack.encode({"failed": text, "output": output, "code": BAD_CONFIG}))
    sock.close()
    _outlast(droid, launcher)
    os._exit(1)


class Zygote:
    """Makes the payload, then forks and reaps workers until the Droid says end or is gone."""

    def __init__(self, blueprint: Blueprint, slots: Slots, sock: socket.socket, ready: memoryview[float]) -> None:
        self.blueprint, self.slots, self.sock, self.ready = blueprint, slots, sock, ready
        self.workers: dict[int, int] = {}  # pid -> index
        self.task: dict[str, Any] = {}
        self.environment = dict(os.environ)  # before the payload sees it

    def tell(self, **message: Any) -> None:
        try:
            self.sock.send(msgspec.msgpack.encode(message))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the Droid has ended; so do we, and the kernel ends the workers

    def run(self) -> int:
        begun = time.monotonic()
        self._capture("zygote")
        faulthandler.enable()  # a crash in setup() leaves its traceback, too
        for index in range(len(self.slots.table)):
            self.slots.clear(index)
        try:
            self.payload = self.blueprint.load()
            with _unasked():
                for name in self.blueprint.imports:
                    __import__(name)
            self.payload.setup()
        except BaseException as error:
            from droid.worker import tail, text_of

            self.ready[0] = _FAILED  # first: `tell` may end us
            self.tell(failed=text_of(error)[-8000:], output=tail(2), code=getattr(error, "exit_code", 78))
            return 0
        import resource

        import droid.worker  # noqa: F401  what workers need is imported here, once

        large = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > LARGE
        if large or self.blueprint.memory is not None or time.monotonic() - begun > LONG:
            gc.collect()
        gc.freeze()  # keep the collector from touching, and so copying, the pages that workers share
        sys.stdout.flush()
        sys.stderr.flush()
        self.ready[0] = time.monotonic()
        jagged = sorted(self.payload.jagged)
        self.tell(ready=time.monotonic() - begun, pid=os.getpid(), jagged=jagged, versions=versions())
        return self._loop()

    def _loop(self) -> int:
        wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == wake:
                    os.read(wake, 4096)
            self._reap()
            while poll_in(self.sock):
                try:
                    data, fds, _, _ = socket.recv_fds(self.sock, _PACKET, 3)
                except ConnectionResetError:
                    return 0  # the Droid has ended without reading our last words
                if not data:
                    return 0
                message = msgspec.msgpack.decode(data)
                if "spawn" in message:
                    self._spawn(message["spawn"], socket.socket(fileno=fds[0]), fds[1])
                elif "kill" in message:
                    for pid, index in self.workers.items():
                        if index == message["kill"]:
                            os.kill(pid, signal.SIGKILL)
                elif "program" in message:
                    self._program(message["program"], message["environment"], fds)
                elif "task" in message:
                    self._learn(fds[0])

    def _reap(self) -> None:
        while self.workers:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            index = self.workers.pop(pid, None)
            if index is not None:
                code = os.waitstatus_to_exitcode(status)
                cpu = usage.ru_utime + usage.ru_stime
                self.tell(exit=index, pid=pid, status=code, cpu=cpu, rss=usage.ru_maxrss * 1024)

    def _spawn(self, index: int, worker_sock: socket.socket, bell: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # the node, or our user, has no process left: those that are there go on
            worker_sock.close()
            os.close(bell)
            self.tell(unforked=index, why=error.strerror)
            return
        if pid:
            worker_sock.close()
            os.close(bell)
            self.workers[pid] = index
            self.tell(spawned=index, pid=pid)
            return
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.sock.close()
            self._capture(f"worker-{index}")
            _limit(self.blueprint.memory)
            from droid.worker import worker_main

            settings = {
                **self.task,
                "workers": len(self.slots.table),
                "scratch": self.blueprint.scratch,
            }
            worker_main(worker_sock, self.slots.worker(index), index, self.payload, self._events, settings, bell)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _program(self, words: list[str], environment: dict[str, str], fds: list[int]) -> None:
        """Start a program for the Droid, which has MPI and may not fork. `fds` become its stdin, stdout and stderr; it
        lives as long as they say, and nobody waits for it but `_reap`."""
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        with contextlib.suppress(OSError):  # the Droid sees the end of its pipes
            os.posix_spawn(words[0], words, {**self.environment, **environment}, file_actions=actions)
        for fd in fds:
            os.close(fd)

    def _learn(self, fd: int) -> None:
        """The task comes in a memory file: the axis of a hundred thousand files is too long for a packet."""
        from eventrange.axis import Axis

        with open(fd, "rb") as file:
            file.seek(0)
            self.task = msgspec.msgpack.decode(file.read())
        self.axis = Axis.from_dict(self.task["axis"])
        if not self.payload.needs_events:
            self.payload.axis = self.axis
        elif self.axis.ranges is not None:
            self.payload.origin = self.axis.origin

    def _events(self) -> Any:
        from droid.inputs import InputSet

        inputs = self.task["inputs"]
        return InputSet(inputs["format"], self.axis, self.task["indexes"], inputs["options"])

    def _capture(self, name: str) -> None:
        """Send what the payload prints, through Python or not, to a node-local file: the last lines are evidence."""
        path = os.path.join(self.blueprint.scratch, f"{name}.out")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


@contextlib.contextmanager
def _unasked() -> Iterator[None]:
    """Without asking the system which processor it has: h5py wants to know the machine, and Python then runs `uname`
    for all there is to know, which takes longer than many an import."""
    import platform

    known = getattr(platform.uname(), "__dict__", {})
    had = "processor" in known
    known.setdefault("processor", "")
    try:
        yield
    finally:
        if not had:
            del known["processor"]


def versions() -> dict[str, str]:
    """Of what decides the bytes: Python and the packages the payload has imported that say their version."""
    out = {"python": sys.version.split()[0]}
    for name, module in list(sys.modules.items()):
        version = getattr(module, "__version__", None)
        if "." not in name and isinstance(version, str) and name not in ("__main__", "__mp_main__"):
            out[name] = version
    return dict(sorted(out.items())[:64])


def poll_in(sock: socket.socket) -> bool:
    """Whether `sock` has something to read now."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _limit(memory: int | None) -> None:
    try:  # let the kernel's OOM killer take a worker, never the Droid or Yoda beside it
        with open("/proc/self/oom_score_adj", "w") as out:
            out.write("800")
    except OSError:
        pass
    if memory:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
