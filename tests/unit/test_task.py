"""Freezing a job into a task directory: what may change between runs, and what is refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventrange.axis import Axis
from eventrange.durable import Files
from eventrange.errors import BAD_CONFIG, CannotWrite, ConfigError, InputChanged, NotATask, TaskChanged, TaskDamaged
from eventrange.journal import JournalWriter
from eventrange.taskdir import TaskDir
from yoda.config import load_job
from yoda.schema import Job
from yoda.sources import named_axis
from yoda.task import differences, need_task, open_task, read_task

Make = Callable[..., Job]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function that loads the job, with --set."""
    (tmp_path / "shower.py").write_text("class Shower: ...\n")
    for name in ("a.lhe", "b.lhe"):
        (tmp_path / name).write_text(name)
    (tmp_path / "job.yaml").write_text(
        "task: zjets\nseed: 42\ninputs: {format: lhe, files: [a.lhe, b.lhe]}\n"
        "payload: {python: shower.py:Shower, options: {tune: monash}}\n"
    )
    return lambda *sets: load_job(str(tmp_path / "job.yaml"), sets)


@pytest.fixture
def taskdir(tmp_path: Path) -> TaskDir:
    return TaskDir(str(tmp_path / "zjets.task"))


def axis(job: Job, events: int = 10) -> dict[str, Any]:
    files = [(path, events) for path in job.inputs.files]
    return Axis(files, limit=job.inputs.events).to_dict() if files else Axis.generate(job.inputs.events or 1).to_dict()


def never() -> dict[str, Any]:
    raise AssertionError("counted again")


def test_the_same_job_opens_again_without_counting(make: Make, taskdir: TaskDir) -> None:
    first = open_task(taskdir, make(), axis(make()))
    again = open_task(taskdir, make(), never)
    assert again == first == read_task(taskdir) == need_task(taskdir)
    assert [file.events for file in first.inputs.files] == [10, 10] and first.inputs.files[0].size == 5
    assert Axis.from_dict(again.axis).total == 20 and len(first.fingerprint) == 64 and first.warnings == ()
    assert sorted(os.listdir(taskdir.root)) == ["index", "journal", "leases", "segments", "task.yaml"]


@pytest.mark.parametrize(
    "given",
    [
        "ranges.max_attempts=7",
        "ranges.seconds=1h",
        "output={merge: true, compression: lzf}",
        "payload.memory=2GiB",
        "payload.name=x",
    ],
)
def test_what_decides_nothing_may_change_and_is_kept(make: Make, taskdir: TaskDir, given: str) -> None:
    first = open_task(taskdir, make(), axis(make()))
    second = open_task(taskdir, make(given), never)
    assert second.fingerprint == first.fingerprint and second.job != first.job
    assert read_task(taskdir) == second


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ("seed=43", "seed: 42 -> 43"),
        ("inputs.events=15", "inputs.events: null -> 15"),
        ("inputs.files=[a.lhe]", "inputs.files.1: b.lhe (5 bytes, 10 events) -> (not there)"),
        ("inputs.files=[b.lhe, a.lhe]", "inputs.files.0: a.lhe (5 bytes, 10 events) -> b.lhe (5 bytes, 10 events)"),
        ("inputs.options.x=1", "inputs.options.x: (not there) -> 1"),
        ("payload.options.tune=vincia", "payload.options.tune: monash -> vincia"),
        ("payload.options={}", "payload.options.tune: monash -> (not there)"),
        ("payload.python=shower.py:Other", "payload.python: shower.py:Shower -> shower.py:Other"),
    ],
)
def test_what_decides_is_refused_with_the_difference(make: Make, taskdir: TaskDir, given: str, change: str) -> None:
    open_task(taskdir, make(), axis(make()))
    before = Path(taskdir.task_file).read_text()
    with pytest.raises(TaskChanged) as caught:
        open_task(taskdir, make(given), lambda: axis(make(given)))
    assert change in str(caught.value) and "--task" in str(caught.value) and caught.value.exit_code == BAD_CONFIG
    assert Path(taskdir.task_file).read_text() == before


def test_another_task(make: Make, taskdir: TaskDir) -> None:
    open_task(taskdir, make(), axis(make()))
    with pytest.raises(NotATask, match="belongs to the task 'zjets', and the job is 'other'"):
        open_task(taskdir, make("task=other"), never)


def test_generated_events(make: Make, taskdir: TaskDir) -> None:
    job = make("inputs={format: generate, events: 5}")
    first = open_task(taskdir, job, axis(job))
    assert open_task(taskdir, job, never) == first and first.inputs.files == ()


def test_files_behind_the_last_event(make: Make, taskdir: TaskDir) -> None:
    job = make("inputs.events=4")
    assert [file.events for file in open_task(taskdir, job, axis(job)).inputs.files] == [4, 0]
    open_task(taskdir, job, never)


# --- files that changed -----------------------------------------------------------------------------------------------


