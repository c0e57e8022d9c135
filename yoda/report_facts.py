"""What a report is made from: one reading for the accounting, and a second one for the pictures."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any

from eventrange.axis import Axis
from eventrange.history import Story
from eventrange.taskdir import TaskDir
from yoda.accounting import account_entries
from yoda.chronicle import Chronicle, chronicle
from yoda.core_seconds import Account
from yoda.frozen import Frozen
from yoda.lease_view import leases_and_dead
from yoda.names import event_name, range_name
from yoda.status import ALIVE, compose, last_words
from yoda.task import need_task


@dataclass
class Facts:
    """All that the page is made from."""

    taskdir: TaskDir
    frozen: Frozen
    axis: Axis
    state: dict[str, Any]
    account: Account
    chronicle: Chronicle

    def event(self, position: int) -> str:
        """What people call the event at `position`."""
        return f"{event_name(self.axis, position)} (#{position})"

    def range(self, start: int, stop: int) -> str:
        """The same of a range."""
        return self.event(start) if stop == start + 1 else range_name(self.axis, start, stop)


def gather(taskdir: TaskDir, now: float | None = None) -> Facts:
    """Read everything. Raises NotATask, TaskDamaged."""
    now = time.time() if now is None else now
    frozen = need_task(taskdir)
    axis, fingerprint = Axis.from_dict(frozen.axis), frozen.fingerprint
    _, dead = leases_and_dead(taskdir, now)
    account = account_entries(lambda: Story(taskdir, fingerprint).whole(), now - ALIVE, last_words(dead, now))
    story = chronicle(taskdir, fingerprint, account)
    state = compose(
        taskdir, frozen.task, fingerprint, axis.total, account, story.journals, story.pace, now, ranges=axis.ranges
    )
    return Facts(taskdir, frozen, axis, state, account, story)


def merged_sizes(taskdir: TaskDir) -> list[int]:
    """Sizes of the final files, as far as they are where merge puts them by default."""
    try:
        with open(os.path.join(taskdir.merged, "merge.json")) as file:
            names = [one["name"] if isinstance(one, dict) else str(one) for one in json.load(file).get("files", [])]
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    paths = [os.path.join(taskdir.merged, name) for name in names]
    return [os.path.getsize(path) for path in paths if os.path.exists(path)]
