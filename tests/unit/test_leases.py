"""Leases on parts of the axis: the division, who is alive, what is claimed, the files, the right to merge."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eventrange.errors import CannotWrite
from eventrange.intervals import IntervalSet
from eventrange.ledger import Ledger
from eventrange.messages import Drain, Revoke, unpack_ranges
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from slurm.commands import Ran
from slurm.environment import Allocation
from yoda.dispatcher import Dispatcher, Note, Send, Settings, Write
from yoda.keeper import UNABLE, Keeper, beat_interval, present
from yoda.leasedir import ALIVE, Heart, LeaseDir, machine, overview, process_start
from yoda.leases import FREE, PARTS, Known, Lease, Leases, Need, Pulse, Update, Watch, divide

NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))


# -- the division ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(50))
def test_division_of_named_ranges_keeps_them_whole(seed: int) -> None:
    rng = random.Random(seed)
    total = rng.choice([1, 2, 255, 10_000, 10**9])
    cuts = sorted({0, total, *(rng.randrange(total) for _ in range(rng.choice([0, 3, 40, 1000])))})
    edges = divide(memoryview(np.array(cuts)), total, 7, whole=True)
    assert edges[0] == 0 and edges[-1] == total and (np.diff(edges) > 0).all()
    assert set(edges.tolist()) <= set(cuts)
    assert len(edges) - 1 <= PARTS


@pytest.mark.parametrize("seed", range(50))
def test_division_covers_the_axis_and_keeps_to_cuts_and_grid(seed: int) -> None:
    rng = random.Random(seed)
    total = rng.choice([1, 2, 255, 256, 257, 10_000, 10**9])
    cuts = sorted({0, total, *(rng.randrange(total) for _ in range(rng.choice([0, 3, 40, 1000])))})
    size = rng.choice([0, 1, 7, 1000])
    edges = divide(cuts, total, size)
    assert edges[0] == 0 and edges[-1] == total
    assert (np.diff(edges) > 0).all() and len(edges) - 1 <= PARTS
    if size > 1:
        for edge in edges.tolist():
            base = max(cut for cut in cuts if cut <= edge)
            assert (edge - base) % size == 0
    if size < 2 and total >= 10_000:
        assert len(edges) - 1 == PARTS
        assert np.diff(edges).max() <= 2 * total / PARTS


def test_an_edge_goes_to_a_file_boundary_that_is_near() -> None:
    edges = divide([0, 4998, 10_000], 10_000, 0, 2)
    assert edges.tolist() == [0, 4998, 10_000]
    assert divide([], 0).tolist() == [0]


# -- who is alive ------------------------------------------------------------------------------------------------------


def test_silence_is_counted_by_looks() -> None:
    watch = Watch(60.0)
    for now in range(0, 65, 5):
        watch.look(now, {"a": Pulse(b"1"), "b": Pulse(str(now).encode())})
        assert watch.alive("a") == (now < 60)
    assert watch.alive("b") and not watch.alive("stranger")
    watch.look(66, {"a": Pulse(b"2")})
    assert watch.alive("a")  # it only slept


def test_a_watcher_that_slept_does_not_blame_the_others() -> None:
    watch = Watch(60.0)
    watch.look(0, {"a": Pulse(b"1")})
    watch.look(1000, {"a": Pulse(b"1")})
    assert watch.alive("a")


@pytest.mark.parametrize("pulse", [Pulse(b"1", "ended"), Pulse(b"1", gone=True)])
def test_known_ends_need_no_waiting(pulse: Pulse) -> None:
    watch = Watch(60.0)
    watch.look(0, {"a": pulse})
    assert not watch.alive("a")


# -- claiming ----------------------------------------------------------------------------------------------------------


class Memory:
    """A room in memory."""

    def __init__(self) -> None:
        self.files: dict[tuple[int, int], str] = {}
        self.there: dict[str, Pulse] = {}
        self.says = Known(NOTHING, NOTHING)
        self.read = 0

    def leases(self) -> list[Lease]:
        return [Lease(*key, owner) for key, owner in self.files.items()]

    def pulses(self, names: Collection[str]) -> dict[str, Pulse]:
        return {name: Pulse(b"", "missing") for name in names} | self.there

    def claim(self, part: int, generation: int, owner: str) -> str:
        return self.files.setdefault((part, generation), owner)

    def drop(self, part: int, generation: int) -> None:
        self.files.pop((part, generation), None)

    def known(self, over: Callable[[str], bool], names: Collection[str]) -> Known:
        self.read += 1
        return self.says


def edges(parts: int = 16) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.arange(0, 10 * parts + 1, 10)


def test_alone_it_claims_a_little_then_what_it_needs_and_reads_no_journal_again() -> None:
    room, me = Memory(), Leases("me", edges(), 60.0)
    me.begin(0.0, room)
    assert me.round(0.0, room, Need()).adopt == [0, 1]
    assert me.round(1.0, room, Need(pending=19, rate=0.1, workers=1)).adopt == []
    assert me.round(2.0, room, Need(pending=4, rate=1.0, workers=1)).adopt == [2, 3, 4, 5, 6, 7]
    assert me.round(3.0, room, Need(pending=4, rate=99.0, workers=1)).adopt == list(range(8, 16))
    assert me.round(4.0, room, Need(pending=0, workers=1)).adopt == []
    assert room.read == 1


def test_what_another_did_at_its_end_is_read_once_more() -> None:
    room, me = Memory(), Leases("me", edges(), 60.0)
    room.there = {"other": Pulse(b"1")}
    me.begin(0.0, room)
    busy = Need(pending=99, rate=0.1, workers=1)
    assert me.round(11.0, room, busy).known is room.says  # it goes on writing afterwards
    room.there = {"other": Pulse(b"2", "ended")}
    assert me.round(22.0, room, busy).known is room.says
    assert me.round(33.0, room, busy).known is None and room.read == 3


def test_what_is_done_needs_no_lease() -> None:
    room, me = Memory(), Leases("me", edges(), 60.0)
    room.says = Known((np.array([0, 45]), np.array([30, 160])), (np.array([35]), np.array([45])))
    me.begin(0.0, room)
    assert me.round(0.0, room, Need(rate=99.0)).adopt == [3]


def test_a_dead_ones_parts_are_claimed_in_the_next_generation_and_the_journals_read_again() -> None:
    room, me = Memory(), Leases("me", edges(2), 60.0)
    room.files = {(0, 1): "dead", (1, 1): "alive"}
    room.there = {"dead": Pulse(b"1", gone=True), "alive": Pulse(b"1")}
    me.begin(0.0, room)
    update = me.round(0.0, room, Need(workers=1))
    assert (update.adopt, update.taken, update.others) == ([0], {0: "dead"}, ["alive"])
    assert room.files[0, 2] == "me" and room.read == 2 and update.known is room.says


def test_the_highest_generation_ever_seen_counts() -> None:
    room, me = Memory(), Leases("me", edges(1), 60.0)
    room.there = {"other": Pulse(b"1")}
    me.begin(0.0, room)
    assert me.round(0.0, room, Need()).adopt == [0]
    room.files[0, 2] = "other"
    assert me.round(1.0, room, Need()).lost == [0]
    del room.files[0, 2]  # an old listing
    update = me.round(2.0, room, Need())
    assert update.adopt == [] and update.lost == [] and me.mine == set()


def test_an_old_listing_is_found_out_when_claiming() -> None:
    room, me = Memory(), Leases("me", edges(2), 60.0)
    me.begin(0.0, room)
    room.there = {"other": Pulse(b"1")}
    room.leases = lambda: []  # type: ignore[method-assign]
    room.files = {(0, 1): "other"}
    assert me.round(0.0, room, Need(rate=99.0, workers=9)).adopt == [1]


def test_parts_are_given_to_nobody_and_not_taken_back_at_once() -> None:
    room, me = Memory(), Leases("me", edges(4), 60.0)
    me.begin(0.0, room)
    assert len(me.round(0.0, room, Need(rate=99.0)).adopt) == 4
    room.there = {"other": Pulse(b"1", wants=True)}
    assert me.round(1.0, room, Need(pending=30, rate=9.0)).starving == 1
    me.give([2, 3])
    update = me.round(2.0, room, Need(pending=20, rate=9.0))
    assert update.lost == [2, 3] and update.adopt == [] and room.files[3, 2] == FREE
    other = Leases("other", edges(4), 60.0)
    room.there["me"] = Pulse(b"1")
    other.begin(3.0, room)
    assert other.round(3.0, room, Need(workers=3)).adopt == [2, 3]


def test_two_generations_are_kept() -> None:
    room = Memory()
    for number in range(5):
        name = f"a{number}"
        one = Leases(name, edges(1), 60.0)
        one.begin(0.0, room)
        assert one.round(0.0, room, Need()).adopt == [0]
        room.there[name] = Pulse(b"1", gone=True)
    assert sorted(room.files) == [(0, 4), (0, 5)]


def test_draining_claims_nothing() -> None:
    room, me = Memory(), Leases("me", edges(4), 60.0)
    me.begin(0.0, room)
    update = me.round(0.0, room, Need(working=False))
    assert update.adopt == [] and not me.wants


# -- the ledger --------------------------------------------------------------------------------------------------------


def test_ledger_with_parts_elsewhere() -> None:
    ledger = Ledger(100)
    ledger.pending.add(0, 100)
    assert ledger.cede(0, 100) == 100 and ledger.open == 100 and not ledger.pending
    assert ledger.adopt(20, 40, {25: 2, 90: 1}) == 20
    assert list(ledger.pending) == [(20, 25), (26, 40)] and ledger.retries[25].attempts == 2
    ledger.grant(1, 20, 25)
    assert ledger.settle(np.array([0, 24, 50]), np.array([10, 30, 60])) == 10 + 1 + 4 + 10
    assert ledger.granted[1].total == 5 and list(ledger.pending) == [(30, 40)]
    ledger.give_up(95, 100)
    assert ledger.quarantined.total == 5 and ledger.done == 25
    assert ledger.cede(0, 40) == 10
    ledger.give_back(1, 20, 22)
    assert list(ledger.pending) == [(20, 22)]
    ledger.finish(1, 22, 35)  # more than it holds: it was believed lost meanwhile
    assert ledger.done == 25 + 3 + 5
    open_ = IntervalSet([*ledger.pending, *ledger.elsewhere])
    assert open_.total == ledger.open and not open_.overlap(22, 35)


def test_what_another_allocation_did_is_not_quarantined_any_more() -> None:
    """It was started with --retry-quarantined while we were at work: we end with 0 then, not with 65."""
    ledger = Ledger(10)
    ledger.quarantined, ledger.pending = IntervalSet([(5, 6), (8, 9)]), IntervalSet([(0, 5), (6, 8), (9, 10)])
    keeper = Keeper(Leases("me", edges(1), 60.0), Memory(), None, ledger)
    dispatcher = Dispatcher(ledger, [0, 10], Settings(), 10)
    for starts, stops, given_up, code in (([0, 6, 9], [5, 8, 10], 2, 65), ([0, 9], [8, 10], 1, 65), ([0], [10], 0, 0)):
        keeper._updates.append(Update(known=Known((np.array(starts), np.array(stops)), NOTHING)))
        keeper._apply(dispatcher)
        assert (ledger.open, ledger.quarantined.total, ledger.done) == (0, given_up, 10 - given_up)
        assert dispatcher.complete and dispatcher.result()[0] == code


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path) -> TaskDir:
    made = TaskDir(str(tmp_path / "task"))
    made.make()
    return made


def alive(task: TaskDir, name: str, **changes: object) -> None:
    """The file of an allocation that is not ours."""
    me = {
        "allocation": name,
        "host": "elsewhere",
        "pid": 1,
        "started": 1,
        "boot": "another machine",
        "jobid": None,
        "time": 0.0,
    }
    state = changes.pop("state", "working")
    Path(task.leases, name + ALIVE).write_text(json.dumps(me | changes) + f"\n{state:<8} ----- 000000000001\n")


def test_a_lease_is_exclusive_whole_and_says_whose_it_is(task: TaskDir) -> None:
    one, two = LeaseDir(task, "one"), LeaseDir(task, "two")
    assert one.claim(3, 1, "one") == "one"
    assert two.claim(3, 1, "two") == "one"
    assert one.claim(3, 1, "one") == "one"  # asked twice by a file system that lost the answer
    assert two.claim(3, 2, FREE) == FREE
    Path(task.leases, "0004.0001").write_text("a copy of a folder need not keep links")
    Path(task.leases, "junk").touch()
    assert sorted(two.leases()) == [Lease(3, 1, "one"), Lease(3, 2, FREE)]
    two.drop(3, 1)
    two.drop(3, 1)
    assert two.leases() == [Lease(3, 2, FREE)]


def test_a_lease_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    room = LeaseDir(TaskDir(str(tmp_path / "nowhere")), "me")
    assert room.leases() == [] and room.pulses() == {}
    with pytest.raises(CannotWrite, match="nowhere"):
        room.claim(0, 1, "me")


def test_the_heart_beats_and_ends(task: TaskDir) -> None:
    heart = Heart(task, "me", None, 0.01, 60.0)
    room = LeaseDir(task, "other")
    first = room.pulses()["me"]
    assert first.state == "starting" and not first.gone and not first.wants
    until = time.monotonic() + 10
    while room.pulses()["me"].beat == first.beat and time.monotonic() < until:
        time.sleep(0.01)
    heart.set("working", wants=True)
    pulse = room.pulses()["me"]
    assert pulse.beat != first.beat and (pulse.state, pulse.wants) == ("working", True)
    heart.stop()
    assert room.pulses()["me"].state == "ended"


def test_a_loop_that_hangs_stops_the_heart(task: TaskDir) -> None:
    heart = Heart(task, "me", None, 0.005, 0.0)
    heart.vouch()
    time.sleep(0.05)
    before = Path(heart.path).read_bytes()
    time.sleep(0.1)
    assert Path(heart.path).read_bytes() == before
    heart.rest("merging")
    assert b"merging" in Path(heart.path).read_bytes()
    heart.forget = True
    heart.stop()
    assert not os.path.exists(heart.path)


def test_a_process_of_this_machine_that_is_gone_is_known_at_once(task: TaskDir) -> None:
    mine = process_start(os.getpid())
    alive(task, "here", boot=machine(), pid=os.getpid(), started=mine)
    alive(task, "reused", boot=machine(), pid=os.getpid(), started=(mine or 0) - 1)
    alive(task, "killed", boot=machine(), pid=2**22 + 1, started=5)
    alive(task, "away", pid=2**22 + 1, host=socket.gethostname())
    Path(task.leases, "odd" + ALIVE).write_bytes(b"\0\0garbage")
    found = LeaseDir(task, "me").pulses({"missing"})
    assert {name: pulse.gone for name, pulse in found.items()} == {
        "here": False,
        "reused": True,
        "killed": True,
        "away": False,
        "odd": False,
        "missing": False,
    }


def test_slurm_never_runs_a_job_twice_at_once(task: TaskDir) -> None:
    for restart in (0, 1):
        alive(task, f"2026{restart}-slurm-4711-r{restart}")
    found = LeaseDir(task, "me").pulses()
    assert [found[name].gone for name in sorted(found)] == [True, False]


def test_slurm_is_asked_who_is_dead(task: TaskDir) -> None:
    for jobid in (1, 2):
        alive(task, f"2026-slurm-{jobid}-r0")
    asked = []

    def run(argv: object, stdin: str | None = None) -> Ran:
        asked.append(argv)
        states = {"1": "PREEMPTED", "2": "RUNNING"}
        return Ran(0, f"JobId={argv[-1]} JobState={states.get(argv[-1], '')} Restarts=0 ")  # type: ignore[index]

    room = LeaseDir(task, "me")
    room.ask_slurm(run)
    found = room.pulses()
    assert found["2026-slurm-1-r0"].gone and not found["2026-slurm-2-r0"].gone
    assert len(asked) == 2


def test_one_merges_and_the_other_is_told(task: TaskDir) -> None:
    heart = Heart(task, "one", None, 0.01, 60.0)
    one, two = LeaseDir(task, "one"), LeaseDir(task, "two")
    with one.merging(5.0) as other:
        assert other is None
        with two.merging(5.0) as other:
            assert other == "one"
    with two.merging(5.0) as other:
        assert other is None
    heart.stop()


def test_a_merger_that_died_is_followed_by_another(task: TaskDir) -> None:
    alive(task, "away")
    room = LeaseDir(task, "me")
    room.claim("merge", 1, "away")
    with room.merging(0.3) as other:  # nothing is known of it but its silence
        assert other is None
    alive(task, "killed", boot=machine(), pid=2**22 + 1)
    room.claim("merge", 4, "killed")
    with room.merging(3600.0) as other:
        assert other is None


def test_the_folder_is_emptied_when_all_is_done(task: TaskDir) -> None:
    alive(task, "over", state="ended")
    alive(task, "away")
    room = LeaseDir(task, "me")
    room.claim(1, 1, "over")
    room.tidy()
    assert len(os.listdir(task.leases)) == 3  # a lease names it still
    room.sweep()
    assert os.listdir(task.leases) == ["away" + ALIVE]
    alive(task, "over", state="ended")
    room.tidy()
    assert os.listdir(task.leases) == ["away" + ALIVE]


def test_overview(task: TaskDir) -> None:
    heart = Heart(task, "a", 4711, 60.0, 60.0)
    alive(task, "b", state="ended")
    alive(task, "c", boot=machine(), pid=2**22 + 1)
    alive(task, "d")
    room = LeaseDir(task, "a")
    for part, generation, owner in [(0, 1, "c"), (0, 2, "a"), (1, 1, "a"), (2, 1, "c"), (3, 1, "a"), (3, 2, FREE)]:
        room.claim(part, generation, owner)
    found = overview(task)
    assert [(one.allocation, one.state, one.parts) for one in found] == [
        ("a", "starting", 2),
        ("b", "ended", 0),
        ("c", "dead", 1),
        ("d", "working", 0),
    ]
    assert found[0].jobid == 4711 and found[0].pid == os.getpid() and found[0].beat_age < 60
    late = overview(task, timeout=60.0, now=time.time() + 100)
    assert [one.state for one in late] == ["starting", "ended", "dead", "silent"]
    heart.stop()
    assert overview(TaskDir(task.root + "-not")) == []


# -- the keeper --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_claimed_is_an_error_at_the_start(task: TaskDir) -> None:
    ledger = Ledger(10)
    ledger.pending.add(0, 10)
    room = LeaseDir(TaskDir(task.root + "-not"), "me")
    leases = Leases("me", divide([], 10), 60.0)
    with pytest.raises(CannotWrite):
        Keeper(leases, room, None, ledger).first()


class Failing(Memory):
    """A room on a file server in trouble: `broken` are the calls that fail, `made` what it made all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()
        self.before = 0  #: claims that go well before they fail

    def leases(self) -> list[Lease]:
        if "leases" in self.broken:
            raise OSError(errno.ESTALE, "Stale file handle", "leases")
        return super().leases()

    def claim(self, part: int, generation: int, owner: str) -> str:
        if "claim" in self.broken:
            self.before -= 1
            if self.before < 0:
                raise CannotWrite(path="leases", detail="quota")
        owner = super().claim(part, generation, owner)
        if "answer" in self.broken:
            raise CannotWrite(path="leases", detail="I/O error")
        return owner