def test_changed_inputs_are_refused(make: Make, taskdir: TaskDir, tmp_path: Path) -> None:
    open_task(taskdir, make(), axis(make()))
    status = os.stat(tmp_path / "a.lhe")
    os.utime(tmp_path / "a.lhe", ns=(0, 12345))
    with pytest.raises(InputChanged, match=r"touch -d @\d+\.\d{9} /") as caught:
        open_task(taskdir, make(), never)
    assert f"@{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09d}" in str(caught.value)
    (tmp_path / "a.lhe").write_text("longer than before")
    with pytest.raises(InputChanged, match="had 5 bytes and has 18"):
        open_task(taskdir, make(), never)


def test_moved_inputs_are_counted_again(make: Make, taskdir: TaskDir, tmp_path: Path) -> None:
    first = open_task(taskdir, make(), axis(make()))
    (tmp_path / "data").mkdir()
    for name in ("a.lhe", "b.lhe"):
        (tmp_path / name).rename(tmp_path / "data" / name)
    moved = make("inputs.files=[data/a.lhe, data/b.lhe]")
    second = open_task(taskdir, moved, lambda: axis(moved))
    assert second.fingerprint == first.fingerprint
    assert Axis.from_dict(second.axis).files[0].path == str(tmp_path / "data" / "a.lhe")
    moved = make("inputs.files=[data/b.lhe, data/a.lhe]")
    with pytest.raises(TaskChanged):
        open_task(taskdir, moved, lambda: axis(moved))


def test_moved_inputs_with_other_events(make: Make, taskdir: TaskDir, tmp_path: Path) -> None:
    open_task(taskdir, make(), axis(make()))
    (tmp_path / "data").mkdir()
    (tmp_path / "a.lhe").rename(tmp_path / "data" / "a.lhe")
    moved = make("inputs.files=[data/a.lhe, b.lhe]")
    with pytest.raises(TaskChanged, match="11 events"):
        open_task(taskdir, moved, lambda: axis(moved, 11))


def test_a_changed_payload_file_is_a_warning_once(make: Make, taskdir: TaskDir, tmp_path: Path) -> None:
    open_task(taskdir, make(), axis(make()))
    (tmp_path / "shower.py").write_text("class Shower: fixed = True\n")
    (warning,) = open_task(taskdir, make(), never).warnings
    assert "shower.py has changed" in warning
    assert open_task(taskdir, make(), never).warnings == ()


# --- directories ------------------------------------------------------------------------------------------------------


def test_directories_that_are_no_task(make: Make, taskdir: TaskDir, tmp_path: Path) -> None:
    os.mkdir(taskdir.root)
    Path(taskdir.root, "thesis.tex").write_text("")
    with pytest.raises(NotATask, match=r"not empty and has no task\.yaml; in it: thesis\.tex"):
        open_task(taskdir, make(), never)
    with pytest.raises(NotATask, match="it is not a directory"):
        open_task(TaskDir(str(tmp_path / "a.lhe")), make(), never)
    with pytest.raises(NotATask, match="no such directory"):
        need_task(TaskDir(str(tmp_path / "absent")))
    with pytest.raises(NotATask, match=r"has no task\.yaml"):
        need_task(taskdir)


def test_a_start_cut_short_is_no_obstacle(make: Make, taskdir: TaskDir) -> None:
    taskdir.make()
    Path(f"{taskdir.task_file}.0123456789ab.17.tmp").write_text("half a fi")
    Path(taskdir.indexes, "a.lhe.idx").write_text("")
    assert open_task(taskdir, make(), axis(make())) == read_task(taskdir)


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"version: 1\n", b"[]", b"version: 1\nfingerprint: 3\naxis: 3\n"])
def test_damaged(make: Make, taskdir: TaskDir, damage: bytes) -> None:
    open_task(taskdir, make(), axis(make()))
    Path(taskdir.task_file).write_bytes(damage)
    with pytest.raises(TaskDamaged) as caught:
        open_task(taskdir, make(), never)
    assert "is damaged" in str(caught.value) and caught.value.exit_code == BAD_CONFIG


def test_a_flipped_digit_is_seen(make: Make, taskdir: TaskDir) -> None:
    open_task(taskdir, make(), axis(make()))
    text = Path(taskdir.task_file).read_text()
    Path(taskdir.task_file).write_text(text.replace("seed: 42", "seed: 43", 1))
    with pytest.raises(TaskDamaged, match="fingerprint"):
        read_task(taskdir)
    Path(taskdir.task_file).write_text(text.replace("version: 1", "version: 2", 1))
    with pytest.raises(TaskDamaged, match="use the yoda that wrote it"):
        open_task(taskdir, make(), never)


@pytest.mark.parametrize("gone", [True, False])
def test_journals_that_know_the_job_bring_task_yaml_back(make: Make, taskdir: TaskDir, gone: bool) -> None:
    first = open_task(taskdir, make(), axis(make()))
    writer = JournalWriter(taskdir.journal("one"), first.fingerprint, "one")
    writer.flush()
    writer.file.close()
    Path(taskdir.merged).mkdir()
    Path(taskdir.task_file).unlink()
    if not gone:
        Path(taskdir.task_file).write_bytes(b"\0" * 10)
    with pytest.raises((NotATask, TaskDamaged)):
        open_task(taskdir, make("seed=1"), lambda: axis(make()))
    again = open_task(taskdir, make(), lambda: axis(make()))
    assert again.fingerprint == first.fingerprint and bool(again.warnings) != gone
    assert open_task(taskdir, make(), never).fingerprint == first.fingerprint


