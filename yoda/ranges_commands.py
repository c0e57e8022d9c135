"""`yoda ranges` and `yoda harvest`: what the command line does with ranges that someone else named."""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

from eventrange.errors import OK, RUN_AGAIN
from eventrange.taskdir import TaskDir

ASK = 1000  #: ranges asked for at a time: the question takes Harvester minutes
_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def add_ranges(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Both commands' arguments."""
    one = commands.add_parser("ranges", help="what became of each range that someone else named")
    one.add_argument("task")
    one.add_argument("--json", action="store_true", help="one JSON object per line")
    one.add_argument(
        "--harvester",
        metavar="FILE",
        help="report what is new there, as PanDA's Harvester takes it: event_status.dump.json",
    )
    one.add_argument("--panda-id", default="", help="for ranges that were listed under none")
    one.set_defaults(command=_ranges)

    one = commands.add_parser(
        "harvest", help="work on ranges as PanDA's Harvester hands them out, until it has no more"
    )
    one.add_argument("job")
    one.add_argument("--access-point", required=True, metavar="DIR", help="where Harvester and we leave files")
    one.add_argument("--task", help="where each delivery gets a task directory; default NAME.task beside the job file")
    one.add_argument("--ask", type=int, default=ASK, metavar="N", help=f"ranges to ask for at a time; default {ASK}")
    one.add_argument("--ids", nargs=3, metavar=("PANDA", "JEDI_TASK", "JOBSET"), help="default: those in HPCJobs.json")
    one.add_argument("--site", help="site file")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of job or site")
    one.add_argument("--droids", type=int)
    one.add_argument("--workers", type=int)
    one.set_defaults(command=_harvest)


def _ranges(args: argparse.Namespace) -> int:
    from yoda.ranges_view import RangesView, json_lines, text_lines
    from yoda.task import need_task

    taskdir = TaskDir(os.path.abspath(args.task))
    frozen = need_task(taskdir)
    view = RangesView(taskdir, frozen)
    if args.harvester:
        from yoda.harvester import dump

        attributes = {"task": frozen.task, "fingerprint": frozen.fingerprint, "seed": frozen.seed}
        done = dump(view, args.harvester, attributes, args.panda_id)
        print(done)
        return RUN_AGAIN if done.left_out else OK
    for line in json_lines(view) if args.json else text_lines(view):
        print(line)
    return OK


def _harvest(args: argparse.Namespace) -> int:
    """Exit code: see Harvest.run."""
    from yoda.config import default_task_dir, load_job
    from yoda.harvest import AccessPoint, Harvest, Ids, work_of

    root = os.path.abspath(args.task or default_task_dir(load_job(args.job, args.set)))
    words = [args.job]
    for flag, value in (("--site", args.site), ("--droids", args.droids), ("--workers", args.workers)):
        words += [flag, str(value)] if value is not None else []
    for value in args.set:
        words += ["--set", value]
    point = AccessPoint(args.access_point, Ids(*args.ids) if args.ids else None)
    harvest = Harvest(point, root, work_of(words), args.ask)

    def stop(number: int, frame: Any) -> None:
        harvest.stopping = True

    for number in _STOP:
        signal.signal(number, stop)
    return harvest.run()
