"""What the accounting hands out: core-seconds by part, of Droids, nodes, allocations and the task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eventrange.history import Fold

PARTS = ("productive", "lost_in_flight", "retried", "hung", "quarantined", "idle", "startup", "overhead")
FINE = ("productive", "lost_in_flight", "retried", "hung", "quarantined", "idle_waiting", "idle_tail", "startup")
NAMES = (*FINE, "overhead")


@dataclass
class CoreSeconds:
    """Microseconds by part, of any number of Droids."""

    micro: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))

    def add(self, other: CoreSeconds) -> None:
        for name, value in other.micro.items():
            self.micro[name] += value

    @property
    def total(self) -> float:
        return sum(self.micro.values()) / 1e6

    def parts(self) -> dict[str, float]:
        """Seconds by PARTS, and `total`, their sum."""
        micro = {**self.micro, "idle": self.micro["idle_waiting"] + self.micro["idle_tail"]}
        parts = {name: micro[name] / 1e6 for name in PARTS}
        return {**parts, "total": sum(parts.values())}

    def finer(self) -> dict[str, float]:
        """Seconds of parts of parts."""
        return {name: self.micro[name] / 1e6 for name in ("idle_waiting", "idle_tail")}


@dataclass
class DroidLife:
    """One Droid of one allocation."""

    droid: int
    host: str = "?"
    workers: int = 0
    joined: float | None = None
    startup: float = 0.0
    left: float | None = None
    reason: str = ""  #: why it left
    last: float = 0.0  #: unix seconds of its last sign of life
    ranges: int = 0  #: done
    events: int = 0  #: done by it first
    core_seconds: CoreSeconds = field(default_factory=CoreSeconds)


@dataclass
class Allocation:
    """One allocation. Times are unix seconds, 0 if unknown."""

    name: str
    created: float = 0.0
    last: float = 0.0  #: last sign of life
    end: dict[str, Any] | None = None  #: its `end` note
    drain: dict[str, Any] | None = None  #: its `drain` note
    signals: list[str] = field(default_factory=list)
    pulse: dict[str, Any] | None = None  #: the latest one
    about: dict[str, Any] = field(default_factory=dict)  #: its first note
    droids: dict[int, DroidLife] = field(default_factory=dict)
    events: int = 0  #: done here first
    core_seconds: CoreSeconds = field(default_factory=CoreSeconds)

    def nodes(self) -> dict[str, CoreSeconds]:
        """Core-seconds by host name."""
        out: dict[str, CoreSeconds] = {}
        for life in self.droids.values():
            out.setdefault(life.host, CoreSeconds()).add(life.core_seconds)
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
            for host, seconds in allocation.nodes().items():
                out.setdefault(host, CoreSeconds()).add(seconds)
        return out
