"""A Droid's end of stage-out with a real stage-out process, and `yoda stageout` on a task directory made by hand."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from droid.stageout import Uploads
from eventrange import records
from eventrange.history import Story
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.segment import checksum, writer
from eventrange.taskdir import TaskDir
from stageout import breakerfile
from stageout.breaker import Breaker
from stageout.catalogue import SegmentId, read_catalogue
from stageout.site import BreakerRules, EndpointSite, NodeBreakerRules, StageoutRules
from stageout.stagerclient import StagerProcess
from yoda.config import load_site
from yoda.leasedir import Heart, machine
from yoda.nodes import Nodes
from yoda.stageout import Outcome, Storage, _alone, endpoints_note, reset, stage_out, storage_of
from yoda.sweep import Swept

PATIENCE = 60.0
PRINT = "f" * 64


def endpoint(folder: Path, name: str, exists: bool = True) -> EndpointSite:
    if exists:
        (folder / name).mkdir(exist_ok=True)
    return EndpointSite(name=name, url=f"file://{folder}/{name}", attempts=1)


def rules(**keys: Any) -> StageoutRules:
    return StageoutRules(**{"tries": 1, "backoff": 0.05, "backoff_max": 0.1, "nice": 0, "rehome_after": 0.0, **keys})


def segment(taskdir: TaskDir, allocation: str, number: int = 0, seal: bool = True) -> tuple[dict[str, Any], Any]:
    """A segment of three images: its note (if sealed) and its records."""
    path = taskdir.segment(allocation, 1, number, "tar")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    out, rows = writer(path), records.new(3, kind=Kind.DONE, droid=1, segment=number)
    for n in range(3):
        data = os.urandom(1000)
        rows["start"][n], rows["stop"][n] = 3 * number + n, 3 * number + n + 1
        rows["offset"][n], rows["size"][n] = out.append(f"t.{n}.h5", data), len(data)
        rows["checksum"][n] = checksum(data)
    if not seal:
        out.sync()
        out.close()
        return {}, rows
    done = out.seal()
    sums = {"size": done.size, "adler32": f"{done.adler32:08x}", "sha256": done.sha256, "members": done.members}
    return {"note": "sealed", "droid": 1, "segment": number, **sums}, rows


def journal(taskdir: TaskDir, allocation: str, *entries: Any) -> None:
    os.makedirs(taskdir.journals, exist_ok=True)
    out = JournalWriter(taskdir.journal(allocation), PRINT, allocation)
    for entry in entries:
        if isinstance(entry, dict):
            values = dict(entry)
            out.note(values.pop("note"), **values)
        else:
            out.append(entry)
    out.flush()
    out.file.sync()
    out.file.close()


# --- a Droid ----------------------------------------------------------------------------------------------------------


class Droid:
    def __init__(self, folder: Path, *endpoints: EndpointSite, **keys: Any) -> None:
        self.taskdir = TaskDir(str(folder / "task"))
        os.makedirs(self.taskdir.root, exist_ok=True)
        self.uploads = Uploads(endpoints, rules(**keys), self.taskdir)
        self.said: list[str] = []
        self.notes: list[dict[str, Any]] = []

    def begin(self) -> None:
        self.uploads.begin("t", "alloc", 1, self.said.append)

    def until(self, true: Callable[[], Any], what: str, keep: bool = True) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, (what, self.notes, self.said)
            new = self.uploads.news()
            self.notes += new
            for note in new:
                if keep and "number" in note:
                    self.uploads.kept(note["number"])
            time.sleep(0.01)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [note for note in self.notes if note["note"] == name]


@pytest.fixture
def droid(tmp_path: Path) -> Iterator[Callable[..., Droid]]:
    made: list[Droid] = []

    def call(*endpoints: EndpointSite, **keys: Any) -> Droid:
        made.append(Droid(tmp_path, *endpoints, **keys))
        return made[-1]

    yield call
    for one in made:
        one.uploads.close()


def test_a_local_copy_goes_only_after_the_journal_has_the_other(tmp_path: Path, droid: Callable[..., Droid]) -> None:
    one = droid(endpoint(tmp_path, "primary"), delete_local=True)
    one.begin()
    note, _ = segment(one.taskdir, "alloc")
    path = Path(one.taskdir.segment("alloc", 1, 0))
    one.uploads.sealed(note)
    one.until(lambda: one.named("staged"), "staged", keep=False)
    staged = one.named("staged")[0]
    assert (staged["endpoint"], staged["sha256"], staged["number"]) == ("primary", note["sha256"], 1)
    one.uploads.news()
    assert path.exists()
    one.uploads.kept(1)
    one.until(lambda: one.named("removed"), "removed")
    assert one.named("removed")[0]["endpoint"] is None and not path.exists()
    assert (tmp_path / "primary" / staged["key"]).exists()


def test_the_end_waits_for_uploads_and_not_for_storage_that_is_down(
    tmp_path: Path, droid: Callable[..., Droid]
) -> None:
    good, bad = (
        droid(endpoint(tmp_path, "primary")),
        droid(endpoint(tmp_path, "gone/deep", exists=False), key="{task}/{allocation}/x{droid}{number}"),
    )
    for one in (good, bad):
        one.begin()
    note, _ = segment(good.taskdir, "alloc")
    for one in (good, bad):
        one.uploads.sealed(note)
        assert not one.uploads.over
        one.uploads.finish(3600.0)
        one.until(lambda one=one: one.uploads.over, "over")
    assert good.named("staged") and bad.named("blocked") and not bad.named("staged")
    bad.uploads.close()
    assert any("not staged" in text for text in bad.said)


def test_an_empty_segment_is_not_staged(tmp_path: Path, droid: Callable[..., Droid]) -> None:
    one = droid(endpoint(tmp_path, "primary"))
    one.begin()
    one.uploads.sealed({**segment(one.taskdir, "alloc")[0], "members": 0})
    one.uploads.finish(60.0)
    one.until(lambda: one.uploads.over, "over")
    assert one.notes == []


def kill(one: Droid) -> None:
    """SIGKILL of the present stage-out process, and wait until that is a note."""
    before = len(one.named("stager_gone"))
    assert one.uploads._stager is not None
    os.kill(one.uploads._stager.pid, signal.SIGKILL)
    one.until(lambda: len(one.named("stager_gone")) > before, "noticed")


def test_a_stage_out_process_that_is_killed_is_replaced(tmp_path: Path, droid: Callable[..., Droid]) -> None:
    """Before, between and after segments; a process that dies again and again comes back less and less often."""
    one = droid(endpoint(tmp_path, "primary"), backoff_max=1.0)
    os.kill(one.uploads._stager.pid, signal.SIGKILL)  # before it knows what for
    one.begin()
    one.until(lambda: one.named("stager_gone"), "noticed")
    one.uploads.sealed(segment(one.taskdir, "alloc", 0)[0])  # while there is none
    one.until(lambda: len(one.named("staged")) == 1, "the first segment")
    kill(one)
    kill_again = segment(one.taskdir, "alloc", 1)[0]
    one.until(lambda: one.uploads._stager is not None, "another one")
    one.uploads.sealed(kill_again)
    one.until(lambda: len(one.named("staged")) == 2, "the second segment")
    assert [note["pause"] for note in one.named("stager_gone")] == [0.05, 0.1]
    assert {note["segment"] for note in one.named("staged")} == {0, 1} and one.uploads.waiting == 0
    one.uploads.finish(60.0)
    one.until(lambda: one.uploads.over, "over")


def test_killed_before_the_journal_has_the_copy(tmp_path: Path, droid: Callable[..., Droid]) -> None:
    """It was staged, nobody but us knows: the next process is told of it when the journal has it, and not before."""
    one = droid(endpoint(tmp_path, "primary"), delete_local=True)
    one.begin()
    one.uploads.sealed(segment(one.taskdir, "alloc")[0])
    path = Path(one.taskdir.segment("alloc", 1, 0))
    one.until(lambda: one.named("staged"), "staged", keep=False)
    kill(one)
    one.until(lambda: one.uploads._stager is not None, "another one", keep=False)
    time.sleep(0.3)
    one.uploads.news()
    assert path.exists() and len(one.named("staged")) == 1
    one.uploads.kept(one.named("staged")[0]["number"])
    one.until(lambda: one.named("removed"), "removed")
    assert not path.exists() and len(one.named("staged")) == 1


def test_killed_at_the_end_it_is_replaced_for_the_last_segment(tmp_path: Path, droid: Callable[..., Droid]) -> None:
    one = droid(endpoint(tmp_path, "primary"), backoff=60.0, backoff_max=60.0)
    one.begin()
    kill(one)
    one.uploads.sealed(segment(one.taskdir, "alloc")[0])
    assert one.uploads._stager is None
    one.uploads.finish(60.0)
    assert not one.uploads.over
    one.until(lambda: one.uploads.over, "over")
    assert one.named("staged") and one.uploads.waiting == 0


def test_without_anybody_who_may_start_it_nothing_waits(tmp_path: Path, droid: Callable[..., Droid]) -> None:
    one = droid(endpoint(tmp_path, "primary"))
    one.begin()
    asked: list[list[str]] = []
    one.uploads.spawn = lambda words, environment, fds: bool(asked.append(words))
    kill(one)
    one.uploads.sealed(segment(one.taskdir, "alloc")[0])
    one.until(lambda: asked, "somebody asked")
    one.uploads.finish(0.0)
    assert one.uploads.waiting == 1 and one.uploads._stager is None
    one.uploads._until = time.monotonic() - 1
    assert one.uploads.over


def test_failures_are_noted_once_a_minute(tmp_path: Path, droid: Callable[..., Droid]) -> None:
    one = droid(endpoint(tmp_path, "gone/deep", exists=False), breaker=BreakerRules(samples=3, recovery=1e6))
    one.begin()
    one.uploads.sealed(segment(one.taskdir, "alloc")[0])
    one.until(lambda: one.named("breaker"), "the breaker to open")
    assert len(one.named("upload_failed")) == 1
    assert one.named("breaker")[0]["by"] == 1
    assert Path(one.taskdir.root, "breaker.json").exists()


# --- yoda stageout ----------------------------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path) -> TaskDir:
    """Allocation `a` is dead: one segment sealed, one left open."""
    taskdir = TaskDir(str(tmp_path / "task"))
    first, rows = segment(taskdir, "a", 0)
    _, more = segment(taskdir, "a", 1, seal=False)
    journal(taskdir, "a", rows, first, more)
    return taskdir


def go(taskdir: TaskDir, *endpoints: EndpointSite, wait: float = 0.0, sweeping: bool = False, **keys: Any) -> Outcome:
    storage = Storage(endpoints, rules(**keys)) if endpoints else None
    return stage_out(taskdir, "t", PRINT, storage, wait=wait, by_hand=True, sweeping=sweeping)


def copies(taskdir: TaskDir) -> dict[SegmentId, set[str]]:
    found = read_catalogue(Story(taskdir, PRINT).whole())
    return {id: set(known.copies) for id, known in found.segments.items()}


def test_what_is_sealed_and_what_was_left_open_is_staged(tmp_path: Path, task: TaskDir) -> None:
    done = go(task, endpoint(tmp_path, "primary"))
    assert done == Outcome(staged=2, repaired=1)
    assert copies(task) == {SegmentId("a", 1, 0): {"primary"}, SegmentId("a", 1, 1): {"primary"}}
    names = {path.name for path in (tmp_path / "primary").rglob("*.tar")}
    assert names == {"00001-0000.tar", "00001-0001.repaired.tar"}
    before = task.allocations()
    assert go(task, endpoint(tmp_path, "primary")) == Outcome()
    assert task.allocations() == before  # with nothing to say there is no journal


def test_failover_re_home_and_deletion(tmp_path: Path, task: TaskDir) -> None:
    primary, failover = endpoint(tmp_path, "one/primary", exists=False), endpoint(tmp_path, "failover")
    assert go(task, primary, failover).left == 0
    assert all(found == {"failover"} for found in copies(task).values())
    (tmp_path / "one" / "primary").mkdir(parents=True)
    assert go(task, primary, failover, delete_failover=True, delete_local=True).left == 0
    assert {frozenset(found) for found in copies(task).values()} == {frozenset({"one/primary"})}
    assert not list((tmp_path / "failover").rglob("*.tar"))
    assert not Path(task.segment("a", 1, 0)).exists()


@pytest.mark.parametrize("here", [True, False])
def test_an_endpoint_at_another_address_has_nothing_yet(tmp_path: Path, task: TaskDir, here: bool) -> None:
    """The old service is retired with all that was there, the new one has its name."""
    failover, old, new = (endpoint(tmp_path, name) for name in ("failover", "old", "new"))
    for one in (failover, replace(old, name="primary")):
        assert go(task, one, failover, delete_local=not here).left == 0
    shutil.rmtree(tmp_path / "old")
    new = replace(new, name="primary")
    assert go(task, new, failover, delete_local=True, delete_failover=True).left == 0
    assert len(list((tmp_path / "new").rglob("*.tar"))) == 2
    assert not list((tmp_path / "failover").rglob("*.tar")) and not list(Path(task.root, "segments").rglob("*.tar"))
    known = read_catalogue(Story(task, PRINT).whole()).segments
    assert all(one.on((new, failover)) == ("primary",) for one in known.values())


def test_what_was_moved_with_its_endpoint_is_adopted(tmp_path: Path, task: TaskDir) -> None:
    old = replace(endpoint(tmp_path, "old"), name="primary")
    assert go(task, old, delete_local=True).staged == 2
    (tmp_path / "old").rename(tmp_path / "new")
    new, said = replace(endpoint(tmp_path, "new"), name="primary"), []
    stage_out(task, "t", PRINT, Storage((new,), rules()), say=said.append)
    assert "2 segments are only at addresses that no endpoint has now" in "".join(said)
    assert go(task, new, sweeping=True) == Outcome(swept=Swept(adopted=2))
    assert go(task, new, sweeping=True) == Outcome(swept=Swept())


def test_a_failover_copy_stays_where_the_primary_has_lost_its_own(tmp_path: Path, task: TaskDir) -> None:
    primary, failover = endpoint(tmp_path, "primary"), endpoint(tmp_path, "failover")
    assert go(task, failover).staged == 2 and go(task, primary, failover).left == 0
    gone, cut = sorted((tmp_path / "primary").rglob("*.tar"))
    gone.unlink()
    cut.write_bytes(b"cut")
    go(task, primary, failover, delete_failover=True)
    assert len(list((tmp_path / "failover").rglob("*.tar"))) == 2


def test_two_addresses_of_one_place_lose_nothing(tmp_path: Path, task: TaskDir) -> None:
    """What is found on the primary is the failover's own object."""
    failover = endpoint(tmp_path, "failover")
    assert go(task, failover).staged == 2
    before = sorted((tmp_path / "failover").rglob("*"))
    (tmp_path / "primary").symlink_to(tmp_path / "failover")
    done = go(task, endpoint(tmp_path, "primary"), failover, delete_failover=True, delete_local=True)
    assert done == Outcome() and copies(task)[SegmentId("a", 1, 0)] == {"primary"}
    assert sorted((tmp_path / "failover").rglob("*")) == before


