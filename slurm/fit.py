"""Find a shape, nodes x time, that fits into what is idle now and delays nobody.

Slurm's own forecast for a job that does not exist yet (`sbatch --test-only`) ignores backfill: measured on Slurm 22.05,
it puts a job behind everything that waits although a hole is open. So the holes are computed here, from what every
user may ask: which nodes are idle (sinfo), and when a waiting job is expected to need them (squeue --start). The job
is then submitted with exactly that time, so the backfill scheduler can put it there; if we misjudged, it waits and
delays nobody still.

`holes`, `best` and `smaller` are pure; `look` asks Slurm, `fit` decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eventrange.errors import SlurmRefused
from slurm.commands import Runner, output_of
from slurm.environment import expand, unix_time
from slurm.site import SlurmSite, clock_text, seconds
from slurm.submit import forecast

# slurmctld decides in whole minutes and a little after we looked: a job that ends just before the next is started
SLACK = 60
_IDLE = ("idle",)
_PLANNED = ("plnd", "planned")


@dataclass(frozen=True)
class Waiting:
    """A pending job: when Slurm expects to start it, and where. Not every job has been planned yet."""

    start: float | None
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """What Slurm says about a partition now."""

    idle: tuple[str, ...]
    waiting: tuple[Waiting, ...]
    limit: float | None
    """The partition's longest job in seconds; None if unlimited."""


@dataclass(frozen=True)
class Shape:
    """An allocation to ask for: `nodes` for `length` seconds, expected to start at unix time `start`."""

    nodes: int
    length: float
    start: float


def holes(place: Place, now: float, longest: float, most: int) -> list[Shape]:
    """Every shape that can start now and ends before a waiting job needs the nodes; at most one per number of nodes.

    A waiting job without planned nodes could get any of them, so it ends all holes; one without a planned start is
    behind those that have one.
    """
    upper = min(longest, place.limit) if place.limit is not None else longest
    free = []
    for node in place.idle:
        taken = [job.start for job in place.waiting if job.start is not None and (node in job.nodes or not job.nodes)]
        left = min(taken) - SLACK - now if taken else upper
        free.append(min(upper, left))
    free.sort(reverse=True)
    shapes = [Shape(count + 1, length, now) for count, length in enumerate(free[:most]) if length > 0]
    # more nodes for the same time make the smaller shape pointless
    return [a for a in shapes if not any(b.nodes > a.nodes and b.length >= a.length for b in shapes)]


def best(shapes: Sequence[Shape], shortest: float, startup: float = 30.0) -> Shape | None:
    """The shape that starts soonest and, among those, does most work; None if none is useful.

    A shape is useful if it lasts at least `shortest` seconds; `startup` seconds of it do no work. Starts within a
    minute of each other are equally soon.
    """
    useful = [shape for shape in shapes if shape.length >= max(shortest, startup + 1)]
    if not useful:
        return None
    soonest = min(shape.start for shape in useful)
    return max((s for s in useful if s.start < soonest + 60), key=lambda s: (s.nodes * (s.length - startup), s.length))


def smaller(nodes: int, length: float, shortest: float) -> list[tuple[int, float]]:
    """Shapes to ask the scheduler about when nothing is idle: all, then half, of nodes and of time, down to useful."""
    counts, lengths = [nodes], [length]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    while lengths[-1] / 2 >= shortest:
        lengths.append(lengths[-1] / 2)
    return [(count, wanted) for count in counts for wanted in lengths]


def look(partition: str | None, run: Runner) -> Place:
    """Ask Slurm what is idle and what waits in a partition (None: the default one)."""
    chosen = ["-p", partition] if partition else []
    sinfo = output_of(run, ["sinfo", "-h", "-N", *chosen, "-o", "%N|%P|%t|%l"])
    rows = [line.split("|") for line in sinfo.splitlines()]
    if not partition:
        rows = [row for row in rows if row[1].endswith("*")]
    # * + $ ... after the state: not responding, booting, in a reservation; such a node is not for us
    idle = dict.fromkeys(row[0] for row in rows if row[2] in _IDLE + _PLANNED)
    limits = [_limit(row[3]) for row in rows]
    queue = output_of(run, ["squeue", "-h", "--states=PENDING", "-o", "%S|%Y|%r"])
    waiting = [_waiting(*line.split("|", 2)) for line in queue.splitlines()]
    # a reservation, such as maintenance, takes its nodes as a waiting job would
    waiting += [_reserved(line) for line in run(["scontrol", "show", "reservation", "-o"]).out.splitlines()]
    return Place(tuple(idle), tuple(job for job in waiting if job), limits[0] if limits else None)


@dataclass(frozen=True)
class Fit:
    """The shape to ask for, the options for sbatch that ask for it, and the reason in words."""

    shape: Shape
    options: tuple[str, ...]
    why: str


def fit(script: Path, site: SlurmSite, run: Runner, now: float) -> Fit:
    """The shape for this script that starts soonest and still does useful work, at most what the site file asks for.

    First the holes that are open now. If none is useful, the scheduler is asked about smaller and smaller shapes, and
    the one it would start first is taken.
    """
    wanted, shortest = float(seconds(site.time)), float(site.shortest)
    place = look(site.partition, run)
    shape = best(holes(place, now, wanted, site.nodes), shortest)
    if shape is not None:
        why = f"{len(place.idle)} nodes are idle; {shape.nodes} of them are free for {clock_text(shape.length)}"
    else:
        shape = best(_ask(script, smaller(site.nodes, wanted, shortest), run), shortest)
        if shape is None:
            shape = Shape(site.nodes, wanted, forecast(script, run).start)
        why = f"no hole is long enough now; of what was asked, Slurm starts this first, in {shape.start - now:.0f} s"
    length = clock_text(shape.length)
    options = (f"--nodes={shape.nodes}", f"--time={length}", f"--time-min={clock_text(min(shortest, shape.length))}")
    return Fit(shape, options, why)


def _ask(script: Path, shapes: Sequence[tuple[int, float]], run: Runner, most: int = 12) -> list[Shape]:
    """What Slurm forecasts for each shape; those it refuses (too many nodes, too long) are left out."""
    answers = []
    for nodes, length in shapes[:most]:
        try:
            told = forecast(script, run, (f"--nodes={nodes}", f"--time={clock_text(length)}", "--time-min=0"))
        except SlurmRefused:
            continue
        answers.append(Shape(nodes, length, told.start))
    return answers


def _reserved(line: str) -> Waiting | None:
    found = re.search(r"StartTime=(\S+) .*?Nodes=(\S+)", line)
    return Waiting(unix_time(found[1]), tuple(expand(found[2]))) if found else None


def _waiting(start: str, nodes: str, reason: str) -> Waiting | None:
    if "Held" in reason or reason.startswith("Dependency"):
        return None
    planned = () if nodes in ("(null)", "n/a", "N/A", "") else tuple(expand(nodes))
    return Waiting(unix_time(start), planned)


def _limit(text: str) -> float | None:
    """Slurm prints limits as D-HH:MM:SS with leading zero parts left out, or infinite."""
    if not text[:1].isdigit():
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    total = 0
    for part in parts:
        total = 60 * total + part
    return float(int(days or 0) * 86400 + total)