def in_trouble() -> tuple[Ledger, Failing, Keeper, Dispatcher, list[float]]:
    """Some of 200 events in 20 parts are claimed and done; one Droid is there."""
    ledger, room, now = Ledger(200), Failing(), [0.0]
    ledger.pending.add(0, 200)
    keeper = Keeper(Leases("me", edges(20), 60.0), room, None, ledger, lambda: now[0])
    keeper.leases.begin(0.0, room)
    keeper.first()
    dispatcher = Dispatcher(ledger, [0], Settings(), 200)
    dispatcher.hello(0.0, 1, "here", 2)
    for start, stop in list(ledger.pending):
        ledger.grant(1, start, stop)
        ledger.finish(1, start, stop)
    return ledger, room, keeper, dispatcher, now


def look(keeper: Keeper, dispatcher: Dispatcher, now: list[float], seconds: float) -> list[Any]:
    """Rounds, a second apart."""
    out: list[Any] = []
    for _ in range(round(seconds)):
        now[0] += 1.0
        out += keeper.tick(now[0], dispatcher)
        keeper._round()
    return out + keeper.tick(now[0], dispatcher)


@pytest.mark.parametrize("call", ["leases", "claim"])
def test_a_file_server_that_fails_for_a_moment_costs_a_moment(call: str) -> None:
    ledger, room, keeper, dispatcher, now = in_trouble()
    room.broken = {call}
    look(keeper, dispatcher, now, 0.5 * UNABLE)
    assert not ledger.pending and dispatcher.exit_code is None and not dispatcher.draining
    room.broken = set()
    look(keeper, dispatcher, now, 2)
    assert ledger.pending
    for start, stop in list(ledger.pending):
        ledger.grant(1, start, stop)
        ledger.finish(1, start, stop)
    room.broken = {call}  # patience begins anew
    look(keeper, dispatcher, now, 0.5 * UNABLE)
    assert dispatcher.exit_code is None and not dispatcher.draining