def home(tmp_path: Path, task: TaskDir) -> tuple[EndpointSite, EndpointSite]:
    """Primary and failover; all is on the failover, and the primary is off for good."""
    primary, failover = endpoint(tmp_path, "primary"), endpoint(tmp_path, "failover")
    assert go(task, failover).staged == 2
    breaker = Breaker(BreakerRules(samples=1, opens=1))
    breaker.failure("endpoint:primary", time.time())
    breakerfile.save(breakerfile.state_path(rules(), task.root), breaker.to_dict())
    return primary, failover


@pytest.mark.timeout(60)
def test_nobody_waits_to_re_home_to_what_is_off_for_good(tmp_path: Path, task: TaskDir) -> None:
    assert go(task, *home(tmp_path, task), wait=1e6) == Outcome()


@pytest.mark.timeout(60)
def test_nobody_waits_for_ever_where_nothing_can_be_staged(tmp_path: Path, task: TaskDir) -> None:
    """Both are off for good; or the only endpoint is well, and has other objects of these names."""
    primary, _ = home(tmp_path, task)
    for name in [name for name in task.allocations() if "stageout" in name]:
        os.unlink(task.journal(name))
    assert go(task, primary, wait=1e6).left == 2
    failover = endpoint(tmp_path, "failover")
    for path in (tmp_path / "failover").rglob("*.tar"):
        path.write_bytes(b"another")
    assert go(task, failover).left == 2


