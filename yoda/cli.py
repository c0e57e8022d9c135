"""The command line. Each command reads its arguments, calls one function, prints, and returns an exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from eventrange.errors import BAD_DATA, OK, YodaError
from eventrange.taskdir import TaskDir
from yoda.ranges_commands import add_ranges
from yoda.storage_commands import add_stageout, add_wait, site_of

WATCH_SECONDS = 2.0
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, 65, 73, 75, 78, or 1 for a bug, with its traceback)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    args = parser(next(iter(words), None)).parse_args(words)
    try:
        code: int = args.command(args)
        return code
    except YodaError as error:
        print(f"yoda: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BrokenPipeError:  # `yoda journal TASK | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """All commands and their arguments; or of `only` one, if there is such: every rank pays for what is made here."""
    top = argparse.ArgumentParser(
        prog="yoda", description="Fine-grained event processing on allocations that can vanish."
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    for add in dict.fromkeys([_COMMANDS[only]] if only in _COMMANDS else _COMMANDS.values()):
        add(commands)
    return top


def _add_run(commands: _Commands) -> None:
    one = commands.add_parser("run", help="work on a task; run it again to resume")
    _job(one)
    one.add_argument("--droids", type=int, help="Droids to start on this machine (without mpirun or srun); default 1")
    one.add_argument("--workers", type=int, help="workers per Droid; default one per core")
    one.add_argument("--time", type=_duration, help="how long this allocation lasts, such as 55min")
    one.add_argument("--retry-quarantined", action="store_true", help="take up events that were given up before")
    one.add_argument("--no-images", action="store_true", help=argparse.SUPPRESS)
    one.set_defaults(command=_run)


def _add_status(commands: _Commands) -> None:
    one = commands.add_parser("status", help="how far a task is, and where its core-seconds went")
    one.add_argument("task")
    one.add_argument("--json", action="store_true")
    one.add_argument("--watch", action="store_true", help="show it every two seconds until the task is complete")
    one.add_argument("--cores", action="store_true", help="core time by allocation and by node")
    one.set_defaults(command=_status)


def _add_explain(commands: _Commands) -> None:
    one = commands.add_parser("explain", help="the story of a range or an event; of a task: why, and what next")
    one.add_argument("task")
    one.add_argument("range", nargs="?", help="FILE:first-last, FILE:n, first-last (1-based), or '#position'")
    one.add_argument("--json", action="store_true")
    one.set_defaults(command=_explain)


def _add_report(commands: _Commands) -> None:
    one = commands.add_parser("report", help="one HTML page: where every core-second went")
    one.add_argument("task")
    one.add_argument("-o", "--output", metavar="FILE", help="default TASK/report.html")
    one.add_argument("--images", metavar="DIR", help="also write its pictures, for talks and papers")
    one.set_defaults(command=_report)


def _add_journal(commands: _Commands) -> None:
    one = commands.add_parser("journal", help="every record of a task's journals")
    one.add_argument("task")
    one.add_argument("--json", action="store_true", help="one JSON object per line")
    one.add_argument("--csv", action="store_true")
    one.set_defaults(command=_journal)


def _add_merge(commands: _Commands) -> None:
    one = commands.add_parser("merge", help="make the final files")
    one.add_argument("task")
    one.add_argument("-o", "--output", metavar="FILE", help="default TASK/merged/NAME.h5; a folder there is will do")
    one.add_argument("--partial", action="store_true", help="merge what there is")
    one.add_argument("--site", help="the site file with the storage endpoints; default: those of the last run")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the site")
    add_wait(one)
    one.set_defaults(command=_merge)


def _add_plan(commands: _Commands) -> None:
    one = commands.add_parser("plan", help="what a run would do, without doing it")
    _job(one)
    one.add_argument("--droids", type=int)
    one.add_argument("--workers", type=int)
    one.add_argument("--json", action="store_true")
    one.set_defaults(command=_plan)


def _add_rehearse(commands: _Commands) -> None:
    one = commands.add_parser("rehearse", help="run, preempt, resume on this machine, and say what it cost")
    _job(one)
    one.add_argument("--preempt-after", type=_duration, required=True, metavar="TIME", help="such as 20s")
    one.add_argument("--grace", type=_duration, default=0.0, metavar="TIME", help="warning to kill; default 0")
    one.add_argument("--times", type=int, help="preempt so often, then let it finish; default always")
    one.add_argument("--droids", type=int)
    one.add_argument("--workers", type=int)
    one.add_argument("--json", action="store_true")
    one.set_defaults(command=_rehearse)


def _add_verify(commands: _Commands) -> None:
    one = commands.add_parser("verify", help="check that everything the journals promise is there")
    one.add_argument("task")
    one.add_argument("--recompute", type=int, metavar="N", help="also process N events again and compare")
    one.add_argument("--json", action="store_true")
    one.set_defaults(command=_verify)


def _add_submit(commands: _Commands) -> None:
    one = commands.add_parser("submit", help="have Slurm run a task; the task is checked here and now")
    _job(one)
    one.add_argument("--workers", type=int, help="workers per Droid; default one per core")
    one.add_argument("--allocations", type=_at_least_one, default=1, metavar="N", help="submit N jobs on one task")
    one.add_argument("--fit", action="store_true", help="ask for nodes and time that fit into what is idle now")
    one.add_argument("--dry-run", action="store_true", help="show script, cost and forecast; submit nothing")
    one.add_argument("--force", action="store_true", help="submit though allocations of this queue do nothing")
    one.set_defaults(command=_submit)


def _add_doctor(commands: _Commands) -> None:
    one = commands.add_parser("doctor", help="what is wrong with this place, before it costs an allocation")
    one.add_argument("--site", help="the site file")
    one.add_argument("--task", help="the task directory, or where one will be; default here")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the site")
    one.add_argument("--json", action="store_true")
    one.set_defaults(command=_doctor)


def _add_config(commands: _Commands) -> None:
    one = commands.add_parser("config", help="every key, its value and where it came from")
    _job(one, task=False)
    one.add_argument("--json", action="store_true")
    one.set_defaults(command=_config)


def _add_bench(commands: _Commands) -> None:
    one = commands.add_parser("bench", help="measure this machine beside other runners, against the budgets")
    one.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; default all")
    one.add_argument("--json", action="store_true")
    one.add_argument("--quick", action="store_true", help="a few seconds each: whether they run, not how fast")
    one.add_argument("--peers", metavar="PYTHON", help="Python that has Dask, Ray, Parsl and HyperQueue")
    one.set_defaults(command=_bench)


_COMMANDS: dict[str, Callable[[_Commands], None]] = {
    "run": _add_run,
    "status": _add_status,
    "explain": _add_explain,
    "report": _add_report,
    "journal": _add_journal,
    "ranges": add_ranges,
    "harvest": add_ranges,
    "merge": _add_merge,
    "stageout": add_stageout,
    "plan": _add_plan,
    "rehearse": _add_rehearse,
    "verify": _add_verify,
    "submit": _add_submit,
    "doctor": _add_doctor,
    "config": _add_config,
    "bench": _add_bench,
}


def _job(command: argparse.ArgumentParser, task: bool = True) -> None:
    command.add_argument("job", help="the job file")
    command.add_argument("--site", help="the site file")
    if task:
        command.add_argument("--task", help="the task directory; default NAME.task beside the job file")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of job or site"
    )


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _duration(text: str) -> float:
    from eventrange.quantity import parse_duration

    return parse_duration(text)


def _run(args: argparse.Namespace) -> int:
    from droid import signals
    from slurm.environment import launched_rank

    if launched_rank(os.environ) is not None:
        signals.listen()  # before the slow imports: a warning may come at any moment
    from yoda.run import run
    from yoda.setting import Request

    return run(
        Request(
            job=args.job,
            site=args.site,
            task=args.task,
            droids=args.droids,
            workers=args.workers,
            sets=tuple(args.set),
            time=args.time,
            retry_quarantined=args.retry_quarantined,
            images=not args.no_images,
        )
    )


def _status(args: argparse.Namespace) -> int:
    from yoda.status import render, status

    taskdir = TaskDir(os.path.abspath(args.task))
    if args.watch and not args.json:
        from yoda.watch import watch

        watch(taskdir)
        return OK
    if args.cores and not args.json:
        from yoda.verdict import table

        print(table(status(taskdir)))
        return OK
    while True:
        found = status(taskdir)
        print(json.dumps(found) if args.json else render(found), flush=True)
        if not args.watch or found["complete"]:
            return OK
        time.sleep(WATCH_SECONDS)


def _explain(args: argparse.Namespace) -> int:
    from yoda.explain import explain_range, explain_task, render_range, render_task

    taskdir = TaskDir(os.path.abspath(args.task))
    found = explain_task(taskdir) if args.range is None else explain_range(taskdir, args.range)
    words = render_task if args.range is None else render_range
    print(json.dumps(found) if args.json else words(found))
    return OK


def _report(args: argparse.Namespace) -> int:
    from yoda.report import report

    print(report(TaskDir(os.path.abspath(args.task)), args.output, args.images))
    return OK


def _journal(args: argparse.Namespace) -> int:
    from eventrange.axis import Axis
    from yoda.journal_view import csv_lines, json_lines, text_lines
    from yoda.task import need_task

    taskdir = TaskDir(os.path.abspath(args.task))
    frozen = need_task(taskdir)
    lines = json_lines if args.json else csv_lines if args.csv else text_lines
    for line in lines(taskdir, frozen.fingerprint, axis=Axis.from_dict(frozen.axis)):
        sys.stdout.write(line if line.endswith("\n") else line + "\n")
    return OK


def _merge(args: argparse.Namespace) -> int:
    from eventrange.axis import Axis
    from yoda.finish import by_hand
    from yoda.merging import MergeChoices, where
    from yoda.storage_commands import said_missing, say
    from yoda.task import need_task

    taskdir = TaskDir(os.path.abspath(args.task))
    frozen = need_task(taskdir)
    output = frozen.job.get("output", {})
    choices = MergeChoices(
        output.get("compression", "gzip"), output.get("events_per_file"), args.partial, args.output, args.wait
    )
    merged = by_hand(taskdir, frozen, choices, os.environ, site_of(args), say)
    folder, _ = where(args.output, taskdir, frozen.task)
    for name in merged.files:
        print(os.path.join(folder, name))
    return said_missing(merged, Axis.from_dict(frozen.axis))


def _plan(args: argparse.Namespace) -> int:
    from yoda.plan import plan, render
    from yoda.setting import Request, read

    request = Request(args.job, args.site, args.task, args.droids, args.workers, tuple(args.set))
    found = plan(read(request))
    print(json.dumps(found) if args.json else render(found))
    return OK


def _rehearse(args: argparse.Namespace) -> int:
    from yoda.rehearse import Plan, main
    from yoda.setting import Request, read

    request = Request(args.job, args.site, args.task, args.droids, args.workers, tuple(args.set))
    plan = Plan(args.preempt_after, args.grace, args.times)
    droids = [] if args.droids is None else ["--droids", str(args.droids)]
    return main(args.job, request.arguments()[2:] + droids, read(request).taskdir, plan, args.json)


def _verify(args: argparse.Namespace) -> int:
    from yoda.task import need_task
    from yoda.verify import recompute, render, verify

    taskdir = TaskDir(os.path.abspath(args.task))
    frozen = need_task(taskdir)
    found = verify(taskdir, frozen)
    if args.recompute:
        import tempfile

        from droid.payload import Worker
        from yoda.setting import load_frozen_payload

        with tempfile.TemporaryDirectory(prefix="yoda-verify-") as scratch:
            payload = load_frozen_payload(frozen)
            payload.setup()
            payload.start(Worker(0, 1, Path(scratch), frozen.seed))
            found["recomputed"] = args.recompute
            found["differing"] = recompute(taskdir, frozen, payload, args.recompute)
        found["sound"] = found["sound"] and not found["differing"]
    print(json.dumps(found) if args.json else render(found))
    if not args.json and args.recompute:
        print("\n".join(found["differing"]) or f"{args.recompute} events processed again: all equal")
    return OK if found["sound"] else BAD_DATA


def _submit(args: argparse.Namespace) -> int:
    from yoda.setting import Request
    from yoda.submit import Asked, show, submit_task

    request = Request(args.job, args.site, args.task, None, args.workers, tuple(args.set))
    outcome = submit_task(request, Asked(args.allocations, args.fit, args.dry_run, args.force))
    print(show(outcome))
    return outcome.code


def _doctor(args: argparse.Namespace) -> int:
    from yoda.config import load_site
    from yoda.doctor import as_json, doctor, exit_code, render

    found = doctor(load_site(args.site, args.set, here=False), args.task)
    print(json.dumps(as_json(found)) if args.json else render(found))
    return exit_code(found)


def _config(args: argparse.Namespace) -> int:
    from yoda.config import config_json, config_text, load_job, load_site

    job, site = load_job(args.job, args.set), load_site(args.site, args.set, here=False)
    print(json.dumps(config_json(job, site)) if args.json else config_text(job, site))
    return OK


def _bench(args: argparse.Namespace) -> int:
    from yoda.bench import bench

    return bench(args.names, args.json, args.quick, args.peers)


if __name__ == "__main__":
    sys.exit(main())
