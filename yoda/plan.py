"""`yoda plan`: what a run would do, without doing it. Makes no task directory."""

from __future__ import annotations

import os
import shlex
import tempfile
from typing import Any

from eventrange.axis import Axis
from eventrange.history import read_progress
from yoda.placing import launcher
from yoda.prepared import ledger_of
from yoda.rangelength import LONGEST, SHORTEST
from yoda.setting import Setting
from yoda.task import read_task

VERSION = 1


def plan(setting: Setting) -> dict[str, Any]:
    """Events, files and what is done already, as plain values. Counts the inputs if no task has done so."""
    job, site, taskdir = setting.job, setting.site, setting.taskdir
    frozen = read_task(taskdir)
    done = quarantined = 0
    if frozen is not None:
        axis = Axis.from_dict(frozen.axis)
        ledger = ledger_of(axis.total, read_progress(taskdir, frozen.fingerprint))
        done, quarantined = ledger.done, ledger.quarantined.total
    else:
        from yoda.sources import axis_of

        with tempfile.TemporaryDirectory(prefix="yoda-plan-") as cache:
            axis = axis_of(job, cache, len(os.sched_getaffinity(0)))
    size = job.ranges.events
    named = axis.ranges.count if axis.ranges is not None else None
    ranges = sum(-(-file.events // size) for file in axis.files) if size else named
    workers = setting.request.workers or site.workers or len(os.sched_getaffinity(0))
    droids = setting.request.droids or (site.slurm.nodes if site.slurm is not None else 1) or 1
    try:
        command = shlex.join(launcher(site.launcher, droids + 1, os.environ)[0])
    except Exception as error:
        command = f"none: {error}".splitlines()[0]
    return {
        "version": VERSION,
        "task": job.task,
        "directory": taskdir.root,
        "exists": frozen is not None,
        "events": {"total": axis.total, "done": done, "quarantined": quarantined},
        "files": [{"name": f.name, "path": f.path, "events": f.events, "first": f.start} for f in axis.files],
        "ranges": ranges,
        "events_per_range": size,
        "range_seconds": None if size or named else job.ranges.seconds,
        "named_ranges": named,
        "droids": droids,
        "workers": droids * workers,
        "launcher": command,
        "merge": job.output.merge,
        "final_files": _final_files(axis.total, job.output.events_per_file) if job.output.merge else 0,
    }


def _final_files(total: int, per_file: int | None) -> int:
    return 1 if per_file is None else -(-total // per_file)


def render(found: dict[str, Any]) -> str:
    """The plan for people."""
    events = found["events"]
    files = found["files"]
    lines = [f"task       {found['task']} in {found['directory']}" + ("" if found["exists"] else " (new)")]
    lines.append(f"events     {events['total']} in {len(files)} file{'s' * (len(files) != 1)}")
    for file in files[:10]:
        lines.append(f"           {file['name']}: {file['events']} events from position {file['first']}")
    if len(files) > 10:
        lines.append(f"           and {len(files) - 10} more files")
    if found["named_ranges"] is not None:
        lines.append(f"ranges     {found['ranges']} named ones, handed out as they are")
    elif found["ranges"] is not None:
        lines.append(f"ranges     {found['ranges']} of {found['events_per_range']} events")
    else:
        about = f"about {found['range_seconds']:g}" if found["range_seconds"] else f"{SHORTEST:g} to {LONGEST:g}"
        lines.append(f"ranges     {about} s of work each, sized while running")
    left = events["total"] - events["done"] - events["quarantined"]
    lines.append(f"to do      {left} events; {events['done']} are done, {events['quarantined']} quarantined")
    lines.append(f"with       {found['droids']} Droid{'s' * (found['droids'] != 1)}, {found['workers']} workers in all")
    lines.append(f"launcher   {found['launcher']}")
    if found["merge"]:
        lines.append(f"then       merge into {found['final_files']} file{'s' * (found['final_files'] != 1)}")
    return "\n".join(lines)