@pytest.mark.timeout(60)
def test_patience_ends_where_only_re_homing_is_left(tmp_path: Path, task: TaskDir) -> None:
    """The primary is down or has another object of this name; what went to the failover meanwhile stays there."""
    down, failover = endpoint(tmp_path, "one/down", exists=False), endpoint(tmp_path, "failover")
    again = {"rehome_after": 1e6, "backoff_max": 1e6}
    assert go(task, down, failover, wait=1.0, **again) == Outcome(staged=2, repaired=1)
    primary = endpoint(tmp_path, "primary")
    for found in (tmp_path / "failover").rglob("*.tar"):
        path = tmp_path / "primary" / found.relative_to(tmp_path / "failover")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"another")
    assert go(task, primary, failover, wait=1e6) == Outcome()
    for name in [name for name in task.allocations() if "stageout" in name]:
        os.unlink(task.journal(name))
    assert go(task, primary, failover, wait=1e6) == Outcome(staged=2, repaired=1)


@pytest.mark.timeout(60)
def test_a_copy_on_an_endpoint_that_is_no_more_is_not_waited_for(tmp_path: Path, task: TaskDir) -> None:
    primary, old = endpoint(tmp_path, "primary"), endpoint(tmp_path, "old")
    assert go(task, primary).staged == 2
    journal(
        task,
        "b",
        {"note": "staged", "allocation": "a", "droid": 1, "segment": 0, "endpoint": old.name, "key": "k", "url": "u"},
    )
    assert go(task, primary, delete_failover=True) == Outcome()


