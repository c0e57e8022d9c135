"""Kills, stops and signals in real runs: what is lost is what was in flight, and no process is left (L2, L4, L8, L9).

Every test ends with `Running.wait`, which fails if any process of the run is still there.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from typing import Any

import pytest
import runs
from runs import Finished, Place, Running

from eventrange.records import Code, Kind
from yoda.orphan import GONE

STEADY = '''
import os, time
import numpy as np

SEEN = os.open(os.path.join(os.path.dirname(__file__), "seen"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def steady(event, random):
    """Ten milliseconds, asleep: many workers on few cores are no slower. Says what it has finished."""
    time.sleep(0.01)
    os.write(SEEN, b"%d\\n" % event)
    return {"x": random.normal(size=2), "n": np.int64(event)}
'''
EVENTS = 600


def job(place: Place, code: str = STEADY, name: str = "steady", events: int = EVENTS, **keys: Any) -> None:
    place.job(code, name, inputs={"format": "generate", "events": events}, **keys)


def under_way(place: Place, run: Running, events: int = 60) -> None:
    run.until(lambda: place.done() >= events, f"{events} events done")


def sound(place: Place, events: int = EVENTS) -> None:
    """All events are done, and nothing that was durable was granted again."""
    assert list(place.progress().done) == [(0, events)]
    assert runs.granted_again(place.story()) == []


def count(place: Place, kind: Kind, code: Code | None = None) -> int:
    return sum(
        int(((rows["kind"] == kind) & (True if code is None else rows["code"] == code)).sum())
        for _, rows in place.story()
    )


def resumes(place: Place, events: int = EVENTS, **how: Any) -> None:
    done = place.run(**how)
    assert done.code == 0, done.text
    sound(place, events)


def left(place: Place) -> list[str]:
    return [str(note["reason"]) for note in place.notes("left")]


# -- kill -9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["worker", "zygote"])
def test_a_killed_worker_or_zygote_is_replaced(place_here: Place, role: str) -> None:
    """Three times in one run, and the run completes; the event at hand is tried again, nothing is quarantined."""
    place = place_here
    job(place)
    run = place.start()
    for at in (30, 120, 210):
        under_way(place, run, at)
        before = {p.pid for p in run.find(role)}
        run.signal(run.until_role(role)[0].pid)
        run.until(lambda: {p.pid for p in run.find(role)} - before, f"a new {role}")  # noqa: B023
    done = run.wait()
    assert done.code == 0, done.text
    sound(place)
    assert len(place.task().allocations()) == 1
    assert place.progress().quarantined.total == 0


FULL = """
import errno

LEFT, FORK = [1], os.fork

def fork():
    if not LEFT:
        raise BlockingIOError(errno.EAGAIN, "no process left")
    LEFT.pop()
    return FORK()

