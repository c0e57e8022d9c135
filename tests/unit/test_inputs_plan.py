"""From files to an axis and back to events: planning, the cache, changed files, and files that are no good at all."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs_samples import hepmc_text, lhe_text, write, write_hdf5, write_root

from droid.inputs import InputSet, index, index_file, open_input, plan_axis
from droid.inputs.index import Index
from eventrange.axis import Axis
from eventrange.errors import (
    CannotWrite,
    ConfigError,
    ExtraMissing,
    InputChanged,
    InputDamaged,
    InputMissing,
    YodaError,
)

FORMATS = ("lhe", "hdf5", "root", "hepmc")


def make(format: str, directory: Path, name: str, events: int, first: int = 0) -> str:
    directory.mkdir(exist_ok=True)
    if format == "lhe":
        return write(directory / name, lhe_text(events))
    if format == "hepmc":
        return write(directory / name, hepmc_text(events, first=first))
    if format == "root":
        return write_root(directory / name, events)
    return write_hdf5(directory / name, events)


def key(event: Any) -> Any:
    """What tells the sample events of one file apart."""
    if isinstance(event, dict):
        return int(event["x"] / 1.5)
    return event.event_number if hasattr(event, "event_number") else event.position


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("format", FORMATS)
def test_many_files_are_one_axis(format: str, processes: int, tmp_path: Path) -> None:
    counts = [7, 0, 1, 12, 3, 2]
    files = [make(format, tmp_path / "in", f"{i}.x", n) for i, n in enumerate(counts)]
    axis = plan_axis(format, files, None, {}, tmp_path / "index", processes)
    assert [(file.path, file.events) for file in axis.files] == list(zip(files, counts, strict=True))
    events = InputSet(format, axis, tmp_path / "index", {})
    expected = [i for n in counts for i in range(n)]
    assert [key(event) for event in events.read(0, axis.total)] == expected
    for start, stop in [(5, 9), (6, 7), (20, 25), (3, 3)]:
        assert [key(event) for event in events.read(start, stop)] == expected[start:stop]
    assert len(events._open) <= 4
    events.close()
    assert key(events.read(24, 25)[0]) == 1
    assert events.input(8).count() == 12
    with pytest.raises(IndexError):
        events.read(20, 26)
    assert not [name for name in os.listdir(tmp_path / "index") if name.endswith(".tmp")]


def test_generate(tmp_path: Path) -> None:
    axis = plan_axis("generate", [], 10**9, {}, tmp_path / "index")
    assert axis == Axis.generate(10**9) and not (tmp_path / "index").exists()
    assert InputSet("generate", axis, tmp_path, {}).read(10**8, 10**8 + 3) == [10**8, 10**8 + 1, 10**8 + 2]
    with pytest.raises(IndexError):
        InputSet("generate", axis, tmp_path, {}).read(10**9, 10**9 + 1)
    file = open_input("generate", None, None, {"events": 5})
    assert file.read(1, 3) == [1, 2] and file.count() == 5
    with pytest.raises(IndexError):
        file.read(4, 6)
    file.close()


@pytest.mark.parametrize(
    ("format", "files", "events", "says"),
    [
        ("generate", [], None, "needs a number of events"),
        ("generate", [], 0, "needs a number of events"),
        ("generate", ["a"], 5, "reads no files"),
        ("lhe", [], None, "names no file"),
        ("csv", ["a"], None, "write one of: lhe, hdf5, root, hepmc, generate"),
    ],
)
def test_what_the_job_file_has_wrong(
    format: str, files: list[str], events: int | None, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_axis(format, files, events, {}, tmp_path / "index", where="job.yaml")
    assert says in str(caught.value) and str(caught.value).startswith("job.yaml: inputs.")


def test_more_events_than_there_are(tmp_path: Path) -> None:
    files = [make("lhe", tmp_path, f"{i}.lhe", 5) for i in range(2)]
    assert plan_axis("lhe", files, 7, {}, tmp_path / "index").total == 7
    with pytest.raises(ConfigError, match=r"first 11 events, but the 2 input file\(s\) hold 10"):
        plan_axis("lhe", files, 11, {}, tmp_path / "index")


def test_no_events_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputDamaged, match="it holds no events"):
        plan_axis("lhe", [make("lhe", tmp_path, "a.lhe", 0)], None, {}, tmp_path / "index")


@pytest.mark.parametrize("format", FORMATS)
def test_files_that_are_no_good(format: str, tmp_path: Path) -> None:
    """Each error has the path, an exit code that scripts know, and something to do."""

    def refused(path: Path | str, kind: type[YodaError], says: str) -> None:
        with pytest.raises(kind) as caught:
            plan_axis(format, [str(path)], None, {}, tmp_path / "index", 2)
        assert str(path) in str(caught.value) and says in str(caught.value) and "\n  -> " in str(caught.value)

    refused(tmp_path / "nowhere.x", InputMissing, "no such file")
    refused(tmp_path, InputMissing, "is a directory, not a file")
    empty = tmp_path / "empty.x"
    empty.touch()
    refused(empty, InputDamaged, "is empty (0 bytes)")
    os.mkfifo(tmp_path / "pipe.x")
    refused(tmp_path / "pipe.x", InputMissing, "is not a regular file")
    garbage = tmp_path / "garbage.x"
    garbage.write_bytes(bytes(np.random.default_rng(1).integers(0, 256, 5000, np.uint8)))
    refused(garbage, InputDamaged, "is no")
    if format in ("lhe", "hepmc"):
        empty_gzip = tmp_path / "empty.gz"
        empty_gzip.write_bytes(gzip.compress(b""))
        refused(empty_gzip, InputDamaged, "holds no text")


def test_permission_denied(tmp_path: Path) -> None:
    path = Path(make("lhe", tmp_path, "a.lhe", 2))
    path.chmod(0)
    if os.geteuid() == 0:
        child = os.fork()
        if child == 0:  # root may read everything, so somebody else has to try
            try:
                for directory in [tmp_path, *tmp_path.parents][:4]:
                    if directory != Path("/tmp"):
                        directory.chmod(0o755)
                os.setuid(65534)
                index.stamp(str(path))
            except InputMissing as error:
                os._exit(0 if "permission denied for user 65534" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    else:
        with pytest.raises(InputMissing, match="permission denied"):
            index.stamp(str(path))


@pytest.mark.parametrize("format", FORMATS)
def test_a_changed_file_is_refused(format: str, tmp_path: Path) -> None:
    path = make(format, tmp_path / "in", "a.x", 5)
    axis = plan_axis(format, [path], None, {}, tmp_path / "index")
    reader = InputSet(format, axis, tmp_path / "index", {})
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputChanged, match="modification time"):
        plan_axis(format, [path], None, {}, tmp_path / "index")
    with pytest.raises(InputChanged, match="modification time"):
        reader.read(0, 1)
    make(format, tmp_path / "in", "a.x", 400)
    with pytest.raises(InputChanged, match="bytes and had"):
        plan_axis(format, [path], None, {}, tmp_path / "index")
    again = plan_axis(format, [path], None, {}, tmp_path / "index", refuse_changed=False)
    assert again.total == 400
    assert len(InputSet(format, again, tmp_path / "index", {}).read(390, 400)) == 10


def test_a_plain_file_cut_while_it_is_open(tmp_path: Path) -> None:
    path = make("lhe", tmp_path, "a.lhe", 50)
    file = open_input("lhe", path)
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(InputChanged, match="ends at byte"):
        file.read(40, 50)


def test_the_cache_is_used_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.lhe.gz", lhe_text(100, "rwgt"))
    cache = tmp_path / "index"
    axis = plan_axis("lhe", [path], None, {}, cache)
    npz, copy = sorted(cache.iterdir(), key=lambda file: file.suffix, reverse=True)
    assert npz.name.startswith("a.lhe.gz.") and copy.name.endswith(".blocks.gz")
    with monkeypatch.context() as patched:
        patched.setattr("droid.inputs.plan.index_file", None)
        assert plan_axis("lhe", [path], None, {}, cache) == axis
    whole = [event.raw for event in InputSet("lhe", axis, cache, {}).read(0, 100)]
    for damage in (
        lambda: npz.write_bytes(b""),
        lambda: npz.write_bytes(npz.read_bytes()[:-300]),
        lambda: npz.write_bytes(b"garbage" * 99),
        lambda: copy.write_bytes(copy.read_bytes()[:-1]),
        copy.unlink,
        npz.unlink,
    ):
        damage()
        assert Index.load(npz) is None
        assert [event.raw for event in InputSet("lhe", axis, cache, {}).read(0, 100)] == whole, "slower, but right"
        plan_axis("lhe", [path], None, {}, cache)
        assert Index.load(npz) is not None
    text = bytearray(copy.read_bytes())
    text[len(text) // 2] ^= 1
    copy.write_bytes(text)
    with pytest.raises(InputDamaged, match="block 0 of this copy"):
        InputSet("lhe", axis, cache, {}).read(0, 100)


def test_options_have_their_own_index(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", 6)
    plan_axis("hdf5", [path], None, {"fields": ["x"]}, tmp_path / "index")
    axis = plan_axis("hdf5", [path], None, {"fields": ["hits"]}, tmp_path / "index")
    assert list(InputSet("hdf5", axis, tmp_path / "index", {"fields": ["hits"]}).read(3, 4)[0]) == ["hits"]


def test_axis_and_index_disagree(tmp_path: Path) -> None:
    path = make("lhe", tmp_path, "a.lhe", 5)
    with pytest.raises(InputChanged, match="has 5 events; 6 are on the axis"):
        InputSet("lhe", Axis([(path, 6)]), tmp_path / "index", {}).read(5, 6)


def test_a_reader_that_loses_events_is_found_out(tmp_path: Path) -> None:
    events = InputSet("lhe", plan_axis("lhe", [make("lhe", tmp_path, "a.lhe", 5)], None, {}, tmp_path / "i"), tmp_path)

    class Loses:
        def read(self, start: int, stop: int) -> list[int]:
            return list(range(start, stop - 1))

    events._open[0] = Loses()  # type: ignore[assignment]
    with pytest.raises(InputDamaged, match="gave 2 events for events 2 to 4"):
        events.read(1, 4)


def test_the_cache_cannot_be_written(tmp_path: Path) -> None:
    path = make("lhe", tmp_path, "a.lhe", 5)
    (tmp_path / "index").touch()
    with pytest.raises(CannotWrite, match="index"):
        plan_axis("lhe", [path], None, {}, tmp_path / "index")


def test_a_forked_worker_opens_its_own_files(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", 100)
    events = InputSet("hdf5", plan_axis("hdf5", [path], None, {}, tmp_path / "index"), tmp_path / "index", {})
    events.read(0, 1)
    before = events._open[0]
    child = os.fork()
    if child == 0:
        right = key(events.read(50, 51)[0]) == 50 and events._open[0] is not before
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert key(events.read(70, 71)[0]) == 70


def test_an_index_of_many_events_is_mapped(tmp_path: Path) -> None:
    whole = Index("lhe", "a", 1, 2, 3, {"end": 5}, {"offsets": np.arange(1 << 20), "none": np.zeros(0, np.int64)})
    whole.save(tmp_path / "i" / "a.npz")
    loaded = Index.load(tmp_path / "i" / "a.npz")
    assert loaded is not None and (loaded.path, loaded.count, loaded.meta) == ("a", 3, {"end": 5})
    assert np.array_equal(loaded.arrays["offsets"], np.arange(1 << 20))
    assert not loaded.arrays["offsets"].flags.owndata and loaded.arrays["none"].size == 0
    with np.load(tmp_path / "i" / "a.npz") as plain:
        assert plain["offsets"][77] == 77


def test_urls_without_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'yoda-droid\[remote\]'"):
        plan_axis("root", ["root://server//a.root"], None, {}, tmp_path / "index")


def test_imports_are_lazy() -> None:
    import subprocess

    heavy = "{'uproot', 'awkward', 'pyhepmc', 'h5py', 'fsspec'}"
    code = f"import sys, droid.inputs; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_index_file_without_cache(tmp_path: Path) -> None:
    assert index_file("lhe", make("lhe", tmp_path, "a.lhe", 5)).count == 5
    for function in (index_file, open_input):
        with pytest.raises(ConfigError, match="is no format"):
            function("csv", str(tmp_path / "a"))


def test_an_error_comes_back_from_another_process(tmp_path: Path) -> None:
    files = [make("lhe", tmp_path, f"{i}.lhe", 5) for i in range(4)]
    Path(files[2]).write_bytes(lhe_text(5)[:-40])
    with pytest.raises(InputDamaged, match=r"2\.lhe: event 5, which begins at byte") as caught:
        plan_axis("lhe", files, None, {}, tmp_path / "index", 2)
    assert caught.value.exit_code == 65
