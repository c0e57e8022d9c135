"""`yoda stageout` on the command line: what it prints and how it exits."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from eventrange.errors import OK, RUN_AGAIN
from eventrange.taskdir import TaskDir

if TYPE_CHECKING:
    from eventrange.axis import Axis
    from stageout.merge import Merged
    from yoda.schema import Site

LISTED = 20  #: intervals shown
FOR_EVER = 10 * 365 * 86400.0  #: seconds; `--wait` without a duration


def add_stageout(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    one = commands.add_parser("stageout", help="copy what is left to the storage endpoints; works without MPI")
    one.add_argument("task")
    one.add_argument("--site", help="the site file; default: the endpoints of the last run")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the site")
    add_wait(one)
    one.add_argument("--manifest", action="store_true", help="print every object with checksums, ranges and copies")
    one.add_argument("--sweep", action="store_true", help="also look for objects that no journal knows of")
    one.add_argument(
        "--reset", metavar="NAME", help="this endpoint, or `node:NAME`, is well again, whatever happened before"
    )
    one.add_argument("--beside", type=int, help=argparse.SUPPRESS)
    one.set_defaults(command=stageout_command)


def add_wait(command: argparse.ArgumentParser) -> None:
    """`--wait [DURATION]`, in seconds as `wait`."""
    from eventrange.quantity import parse_duration

    command.add_argument(
        "--wait",
        nargs="?",
        type=parse_duration,
        const=FOR_EVER,
        default=0.0,
        metavar="DURATION",
        help="keep on trying while storage is down",
    )


def site_of(args: argparse.Namespace) -> Site | None:
    """The site file of the command line, if there is one."""
    from yoda.config import load_site

    return load_site(args.site, args.set, here=False) if args.site or args.set else None


def say(text: str) -> None:
    """A sentence for people."""
    print(text, file=sys.stderr, flush=True)


def said_missing(merged: Merged, axis: Axis) -> int:
    """Say which events a partial merge left out; returns the exit code."""
    if not len(merged.missing):
        return OK
    count = int((merged.missing[:, 1] - merged.missing[:, 0]).sum())
    shown = ", ".join(f"[{start}, {stop})" for start, stop in merged.missing[:LISTED].tolist())
    more = f" and {len(merged.missing) - LISTED} more" if len(merged.missing) > LISTED else ""
    say(f"{count} of {axis.total} events are not in it: {shown}{more}")
    return RUN_AGAIN


def stageout_command(args: argparse.Namespace) -> int:
    """Exit code 0: every segment has a copy; 75: some have none."""
    from stageout.catalogue import read_catalogue
    from yoda.stageout import reset, stage_out, storage_of
    from yoda.task import need_task

    if args.beside:
        from stageout.stager import die_with

        die_with(args.beside)
        os.nice(15)
    taskdir = TaskDir(os.path.abspath(args.task))
    frozen = need_task(taskdir)
    site = site_of(args)
    if args.manifest:
        from yoda.manifest import manifest

        print(json.dumps(manifest(taskdir, frozen, site), indent=1))
        return OK

    if args.reset:
        from eventrange.history import Story

        catalogue = read_catalogue(Story(taskdir, frozen.fingerprint).whole())
        changed = reset(taskdir, frozen.fingerprint, storage_of(taskdir, catalogue, site), args.reset)
        say(f"{args.reset} is taken to be well" if changed else f"{args.reset} was not off")
    done = stage_out(
        taskdir,
        frozen.task,
        frozen.fingerprint,
        None,
        wait=args.wait,
        site=site,
        by_hand=not args.beside,
        sweeping=args.sweep,
        say=say,
    )
    if done.busy:
        say("another stage-out of this task is at work")
        return RUN_AGAIN
    print(
        f"{done.staged} segments staged, {done.left} left, {done.elsewhere} with allocations that run, "
        f"{done.repaired} sealed that were left open, {done.unusable} damaged"
    )
    if done.swept is not None:
        print(f"{done.swept.adopted} objects nobody knew of adopted, {done.swept.removed} removed")
        if done.swept.doubted:
            say(f"{done.swept.doubted} left alone, for journals are damaged or cannot be read: see `yoda status`")
        for text in done.swept.failed:
            say(f"cannot look at {text}")
    if done.unusable:
        say("`yoda merge` finds out which images of the damaged segments can be used, then `yoda run` makes the others")
    return RUN_AGAIN if done.left or done.elsewhere or done.unusable else OK