os.fork = fork
"""


def test_a_node_that_has_processes_for_some_workers_works_with_these(place_here: Place) -> None:
    place = place_here
    job(place, STEADY + FULL, events=100)
    done = place.run()
    assert done.code == 0, done.text
    sound(place, 100)
    assert done.err.count("no process left") == 1 and "replaced" not in done.err


def test_a_droid_without_guardian_stops_and_the_other_finishes(place_here: Place) -> None:
    """With guardian and zygote gone nothing can be forked: that Droid gives all back, and the run completes."""
    place = place_here
    job(place)
    run = place.start("--droids", "2")
    under_way(place, run)
    run.signal(run.find("guardian")[0].pid)
    done = run.wait()
    assert done.code == 0, done.text
    sound(place)
    assert any("sick" in reason for reason in left(place)) and "zygote" in done.err
    assert done.seconds < 50, "the run does not wait for a Droid that said it can do nothing"


@pytest.mark.slow
def test_the_only_droid_without_guardian_ends_the_run_and_the_next_resumes(place_here: Place) -> None:
    """It is no fault of payload or configuration: run again."""
    place = place_here
    job(place)
    run = place.start()
    under_way(place, run)
    run.signal(run.find("guardian")[0].pid)
    done = run.wait()
    assert done.code == 75, done.text
    resumes(place)


@pytest.mark.parametrize("own", [True, False], ids=["own-launcher", "mpirun"])
def test_a_killed_droid(place: Place, own: bool) -> None:
    """With fault-tolerant MPI the others finish; without, the run ends at once and the next one does."""
    job(place)
    run = place.start("--droids", "2") if own else place.start(ranks=3)
    under_way(place, run)
    run.signal(run.until_role("droid", 2)[0].pid)
    done = run.wait()
    if place.mpi.ulfm:
        assert done.code == 0, done.text
        assert any("lost" in reason for reason in left(place))
        assert "is lost" in done.err
    else:
        assert done.code == 75 if own else done.code != 0, done.text
        resumes(place)
    sound(place)


def test_the_last_droid_killed(place: Place) -> None:
    """Nobody is left to work: the run ends by itself, and the next completes."""
    job(place)
    run = place.start()
    under_way(place, run)
    run.signal(run.find("droid")[0].pid)
    done = run.wait()
    assert done.code == 75, done.text
    resumes(place)


@pytest.mark.parametrize("own", [True, False], ids=["own-launcher", "mpirun"])
def test_rank_0_killed(place: Place, own: bool) -> None:
    """The Droids end with it, whatever the MPI does, and the next run goes on."""
    job(place)
    run = place.start("--droids", "2") if own else place.start(ranks=3)
    under_way(place, run)
    run.signal(run.until_role("yoda")[0].pid)
    done = run.wait()
    assert done.code == 75 if own else done.code != 0, done.text
    resumes(place)


@pytest.mark.parametrize("which", ["mpiexec", "yoda run"])
def test_the_launcher_killed(place: Place, which: str) -> None:
    """mpiexec, or the `yoda run` that started it: no rank stays behind, and the next run goes on."""
    job(place)
    run = place.start("--droids", "2")
    under_way(place, run)
    if which == "mpiexec":
        run.signal(next(p.pid for p in run.find("launcher") if p.parent == run.process.pid))
    else:
        run.signal(run.process.pid)
    done = run.wait()
    assert done.code == (75 if which == "mpiexec" else -signal.SIGKILL), done.text
    resumes(place)


RAISE = """
import os, signal
if int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0"))) > 0:
    def fail(*_):
        raise RuntimeError("a bug in the Droid")
    signal.signal(signal.SIGWINCH, fail)
    signal.signal(signal.SIGURG, lambda *_: os._exit(3))
"""


@pytest.mark.parametrize("how", ["exception", "exit"])
def test_a_droid_that_ends_with_an_error(place: Place, how: str) -> None:
    """An exception of ours, or an exit that no fault-tolerant MPI reports: the others finish, or the next run does."""
    place.site(silent="3s")
    job(place)
    (place.folder / "sitecustomize.py").write_text(RAISE)
    run = place.start("--droids", "2", env={"PYTHONPATH": str(place.folder)})
    under_way(place, run)
    run.signal(run.until_role("droid", 2)[0].pid, signal.SIGWINCH if how == "exception" else signal.SIGURG)
    done = run.wait()
    if how == "exception":
        assert "RuntimeError: a bug in the Droid" in done.err
    if done.code != 0:  # which of the two, the MPI decides
        assert done.code == 75, done.text
        resumes(place)
    sound(place)


# -- stopped -----------------------------------------------------------------------------------------------------------


def test_a_stopped_droid_is_noticed_and_others_do_its_work(place: Place) -> None:
    """It never wakes up: its events go to others, and the run ends although one of its ranks cannot say goodbye."""
    place.site(silent="3s")
    job(place)
    run = place.start("--droids", "2")
    under_way(place, run)
    run.signal(run.until_role("droid", 2)[0].pid, signal.SIGSTOP)
    done = run.wait()
    assert done.code == 0, done.text
    sound(place)
    assert any("no word" in reason for reason in left(place))


@pytest.mark.slow
def test_a_stopped_droid_that_wakes_up_works_on(place: Place) -> None:
    """What it did meanwhile is not counted twice, what it does afterwards counts."""
    place.site(silent="3s")
    job(place, events=2000)
    run = place.start("--droids", "2")
    under_way(place, run)
    droid = run.until_role("droid", 2)[0]
    run.signal(droid.pid, signal.SIGSTOP)
    run.until(lambda: any("no word" in reason for reason in left(place)), "the stopped Droid missed")
    run.signal(droid.pid, signal.SIGCONT)
    run.until(lambda: place.notes("back"), "the Droid back")
    done = run.wait()
    assert done.code == 0, done.text
    sound(place, 2000)
    assert done.seconds < 100


DIE_BEFORE_MPI = """
import os, signal
rank = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK"))
if rank == os.environ["DIES"]:
    import importlib.abc, sys
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.startswith("mpi4py"):
                os.kill(os.getpid(), signal.SIGKILL)
    sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_killed_before_mpi_has_started(place: Place, rank: str) -> None:
    """MPI_Init waits for all ranks, with a fault-tolerant Open MPI for ever: the others give up, and it resumes."""
    place.site(starting="3s")
    job(place)
    (place.folder / "sitecustomize.py").write_text(DIE_BEFORE_MPI)
    done = place.run("--droids", "2", env={"PYTHONPATH": str(place.folder), "DIES": rank})
    assert done.code == 75, done.text
    resumes(place)


