"""The folder of leases: what the names and files in it are, and the heart that beats there.

    0042.0003 -> 20261122T180218123Z-slurm-4711-r0.alive     part 42, third generation, and who holds it
    0042.0004 -> free                                         it was given away
    merge.0001 -> ....alive                                   who merges
    20261122T180218123Z-slurm-4711-r0.alive                   who that is, and a counter that moves while it lives

A lease is a symbolic link. Making one is exclusive and atomic on every shared file system, name and content at once:
no reader ever sees an empty lease, no crash leaves one, a full disk does not matter, and `ls -l` shows who does what.

Nothing here is synced: a folder of leases that is lost, or deleted by hand, costs some events done twice.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from eventrange.durable import explain
from eventrange.taskdir import TaskDir
from slurm.commands import Runner
from slurm.environment import job_of
from yoda.follower import Follower
from yoda.leases import FREE, Known, Lease, Pulse, Watch

ALIVE = ".alive"
MERGE = "merge"
ASKED = 8  #: dead or silent allocations Slurm is asked about, at most: each is a call to a server all users share
_WORDS = "{state:<8} {wants} {count:012d}\n"


@dataclass(frozen=True)
class Identity:
    """Which process an allocation is: enough to tell whether it still runs, for others on the same machine."""

    allocation: str
    host: str
    pid: int
    started: int  #: of the process, in clock ticks since the machine came up: a pid is used again, the pair is not
    boot: str  #: of the machine, and of its process numbers
    jobid: int | None
    time: float


def machine() -> str:
    """Names the running system whose process numbers we share: host names need not be unique, and survive a reboot."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> int | None:
    """Start of a process of this machine, in clock ticks since it came up; None if there is no such process now."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Heart:
    """Writes the alive file of an allocation every `interval` seconds from a thread of its own, until `stop`.

    `vouch` has to be called at least every `patience` seconds once it has been called: an allocation whose loop hangs
    is no better than a dead one.
    """

    def __init__(self, taskdir: TaskDir, name: str, jobid: int | None, interval: float, patience: float) -> None:
        self.name, self.interval, self.patience = name, interval, patience
        self.path = os.path.join(taskdir.leases, name + ALIVE)
        self.state, self.wants = "starting", False
        self.forget = False  #: whether the file is removed in the end
        self._vouched: float | None = None
        self._count = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        pid = os.getpid()
        me = Identity(name, socket.gethostname(), pid, process_start(pid) or 0, machine(), jobid, time.time())
        self._head = json.dumps(me.__dict__).encode() + b"\n"
        try:
            os.makedirs(taskdir.leases, exist_ok=True)
            # Rewritten in place: a renamed file would be another one to clients of NFS that remember the old.
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise explain(error, self.path) from error
        self.beat()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()

    def vouch(self) -> None:
        """The allocation is at work."""
        self._vouched = time.monotonic()

    def rest(self, state: str) -> None:
        """From here on the heart beats for as long as the process lives: it has no loop that could vouch."""
        self._vouched = None
        self.set(state)

    def set(self, state: str | None = None, wants: bool | None = None) -> None:
        """Say something new, at once."""
        if (state or self.state, self.wants if wants is None else wants) != (self.state, self.wants):
            self.state, self.wants = state or self.state, self.wants if wants is None else wants
            self.beat()

    def beat(self) -> None:
        with self._lock:
            if self._fd < 0:
                return
            self._count += 1
            words = _WORDS.format(state=self.state, wants="wants" if self.wants else "-----", count=self._count)
            try:
                os.pwrite(self._fd, self._head + words.encode(), 0)
            except OSError:
                pass  # if it lasts we are taken for dead, and others do our work again

    def stop(self, state: str = "ended") -> None:
        """The last beat: what we held is free."""
        self._stop.set()
        self._thread.join()
        self.set(state)
        with self._lock:
            os.close(self._fd)
            self._fd = -1
        if self.forget:
            _remove(self.path)

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            if self._vouched is None or time.monotonic() - self._vouched < self.patience:
                self.beat()


class LeaseDir:
    """The room of leases (yoda.leases.Room) as files, seen by the allocation `name`."""

    def __init__(self, taskdir: TaskDir, name: str, follower: Follower | None = None) -> None:
        self.name, self.folder = name, taskdir.leases
        self.follower = follower or Follower(taskdir, "", name)
        self.gone: set[str] = set()  #: allocations that are known to be dead
        self._machine = machine()
        self._owners: dict[str, str] = {}  # lease -> owner; a lease never changes
        self._pulses: dict[str, Pulse] = {}
        self._identity: dict[str, Identity] = {}

    # -- leases ------------------------------------------------------------------------------------------------------

    def leases(self) -> list[Lease]:
        return [Lease(int(stem), generation, owner) for stem, generation, owner in self._all() if stem.isdigit()]

    def claim(self, part: int | str, generation: int, owner: str) -> str:
        stem = part if isinstance(part, str) else f"{part:04d}"
        path = os.path.join(self.folder, f"{stem}.{generation:04d}")
        target = owner if owner == FREE else owner + ALIVE
        try:
            os.symlink(target, path)
            return owner
        except FileExistsError:
            try:
                return _owner(os.readlink(path))  # also ours, where the answer to our first request was lost
            except OSError:
                return FREE
        except OSError as error:
            raise explain(error, path) from error

    def drop(self, part: int | str, generation: int) -> None:
        stem = part if isinstance(part, str) else f"{part:04d}"
        _remove(os.path.join(self.folder, f"{stem}.{generation:04d}"))

    def _all(self) -> list[tuple[str, int, str]]:
        """(part or merge, generation, owner) of every lease."""
        out = []
        for file in _names(self.folder):
            stem, _, number = file.rpartition(".")
            if not number.isdigit():
                continue
            if file not in self._owners:
                try:
                    self._owners[file] = _owner(os.readlink(os.path.join(self.folder, file)))
                except OSError:  # removed meanwhile, or something else of that name
                    continue
            out.append((stem, int(number), self._owners[file]))
        return out

    # -- allocations -------------------------------------------------------------------------------------------------

    def pulses(self, names: Collection[str] = ()) -> dict[str, Pulse]:
        there = _with_file(_names(self.folder))
        out = {}
        for name in there | set(names):
            old = self._pulses.get(name)
            if old is not None and (old.gone or old.state == "ended"):
                out[name] = old
            else:
                out[name] = self._pulse(name)
        jobs: dict[int, int] = {}
        for name in out:
            job = job_of(name)
            if job is not None:
                jobs[job[0]] = max(jobs.get(job[0], 0), job[1])
        for name, pulse in out.items():
            job = job_of(name)
            if not pulse.gone and job is not None and job[1] < jobs[job[0]]:
                out[name] = pulse._replace(gone=True)  # Slurm starts no job again that still runs
        self._pulses = out
        return out

    def _pulse(self, name: str) -> Pulse:
        try:
            with open(os.path.join(self.folder, name + ALIVE), "rb") as file:
                data = file.read(4096)
            head, words = data.split(b"\n")[:2]
            state, wants, _ = words.decode().split()
            me = self._identity[name] = Identity(**json.loads(head))
        except OSError:
            return Pulse(b"", "missing", gone=name in self.gone)
        except (ValueError, TypeError):
            return Pulse(data, "damaged", gone=name in self.gone)
        here = me.boot == self._machine and bool(me.boot) and me.started > 0
        gone = name in self.gone or (here and process_start(me.pid) != me.started)
        return Pulse(data, state, wants == "wants", gone)

    def ask_slurm(self, run: Runner) -> None:
        """Ask Slurm about allocations that may be dead. It runs commands, so only before MPI starts."""
        asked = 0
        for name, pulse in sorted(self.pulses().items(), reverse=True):
            job = job_of(name)
            if job is None or pulse.gone or pulse.state == "ended" or name == self.name or asked == ASKED:
                continue
            asked += 1
            from slurm.ending import Ended, why_ended  # late: hardly ever asked

            if why_ended(*job, run) not in (Ended.NOT_YET, Ended.UNKNOWN):
                self.gone.add(name)

    def identity(self, name: str) -> Identity | None:
        return self._identity.get(name)

    # -- journals ----------------------------------------------------------------------------------------------------

    def known(self, over: Callable[[str], bool], names: Collection[str] = ()) -> Known:
        def closed(name: str) -> bool:
            # One that began after we looked has no pulse yet, but it has its file: that is made before the journal.
            return over(name) and (name in self._pulses or not os.path.exists(os.path.join(self.folder, name + ALIVE)))

        return self.follower.read(closed, names)

    # -- who merges --------------------------------------------------------------------------------------------------

    @contextmanager
    def merging(self, timeout: float, pause: Callable[[float], None] = time.sleep) -> Iterator[str | None]:
        """The right to merge the task: yields None when it is ours, else the name of the living allocation that has it.

        Where it cannot be told whether its owner lives, waits until its heart beats, or for `timeout` seconds.
        """
        watch, before = Watch(timeout), b""
        while True:
            generation, owner = max(((g, o) for stem, g, o in self._all() if stem == MERGE), default=(0, FREE))
            pulses = self.pulses({owner} - {FREE})
            watch.look(time.monotonic(), pulses)
            if owner in (FREE, self.name) or not watch.alive(owner):
                if owner != self.name:
                    generation += 1
                    owner = self.claim(MERGE, generation, self.name)
                if owner == self.name:
                    break
                continue
            now = pulses[owner].beat
            if before and now != before:
                yield owner
                return
            before = now
            pause(min(0.2, timeout / 20))
        self.drop(MERGE, generation - 2)
        try:
            yield None
        finally:
            self.claim(MERGE, generation + 1, FREE)
            self.drop(MERGE, generation - 1)

    def sweep(self) -> None:
        """The task is complete: no lease on a part is of use, nor is the file of an allocation that is over."""
        pulses = self.pulses()
        for file in _names(self.folder):
            stem, _, number = file.rpartition(".")
            over = file.endswith(ALIVE) and (pulse := pulses.get(stem)) and (pulse.gone or pulse.state == "ended")
            if (stem.isdigit() and number.isdigit()) or over:
                _remove(os.path.join(self.folder, file))

    def tidy(self) -> None:
        """Remove files of allocations that are over and are named by no lease."""
        owners = {owner for _, _, owner in self._all()}
        for name, pulse in self.pulses().items():
            if (pulse.gone or pulse.state == "ended") and name not in owners and name != self.name:
                _remove(os.path.join(self.folder, name + ALIVE))


@dataclass(frozen=True)
class Seen:
    """An allocation as `yoda status` shows it."""

    allocation: str
    host: str
    pid: int
    jobid: int | None
    state: str  #: starting, working, merging; ended; dead; silent: its heart has not been seen to beat for `timeout` s
    wants: bool
    parts: int  #: of the axis, on which it has the lease
    begun: float  #: unix time
    beat_age: float  #: seconds since its last beat, as far as the clocks of file server and this machine agree
    merges: bool = False  #: it has the right to merge


def overview(taskdir: TaskDir, timeout: float = 60.0, now: float | None = None) -> list[Seen]:
    """All allocations that have a file among the leases, in order. A single look: only `dead` is certain to be dead."""
    room = LeaseDir(taskdir, "")
    top: dict[str, tuple[int, str]] = {}
    for stem, generation, owner in room._all():
        top[stem] = max(top.get(stem, (0, "")), (generation, owner))
    _, merger = top.pop(MERGE, (0, ""))
    held = Counter(owner for _, owner in top.values())
    out = []
    for name, pulse in sorted(room.pulses().items()):
        me = room.identity(name)
        if me is None:
            continue
        try:
            age = (time.time() if now is None else now) - os.stat(os.path.join(room.folder, name + ALIVE)).st_mtime
        except OSError:
            continue
        state = "ended" if pulse.state == "ended" else "dead" if pulse.gone else pulse.state
        here = me.boot == machine() and me.boot
        if state not in ("ended", "dead") and not here and age > timeout:
            state = "silent"
        parts = 0 if state == "ended" else held[name]
        merges = name == merger and state != "ended"
        out.append(Seen(name, me.host, me.pid, me.jobid, state, pulse.wants, parts, me.time, max(0.0, age), merges))
    return out


def alive_files(taskdir: TaskDir) -> set[str] | None:
    """Allocations that have a file, whatever is in it; None if nobody could have one."""
    try:
        return _with_file(os.listdir(taskdir.leases))
    except OSError:
        return None


def _with_file(names: Iterable[str]) -> set[str]:
    return {file[: -len(ALIVE)] for file in names if file.endswith(ALIVE)}


def _owner(target: str) -> str:
    name = os.path.basename(target)
    return name[: -len(ALIVE)] if name.endswith(ALIVE) else FREE


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
