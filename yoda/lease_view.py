"""Who holds which share of a task now, for `yoda status`: the one thing about progress that journals do not say."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from eventrange.quantity import span
from eventrange.taskdir import TaskDir
from yoda.leasedir import alive_files, overview

QUIET = 15.0  #: seconds without a word: half as long again as living allocations are quiet at most


def lease_view(taskdir: TaskDir, now: float | None = None) -> list[dict[str, Any]]:
    """Every allocation that has a file among the leases and has not ended in good order, oldest first; JSON types.

    `state` is starting, working or merging; dead, which is certain; or silent, for more than a minute. `parts` of the
    axis are its own until it ends; those of the dead are taken over as soon as somebody looks, those of the silent
    after the `lease_timeout` of who looks.
    """
    return [asdict(one) for one in overview(taskdir, now=time.time() if now is None else now) if one.state != "ended"]


def leases_and_dead(taskdir: TaskDir, now: float | None = None) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """`lease_view`, and which allocations with a journal are dead, if their last word is so many seconds old.

    Each has its file there before its journal and until it ends; that of a dead one says so, until somebody clears it
    away. But who sees no file may look at an old listing of a distant folder.
    """
    journals = taskdir.allocations()  # first: who begins in between is in neither
    leases = lease_view(taskdir, now)
    there = alive_files(taskdir)
    dead = {} if there is None else dict.fromkeys(set(journals) - there, QUIET)
    return leases, dead | {one["allocation"]: 0.0 for one in leases if one["state"] == "dead"}


def words(lease: dict[str, Any]) -> str:
    """What to say of an allocation beside what its journal tells."""
    held = f"holds {lease['parts']} part{'s' * (lease['parts'] != 1)} of the axis"
    if lease["state"] == "dead":
        return f"dead; {held} until another allocation looks" if lease["parts"] else "dead"
    if lease["merges"]:
        held = "merges the task"
    elif lease["wants"]:
        held += " and waits for work"
    beat = f"last beat {span(lease['beat_age'])} ago"
    if lease["state"] == "silent":
        return f"silent, {beat}; {held} until lease_timeout has passed for another allocation"
    return f"{lease['state']}: {held}, {beat}"


def render(leases: list[dict[str, Any]], journals: set[str]) -> list[str]:
    """Lines for the allocations that have no journal yet, or never will: they start, or only merge."""
    return [
        f"  {one['allocation']}  process {one['pid']} on {one['host']}: {words(one)}"
        for one in leases
        if one["allocation"] not in journals and one["state"] != "dead"
    ]
