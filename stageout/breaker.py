"""Circuit breaker: switch off what keeps failing, try it again later, give up loudly when that does not help.

Pure: results and the time go in, permissions and changes come out. The rule is the one the Event Service's operators
asked for, with all times in `BreakerRules`: more than half of at least `samples` results within two hours failed ->
open; after six hours one request is let through (half-open), its success closes, its failure opens again; opened four
times within a day -> exhausted, which only a person resets. One `Breaker` holds many keys: `endpoint:primary`,
`node:nid001`, `queue:preempt`.

Results are counted in slots of 1/120 window, so memory does not grow with the number of results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from stageout.site import BreakerRules

State = Literal["closed", "open", "half-open", "exhausted"]

SLOTS = 120  # per window: one minute each by default
VERSION = 1


@dataclass(frozen=True)
class Change:
    """One key went from one state to another: a line for the journal, the status and, when `alert`, for people."""

    key: str
    before: State
    after: State
    time: float
    reason: str

    @property
    def alert(self) -> bool:
        """Whether someone should be told now: nothing will happen by itself any more."""
        return self.after == "exhausted"


@dataclass
class _Entry:
    state: State = "closed"
    since: float = 0.0
    now: float = 0.0  # the latest time seen: a clock that steps back must not lengthen or shorten anything
    probe: float | None = None  # when the half-open probe was let through
    opens: list[float] = field(default_factory=list)  # times of opening, the last `opens` of them
    slots: dict[int, list[int]] = field(default_factory=dict)  # slot number -> [successes, failures]


class Breaker:
    """The states of any number of keys; a key never heard of is closed."""

    def __init__(
        self, rules: BreakerRules | None = None, state: Mapping[str, Any] | None = None, probes: bool = False
    ) -> None:
        """`state` is what `to_dict` gave. `probes`: those under way then still are; else whoever made them is gone."""
        self.rules = rules or BreakerRules()
        self._entries: dict[str, _Entry] = {}
        if state is not None:
            self._load(state, probes)

    def state(self, key: str) -> State:
        """The state of `key` as of the last event; `allow` is what moves an open key to half-open."""
        entry = self._entries.get(key)
        return entry.state if entry else "closed"

    def keys(self) -> list[str]:
        """All keys ever heard of, sorted."""
        return sorted(self._entries)

    def allow(self, key: str, now: float) -> tuple[bool, list[Change]]:
        """Whether one request may go to `key` now. In half-open this takes the one probe; give its result."""
        entry = self._at(key, now)
        changes: list[Change] = []
        if entry.state == "open" and entry.now >= entry.since + self.rules.recovery:
            changes.append(self._go(key, entry, "half-open", f"tried again after {self.rules.recovery:g} s"))
        if entry.state == "half-open":
            if entry.probe is not None and entry.now < entry.probe + self.rules.probe_timeout:
                return False, changes
            entry.probe = entry.now
            return True, changes
        return entry.state == "closed", changes

    def would_allow(self, key: str, now: float) -> bool:
        """What `allow` would say, without taking a probe."""
        retry = self.retry_at(key)
        return retry is not None and max(now, self._entries[key].now if key in self._entries else now) >= retry

    def retry_at(self, key: str) -> float | None:
        """The earliest time a request may be let through: in the past when it may go now, None when never again."""
        entry = self._entries.get(key)
        if entry is None or entry.state == "closed":
            return 0.0
        if entry.state == "exhausted":
            return None
        if entry.state == "open":
            return entry.since + self.rules.recovery
        return 0.0 if entry.probe is None else entry.probe + self.rules.probe_timeout

    def success(self, key: str, now: float) -> list[Change]:
        """A request to `key` worked. Late news of requests from before an opening changes nothing."""
        entry = self._at(key, now)
        if entry.state == "half-open" and entry.probe is not None:
            entry.slots.clear()
            return [self._go(key, entry, "closed", "the trial worked")]
        if entry.state == "closed":
            self._count(entry, 0)
        return []

    def failure(self, key: str, now: float, reason: str = "") -> list[Change]:
        """A request to `key` failed; `reason` goes into the change, if there is one."""
        entry = self._at(key, now)
        if entry.state == "half-open" and entry.probe is not None:
            return [self._open(key, entry, "the trial failed" + (f": {reason}" if reason else ""))]
        if entry.state != "closed":
            return []
        self._count(entry, 1)
        good, bad = self.counts(key)
        if good + bad >= self.rules.samples and bad > self.rules.share * (good + bad):
            text = f"{bad} of {good + bad} failed within {self.rules.window:g} s"
            return [self._open(key, entry, text + (f", last: {reason}" if reason else ""))]
        return []

    def forget_probe(self, key: str) -> None:
        """The request that was let through was never made, or broke off without a verdict: another may go."""
        if key in self._entries:
            self._entries[key].probe = None

    def reset(self, key: str, now: float) -> list[Change]:
        """A person says that `key` is well again, whatever its state; its past is forgotten."""
        entry = self._at(key, now)
        entry.slots.clear()
        entry.opens.clear()
        return [] if entry.state == "closed" else [self._go(key, entry, "closed", "reset by hand")]

    def counts(self, key: str) -> tuple[int, int]:
        """Successes and failures of `key` within the window."""
        slots = self._entries[key].slots.values() if key in self._entries else ()
        return sum(s[0] for s in slots), sum(s[1] for s in slots)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers, for JSON."""
        return {
            "version": VERSION,
            "keys": {
                key: {
                    "state": e.state,
                    "since": e.since,
                    "now": e.now,
                    "probe": e.probe,
                    "opens": list(e.opens),
                    "slots": [[slot, *counts] for slot, counts in sorted(e.slots.items())],
                }
                for key, e in sorted(self._entries.items())
            },
        }

    # --- inside -------------------------------------------------------------------------------------------------------

    def _load(self, state: Mapping[str, Any], probes: bool) -> None:
        """Take over what is readable: another program version or damage costs at most a few more failures."""
        keys = state.get("keys") if state.get("version") == VERSION else None
        for key, value in keys.items() if isinstance(keys, Mapping) else ():
            with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
                entry = _Entry(value["state"], float(value["since"]), float(value["now"]))
                probe = value.get("probe") if probes else None
                entry.probe = None if probe is None else float(probe)
                entry.opens = [float(t) for t in value["opens"]]
                entry.slots = {int(slot): [int(good), int(bad)] for slot, good, bad in value["slots"]}
                if entry.state in get_args(State):
                    self._entries[key] = entry

    def _at(self, key: str, now: float) -> _Entry:
        entry = self._entries.setdefault(key, _Entry(since=now, now=now))
        entry.now = max(entry.now, now)
        oldest = self._slot(entry.now) - SLOTS
        for slot in [s for s in entry.slots if s <= oldest]:
            del entry.slots[slot]
        return entry

    def _slot(self, now: float) -> int:
        return int(now // (self.rules.window / SLOTS))

    def _count(self, entry: _Entry, which: int) -> None:
        entry.slots.setdefault(self._slot(entry.now), [0, 0])[which] += 1

    def _open(self, key: str, entry: _Entry, reason: str) -> Change:
        entry.opens = [t for t in entry.opens if t > entry.now - self.rules.opens_window][-self.rules.opens :]
        entry.opens.append(entry.now)
        entry.slots.clear()
        if len(entry.opens) >= self.rules.opens:
            times = f"opened {len(entry.opens)} times within {self.rules.opens_window:g} s"
            return self._go(key, entry, "exhausted", f"{reason}; {times}")
        return self._go(key, entry, "open", reason)

    def _go(self, key: str, entry: _Entry, after: State, reason: str) -> Change:
        change = Change(key, entry.state, after, entry.now, reason)
        entry.state, entry.since, entry.probe = after, entry.now, None
        return change