def test_storage_that_is_down_leaves_everything_and_says_so(tmp_path: Path, task: TaskDir) -> None:
    gone = endpoint(tmp_path, "one/gone", exists=False)
    assert go(task, gone).left == 2
    assert go(task, gone, wait=0.3).left == 2
    assert copies(task) == {SegmentId("a", 1, 0): set(), SegmentId("a", 1, 1): set()}


def test_a_living_allocation_is_left_alone(tmp_path: Path, task: TaskDir) -> None:
    heart = Heart(task, "a", None, 5.0, 60.0)
    try:
        done = go(task, endpoint(tmp_path, "primary"))
        assert done == Outcome(elsewhere=1)  # the open one is not even looked at
    finally:
        heart.stop()
    assert go(task, endpoint(tmp_path, "primary")) == Outcome(staged=2, repaired=1)


def test_a_segment_damaged_after_sealing_is_not_uploaded(tmp_path: Path, task: TaskDir) -> None:
    with open(task.segment("a", 1, 0), "r+b") as file:
        file.seek(700)
        was = file.read(1)
        file.seek(700)
        file.write(bytes([was[0] ^ 1]))
    done = go(task, endpoint(tmp_path, "primary"))
    assert (done.staged, done.unusable, done.left) == (1, 1, 0)
    assert go(task, endpoint(tmp_path, "primary")).unusable == 1


