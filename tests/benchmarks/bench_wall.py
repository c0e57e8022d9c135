"""A measured site, replayed: what a wall-clock limit throws away, as whole jobs and with Yoda.

The site: allocations of one node, 128 single-core slots, a wall of 4.05 h; payloads of 1,200 events that take 1.93 h
in the median and 2.49 h at 90 % (lognormal); one allocation in a hundred loses its node. In 14 days 106,000 core-hours
were thrown away beside 384,000 delivered: 22 %.

Three views of the same events:

* *whole jobs*: each slot runs one payload after another; what the wall or the loss of the node cuts short is thrown
  away. The model has one free number: slots begin nothing in the last 45 minutes. (25 % if they always do, 20 % if they
  stop an hour before the end.)
* *Yoda, simulated*: the real dispatcher, Droid core, messages, journal, resume and accounting, in simulated time, at
  full size. Two allocations of one task: one loses its node, the other drains before the wall.
* *Yoda, for real*: `yoda run` under mpiexec with payloads that sleep, an hour being some seconds; walls by --time, with
  SIGKILL for what is left then, and the loss of a node by SIGKILL without warning.

The loss of a node is weighted as one allocation in a hundred. Starting up is left out for jobs, who pay it for every
payload, and counted for Yoda.

    python tests/benchmarks/bench_wall.py --picture docs/wall.svg
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchlib import command, journal, workspace, write_job
from numpy.typing import NDArray

from eventrange import messages
from eventrange.history import read_progress
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from yoda import svg
from yoda.accounting import account
from yoda.bench import Figure, table
from yoda.rehearse import tree

sys.path.insert(0, str(Path(__file__).parents[1] / "property"))
from simulated_droid import Nature, SimDroid, SimWorker
from simulator import FINGERPRINT, SimYoda, World

HOUR = 3600.0
WALL, MEDIAN, P90 = 4.05 * HOUR, 1.93 * HOUR, 2.49 * HOUR
SLOTS, EVENTS = 128, 1200  #: per node; per payload (552 MB of output at 0.46 MB per event)
NODE_LOSS, LOST_AT = 0.01, 0.62  #: of all allocations; of the wall, in the one that is simulated
QUIET = 0.75 * HOUR  #: before the wall, in which a slot begins no further payload
PUBLISHED = 106 / (106 + 384)
SIGMA = math.log(P90 / MEDIAN) / 1.2815515655446004  #: of the payloads
EVENT_SIGMA = 1.0  #: of the events of one payload
MOST_LOST = 1.0  #: per cent of the core-hours


@dataclass
class Lost:
    """Core-seconds of one allocation, and what its cores did: (lane, begin, end) in seconds."""

    total: float
    productive: float
    lost: float
    startup: float = 0.0
    lanes: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)

    def plain(self) -> dict[str, float]:
        empty = self.total - self.productive - self.lost - self.startup
        parts = {"productive": self.productive, "lost": self.lost, "startup": self.startup, "empty": empty}
        return {name: 100 * value / self.total for name, value in parts.items()}


def together(whole: Lost, node: Lost) -> dict[str, float]:
    """Per cent of the core time of many allocations, of which NODE_LOSS lose their node; `thrown_away` as the site
    counts: what was lost, of all that was used."""
    sums = {
        name: (1 - NODE_LOSS) * getattr(whole, name) + NODE_LOSS * getattr(node, name)
        for name in ("total", "productive", "lost", "startup")
    }
    out = Lost(**sums).plain()
    return {**out, "thrown_away": 100 * sums["lost"] / (sums["lost"] + sums["productive"])}


# -- the events --------------------------------------------------------------------------------------------------------


def event_times(payloads: int, events: int, median: float, seed: int) -> NDArray[np.float64]:
    """Seconds of each event, shape (payloads, events): their sums are lognormal with the site's median and sigma."""
    rng = np.random.default_rng(seed)
    spread = math.sqrt(max(0.0, SIGMA**2 - math.expm1(EVENT_SIGMA**2) / events))
    factor = median / events * np.exp(spread * rng.standard_normal(payloads))
    return factor[:, None] * rng.lognormal(-(EVENT_SIGMA**2) / 2, EVENT_SIGMA, (payloads, events))


