"""`yoda rehearse`: see on a laptop what a preemptible queue will do to a job, and what it costs.

Runs the job like any `yoda run`, ends it after a time as a batch system would (a warning and a grace period, or none at
all), runs the same command again, and so on until the task is complete. Then the journals are asked what was lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eventrange.errors import BAD_DATA, OK, RUN_AGAIN
from eventrange.taskdir import TaskDir


@dataclass(frozen=True)
class Plan:
    """How to preempt: `after` seconds from the start, `grace` seconds between warning and kill (0: no warning)."""

    after: float
    grace: float = 0.0
    times: int | None = None  #: preempt so often, then let it finish; None: always


def rehearse(
    command: list[str], taskdir: TaskDir, plan: Plan, say: Callable[[str], None]
) -> tuple[int, dict[str, Any]]:
    """Run `command`, a `yoda run`, until it is done; returns (exit code, what it cost)."""
    preempted = 0
    while True:
        alone = plan.times is not None and preempted >= plan.times
        code = _once(command, None if alone else plan, say)
        if code is not None and code != RUN_AGAIN:
            break
        if code is None:
            preempted += 1
        elif alone:
            break
        else:
            preempted += 1
    return code, cost(taskdir, preempted)


def _once(command: list[str], plan: Plan | None, say: Callable[[str], None]) -> int | None:
    """One allocation; its exit code, or None if it had to be killed."""
    child = subprocess.Popen(command)
    try:
        if plan is None:
            return child.wait()
        try:
            return child.wait(plan.after)
        except subprocess.TimeoutExpired:
            pass
        if plan.grace > 0:
            say(f"preempted after {plan.after:g} s: SIGTERM, {plan.grace:g} s of grace")
            child.send_signal(signal.SIGTERM)
            try:
                return child.wait(plan.grace)
            except subprocess.TimeoutExpired:
                say("the grace period is over: SIGKILL")
        else:
            say(f"preempted after {plan.after:g} s: SIGKILL, no warning")
    finally:
        if child.poll() is None:
            for pid in tree(child.pid):
                _kill(pid)
            child.wait()
    return None


def tree(root: int) -> list[int]:
    """`root` and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def cost(taskdir: TaskDir, preempted: int) -> dict[str, Any]:
    """What the preemptions cost, from the journals."""
    from eventrange.history import done_records
    from eventrange.records import Kind
    from yoda.status import status
    from yoda.task import need_task

    found = status(taskdir, time.time() + 60.0)  # nobody is alive any more, whatever it looks like
    rows, _, _ = done_records(taskdir, need_task(taskdir).fingerprint)
    rows = rows[rows["kind"] == Kind.DONE]
    processed = int((rows["stop"] - rows["start"]).sum())
    seconds = found["core_seconds"]
    return {
        "version": 1,
        "task": found["task"],
        "complete": found["complete"],
        "preemptions": preempted,
        "allocations": len(found["allocations"]),
        "events": found["events"],
        "durable_twice": processed - found["events"]["done"],
        "core_seconds": seconds,
        "lost_share": seconds["lost_in_flight"] / seconds["total"] if seconds["total"] else 0.0,
    }


def render(found: dict[str, Any]) -> str:
    """The cost for people."""
    events, seconds = found["events"], found["core_seconds"]
    missing = events["total"] - events["done"] - events["quarantined"]
    state = "complete" if found["complete"] else "not complete"
    return "\n".join(
        [
            f"{found['task']}: {state} after {found['preemptions']} preemptions in {found['allocations']} allocations",
            f"events     {events['done']} of {events['total']} done, {events['quarantined']} quarantined, "
            f"{missing} missing; {found['durable_twice']} made durable twice",
            f"cores      {seconds['total']:.1f} core-seconds, {seconds['productive']:.1f} productive, "
            f"{seconds['lost_in_flight']:.1f} lost in flight ({100 * found['lost_share']:.1f} %), "
            f"{seconds['startup']:.1f} starting",
        ]
    )


def main(job: str, arguments: list[str], taskdir: TaskDir, plan: Plan, as_json: bool) -> int:
    """The command: rehearse `job` in `taskdir`."""
    import json

    import eventrange.entry

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    command = [sys.executable, os.path.abspath(eventrange.entry.__file__), "run", job, *arguments]
    code, found = rehearse(command, taskdir, plan, say)
    if code in (OK, BAD_DATA, RUN_AGAIN):
        print(json.dumps(found) if as_json else render(found))
    return code
