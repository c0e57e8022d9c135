"""Several allocations on one task: who works on which part of the axis. Pure: files and clock are passed in.

The axis is divided into at most 256 parts, the same for everybody since they follow from axis and range size alone.
Whoever works on a part holds a lease on it: `leases/PART.GENERATION`, made exclusively, so that one allocation gets it
and all others see who. Leases save work, they do not protect it: two allocations on the same part are a waste and
nothing more, since the first record of an event wins (L2). All that follows leans on this. No file here is ever
synced, a listing of the folder may be seconds old (NFS, Lustre), a verdict of death may be wrong: each costs some
events done twice, and none is lost, because a part counts as finished only when the journals say so.

**How much is claimed.** An eighth of what there is at the start, later what is done in about a minute, always before
the ledger runs dry, and never more than a fair share while others are there. Claiming little and often means that who
comes late finds work, and that a crash leaves little to take over; a single allocation ends up with everything.

**Who is alive.** Every allocation rewrites a counter in `leases/NAME.alive`. A watcher counts the seconds it has itself
seen that counter stand still, so clocks need not agree, and a watcher that was frozen does not hold its own absence
against others. At `timeout` seconds the allocation is taken to be dead. It is at once if its file says that it ended,
if it ran on this machine and its process is gone, or if Slurm has since started the same job again.

**Taking over.** Claim the next generation; then read the journals once more: what is durable there is done, the rest is
ours. A sleeper that wakes sees the higher generation and drops what it has not begun. In doubt the higher generation
wins, and the highest one ever seen is remembered, so that an old listing cannot bring a lost lease back.

**Nothing left to claim.** An allocation that has run dry while others hold open parts says that it wants some; a
holder then gives away parts in which nothing has begun, by making the next generation in the name of nobody (`free`).
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eventrange.errors import CannotWrite
from eventrange.interval_arrays import covered, unite
from eventrange.intervals import Array

PARTS = 256  #: of the axis, at most: a claim is a call to a file server, and a part should be minutes of work
HORIZON = 30.0  #: seconds of work an allocation wants to have in hand
FIRST = 8  #: the first claim is at most 1/FIRST of what there is: nothing is known yet of how fast we are
READ = 10.0  #: seconds between readings of the others' journals
FREE = "free"  #: owner of a part that was given away
STEP = 4  #: no single look counts as more than timeout/STEP seconds of silence


def divide(
    cuts: Sequence[int], total: int, size: int = 0, count: int = PARTS, whole: bool = False
) -> NDArray[np.int64]:
    """Edges of the parts, shape (parts + 1,): sorted, from 0 to `total`, none empty.

    `cuts` are the positions that no range may cross, sorted; an edge is one of them where there is one near, else it
    lies on the grid of ranges of `size` events that begins at the cut before it. `whole`: edges are cuts alone, since
    what lies between two of them stays together.
    """
    if total <= 0:
        return np.zeros(1, np.int64)
    low, high = bisect_right(cuts, 0), bisect_left(cuts, total)  # those within
    count = max(1, min(count, total // max(1, size)))
    edges = {0, total}
    for number in range(1, count):
        ideal = total * number // count
        at = bisect_left(cuts, ideal, low, high)
        near = min(cuts[max(low, at - 1) : min(high, at + 1)], key=lambda cut: abs(cut - ideal), default=0)
        if near and (whole or abs(near - ideal) * 4 * count <= total):
            edges.add(near)
            continue
        if whole:
            break  # it is all one
        if size > 1:
            before = bisect_right(cuts, ideal, low, high) - 1
            base = cuts[before] if before >= low else 0
            ideal = base + (ideal - base) // size * size
        edges.add(ideal)
    return np.array(sorted(edges), np.int64)


class Lease(NamedTuple):
    """One file: the allocation `owner` holds `part` since `generation`, if there is no higher generation."""

    part: int
    generation: int
    owner: str


class Pulse(NamedTuple):
    """What the alive file of an allocation says. `beat` is different after every beat."""

    beat: bytes
    state: str = "working"  #: starting, working, merging, ended, or missing if there is no such file
    wants: bool = False  #: it has nothing to do
    gone: bool = False  #: known to be dead: no need to wait


@dataclass(frozen=True)
class Known:
    """What all journals say. Sets of positions as (starts, stops)."""

    done: tuple[Array, Array]
    quarantined: tuple[Array, Array]
    attempts: Mapping[int, int] = field(default_factory=dict)  #: event -> failed attempts
    schema: str = ""  #: of the first journal that has one
    schema_of: str = ""  #: and whose that is


_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64))


class Room(Protocol):
    """The folder of leases and the journals, as this allocation sees them; what it sees may be old."""

    def leases(self) -> Iterable[Lease]: ...

    def pulses(self, names: Collection[str]) -> dict[str, Pulse]:
        """Of all allocations there are; those of `names` that are not there have state `missing`."""

    def claim(self, part: int, generation: int, owner: str) -> str:
        """Make a lease; returns whose it is now."""

    def drop(self, part: int, generation: int) -> None:
        """Remove a lease that is of no use any more."""

    def known(self, over: Callable[[str], bool], names: Collection[str]) -> Known:
        """Read what is new in all journals, also those of `names`; of allocations that are `over` to the very end."""


@dataclass(frozen=True)
class Need:
    """How an allocation stands."""

    pending: int = 0  #: events it could hand out
    rate: float = 0.0  #: events it finishes per second; 0: not known yet
    workers: int = 0
    working: bool = True  #: False: it claims nothing more

    @property
    def low(self) -> int:
        """Pending events below which it claims more whatever is fair: the work of a moment."""
        return max(int(2 * self.rate), 4 * self.workers + 1)

    @property
    def enough(self) -> int:
        """Pending events below which it claims more, if that is fair."""
        return max(int(self.rate * HORIZON), self.low)


@dataclass
class Update:
    """What a look at the folder brought. Parts by number."""

    wanted: bool = False  #: whether something was to be claimed, if there was anything
    adopt: list[int] = field(default_factory=list)  #: ours from now on
    lost: list[int] = field(default_factory=list)  #: ours no more
    taken: dict[int, str] = field(default_factory=dict)  #: adopted from an allocation believed dead -> its name
    known: Known | None = None  #: if journals were read
    starving: int = 0  #: living allocations that want work while nothing is to be had
    others: list[str] = field(default_factory=list)  #: living allocations that hold open parts
    claimable: int = 0  #: open events nobody alive works on
    failed: OSError | CannotWrite | None = None  #: why nothing more could be claimed


class Watch:
    """Who is alive, by the watcher's own clock."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.pulses: dict[str, Pulse] = {}
        self._silent: dict[str, float] = {}
        self._last: float | None = None

    def look(self, now: float, pulses: Mapping[str, Pulse]) -> None:
        step = 0.0 if self._last is None else min(now - self._last, self.timeout / STEP)
        self._last = now
        for name, pulse in pulses.items():
            before = self.pulses.get(name)
            same = before is not None and before.beat == pulse.beat
            self._silent[name] = self._silent[name] + step if same else 0.0
        self.pulses = dict(pulses)

    def alive(self, name: str) -> bool:
        pulse = self.pulses.get(name)
        if pulse is None or pulse.gone or pulse.state == "ended":
            return False
        return self._silent[name] < self.timeout


