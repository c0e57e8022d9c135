"""Several allocations on one task, simulated: crashes, freezes, old listings, old journals, wrong verdicts.

The folder of leases and the journals are in memory, and every allocation sees them as they were up to a few seconds
ago, as over NFS. Cores, keepers and ledgers are the real ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from eventrange import records
from eventrange.history import Fold
from eventrange.intervals import IntervalSet
from eventrange.ledger import Ledger
from eventrange.records import Kind
from yoda.keeper import Keeper, beat_interval
from yoda.leases import Known, Lease, Leases, Pulse, divide

TIMEOUT = 20.0
STEP = 0.5  #: seconds of a turn


@dataclass
class World:
    """What is really there. Everything carries the time it came to be, so that a reader can be shown the past."""

    rng: random.Random
    total: int
    stale: float  #: seconds by which what one sees may be old
    now: float = 0.0
    leases: dict[tuple[int, int], tuple[float, str]] = field(default_factory=dict)
    removed: list[tuple[float, int, int, float, str]] = field(default_factory=list)  #: with the time of making
    journals: dict[str, list[tuple[float, int, int]]] = field(default_factory=dict)
    pulses: dict[str, Pulse] = field(default_factory=dict)
    done: IntervalSet = field(default_factory=IntervalSet)
    processed: int = 0

    def then(self) -> float:
        return self.now - self.rng.uniform(0.0, self.stale)


class Room:
    """The world as one allocation sees it."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.fold, self.read = Fold(), dict[str, int]()

    def leases(self) -> list[Lease]:
        then = self.world.then()
        here = [Lease(*key, owner) for key, (made, owner) in self.world.leases.items() if made <= then]
        gone = [Lease(p, g, owner) for at, p, g, made, owner in self.world.removed if made <= then < at]
        return here + gone

    def pulses(self, names: Collection[str]) -> dict[str, Pulse]:
        there = dict(self.world.pulses)
        return there | {name: Pulse(b"", "missing") for name in names if name not in there}

    def claim(self, part: int, generation: int, owner: str) -> str:
        return self.world.leases.setdefault((part, generation), (self.world.now, owner))[1]

    def drop(self, part: int, generation: int) -> None:
        made, owner = self.world.leases.pop((part, generation), (0.0, ""))
        if owner:
            self.world.removed.append((self.world.now, part, generation, made, owner))

    def known(self, over: Callable[[str], bool], names: Collection[str]) -> Known:
        then = self.world.then()
        for name in sorted(self.world.journals):
            entries = self.world.journals[name]
            upto = self.read.get(name, 0)
            new = [entry for entry in entries[upto:] if entry[0] <= then or name == self.name or over(name)]
            self.read[name] = upto + len(new)
            if new:
                rows = records.new(len(new), kind=Kind.DONE)
                rows["start"], rows["stop"] = [e[1] for e in new], [e[2] for e in new]
                self.fold.add(rows, name)
        done, quarantined, _ = self.fold.result()
        return Known(
            (np.array(done.starts, np.int64), np.array(done.stops, np.int64)),
            (np.array(quarantined.starts, np.int64), np.array(quarantined.stops, np.int64)),
        )


class Yoda:
    """As much of a dispatcher as the keeper sees, with Droids that finish what they hold a turn later."""

    def __init__(self, workers: int, ledger: Ledger) -> None:
        self.draining, self.exit_code, self.failure, self.schema = "", None, "", "x"
        self.ledger = ledger
        self.active = [type("D", (), {"workers": workers})()]

    def drain(self, now: float, reason: str) -> list[Any]:
        self.draining = reason
        return []

    def withdraw(self, parts: list[tuple[int, int]]) -> list[Any]:
        for start, stop in parts:
            self.ledger.withdraw(start, stop)
        return []


class Alloc:
    """One allocation: it works `speed` events a turn."""

    def __init__(self, world: World, name: str, edges: Any, speed: int, here: bool) -> None:
        self.world, self.name, self.speed, self.here = world, name, speed, here
        self.frozen_until, self.over, self.beats = 0.0, False, 0
        self.lost = 0
        self.room = Room(world, name)
        self.beat(False)
        world.journals[name] = []
        self.leases = Leases(name, edges, TIMEOUT)
        known = self.leases.begin(world.now, self.room)
        self.ledger = Ledger(world.total)
        self.ledger.pending = IntervalSet([(0, world.total)])
        self.ledger.settle(*known.done)
        self.keeper = Keeper(self.leases, self.room, None, self.ledger, lambda: world.now)
        self.yoda: Any = Yoda(2, self.ledger)
        self.keeper.first()
        self.last = world.now

    def beat(self, wants: bool, state: str = "working") -> None:
        self.beats += 1
        self.world.pulses[self.name] = Pulse(b"%d" % self.beats, state, wants)

    def turn(self) -> None:
        world, ledger = self.world, self.ledger
        if world.now < self.frozen_until or self.over:
            return
        if world.now - self.last > TIMEOUT / 2:
            self.note(self.keeper.woken(world.now, self.yoda))
        self.last = world.now
        self.finish()
        while not self.yoda.draining and ledger.pending and ledger.in_flight < self.speed:
            start, stop = ledger.pending.next_from(world.rng.randrange(world.total)) or (0, 0)
            ledger.grant(1, start, min(stop, start + self.speed - ledger.in_flight))
        self.note(self.keeper.tick(world.now, self.yoda))
        assert not self.keeper.urgent or self.keeper._go.is_set()  # else the loop would have to come back at once
        if self.keeper._go.is_set() or world.now - self.keeper._round_at >= beat_interval(TIMEOUT):
            self.keeper._go.clear()
            self.keeper._round()
        self.beat(self.leases.wants)
        if ledger.open == 0 or self.yoda.draining:
            self.finish()
            self.end()

    def note(self, notes: list[Any]) -> None:
        self.lost += sum(len(n.values["parts"]) for n in notes if n.name == "lost_parts")

    def finish(self) -> None:
        """What was granted is done, and in the journal."""
        for start, stop in list(self.ledger.granted.get(1, ())):
            self.ledger.finish(1, start, stop)
            self.world.journals[self.name].append((self.world.now, start, stop))
            self.world.done.add(start, stop)
            self.world.processed += stop - start

    def end(self) -> None:
        self.over = True
        self.beat(False, "ended")

    def crash(self) -> None:
        """Everything in flight is gone. Where others can see its process they know at once."""
        self.over = True
        if self.here:
            self.world.pulses[self.name] = self.world.pulses[self.name]._replace(gone=True)


