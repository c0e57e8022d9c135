"""`yoda harvest JOB --access-point AP`: work on ranges as PanDA's Harvester hands them out, until there are no more.

Harvester's shared-file messenger is polled files, with minutes between question and answer, and its writes are not
atomic. So the next ranges are asked for while those at hand are worked on, a delivery is taken when it can be read as a
whole, and each delivery is a task of its own, `TASK/0001` and so on: a run, a journal, a report at its end. Nothing is
remembered but these directories and what Harvester has renamed; the same command goes on after whatever ended it.

| file in the access point | who writes it | what |
|---|---|---|
| `worker_requestevents.json` | we | `{PandaID: {pandaID, taskID, jobsetID, nRanges}}`; Harvester removes it |
| `JobsEventRanges.json` | Harvester | `{PandaID: [range, ...]}`, an empty list: there are no more; we move it |
| `event_status.dump.json` | we | what is finished and what has failed (yoda/harvester.py); Harvester renames it |
| `worker_heartbeat.json` | we | its date says that we live |
| `kill_worker.json` | Harvester | we are to end |
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from eventrange.durable import write_file
from eventrange.errors import BAD_DATA, OK, RUN_AGAIN, ConfigError, HarvesterBusy

RANGES = "ranges.json"  #: a delivery, in the directory that has its task beside it
PAUSE = 1.0  #: seconds between looks at the files; Harvester itself looks once a minute


@dataclass(frozen=True)
class Ids:
    """What Harvester calls the job."""

    panda: str
    task: str
    jobset: str


class AccessPoint:
    """The files between Harvester and us. `ids` are read from HPCJobs.json where they are not given."""

    def __init__(self, folder: str, ids: Ids | None = None) -> None:
        self.folder = os.path.abspath(folder)
        self.ids = ids or self._ids()

    @property
    def dump(self) -> str:
        return self._path("event_status.dump.json")

    @property
    def killed(self) -> bool:
        """Whether Harvester wants us to end."""
        return os.path.exists(self._path("kill_worker.json"))

    def ask(self, count: int) -> None:
        """Ask for `count` ranges, unless that has been done, or some are there."""
        request = self._path("worker_requestevents.json")
        if not os.path.exists(request) and not os.path.exists(self._path("JobsEventRanges.json")):
            ids = {"pandaID": self.ids.panda, "taskID": self.ids.task, "jobsetID": self.ids.jobset}
            write_file(request, json.dumps({self.ids.panda: {**ids, "nRanges": count}}).encode())

    def take(self, target: str, last: str) -> int | None:
        """Move what has been delivered to `target`; returns how many ranges that were, None if nothing can be read
        (yet). There is no `target` with no ranges, nor if they are those in `last`, the delivery before."""
        source = self._path("JobsEventRanges.json")
        try:
            with open(source, "rb") as file:
                data = file.read()
            count = sum(len(ranges) for ranges in json.loads(data).values())
        except (OSError, ValueError, AttributeError, TypeError):
            return None
        if count and not _holds(last, data):  # else: killed before the unlink; no two deliveries name the same ranges
            os.makedirs(os.path.dirname(target), exist_ok=True)
            write_file(target, data)  # elsewhere: the access point may be on another file system, and is cleaned
        os.unlink(source)
        return count

    def beat(self) -> None:
        """Be seen to live."""
        with suppress(OSError):
            with open(self._path("worker_heartbeat.json"), "a"):
                pass
            os.utime(self._path("worker_heartbeat.json"))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _ids(self) -> Ids:
        path = self._path("HPCJobs.json")
        try:
            with open(path, "rb") as file:
                ((panda, values),) = json.loads(file.read()).items()
            return Ids(str(panda), str(values["taskID"]), str(values["jobsetID"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "let Harvester put it there, or give --ids"
            raise ConfigError(file=path, key="job", detail=f"it tells of no job ({error!r})", hint=hint) from None


def _holds(path: str, data: bytes) -> bool:
    with suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read() == data
    return False


class Work(Protocol):
    """What is done with deliveries, each in a directory of its own."""

    def start(self, folder: str) -> None: ...

    def poll(self) -> int | None:
        """The exit code of what was started; None while it runs."""
        ...

    def stop(self) -> None:
        """Have it end in good order."""
        ...

    def report(self, folder: str, dump: str, panda_id: str) -> int:
        """How many ranges are done and cannot be reported before they are run again. Raises HarvesterBusy."""
        ...


class Harvest:
    """Works on deliveries under `root`, one after another. `stopping` is set from outside to end in good order."""

    def __init__(
        self, point: AccessPoint, root: str, work: Work, count: int, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.point, self.root, self.work, self.count, self.sleep = point, root, work, count, sleep
        self.stopping = self.no_more = False
        self._next = 1  #: number of the first delivery that has not been begun

    def run(self) -> int:
        """Exit code: 0 all done; 65 some ranges have failed; 75 to be gone on with, also where something could not be
        reported; or what a run ended with."""
        worst = OK
        for folder in self._folders():
            self.work.start(folder)
            stopped = False
            while (code := self.work.poll()) is None:
                self._step()
                if self.stopping and not stopped:
                    self.work.stop()
                    stopped = True
            told = self._reported(folder)
            if code not in (OK, BAD_DATA):
                return code
            worst = max(worst, code if told else RUN_AGAIN)  # the next delivery need not wait for what is left of this
        return RUN_AGAIN if self.stopping else worst

    def _folders(self) -> Iterator[str]:
        """What has been delivered before, and what comes."""
        while not self.stopping:
            folder = self._folder(self._next)
            if os.path.exists(self._ranges(self._next)):
                self._next += 1
                yield folder
            elif self.no_more:
                return
            else:
                self._step()

    def _step(self) -> None:
        self.point.beat()
        self.stopping = self.stopping or self.point.killed
        target = self._ranges(self._next)
        if not (self.no_more or self.stopping or os.path.exists(target)):  # one delivery ahead is enough
            taken = self.point.take(target, self._ranges(self._next - 1))
            self.no_more = taken == 0
            if taken is None:
                self.point.ask(self.count)
        self.sleep(PAUSE)

    def _folder(self, number: int) -> str:
        return os.path.join(self.root, f"{number:04d}")

    def _ranges(self, number: int) -> str:
        return os.path.join(self._folder(number), RANGES)

    def _reported(self, folder: str) -> bool:
        """Report what became of a delivery, once Harvester has taken the report before; False if something of it is
        not, or we have to end."""
        while True:
            try:
                return not self.work.report(folder, self.point.dump, self.point.ids.panda)
            except HarvesterBusy:
                if self.stopping:
                    return False
                self._step()


def work_of(arguments: list[str]) -> Any:
    """Deliveries as tasks of `yoda run`, each started with `arguments`."""
    import subprocess
    import sys

    import eventrange.entry
    from eventrange.taskdir import TaskDir
    from yoda.harvester import dump
    from yoda.ranges_view import RangesView
    from yoda.task import need_task, read_task

    class Runs:
        def __init__(self) -> None:
            self.process: subprocess.Popen[bytes] | None = None

        def start(self, folder: str) -> None:
            entry = os.path.abspath(eventrange.entry.__file__)
            more = ["--task", os.path.join(folder, "task"), "--set", f"ranges.file={os.path.join(folder, RANGES)}"]
            self.process = subprocess.Popen([sys.executable, entry, "run", *arguments, *more])

        def poll(self) -> int | None:
            assert self.process is not None
            return self.process.poll()

        def stop(self) -> None:
            assert self.process is not None
            self.process.terminate()

        def report(self, folder: str, path: str, panda_id: str) -> int:
            taskdir = TaskDir(os.path.join(folder, "task"))
            if read_task(taskdir) is None:
                return 0
            frozen = need_task(taskdir)
            attributes = {"task": frozen.task, "fingerprint": frozen.fingerprint, "seed": frozen.seed}
            done = dump(RangesView(taskdir, frozen), path, attributes, panda_id)
            print(f"{os.path.basename(folder)}: {done}", flush=True)
            return done.left_out

    return Runs()