@pytest.mark.timeout(60)
def test_a_segment_that_cannot_be_read_now_is_left_and_staged_later(tmp_path: Path, task: TaskDir) -> None:
    """A folder in its place stands for all that is no word about the content."""
    path, away = Path(task.segment("a", 1, 0)), tmp_path / "away.tar"
    path.rename(away)
    path.mkdir()
    assert go(task, endpoint(tmp_path, "primary")) == Outcome(staged=1, repaired=1, left=1)
    path.rmdir()
    assert go(task, endpoint(tmp_path, "primary")) == Outcome(unusable=1)  # gone
    away.rename(path)
    assert go(task, endpoint(tmp_path, "primary")) == Outcome(staged=1)


def test_who_asks_by_hand_has_damaged_segments_looked_at_again(tmp_path: Path, task: TaskDir) -> None:
    path, primary = Path(task.segment("a", 1, 0)), endpoint(tmp_path, "primary")
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert go(task, primary) == Outcome(staged=1, repaired=1, unusable=1)
    told = [entry for _, entry in Story(task, PRINT).whole() if isinstance(entry, dict) and entry["note"] == "unusable"]
    journal(task, "b", *told)  # behind that of `a`, as names of commands are
    before = task.allocations()
    assert go(task, primary) == Outcome(unusable=1) and task.allocations() == before  # no news
    path.write_bytes(data)
    assert go(task, primary) == Outcome(staged=1)