@pytest.mark.parametrize("call", ["leases", "claim"])
def test_who_can_claim_nothing_for_long_ends_and_says_why(call: str) -> None:
    ledger, room, keeper, dispatcher, now = in_trouble()
    room.broken = {call}
    todo = look(keeper, dispatcher, now, UNABLE + 3)
    assert any(isinstance(step, Send) and isinstance(step.message, Drain) for step in todo)
    code, why = dispatcher.result()
    assert code == 73 and "leases" in why and ledger.open == 200 - ledger.done > 0


@pytest.mark.parametrize("made", ["before it failed", "although it failed"])
def test_parts_that_were_made_ours_in_a_round_that_failed_are_worked_on(made: str) -> None:
    ledger, room, keeper, dispatcher, now = in_trouble()
    held = set(keeper.held)
    room.broken, room.before = ({"claim"}, 2) if made == "before it failed" else ({"answer"}, 0)
    look(keeper, dispatcher, now, 1)
    room.broken = set()
    keeper._need = Need(working=False)  # nothing more is claimed
    keeper._round()
    keeper.tick(now[0], dispatcher)
    ours = {part for (part, _), owner in room.files.items() if owner == "me"}
    assert len(ours - held) == (2 if made == "before it failed" else 1)
    assert keeper.held == ours and ledger.pending.total == 10 * len(ours - held)


