"""Chaos: real runs of one task, hit by random kills at random moments until it is complete; then the laws are checked.

    python tests/crash/chaos.py --kills 30 --seed 7 [--mpi mpich] [--events 4000] [--droids 2] [--workers 2]

Who is hit: a worker, a zygote, a guardian, a Droid, Yoda, the launcher, everything at once; or somebody is stopped
for a while. Checked at the end: every event exactly once and the bytes of an undisturbed run (L2, L3); nothing that was
acknowledged granted again (L4); and every event that was finished twice was, the first time, finished shortly before a
kill. A kill that hits nobody (the role is not there at that moment) is not counted.

The seed decides whom and when; the machine decides what they were doing, so a seed does not replay a run exactly.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_MPI = str(Path(__file__).parents[1] / "mpi")
if _MPI not in sys.path:
    sys.path.insert(0, _MPI)

import runs  # noqa: E402
from runs import Place, Running  # noqa: E402

#: Says which event it has finished, and when: one line of 28 bytes in one write, so lines of many workers never mix.
PAYLOAD = """
import os, time
import numpy as np

SEEN = os.open(os.path.join(os.path.dirname(__file__), "seen"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def process(event, random):
    time.sleep(float(random.exponential(0.004)))
    fields = {"x": random.normal(size=3), "pt": random.exponential(size=int(random.integers(0, 4)))}
    os.write(SEEN, b"%10d %16.6f\\n" % (event, time.time()))
    return fields
"""
#: Whom to hit, and how often compared with the others.
TARGETS = {"worker": 3, "zygote": 2, "guardian": 1, "droid": 3, "yoda": 3, "launcher": 1, "all": 3, "stop": 1}
TARGETS["term"] = 1


@dataclass
class Outcome:
    """What chaos did and what it cost."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    allocations: int = 0
    events: int = 0
    finished_twice: int = 0  #: events processed to the end more than once
    done_twice: int = 0  #: events with two DONE records
    granted_again: int = 0  #: events granted although they were done
    oldest: float = 0.0  #: longest time between the first finish of such an event and the kill that undid it
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        hit = ", ".join(f"{count} {name}" for name, count in sorted(self.kills.items()))
        return (
            f"seed {self.seed}: {sum(self.kills.values())} hits ({hit}), {self.allocations} allocations, "
            f"{self.events} events, {self.finished_twice} processed twice (at most {self.oldest:.2f} s before a hit), "
            f"{self.done_twice} done twice, {self.granted_again} acknowledged and granted again"
            + "".join(f"\n  WRONG: {text}" for text in self.wrong)
        )


class Chaos:
    """Drives one task to its end under fire."""

    def __init__(
        self, place: Place, seed: int, kills: int, events: int = 3000, droids: int = 2, workers: int = 2
    ) -> None:
        self.place, self.wanted, self.events = place, kills, events
        self.droids, self.workers = droids, workers
        self.chance = random.Random(seed)
        self.outcome = Outcome(seed, events=events)
        self.spans: list[tuple[float, float, list[float]]] = []  # begin and end of each run, moments of hits; unix time
        self.moments: list[float] = []  # of hits on the run at hand
        place.site(silent="10s", starting="8s")
        place.job(PAYLOAD, "process", inputs={"format": "generate", "events": events}, ranges={"max_attempts": 1000})

    def run(self) -> Outcome:
        """Until enough has been hit and the task is complete; one that ends early begins anew in another directory."""
        number = 0
        while True:
            task = f"task-{number}"
            self._to_the_end(task)
            self._check(task)
            number += 1
            if sum(self.outcome.kills.values()) >= self.wanted or self.outcome.wrong:
                return self.outcome

    def _to_the_end(self, task: str) -> None:
        (self.place.folder / "seen").unlink(missing_ok=True)
        self.spans.clear()
        for _ in range(1000):
            self.moments, begun = [], time.time()
            how = self.chance.choice(["own", "own", "mpirun"])
            if how == "own":
                run = self.place.start("--droids", str(self.droids), task=task, workers=self.workers)
            else:
                run = self.place.start(task=task, ranks=self.droids + 1, workers=self.workers)
            self.outcome.allocations += 1
            while run.process.poll() is None and sum(self.outcome.kills.values()) < self.wanted:
                self._pause(run, self.chance.expovariate(1 / 1.5))
                if run.process.poll() is None:
                    self._hit(run)
            done = run.wait()  # fails if a process of the run is left, or if it never ends
            self.spans.append((begun, time.time(), self.moments))
            merged = Path(self.place.task(task).merged, "merge.json").exists()
            if done.code == 0 and self.place.done(task) == self.events and merged:
                return
            if done.code == 0 and run.process.args[1].endswith("entry.py"):  # type: ignore[index,union-attr]
                self.outcome.wrong.append(f"exit 0, and the task is not complete or not merged: {run.said()}")
                return
        self.outcome.wrong.append("1000 allocations were not enough")

    def _pause(self, run: Running, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and run.process.poll() is None:
            time.sleep(0.01)

    def _hit(self, run: Running) -> None:
        target = self.chance.choices(list(TARGETS), list(TARGETS.values()))[0]
        if target == "all":
            run.kill_everything()
        elif target == "term":
            run.signal(run.process.pid, signal.SIGTERM if run.process.args[1].endswith("entry.py") else signal.SIGUSR1)  # type: ignore[index,union-attr]
        elif target == "stop":
            some = [p for p in runs.processes(run.mark) if p.role in ("worker", "zygote", "droid", "yoda")]
            if not some:
                return
            chosen = self.chance.choice(some)
            run.signal(chosen.pid, signal.SIGSTOP)
            self.moments.append(time.time())
            self._pause(run, self.chance.uniform(0.05, 3.0))
            run.signal(chosen.pid, signal.SIGCONT)
        else:
            found = run.find(target)
            if not found:
                return
            run.signal(self.chance.choice(found).pid)
        self.moments.append(time.time())
        self.outcome.kills[target] += 1

    def _check(self, task: str) -> None:
        outcome, place = self.outcome, self.place
        known = place.progress(task)
        if list(known.done) != [(0, self.events)]:
            outcome.wrong.append(f"not done: {known.done.gaps(0, self.events)}")
            return
        story = place.story(task)
        again = runs.granted_again(story)
        outcome.granted_again += sum(stop - start for _, start, stop in again)
        if again:
            outcome.wrong.append(f"acknowledged and granted again: {again[:5]}")
        outcome.done_twice += runs.done_twice(story)
        first: dict[int, float] = {}
        for line in (place.folder / "seen").read_text().splitlines():
            event, when = int(line.split()[0]), float(line.split()[1])
            if event in first:
                outcome.finished_twice += 1
                # After a hit on Yoda the Droids work on for a moment.
                hits = next(hits for begun, end, hits in self.spans if begun <= first[event] <= end)
                if not hits:
                    outcome.wrong.append(f"event {event} was processed twice although its first run was not hit")
                later = [moment for moment in hits if moment >= first[event]]
                outcome.oldest = max(outcome.oldest, later[0] - first[event] if later else 0.0)
            first[event] = when
        expected = self._reference()
        if place.sha256(task) != expected:
            outcome.wrong.append("the merged bytes are not those of an undisturbed run")

    def _reference(self) -> str:
        if not Path(self.place.task("reference").merged).exists():
            seen = self.place.folder / "seen"
            kept = seen.read_bytes()
            done = self.place.run(task="reference", workers=4)
            assert done.code == 0, done.text
            seen.write_bytes(kept)
        return self.place.sha256("reference")


def main() -> int:
    """Run from the command line; 1 if a law was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--mpi", choices=["openmpi", "mpich"])
    parser.add_argument("--events", type=int, default=3000)
    parser.add_argument("--droids", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    mpi = runs.get(args.mpi) if args.mpi else runs.here()
    assert mpi is not None, "no mpiexec in this environment"
    with tempfile.TemporaryDirectory() as folder, runs.place(mpi, Path(folder)) as place:
        outcome = Chaos(place, seed, args.kills, args.events, args.droids, args.workers).run()
    print(outcome)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