STUCK_IN_MPI = """
import os
if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")) != "0":
    import ctypes, importlib.abc, sys
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "mpi4py.MPI":
                open(os.path.join(os.path.dirname(__file__), "stuck"), "w").close()
                ctypes.PyDLL(None).sleep(3600)
    sys.meta_path.insert(0, Finder())
"""


def test_a_droid_whose_launcher_dies_while_mpi_starts(place: Place) -> None:
    """As in MPICH's MPI_Init when another rank of the node is dead, it hears of nothing and lets no Python run."""
    place.site(starting="1h")
    job(place)
    (place.folder / "sitecustomize.py").write_text(STUCK_IN_MPI)
    run = place.start(ranks=2, env={"PYTHONPATH": str(place.folder)})
    run.until((place.folder / "stuck").exists, "the Droid in MPI")
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none of them ends the ranks
        for process in run.find("launcher") + run.find("yoda"):
            run.signal(process.pid, number)
    assert run.wait().code == -signal.SIGKILL
    resumes(place, ranks=2)


STOP_AT_THE_END = """
import os, signal, threading, time
if int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0"))) == 1:
    def stop_once_merged(path=os.path.join(os.path.dirname(__file__), "task", "merged", "merge.json")):
        while not os.path.exists(path):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGSTOP)
    if "run" in open("/proc/self/cmdline").read().split("\\0"):
        threading.Thread(target=stop_once_merged, daemon=True).start()
"""


@pytest.mark.slow
def test_a_droid_stopped_when_all_is_done_does_not_hold_up_the_end(place: Place) -> None:
    """MPI_Finalize waits for all ranks: not for ever."""
    job(place, events=100)
    (place.folder / "sitecustomize.py").write_text(STOP_AT_THE_END)
    done = place.run("--droids", "2", env={"PYTHONPATH": str(place.folder)})
    assert done.code == 0, done.text
    sound(place, 100)


def test_the_scratch_of_a_killed_droid_is_removed_by_the_next(place_here: Place) -> None:
    """A killed Droid cannot tidy up; what a living one has stays."""
    place = place_here
    scratch = place.folder / "scratch"
    scratch.mkdir()
    place.site(scratch=str(scratch))
    (scratch / "yoda-droid-elsewhere-4242-abc").mkdir()
    job(place)
    run = place.start()
    under_way(place, run)
    run.kill_everything()
    left_over = {path.name for path in scratch.iterdir()}
    assert len(left_over) == 2
    run = place.start()
    under_way(place, run, place.done() + 20)
    now = {path.name for path in scratch.iterdir()}
    assert len(now) == 2 and len(now & left_over) == 1 and "yoda-droid-elsewhere-4242-abc" in now
    assert run.wait().code == 0
    assert {path.name for path in scratch.iterdir()} == {"yoda-droid-elsewhere-4242-abc"}