def beginning() -> tuple[Ledger, Memory, Keeper, Dispatcher]:
    """200 events in 20 parts, of which a few are claimed; one Droid with two workers is there."""
    ledger, room = Ledger(200), Memory()
    ledger.pending.add(0, 200)
    keeper = Keeper(Leases("me", edges(20), 60.0), room, None, ledger, lambda: 0.0)
    keeper.leases.begin(0.0, room)
    keeper.first()
    dispatcher = Dispatcher(ledger, [0], Settings(), 200)
    dispatcher.hello(0.0, 1, "here", 2)
    return ledger, room, keeper, dispatcher


def test_what_runs_low_is_renewed_at_once_and_what_cannot_be_had_is_not_asked_for_all_the_time() -> None:
    """Not at the next look at the clock, which is up to half a second away."""
    ledger, room, keeper, dispatcher = beginning()
    assert not keeper.urgent  # nobody has looked yet at what there is to do
    keeper.tick(0.0, dispatcher)
    claimed = ledger.pending.total
    assert 0 < claimed < 200 and not keeper.urgent
    (start, stop), *_ = list(ledger.pending)
    ledger.grant(1, start, stop)
    assert keeper.urgent
    keeper.tick(0.1, dispatcher)
    assert not keeper.urgent  # it is asked for
    keeper._round()
    assert keeper.urgent  # and there
    keeper.tick(0.2, dispatcher)
    assert ledger.pending.total > 0
    for number in range(20):  # others take all the rest
        if number not in keeper.held:
            room.files[number, 1] = "other"
    room.there["other"] = Pulse(b"1")
    for start, stop in list(ledger.pending):
        ledger.grant(1, start, stop)
    assert keeper.urgent
    keeper.tick(0.3, dispatcher)
    keeper._round()
    keeper.tick(0.4, dispatcher)
    assert ledger.elsewhere and not ledger.pending and not keeper.urgent