# -- whole jobs --------------------------------------------------------------------------------------------------------


def whole_jobs(slots: int, wall: float, ends: float, payloads: NDArray[np.float64], quiet: float) -> Lost:
    """One allocation of `slots` cores that ends after `ends` seconds, each running `payloads` (seconds) in turn."""
    out = Lost(slots * ends, 0.0, 0.0, lanes={"productive": [], "lost": []})
    queue = iter(payloads.tolist())
    for lane in range(slots):
        at = 0.0
        while at == 0.0 or at < wall - quiet:
            took = next(queue)
            if at + took > ends:
                out.lost += ends - at
                out.lanes["lost"].append((lane, at, ends))
                break
            out.productive += took
            out.lanes["productive"].append((lane, at, at + took))
            at += took
    return out


def many_jobs(allocations: int, quiet: float, seed: int) -> dict[str, float]:
    """Per cent of the core time of many allocations."""
    rng = np.random.default_rng(seed)
    found = []
    for ends in (np.full(allocations, WALL), rng.uniform(0, WALL, allocations)):
        sums = Lost(0.0, 0.0, 0.0)
        for end in ends.tolist():
            one = whole_jobs(SLOTS, WALL, end, MEDIAN * np.exp(SIGMA * rng.standard_normal(20 * SLOTS)), quiet)
            sums.total, sums.productive, sums.lost = (
                sums.total + one.total,
                sums.productive + one.productive,
                sums.lost + one.lost,
            )
        found.append(sums)
    return together(*found)


# -- Yoda, simulated ---------------------------------------------------------------------------------------------------


class _Worker(SimWorker):
    """A worker that notes what is cut short."""

    def die(self, number: int, how: str) -> None:
        if number == self.number and self.alive and self.current is not None:
            self.droid.world.cut.append((self.index, self.began, self.droid.world.now))
        super().die(number, how)


class _World(World):
    """Time, network and disk of one node, and none of the simulator's faults."""

    def __init__(self, folder: str, seconds: list[float], startup: float) -> None:
        super().__init__(0)
        shutil.rmtree(self.root)
        self.root, self.taskdir, self.startup = folder, TaskDir(folder), startup
        os.makedirs(self.taskdir.journals)
        self.plan = replace(
            self.plan,
            **{"total": len(seconds), "cuts": [0], "seconds": seconds, "size": 0, "range_seconds": 0.5, "named": False},
            **{"poison": {}, "misfits": set(), "flaky": 0.0, "group": False, "timeout": None, "schemas": False},
            **{"max_attempts": 3, "grace": 30.0, "network": 3e-4},
        )
        self.cut: list[tuple[int, float, float]] = []

    def fate(self, event: int, attempt: int, droid: SimDroid) -> tuple[str, float]:
        return "ok", self.plan.seconds[event]

    def sync_seconds(self) -> float:
        return 0.002 + (0.2 * self.rng.random() if self.rng.random() < 0.05 else 0.0)

    def arrival(self, source: int, target: int) -> float:
        return self.now + self.plan.network

    def allocate(
        self, name: str, workers: int, wall: float, ends: float, look: Callable[[], None] = lambda: None
    ) -> Lost:
        """One allocation of one node, killed after `ends` seconds if it is still there. `look` is called every hour."""
        self.allocation, self._queue, self._arrived, self.cut, self.images = name, [], {}, [], {}
        self.droids = {}
        begin = self.now
        self.yoda = _Yoda(self, 1)
        droid = self.droids[1] = SimDroid(self, 1, Nature(workers))
        droid.workers = [_Worker(droid, index) for index in range(workers)]
        droid.begin(self.startup)
        self.yoda.dispatcher.deadline = begin + wall
        self.after(0.5, self.yoda, self.yoda.tick)
        self.after(ends, None, lambda: self._kill(droid))
        for hour in range(1, int(ends / HOUR) + 1):
            self.after(hour * HOUR, None, look)
        while not self.yoda.over:
            at, _, node, call = heapq.heappop(self._queue)
            if node is None or not node.dead:
                self.now, self.steps = at, self.steps + 1
                call()
        found = self._account(name, workers, begin, ends)
        self.now = begin + ends
        return found

    def _kill(self, droid: SimDroid) -> None:
        for worker in droid.workers:
            worker.die(worker.number, "the wall")
        self.yoda.crash()

    def _account(self, name: str, workers: int, begin: float, ends: float) -> Lost:
        """What the project's own accounting makes of the journal; what the allocation gave back early is empty."""
        found = next(a for a in account(self.taskdir, FINGERPRINT).allocations if a.name == name)
        parts = found.core_seconds.parts()
        lanes: dict[str, list[tuple[int, float, float]]] = {"productive": [], "lost": []}
        latest = [self.startup] * workers
        for rows in _rows(self.taskdir, name):
            for lane, time_, wall in rows[rows["kind"] == Kind.DONE][["worker", "time", "wall"]].tolist():
                lanes["productive"].append((lane, time_ - begin, time_ - begin + wall))
                latest[lane] = max(latest[lane], time_ - begin + wall)
        # What was done and not yet durable is lost with what was under way.
        lanes["lost"] = [(lane, min(latest[lane], since - begin), end - begin) for lane, since, end in self.cut]
        lanes["startup"] = [(lane, 0.0, self.startup) for lane in range(workers)]
        lost = parts["lost_in_flight"] + parts["retried"] + parts["hung"]
        return Lost(workers * ends, parts["productive"], lost, parts["startup"], lanes)