def test_a_damaged_segment_that_has_been_superseded_is_no_trouble(tmp_path: Path, task: TaskDir) -> None:
    Path(task.segment("a", 1, 0)).write_bytes(b"other")
    journal(task, "b", records.new(1, kind=Kind.PENDING, start=0, stop=3))
    assert go(task, endpoint(tmp_path, "primary")) == Outcome(staged=1, repaired=1)


def test_objects_that_no_journal_knows_of(tmp_path: Path, task: TaskDir) -> None:
    """A copy whose note was lost is adopted, what is left of a segment that was repaired since is removed; objects of
    living allocations and of other tasks are left alone."""
    lost, primary = endpoint(tmp_path, "failover"), endpoint(tmp_path, "primary")
    assert go(task, lost).staged == 2
    for name in task.allocations():
        if "stageout" in name:
            os.unlink(task.journal(name))
    folder = tmp_path / "failover" / "t"
    old = folder / "a" / "00001-0009.tar"
    others = [folder / "b" / "00001-0000.tar", tmp_path / "failover" / "u" / "a" / "00001-0000.tar"]
    for path in (old, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")
    (folder / "a" / "00001-0001.repaired.tar").write_bytes(b"another")
    journal(task, "b")
    heart = Heart(task, "b", None, 5.0, 60.0)
    try:
        assert go(task, primary, lost).staged == 2 and copies(task)[SegmentId("a", 1, 0)] == {"primary"}
        done = go(task, primary, lost, sweeping=True)
    finally:
        heart.stop()
    assert done.swept == Swept(adopted=1, removed=1)
    assert not old.exists() and all(path.exists() for path in others)
    assert copies(task)[SegmentId("a", 1, 0)] == {"primary", "failover"}
    assert copies(task)[SegmentId("a", 1, 1)] == {"primary"}  # what lies there is not what was sealed
    assert go(task, primary, endpoint(tmp_path, "no/where", exists=False), sweeping=True).swept is not None


@pytest.mark.parametrize("harm", ["unreadable", "zeroed", "cut", "empty", "of another"])
def test_nothing_is_removed_that_a_journal_may_tell_of(tmp_path: Path, task: TaskDir, harm: str) -> None:
    """The notes of the only copies cannot be read: their objects stay."""
    primary = endpoint(tmp_path, "primary")
    assert go(task, primary, delete_local=True).staged == 2
    before = sorted((tmp_path / "primary").rglob("*.tar"))
    told = sorted((entry for _, entry in Story(task, PRINT).whole()), key=lambda entry: isinstance(entry, dict))
    victim, *others = (Path(task.journal(name)) for name in reversed(task.allocations()))
    if harm != "of another":  # the allocation itself has staged them
        for path in (victim, *others):
            path.unlink()
        journal(task, "a", *told)
        victim = Path(task.journal("a"))
    data = victim.read_bytes()
    first = data.index(b'"sealed"')
    if harm == "zeroed":
        victim.write_bytes(data[:first] + bytes(len(data) - first - 1) + b"x")
    elif harm == "cut":
        victim.write_bytes(data[:first])
    elif harm == "empty":
        victim.write_bytes(b"")
    else:
        victim.unlink()
        victim.mkdir()
    done = go(task, primary, sweeping=True)
    assert done.swept is not None and done.swept.removed == 0
    assert sorted((tmp_path / "primary").rglob("*.tar")) == before


def test_what_a_sleeper_may_go_on_writing_stays(tmp_path: Path, task: TaskDir) -> None:
    """An allocation of another machine that only keeps silent: its open segment is staged as it is now, and kept."""
    Heart(task, "a", None, 1e9, 60.0)  # never stopped
    alive, opened = Path(task.leases, "a.alive"), Path(task.segment("a", 1, 1))
    alive.write_bytes(alive.read_bytes().replace(machine().encode(), b"another"))
    for path in (alive, opened):
        os.utime(path, (1e9, 1e9))
    primary = endpoint(tmp_path, "primary")
    assert go(task, primary, delete_local=True) == Outcome(staged=2, repaired=1)
    assert opened.exists() and not Path(task.segment("a", 1, 0)).exists()


@pytest.mark.parametrize("sealed", [False, True], ids=["open", "sealed"])
@pytest.mark.parametrize("staged", ["nowhere", "elsewhere", "there", "there, deleted here"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_a_sleeper_went_on_writing_is_staged_before_it_goes(
    tmp_path: Path, kind: str, staged: str, sealed: bool
) -> None:
    """Its segment is repaired while it sleeps; it wakes up, goes on, and ends without having staged anything."""
    task = TaskDir(str(tmp_path / "task"))
    # So many that the directory of a zip file takes more room than what comes after.
    opened, images = Path(task.segment("a", 1, 0, kind)), [f"{n:04d}".encode() * 25 for n in range(102)]
    opened.parent.mkdir(parents=True)
    os.makedirs(task.journals)
    out, told = writer(str(opened), kind), JournalWriter(task.journal("a"), PRINT, "a")

    def done(*numbers: int) -> None:
        rows = records.new(len(numbers), kind=Kind.DONE, droid=1, size=100)
        for row, n in zip(rows, numbers, strict=True):
            row["start"], row["stop"], row["checksum"] = n, n + 1, checksum(images[n])
            row["offset"] = out.append(f"t.{n}.h5", images[n])
        out.sync()
        told.append(rows)
        told.flush()

    done(*range(100))
    Heart(task, "a", None, 1e9, 60.0)  # never stopped
    alive = Path(task.leases, "a.alive")
    alive.write_bytes(alive.read_bytes().replace(machine().encode(), b"another"))
    os.utime(alive, (1e9, 1e9))
    primary, failover = endpoint(tmp_path, "primary"), endpoint(tmp_path, "failover")
    down = endpoint(tmp_path, "no/where", exists=False)
    first = {"nowhere": down, "elsewhere": failover}.get(staged, primary)
    assert go(task, first, delete_local="deleted" in staged).repaired == 1

    done(100, 101)
    if sealed:
        sums = out.seal()
        told.note("sealed", droid=1, segment=0, **vars(sums) | {"adler32": f"{sums.adler32:08x}"})
    out.close()
    told.flush()
    told.file.sync()
    told.file.close()
    alive.unlink()  # it has ended
    found = go(task, primary, failover, delete_local=True, delete_failover=True, sweeping=True)
    assert (found.staged, found.repaired, found.left) == (1, not sealed, 0)
    assert not list(Path(task.root, "segments").rglob(f"*.{kind}"))
    known = read_catalogue(Story(task, PRINT).whole()).segments[SegmentId("a", 1, 0)]
    whole = (tmp_path / "primary" / known.copies["primary"].key).read_bytes()
    assert all(data in whole for data in images)
    assert go(task, primary, failover, delete_local=True, delete_failover=True) == Outcome()


def test_a_segment_with_more_than_is_staged_stays(tmp_path: Path, task: TaskDir) -> None:
    """What came after its repair cannot be used now."""
    assert go(task, endpoint(tmp_path, "no/where", exists=False)).repaired == 1
    row = records.new(1, kind=Kind.DONE, start=9, stop=10, droid=1, segment=1, offset=1 << 20, size=1000)
    entries = [entry for name, entry in Story(task, PRINT).whole() if name == "a"]
    os.unlink(task.journal("a"))
    journal(task, "a", *entries, row)
    assert go(task, endpoint(tmp_path, "primary"), delete_local=True) == Outcome(staged=2)
    assert Path(task.segment("a", 1, 1)).exists() and not Path(task.segment("a", 1, 0)).exists()


def test_what_a_dead_allocation_left_open_goes_once_its_copy_is_staged(tmp_path: Path, task: TaskDir) -> None:
    assert go(task, endpoint(tmp_path, "primary"), delete_local=True) == Outcome(staged=2, repaired=1)
    assert not list(Path(task.root, "segments").rglob("*.tar"))


def test_a_stage_out_process_that_is_killed_is_started_again(
    tmp_path: Path, task: TaskDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Mortal(StagerProcess):
        def __init__(self, *args: Any, **keys: Any) -> None:
            super().__init__(*args, **keys)
            started.append(self.pid)
            if len(started) < 3:
                os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr("yoda.stageout.StagerProcess", Mortal)
    assert go(task, endpoint(tmp_path, "primary")) == Outcome(staged=2, repaired=1)
    assert len(started) == 3
    assert len({str(id) for id in copies(task)}) == 2


def test_one_at_a_time(tmp_path: Path, task: TaskDir) -> None:
    with _alone(task) as first:
        assert first and go(task, endpoint(tmp_path, "primary")).busy
    assert go(task, endpoint(tmp_path, "primary")).staged == 2


def test_endpoints_are_known_from_the_last_run(tmp_path: Path, task: TaskDir) -> None:
    given = endpoint(tmp_path, "primary")
    note = endpoints_note((given,), rules(alert_url="http://127.0.0.1:9/secret", delete_local=True))
    journal(task, "b", {"note": "endpoints", **note})
    assert "secret" not in repr(note)
    found = storage_of(task, read_catalogue(Story(task, PRINT).whole()))
    assert found.endpoints == (given,) and found.rules.delete_local
    asked = load_site(None, ["stageout_rules.delete_local=false"], here=False)
    found = storage_of(task, read_catalogue(Story(task, PRINT).whole()), asked)
    assert found.endpoints == (given,) and not found.rules.delete_local, "what the user says now counts"
    assert go(task).staged == 2


def test_a_person_may_say_that_an_endpoint_is_well(tmp_path: Path, task: TaskDir) -> None:
    gone, once = endpoint(tmp_path, "one/gone", exists=False), BreakerRules(samples=1, opens=1)
    assert go(task, gone, breaker=once).left == 2
    (tmp_path / "one" / "gone").mkdir(parents=True)
    assert go(task, gone, breaker=once).left == 2  # off for good
    storage = Storage((gone,), rules(breaker=once))
    assert reset(task, PRINT, storage, "one/gone") and not reset(task, PRINT, storage, "one/gone")
    assert go(task, gone, breaker=once) == Outcome(staged=2)


def test_a_person_may_say_that_a_node_is_well(task: TaskDir) -> None:
    storage, path = Storage((), rules()), breakerfile.state_path(rules(), task.root)
    nodes = Nodes(NodeBreakerRules(opens=1))
    nodes.doubted(1.0, "n1", "failed")
    breakerfile.save(path, nodes.state)
    assert not Nodes(state=breakerfile.load(path)).allow(1e12, "n1")[0]  # off for good
    assert reset(task, PRINT, storage, "node:n1") and not reset(task, PRINT, storage, "node:n1")
    assert Nodes(state=breakerfile.load(path)).allow(2.0, "n1")[0]