def test_a_round_that_wanted_nothing_says_nothing_of_what_there_is() -> None:
    ledger, _, keeper, dispatcher = beginning()
    keeper.tick(0.0, dispatcher)
    keeper._round()  # there is enough to do
    keeper.tick(0.1, dispatcher)
    for start, stop in list(ledger.pending):
        ledger.grant(1, start, stop)
    assert keeper.urgent
    stale = keeper._need  # a round that began before this
    keeper.tick(0.2, dispatcher)
    assert keeper._go.is_set()
    keeper._go.clear()
    keeper._need = stale
    keeper._round()
    keeper._need = Need(working=False)
    keeper._round()
    assert keeper.urgent
    keeper.tick(0.3, dispatcher)
    assert keeper._go.is_set()  # it is not taken for an answer


def test_nothing_is_urgent_that_a_tick_would_not_do() -> None:
    """Events of a minute: as much as four for each worker is enough, and no more is claimed."""
    ledger, _, keeper, dispatcher = beginning()
    keeper.tick(0.0, dispatcher)
    while ledger.pending.total > Need(workers=2).low:
        (start, _), *_ = list(ledger.pending)
        ledger.grant(1, start, start + 1)
    keeper.tick(0.1, dispatcher)
    assert keeper._need.low == keeper._need.enough == ledger.pending.total
    assert not keeper.urgent and not keeper._go.is_set()