def test_everything_stopped_for_a_while_is_no_hang(place: Place) -> None:
    """A suspended job: neither the Droids' silence nor the events' time limit counts while nobody ran."""
    place.site(silent="4s")
    job(place, ranges={"timeout": 2})
    run = place.start("--droids", "2")
    under_way(place, run)
    here = [p for p in runs.processes(run.mark) if p.pid != run.process.pid]
    for process in here:
        run.signal(process.pid, signal.SIGSTOP)
    time.sleep(7)
    for process in reversed(here):
        run.signal(process.pid, signal.SIGCONT)
    done = run.wait()
    assert done.code == 0, done.text
    sound(place)
    assert count(place, Kind.FAILED) == 0
    assert not any("lost" in reason for reason in left(place))


# -- signals and deadlines ---------------------------------------------------------------------------------------------

SIGNALS = [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP]


def drained(place: Place, done: Finished) -> None:
    """The run stopped in good order: nothing that was begun is lost, and nothing counts as a failure (L9)."""
    assert done.code == 75, done.text
    assert count(place, Kind.FAILED) == 0
    assert place.notes("drain"), done.text
    assert place.notes("end")[-1]["exit_code"] == 75
    assert place.notes("sealed"), "segments are sealed"
    assert set(left(place)) == {"drained"}
    processed = sorted(map(int, (place.folder / "seen").read_text().split()))
    assert processed == [event for pair in place.progress().done for event in range(*pair)], "finished, and not done"
    assert len(processed) < EVENTS


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_a_signal_to_the_launcher_drains(place_here: Place, number: int) -> None:
    job(place_here, events=EVENTS)
    run = place_here.start()
    under_way(place_here, run)
    run.signal(run.process.pid, number)
    drained(place_here, run.wait())
    if number == signal.SIGTERM:
        resumes(place_here)
        assert runs.done_twice(place_here.story()) == 0


@pytest.mark.slow
def test_a_signal_to_the_launcher_drains_under_both(place: Place) -> None:
    """As above, with two Droids, for each MPI: launchers differ in what they pass on."""
    job(place)
    run = place.start("--droids", "2")
    under_way(place, run)
    run.signal(run.process.pid, signal.SIGTERM)
    drained(place, run.wait())


@pytest.mark.parametrize(
    ("role", "number"),
    [("yoda", signal.SIGTERM), ("yoda", signal.SIGINT), ("droid", signal.SIGTERM), ("droid", signal.SIGUSR1)],
)
def test_a_signal_to_one_rank_drains_all(place_here: Place, role: str, number: int) -> None:
    job(place_here)
    run = place_here.start("--droids", "2")
    under_way(place_here, run)
    run.signal(run.until_role(role)[0].pid, number)
    drained(place_here, run.wait())
    assert place_here.notes("signal")[0]["signal"] == signal.Signals(number).name


def test_a_signal_to_every_process_at_once_drains(place: Place) -> None:
    """As batch systems send it: to all processes of the step, workers included."""
    job(place)
    run = place.start("--droids", "2")
    under_way(place, run)
    for process in runs.processes(run.mark):
        if process.role != "launcher":
            run.signal(process.pid, signal.SIGTERM)
    drained(place, run.wait())


ENDLESS = (
    STEADY
    + """
def endless(event, random):
    if event >= 100:
        time.sleep(3600)
    return steady(event, random)
"""
)


def test_a_second_interrupt_ends_at_once(place: Place) -> None:
    """Events take an hour: one Ctrl-C waits for the grace, the second does not."""
    place.site(grace="1h")
    job(place, ENDLESS, "endless")
    run = place.start()
    under_way(place, run)
    run.signal(run.process.pid, signal.SIGINT)
    run.until(lambda: "finishing the events at hand" in run.err.read_text(), "the drain")
    run.signal(run.process.pid, signal.SIGINT)
    done = run.wait()
    assert done.code == 75, done.text
    assert place.done() >= 60