class _Yoda(SimYoda):
    """Without the checks of every law after every step, which are the simulator's business."""

    def check(self) -> None: ...

    def check_idle(self) -> None: ...

    def check_grant(self, droid: int, grant: messages.Grant) -> None: ...

    def check_rows(self, rows: Any) -> None:
        """L1, and then the image is forgotten."""
        for droid, offset in rows[rows["kind"] == Kind.DONE][["droid", "offset"]].tolist():
            if not self.world.images.pop((self.world.allocation, droid, offset))[3]:
                raise AssertionError(f"recorded before it is durable: {droid}, {offset}")


def _rows(taskdir: TaskDir, name: str) -> list[Any]:
    from eventrange.history import Story

    return [entry for _, entry in Story(taskdir, FINGERPRINT, [name]).whole() if not isinstance(entry, dict)]


def simulate(slots: int, hour: float, seed: int = 3) -> dict[str, Any]:
    """Both allocations at `slots` workers; `hour` shrinks the wall and the payloads but not the events."""
    wall, events = WALL * hour, max(20, int(EVENTS * hour))
    payloads = int(slots * wall / (MEDIAN * hour) * 3)
    times = event_times(payloads, events, MEDIAN * hour, seed)
    folder = tempfile.mkdtemp(prefix="yoda-wall-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    begun = time.perf_counter()
    try:
        world = _World(os.path.join(folder, "task"), times.ravel().tolist(), startup=10.0 * hour)
        node = world.allocate("a000", slots, wall, LOST_AT * wall)
        whole = world.allocate("a001", slots, wall, wall)
        progress = read_progress(world.taskdir, FINGERPRINT)
        journals = sum(os.path.getsize(world.taskdir.journal(name)) for name in ("a000", "a001"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sums = times.sum(axis=1)
    jobs_whole = whole_jobs(slots, wall, wall, sums, QUIET * hour)
    jobs_node = whole_jobs(slots, wall, LOST_AT * wall, sums, QUIET * hour)
    return {
        "yoda": together(whole, node),
        "yoda_wall": whole.plain(),
        "yoda_node": node.plain(),
        "events": progress.done.total,
        "steps": world.steps,
        "journal_mb": journals / 1e6,
        "wall_seconds": time.perf_counter() - begun,
        "panels": {"jobs": (jobs_whole, jobs_node), "yoda": (whole, node)},
        "wall": wall,
    }


# -- Yoda, for real ----------------------------------------------------------------------------------------------------


def real(workers: int, second: float, events: int) -> dict[str, Any]:
    """`yoda run` in small: an hour is `second` seconds, a payload has `events` events."""
    wall, median = WALL / HOUR * second, MEDIAN / HOUR * second
    payloads = int(workers * 3.2 * wall / median)
    with workspace() as folder:
        np.save(folder / "times.npy", event_times(payloads, events, median, 5).ravel())
        site = folder / "site.yaml"
        site.write_text("site: wall\nmargin: 1s\ngrace: 2s\n")
        job = write_job(
            folder, "wall", "Naps", payloads * events, options={"file": str(folder / "times.npy")},
            ranges={"seconds": 0.1},
        )  # fmt: skip
        task = folder / "wall.task"
        parts = {}
        for name, ends, warned in (("node", LOST_AT * wall, False), ("wall", wall, True)):
            flags = ["--task", str(task), "--site", str(site), "--workers", str(workers)]
            flags += ["--time", f"{wall:.1f}s"] if warned else []
            _until(command(job, *flags), ends, folder)
            parts[name] = _paid(TaskDir(str(task)), workers, ends)
        rows, _ = journal(TaskDir(str(task)))
    out: dict[str, Any] = {name: found.plain() for name, found in parts.items()}
    out |= {"yoda": together(parts["wall"], parts["node"]), "events": int((rows["kind"] == Kind.DONE).sum())}
    return out


def _until(words: list[str], seconds: float, folder: Path) -> None:
    """Run a command and SIGKILL everything of it after `seconds`."""
    with open(folder / "output", "ab") as output:
        child = subprocess.Popen(words, stdout=output, stderr=output)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in tree(child.pid):
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass
            child.wait()


def _paid(taskdir: TaskDir, workers: int, ends: float) -> Lost:
    """The latest allocation, by the project's own accounting."""
    import yaml

    fingerprint = yaml.safe_load(Path(taskdir.task_file).read_text())["fingerprint"]
    found = account(taskdir, fingerprint).allocations[-1]
    parts = found.core_seconds.parts()
    lost = parts["lost_in_flight"] + parts["retried"] + parts["hung"]
    return Lost(workers * ends, parts["productive"], lost, parts["startup"])


# -- the picture -------------------------------------------------------------------------------------------------------

WIDE, TALL, TOP, SIDE, BETWEEN = 380.0, 192.0, 66.0, 44.0, 52.0


def picture(found: dict[str, Any], jobs: dict[str, float], slots: int) -> str:
    """Cores over time: whole jobs beside Yoda, an allocation that ends at the wall above one that loses its node.

    `jobs` is what whole jobs come to in many allocations.
    """
    wall, out = found["wall"], ['<rect width="100%" height="100%" fill="#fff"/>']
    out.append(svg.text(SIDE, 20, f"{slots} cores of one node under a {WALL / HOUR:g}-h wall", font_size=14))
    out.append(svg.legend(SIDE, 40, ("productive", "idle", "lost")))
    for column, (who, title) in enumerate((("jobs", "whole jobs"), ("yoda", "Yoda, event by event"))):
        x = SIDE + column * (WIDE + BETWEEN)
        for row, kind in enumerate(("99 of 100 allocations end at the wall", "1 of 100 loses its node")):
            y = TOP + row * (TALL + 46)
            out.append(_panel(found["panels"][who][row], slots, wall, x, y, f"{title}: {kind}"))
    bottom = TOP + 2 * (TALL + 46) - 2
    for column, share in enumerate((jobs, found["yoda"])):
        away = share["thrown_away"]
        away = f"{away:.0f} %" if away >= 1 else "under 0.1 %" if away < 0.1 else f"{away:.1f} %"
        words = f"{away} of the work thrown away, {share['empty']:.1f} % of the time empty"
        out.append(svg.text(SIDE + column * (WIDE + BETWEEN), bottom + 8, words, font_weight="bold"))
    title = "What a wall-clock limit throws away: whole jobs, and Yoda"
    return svg.svg(2 * SIDE + 2 * WIDE + BETWEEN - 20, bottom + 20, "".join(out), title)


def _panel(one: Lost, slots: int, wall: float, x: float, y: float, title: str) -> str:
    high = TALL / slots
    out = [svg.text(x, y - 6, title)]
    out.append(
        f'<rect x="{x}" y="{y}" width="{WIDE}" height="{TALL}" fill="#fff" stroke="#6b7280" stroke-width="0.6"/>'
    )
    for state in ("startup", "productive", "lost"):
        boxes = []
        for lane, begin, end in _joined(one.lanes.get(state, []), 0.7 * wall / WIDE):
            left, right = x + begin / wall * WIDE, x + end / wall * WIDE
            if right - left >= 0.05:
                boxes.append(f"M{left:.1f} {y + lane * high:.1f}H{right:.1f}v{high:.1f}H{left:.1f}z")
        if boxes:
            out.append(f'<path fill="{svg.fill(state)}" d="{"".join(boxes)}"/>')
    if one.total < slots * wall:
        place = x + one.total / slots / wall * WIDE
        out.append(f'<path d="M{place:.1f} {y - 2}v{TALL + 4}" stroke="#1f2933" stroke-dasharray="4 2"/>')
        out.append(svg.text(place + 5, y + TALL / 2, "the node is lost"))
    for hour in range(5):
        place = x + hour * HOUR / (WALL / HOUR) / HOUR * WIDE
        out.append(f'<path d="M{place:.1f} {y + TALL}v4" stroke="#6b7280"/>')
        out.append(svg.text(place, y + TALL + 15, f"{hour} h", "middle", fill="#52606d"))
    return "".join(out)


def _joined(boxes: list[tuple[int, float, float]], gap: float) -> list[tuple[int, float, float]]:
    """Boxes of a lane that touch, or nearly, as one: a picture need not know every event."""
    out: list[tuple[int, float, float]] = []
    for lane, begin, end in sorted(boxes):
        if out and out[-1][0] == lane and begin - out[-1][2] < gap:
            out[-1] = (lane, out[-1][1], max(end, out[-1][2]))
        else:
            out.append((lane, begin, end))
    return out


# -- as a benchmark ----------------------------------------------------------------------------------------------------


def run(quick: bool = False) -> dict[str, Any]:
    """Per cent of core time by outcome: jobs, Yoda simulated, Yoda for real."""
    found = simulate(8, 0.1) if quick else simulate(SLOTS, 1.0)
    found.pop("panels")
    return {
        "published": 100 * PUBLISHED,
        "jobs": many_jobs(20 if quick else 400, QUIET, 1),
        "jobs_always": many_jobs(20 if quick else 400, 0.0, 2),
        "jobs_hour": many_jobs(20 if quick else 400, HOUR, 3),
        "simulated": found,
        "real": real(4, 2.5, 20) if quick else real(16, 30.0, EVENTS),
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """What is thrown away of the core time used."""
    jobs, simulated, here = result["jobs"], result["simulated"]["yoda"], result["real"]["yoda"]
    away, empty = "core time used that is thrown away", "core time that stays empty"
    return [
        Figure(f"whole jobs: {away}", jobs["thrown_away"], "%", "as published", result["published"]),
        *(
            Figure(
                f"{who}: {away}", found["thrown_away"], "%", "whole jobs", jobs["thrown_away"], f"<= {MOST_LOST:g} %",
                found["thrown_away"] <= MOST_LOST,
            )
            for who, found in (("simulated", simulated), ("for real", here))
        ),
        Figure(f"simulated: {empty}", simulated["empty"], "%", "whole jobs", jobs["empty"]),
        Figure(f"for real: {empty}", here["empty"], "%", "whole jobs", jobs["empty"]),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--picture", type=Path, help="only simulate, and draw the allocations there, as SVG")
    parser.add_argument("--real", action="store_true", help="only run for real")
    args = parser.parse_args()
    if args.picture:
        found = simulate(8, 0.1) if args.quick else simulate(SLOTS, 1.0)
        jobs = many_jobs(20 if args.quick else 400, QUIET, 1)
        args.picture.write_text(picture(found, jobs, 8 if args.quick else SLOTS))
        found.pop("panels")
        print(json.dumps(found, indent=1))
    elif args.real:
        print(json.dumps(real(4, 2.5, 20) if args.quick else real(16, 30.0, EVENTS), indent=1))
    else:
        result = run(args.quick)
        print(json.dumps(result, indent=1))
        print(table(figures(result)))


if __name__ == "__main__":
    main()