def test_what_is_granted_in_a_part_that_was_taken_over_is_revoked() -> None:
    ledger, room = Ledger(20), Memory()
    ledger.pending.add(0, 20)
    keeper = Keeper(Leases("me", edges(2), 60.0), room, None, ledger)
    keeper.leases.begin(0.0, room)
    keeper.first()
    dispatcher = Dispatcher(ledger, [0], Settings(), 20)
    dispatcher.hello(0.0, 1, "here", 1)
    part = min(keeper.held)
    start, stop = keeper.leases.part(part)
    ledger.grant(1, start, stop)
    room.files[part, 2] = "other"
    notes = keeper.woken(99.0, dispatcher)
    ((rank, message),) = [(step.droid, step.message) for step in notes if isinstance(step, Send)]
    assert isinstance(message, Revoke) and not message.begun
    assert (rank, unpack_ranges(message.ranges)) == (1, [(start, stop, 0)])
    assert ledger.elsewhere.covers(start, stop) and not ledger.in_flight


def test_presence_ends_with_the_context(task: TaskDir) -> None:
    allocation = Allocation("me", None, 0, ("here",), (), None)
    with present(task, "f", allocation, 60.0) as here:
        assert LeaseDir(task, "other").pulses()["me"].state == "starting"
        assert here.heart.interval == beat_interval(60.0) == 5.0
    assert LeaseDir(task, "other").pulses()["me"].state == "ended"


