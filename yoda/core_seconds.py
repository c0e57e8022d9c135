"""What the accounting hands out: core-seconds by part, of Droids, nodes, allocations and the task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eventrange.history import Fold

#: All parts, with what people call them. `parts` puts those together that begin with `idle_`.
WORDS = {
    "productive": "productive",
    "lost_in_flight": "lost in flight (drained, killed, lost Droids)",
    "retried": "retried (failed attempts, second copies, images made again)",
    "hung": "hung (attempts ended by their time limit)",
    "quarantined": "attempts at events that were given up",
    "idle_waiting": "idle, waiting for Yoda",
    "idle_input": "idle, waiting for input",
    "idle_tail": "idle at the tail",
    "idle_draining": "idle while others finished the event at hand (drain)",
    "idle_merging": "idle while another core merged",
    "startup": "start-up",
    "merge": "merge",
    "overhead": "overhead",
}
NAMES = tuple(WORDS)
IDLE = tuple(name for name in NAMES if name.startswith("idle_"))
PARTS = ("productive", "lost_in_flight", "retried", "hung", "quarantined", "idle", "startup", "merge", "overhead")


@dataclass
class CoreSeconds:
    """Microseconds by part, of any number of Droids."""

    micro: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))

    def add(self, other: CoreSeconds) -> None:
        micro = self.micro
        for name, value in other.micro.items():
            if value:
                micro[name] += value

    @property
    def total(self) -> float:
        return sum(self.micro.values()) / 1e6

    def parts(self) -> dict[str, float]:
        """Seconds by PARTS, and `total`, their sum."""
        micro = {**self.micro, "idle": sum(self.micro[name] for name in IDLE)}
        parts = {name: micro[name] / 1e6 for name in PARTS}
        return {**parts, "total": sum(parts.values())}

    def finer(self) -> dict[str, float]:
        """Seconds of the parts of `idle`."""
        return {name: self.micro[name] / 1e6 for name in IDLE}

    def folded(self) -> dict[str, float]:
        """The six parts that `yoda status --json` promises, and their `total`: attempts that hung or ended in
        quarantine count as retried, the merge as overhead."""
        m = self.micro
        six = {
            "productive": m["productive"],
            "lost_in_flight": m["lost_in_flight"],
            "retried": m["retried"] + m["hung"] + m["quarantined"],
            "idle": sum(m[name] for name in IDLE),
            "startup": m["startup"],
            "overhead": m["overhead"] + m["merge"],
        }
        out = {name: value / 1e6 for name, value in six.items()}
        return {**out, "total": sum(out.values())}


@dataclass
class DroidLife:
    """One Droid of one allocation. Its node is its from `begin` to `end`; times are unix seconds."""

    droid: int
    host: str = "?"
    workers: int = 0
    joined: float | None = None
    startup: float = 0.0  #: seconds from the start of its process until then
    left: float | None = None
    reason: str = ""  #: why it left
    last: float = 0.0  #: its last sign of life
    spent: dict[str, float] = field(default_factory=dict)  #: sums of its `spent` notes
    starting: float = 0.0  #: worker-seconds of the first of them: until its workers were ready
    ranges: int = 0  #: done
    events: int = 0  #: done by it first
    core_seconds: CoreSeconds = field(default_factory=CoreSeconds)
    begin: float = 0.0  #: start of its process
    end: float = 0.0
    killed: bool = False  #: it was lost, or killed with its allocation

    @property
    def lost(self) -> bool:
        """Whether its process is gone, as far as Yoda knew."""
        return self.left is not None and self.reason.startswith("lost")


class Merging(NamedTuple):
    """What is known of the merge at the end of an allocation."""

    begin: float  #: unix seconds
    last: float  #: when it was over, or the last sign of it
    done: int  #: events written
    total: int
    over: dict[str, Any] | None  #: its `merged` note


@dataclass
class Allocation:
    """One allocation. Times are unix seconds, 0 if unknown."""

    name: str
    created: float = 0.0
    last: float = 0.0  #: last sign of life
    dead: bool = False  #: known to be, from elsewhere, whatever its last sign of life
    alive: bool = False  #: taken to be: it has neither ended nor kept silent for long
    end: dict[str, Any] | None = None  #: its `end` note
    drain: dict[str, Any] | None = None  #: its `drain` note
    merging: Merging | None = None
    signals: list[str] = field(default_factory=list)
    pulse: dict[str, Any] | None = None  #: the latest one
    about: dict[str, Any] = field(default_factory=dict)  #: its first note
    droids: dict[int, DroidLife] = field(default_factory=dict)
    events: int = 0  #: done here first
    core_seconds: CoreSeconds = field(default_factory=CoreSeconds)
    apart: CoreSeconds = field(default_factory=CoreSeconds)  #: of rank 0, where it has a node for itself

    def nodes(self, out: dict[str, CoreSeconds] | None = None) -> dict[str, CoreSeconds]:
        """Core-seconds by host name, added to `out`."""
        out = {} if out is None else out
        if self.apart.total:
            out.setdefault(str(self.about.get("host", "?")), CoreSeconds()).add(self.apart)
        for life in self.droids.values():
            if life.host not in out:
                out[life.host] = CoreSeconds()
            out[life.host].add(life.core_seconds)
        return out


@dataclass
class Account:
    """The whole task."""

    allocations: list[Allocation]
    core_seconds: CoreSeconds
    fold: Fold  #: what is done, quarantined, tried

    def nodes(self) -> dict[str, CoreSeconds]:
        out: dict[str, CoreSeconds] = {}
        for allocation in self.allocations:
            allocation.nodes(out)
        return out