def test_grace_is_kept(place: Place) -> None:
    """Events that take an hour do not hold up a drain; they are no failures, and go back."""
    place.site(grace="4s")
    job(place, ENDLESS, "endless")
    run = place.start("--droids", "2")
    run.until(lambda: place.done() >= 60, "many of those before the endless ones done")
    run.signal(run.process.pid, signal.SIGTERM)
    done = run.wait()
    assert done.code == 75, done.text
    assert count(place, Kind.FAILED) == 0
    assert set(left(place)) == {"drained"}, "the Droids had time to say so\n" + done.text


def test_the_end_of_the_allocation_drains_by_itself(place: Place) -> None:
    """--time: nothing is started that cannot be finished."""
    place.site(margin="1s")
    job(place, events=6000)
    done = place.run("--time", "5s")
    assert done.code == 75, done.text
    assert "deadline" in place.notes("drain")[0]["reason"]
    assert set(left(place)) == {"drained"}
    assert 0 < place.done() < 6000
    assert count(place, Kind.FAILED) == 0


@pytest.mark.slow
def test_a_droid_is_killed_while_draining(place_here: Place) -> None:
    """The others still end in good order."""
    place_here.site(silent="3s", grace="20s")
    job(place_here, STEADY.replace("0.01", "0.3"), events=60)
    run = place_here.start("--droids", "2")
    under_way(place_here, run, 8)
    droids = run.until_role("droid", 2)
    run.signal(run.process.pid, signal.SIGTERM)
    run.until(lambda: "finishing the events at hand" in run.err.read_text(), "the drain")
    run.signal(droids[0].pid)
    done = run.wait()
    assert done.code == 75, done.text
    resumes(place_here, 60)


def test_a_run_whose_command_was_killed_ends_also_if_its_launcher_does_not_hear_of_it(place_here: Place) -> None:
    place = place_here
    job(place, events=100_000)
    launcher = place.folder / "deaf"
    words = shlex.join(place.mpi.command(2)[:-2])
    launcher.write_text(f'#!/bin/sh\ntrap "" TERM\n{words} "$@"\n')
    launcher.chmod(0o755)
    place.site(launcher=f"{launcher} -n {{ranks}}")
    run = place.start()
    under_way(place, run)
    run.signal(run.process.pid)
    assert run.wait().code == -signal.SIGKILL
    assert place.notes("end")[0]["reason"] == GONE


def test_a_droid_ends_when_what_started_it_is_dead(place_here: Place) -> None:
    """Here a script, else the launcher's process on its node: for MPI the Droid is dead, so nobody would tell it."""
    place = place_here
    job(place)
    script = place.folder / "rank"
    script.write_text('#!/bin/sh\n"$@"\nexit $?\n')
    script.chmod(0o755)
    place.site(launcher=f"{shlex.join(place.mpi.command(2)[:-1])} {{ranks}} {script}")
    run = place.start("--droids", "2")
    under_way(place, run)
    run.signal(run.find("droid")[0].pid)
    done = run.wait()
    assert done.code == (0 if place.mpi.ulfm else 75), done.text
    assert "the launcher is dead" in done.err


def test_shared_memory_of_killed_runs_is_given_back(place: Place) -> None:
    """MPI cannot remove its own when it is killed, and it is the node's memory: the next Droid there does."""
    scratch = place.folder / "scratch"
    scratch.mkdir()
    job(place)
    place.site(scratch=str(scratch))
    run = place.start("--droids", "2")
    under_way(place, run)
    noted = {line for file in scratch.glob("*/shared-memory") for line in file.read_text().splitlines()}
    assert noted and all(os.path.exists(path) for path in noted)
    run.kill_everything()
    left = {path for path in noted if os.path.exists(path)}
    assert left, "nothing to give back"
    done = place.run()
    assert done.code == 0, done.text
    assert not {path for path in left if os.path.exists(path)}
    assert not list(scratch.iterdir())