def simulate(seed: int, stale: float, chaos: bool) -> tuple[World, list[Alloc]]:
    """Run allocations until the task is complete; new ones start whenever none is left."""
    rng = random.Random(seed)
    total = rng.choice([1, 7, 300, 5000, 20_000])
    size = rng.choice([0, 0, 10])
    cuts = sorted(rng.sample(range(total), min(total, rng.randrange(1, 9))))
    world = World(rng, total, stale)
    edges = divide([0, *cuts, total], total, size)
    allocations: list[Alloc] = []

    def start() -> None:
        name = f"a{len(allocations):03d}"
        allocations.append(Alloc(world, name, edges, rng.randrange(1, 40), rng.random() < 0.5))

    for _ in range(rng.randrange(1, 5)):
        start()
    quiet = 300.0 if chaos else 0.0  # after that nothing bad happens any more
    while world.done.total < total or any(not a.over for a in allocations):
        world.now += STEP
        assert world.now < 5000, f"no end: {world.done.total} of {total}"
        living = [a for a in allocations if not a.over]
        if world.now < quiet and living:
            what, victim = rng.random(), rng.choice(living)
            if what < 0.02:
                victim.crash()
            elif what < 0.04:
                victim.frozen_until = world.now + rng.uniform(1, 4 * TIMEOUT)
            elif what < 0.05:
                victim.end()
            elif what < 0.08 and len(living) < 5:
                start()
        if world.done.total < total and not [a for a in allocations if not a.over]:
            start()
        for allocation in rng.sample(allocations, len(allocations)):
            allocation.turn()
            assert_sane(allocation)
    return world, allocations


def assert_sane(allocation: Alloc) -> None:
    ledger = allocation.ledger
    held = IntervalSet(allocation.leases.part(part) for part in sorted(allocation.keeper.held))
    for start, stop in ledger.pending:
        assert held.covers(start, stop), "pending outside of the parts it has"
    for start, stop in ledger.granted.get(1, ()):
        assert held.covers(start, stop), "granted, and another works on it"
    known = [IntervalSet(ledger.granted.get(1, ())), ledger.pending, ledger.elsewhere]
    assert sum(s.total for s in known) == IntervalSet(pair for s in known for pair in s).total, "an event in two places"
    open_ = IntervalSet(pair for s in known for pair in s)
    missing = [pair for a, b in open_.gaps(0, ledger.total) for pair in allocation.world.done.gaps(a, b)]
    assert not missing, f"forgotten by {allocation.name}: {missing}"


@pytest.mark.parametrize("seed", range(30))
def test_every_event_is_done_whatever_happens(seed: int) -> None:
    world, _ = simulate(seed, stale=random.Random(seed).choice([0.0, 3.0, 30.0]), chaos=True)
    assert list(world.done) == [(0, world.total)]


@pytest.mark.parametrize("seed", range(100, 120))
def test_nothing_is_done_twice_when_all_goes_well(seed: int) -> None:
    """Also where some join late: only crashes, freezes and old listings cost anything."""
    world, allocations = simulate(seed, stale=0.0, chaos=False)
    assert world.processed == world.total
    assert sum(a.lost for a in allocations) == 0


@pytest.mark.parametrize("seed", range(200, 220))
def test_old_listings_alone_cost_little(seed: int) -> None:
    world, _ = simulate(seed, stale=5.0, chaos=False)
    assert world.processed <= 1.1 * world.total + 40


def test_work_is_shared() -> None:
    """Two equal allocations, one of which comes when the other is half way: it does a good part of the rest."""
    rng = random.Random(0)
    world = World(rng, 10_000, 0.0)
    edges = divide([0], world.total)
    first = Alloc(world, "a", edges, 20, True)
    while world.done.total < 5000:
        world.now += STEP
        first.turn()
    second = Alloc(world, "b", edges, 20, True)
    while not (first.over and second.over):
        world.now += STEP
        first.turn()
        second.turn()
    assert world.processed == world.total
    mine = sum(stop - start for _, start, stop in world.journals["b"])
    assert 2000 <= mine <= 3000