class Leases:
    """One allocation's part in it. `round` is called every few seconds, and when the allocation needs work."""

    def __init__(self, name: str, edges: NDArray[np.int64], timeout: float) -> None:
        self.name, self.edges = name, edges
        self.watch = Watch(timeout)
        count = len(edges) - 1
        self.generation = [0] * count  #: the highest ever seen
        self.owner = [""] * count  #: of that generation
        self.mine: set[int] = set()
        self._adopted: set[int] = set()  # those of which an update has told
        self.wants = False
        self.known = Known(_NONE, _NONE)  #: what the journals said when they were last read
        self._open = np.diff(edges)  # events of each part not known to be done
        self._last: int | None = None  # the part we claimed last
        self._unread = True  # others may have done something since we last read
        self._read_at = -np.inf
        self._to_free: deque[int] = deque()

    def begin(self, now: float, room: Room) -> Known:
        """The first look, before anything is claimed."""
        self._look(now, room)
        return self._read(now, room)

    def part(self, number: int) -> tuple[int, int]:
        """[start, stop) of a part."""
        return int(self.edges[number]), int(self.edges[number + 1])

    def living(self) -> list[str]:
        """Other allocations that are alive."""
        return [name for name in self.watch.pulses if name != self.name and self.watch.alive(name)]

    def give(self, parts: Iterable[int]) -> None:
        """These parts are not worked on any more; the next round gives them away. May be called from another thread."""
        self._to_free.extend(parts)

    def round(self, now: float, room: Room, need: Need) -> Update:
        """Look, read, give, claim."""
        out = Update()
        self._look(now, room)
        living = self.living()
        while self._to_free:
            part = self._to_free[0]
            if self.owner[part] == self.name:
                self._make(room, part, FREE)
            self._to_free.popleft()
        out.lost = sorted(part for part in self.mine if self.owner[part] != self.name)
        self.mine.difference_update(out.lost)
        self._adopted.intersection_update(self.mine)
        dry = need.working and need.pending == 0
        if (self._unread or living) and (now >= self._read_at + READ or (dry and now >= self._read_at + 1.0)):
            out.known = self._read(now, room)
        out.wanted = need.working and need.pending < need.enough
        if out.wanted:
            try:
                self._claim(room, need, living, out)
            except (OSError, CannotWrite) as error:  # what was claimed before is ours
                out.failed = error
        self._adopt(now, room, living, out)
        out.claimable = sum(int(self._open[part]) for part in self._claimable())
        holders = {self.owner[part] for part in np.flatnonzero(self._open).tolist()}
        out.others = sorted(holders.intersection(living))
        self.wants = dry and not out.adopt
        if not dry and not out.claimable:
            out.starving = sum(self.watch.pulses[name].wants for name in living)
        return out

    def open(self, part: int) -> int:
        """Events of a part not known to be done."""
        return int(self._open[part])

    # -- inner workings ----------------------------------------------------------------------------------------------

    def _look(self, now: float, room: Room) -> None:
        for lease in room.leases():
            self._see(lease)
        owners = {owner for owner in self.owner if owner not in ("", FREE, self.name)}
        self.watch.look(now, room.pulses(owners))

    def _see(self, lease: Lease) -> None:
        part, generation, owner = lease
        if 0 <= part < len(self.owner) and generation > self.generation[part]:
            self.generation[part], self.owner[part] = generation, owner
            if owner == self.name:
                self.mine.add(part)
            else:
                self._unread = True

    def _make(self, room: Room, part: int, owner: str) -> bool:
        generation = self.generation[part] + 1
        got = room.claim(part, generation, owner)
        self._see(Lease(part, generation, got))
        if got == owner and generation > 2:
            # The one before stays, for those whose listing is old: they would make it again and believe it theirs.
            room.drop(part, generation - 2)
        return got == owner

    def _read(self, now: float, room: Room) -> Known:
        known = room.known(self._over, {owner for owner in self.owner if owner not in ("", FREE)})
        self.learn(now, known)
        return known

    def learn(self, now: float, known: Known) -> None:
        """Take in what the journals say."""
        self.known = known
        self._read_at = now
        self._unread = bool(self.living())  # they go on writing
        starts, stops = self.edges[:-1], self.edges[1:]
        settled = unite(np.concatenate((known.done[0], known.quarantined[0])),
                        np.concatenate((known.done[1], known.quarantined[1])))  # fmt: skip
        self._open = (stops - starts) - covered(starts, stops, *settled)

    def _over(self, name: str) -> bool:
        """Whether nobody will ever write in that journal again. One that is merely silent may wake up."""
        pulse = self.watch.pulses.get(name)
        return name != self.name and (pulse is None or pulse.gone or pulse.state == "ended")

    def _free(self, part: int) -> bool:
        owner = self.owner[part]
        return owner in ("", FREE) or (owner != self.name and not self.watch.alive(owner))

    def _claimable(self) -> list[int]:
        return [part for part in np.flatnonzero(self._open).tolist() if self._free(part)]

    def _claim(self, room: Room, need: Need, living: list[str], out: Update) -> None:
        """Claim parts until there is enough to do."""
        there = self._claimable()
        if need.pending and any(self.watch.pulses[name].wants for name in living):
            there = [part for part in there if self.owner[part] != FREE]  # given to those that have nothing at all
        events = sum(int(self._open[part]) for part in there)
        wanted = int(2 * HORIZON * need.rate) if need.rate else need.pending + events // FIRST
        share = (need.pending + events) // (1 + len(living))
        wanted = max(min(wanted, share), need.low) - need.pending
        while there and wanted > 0:
            part = self._choose(there, living)
            there.remove(part)
            before = self.owner[part]
            size = int(self._open[part])
            if self._make(room, part, self.name):
                self._last = part
                if before not in ("", FREE):
                    out.taken[part] = before
                wanted -= size
            elif not self._free(part):
                self._unread = True

    def _adopt(self, now: float, room: Room, living: list[str], out: Update) -> None:
        """See in the journals what is left of the parts that are newly ours: also of one that the file server made
        ours while it said that it could not."""
        new = self.mine - self._adopted
        if new and (self._unread or living or any(self.generation[part] > 1 for part in new)):
            out.known = self._read(now, room)
        out.adopt = sorted(new)
        self._adopted |= new

    def _choose(self, there: list[int], living: list[str]) -> int:
        """Which of the sorted parts `there` to claim: the next to our last one, else where we are in nobody's way."""
        if self._last is not None:
            at = bisect_left(there, self._last + 1)
            if at < len(there) and there[at] == self._last + 1:
                return there[at]
        run, longest = there[:1], there[:1]
        for part in there[1:]:
            run = [*run, part] if part == run[-1] + 1 else [part]
            longest = run if len(run) > len(longest) else longest
        first = longest[0]
        if not living or self.owner[first] == FREE or first == 0 or self.owner[first - 1] == self.name:
            at = 0
            if living and len(longest) == len(self.owner):  # several that start together should not all begin there
                at = zlib.crc32(self.name.encode()) * len(longest) >> 32
        else:  # somebody is coming from the left
            at = len(longest) // 2
        return longest[at]