class Broken(Files):
    """A file system on which renaming and writing fail."""

    def write(self, fd: int, data: Any) -> int:
        raise OSError(28, "No space left on device")


def test_nothing_can_be_written(make: Make, taskdir: TaskDir, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="No space left"):
        open_task(taskdir, make(), axis(make()), files=Broken())
    assert not os.path.exists(taskdir.task_file)
    with pytest.raises(CannotWrite):
        open_task(TaskDir("/proc/self/task.task"), make(), axis(make()))
    first = open_task(taskdir, make(), axis(make()))
    with pytest.raises(CannotWrite):
        open_task(taskdir, make("ranges.max_attempts=9"), never, files=Broken())
    assert read_task(taskdir) == first


# --- two at once ------------------------------------------------------------------------------------------------------


def test_the_slower_of_two_compares(make: Make, taskdir: TaskDir) -> None:
    def late(source: str, target: str) -> None:
        if not os.path.exists(target):
            open_task(taskdir, make("seed=7"), axis(make()))
        os.link(source, target)

    with pytest.raises(TaskChanged, match="seed: 7 -> 42"):
        open_task(taskdir, make(), axis(make()), link=late)


def test_a_file_system_without_hard_links(make: Make, taskdir: TaskDir) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    first = open_task(taskdir, make(), axis(make()), link=refuse)
    assert read_task(taskdir) == first
    assert not [name for name in os.listdir(taskdir.root) if name.startswith("task.yaml.")]


def test_many_at_once_agree(make: Make, taskdir: TaskDir) -> None:
    results: list[Any] = []

    def start(seed: int) -> None:
        job = make(f"seed={seed}")
        try:
            results.append(open_task(taskdir, job, axis(job)).seed)
        except TaskChanged as error:
            results.append(error)

    threads = [threading.Thread(target=start, args=(seed,)) for seed in (1, 2) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seeds = [result for result in results if isinstance(result, int)]
    assert len(results) == 8 and len(seeds) == 4 and len(set(seeds)) == 1


def test_differences_of_trees() -> None:
    assert differences({"a": 1, "b": [1, 2], "c": {"d": 1}}, {"a": 1, "b": [1], "c": {"d": 1.0}, "e": None}) == [
        "b.1: 2 -> (not there)",
        "c.d: 1 -> 1.0",
        "e: (not there) -> null",
    ]


def test_named_ranges_are_part_of_the_task(make: Make, taskdir: TaskDir, tmp_path: Path) -> None:
    """Their content decides, not the file's date or form; the task directory may be moved; a refused list leaves
    nothing behind."""
    file = tmp_path / "ranges.csv"
    header = "eventRangeID,LFN,startEvent,lastEvent\n"
    file.write_text(header + "x,a.lhe,1,2\ny,b.lhe,3,3\n")

    def job(*sets: str) -> Job:
        return make(f"ranges.file={file}", *sets)

    def plan(chosen: Job) -> Callable[[], dict[str, Any]]:
        whole = Axis([(path, 10) for path in chosen.inputs.files])
        return lambda: named_axis(whole, str(file), taskdir.indexes, chosen.ranges.numbering).to_dict()

    first = open_task(taskdir, job(), plan(job()))
    assert [entry.events for entry in first.inputs.files] == [2, 1]
    assert first.ranges is not None and first.ranges.count == 2
    assert open_task(taskdir, job(), never) == first
    assert first.fingerprint != open_task(TaskDir(str(tmp_path / "other")), make(), axis(make())).fingerprint
    file.write_text(header + "\nx,a.lhe,1,2\ny,b.lhe,3,3\n")
    again = open_task(taskdir, job(), plan(job()))
    assert again.fingerprint == first.fingerprint and again.ranges != first.ranges
    os.rename(taskdir.root, tmp_path / "moved")
    moved = need_task(TaskDir(str(tmp_path / "moved")))
    assert Axis.from_dict(moved.axis).total == 3 and moved.fingerprint == first.fingerprint
    os.rename(tmp_path / "moved", taskdir.root)
    kept = os.listdir(taskdir.indexes)
    file.write_text(header + "x,a.lhe,1,2\nz,b.lhe,3,3\n")
    with pytest.raises(TaskChanged, match=r"ranges\.file: ranges\.csv"):
        open_task(taskdir, job(), plan(job()))
    with pytest.raises(TaskChanged, match=r"(?s)ranges.*not there"):
        open_task(taskdir, make(), axis(make()))
    file.write_text(header + "x,a.lhe,1,2\ny,b.lhe,13,13\n")
    counted = job("ranges.numbering=inputs")
    assert open_task(taskdir, counted, plan(counted)).fingerprint == first.fingerprint, "the same events"
    assert os.listdir(taskdir.indexes) == kept
    file.unlink()
    with pytest.raises(ConfigError, match="there is no file"):
        job()