def test_allocations_that_began_at_once_agree_on_the_fields() -> None:
    """The later one does its few events again, with the fields of the first."""
    ledger = Ledger(20)
    ledger.pending.add(0, 20)
    room = Memory()
    keeper = Keeper(Leases("b", edges(2), 60.0), room, None, ledger)
    keeper.leases.begin(0.0, room)
    keeper.first()
    dispatcher = Dispatcher(ledger, [0], Settings(), 20)
    dispatcher.schema = "theirs differ"
    for start, stop in list(ledger.pending):
        ledger.grant(1, start, stop)
    ledger.finish(1, 0, 4)
    for schema_of, schema in (("c", "other"), ("a", "theirs differ")):  # not ours to follow; the same
        known = Known(NOTHING, NOTHING, {}, schema, schema_of)
        assert keeper._same_fields(known, dispatcher) == []
    write, note = keeper._same_fields(Known(NOTHING, NOTHING, {}, "first", "a"), dispatcher)
    assert isinstance(write, Write) and isinstance(note, Note) and note.values == {"as": "a", "events": 4}
    assert (write.rows["kind"] == Kind.PENDING).all() and write.rows["start"].tolist() == [0]
    assert dispatcher.schema == "first" and list(ledger.pending) == [(0, 4)] and ledger.in_flight == 6
