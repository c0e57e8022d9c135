"""Nodes on which payloads keep failing, remembered from one allocation to the next: a circuit breaker per node. Pure.

A Droid that is doubted switches its node off. In later allocations a Droid on such a node is a spare: it gets nothing
as long as others work, and stands in when none is left, since a bad node is better than no node (L5). After some hours
the node is on trial; a Droid that does well there brings it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stageout.breaker import Breaker, Change
from stageout.site import BreakerRules, NodeBreakerRules
from yoda.instructions import Note

KIND = "node:"


class Nodes:
    """What is known of nodes. `offset` is the calendar's time when the clock of the calls says 0; `changed` tells the
    shell that `state` is to be saved."""

    def __init__(
        self, rules: BreakerRules | None = None, state: Mapping[str, Any] | None = None, offset: float = 0.0
    ) -> None:
        self._breaker, self._offset = Breaker(rules or NodeBreakerRules(), state), offset
        self._trials: set[str] = set()
        self.changed = False
        self.alerts: list[Change] = []  #: that nobody has been told of yet

    def allow(self, now: float, host: str) -> tuple[bool, list[Note]]:
        """Whether a Droid on `host` may be given work, though others are there."""
        key = KIND + host
        if self._breaker.state(key) == "closed":
            return True, []
        allowed, changes = self._breaker.allow(key, now + self._offset)
        if allowed:
            self._trials.add(host)
        return allowed, self._notes(changes)

    def why(self, host: str) -> str:
        """Since when `host` is not used, for people."""
        retry = self._breaker.retry_at(KIND + host)
        return "payloads failed on this node before" + (", too often to try it again" if retry is None else "")

    def on_trial(self, host: str) -> bool:
        """Whether `proved` would be news."""
        return host in self._trials

    def doubted(self, now: float, host: str, reason: str) -> list[Note]:
        """A Droid on `host` was doubted."""
        self._trials.discard(host)
        return self._notes(self._breaker.failure(KIND + host, now + self._offset, reason))

    def proved(self, now: float, host: str) -> list[Note]:
        """A Droid on `host`, which was on trial, does well."""
        self._trials.discard(host)
        return self._notes(self._breaker.success(KIND + host, now + self._offset))

    @property
    def state(self) -> dict[str, Any]:
        """To be kept, and given to the next one."""
        return self._breaker.to_dict()

    def _notes(self, changes: list[Change]) -> list[Note]:
        self.changed = self.changed or bool(changes)
        self.alerts += [change for change in changes if change.alert]
        return [note_of(change) for change in changes]


def note_of(change: Change) -> Note:
    """The journal's note of a change."""
    c = change
    values = {"key": c.key, "before": c.before, "after": c.after, "reason": c.reason, "alert": c.alert, "by": 0}
    return Note("breaker", values)


def off_now(state: Mapping[str, Any], rules: BreakerRules, now: float) -> list[str]:
    """The nodes that should not be asked for now, sorted."""
    breaker = Breaker(rules, state)
    nodes = [key for key in sorted(state.get("keys", {})) if key.startswith(KIND)]
    return [key.removeprefix(KIND) for key in nodes if not breaker.would_allow(key, now)]
