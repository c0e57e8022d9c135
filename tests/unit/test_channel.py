"""Programs as payloads: what they are told, what is read back, what is said when they fail, that none is left over."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from droid import wire
from droid.channel import CommandPayload
from droid.payload import Worker
from droid.program_output import Unreadable, declared, read_output
from droid.slots import Slots
from droid.worker import WorkerLoop
from eventrange import image
from eventrange.axis import Axis
from eventrange.errors import BAD_CONFIG, PayloadError, PayloadFailed, PayloadOptions
from eventrange.records import Kind

Make = Callable[..., CommandPayload]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A started payload from the text of a script `./prog` and its arguments."""

    def make(
        text: str, *arguments: str, axis: Axis | None = None, options: dict[str, Any] | None = None
    ) -> CommandPayload:
        folder, scratch = tmp_path / "job", tmp_path / "scratch"
        folder.mkdir(exist_ok=True)
        scratch.mkdir(exist_ok=True)
        program = folder / "prog"
        program.write_text(textwrap.dedent(text).lstrip().replace("PYTHON", sys.executable))
        program.chmod(0o755)
        payload = CommandPayload(["./prog", *arguments], folder, options, axis or Axis.generate(100))
        payload.setup()
        payload.start(Worker(0, 1, scratch, 42))
        return payload

    return make


def left_in(payload: CommandPayload) -> list[str]:
    assert payload._worker is not None
    return os.listdir(payload._worker.scratch)


# --- what the program is told -----------------------------------------------------------------------------------------

ECHO = """
    #!PYTHON
    import json, os, sys
    name, first, last, events, position, seed, output, workdir = sys.argv[1:9]
    with open(output, "w") as file:
        for i in range(int(events)):
            print(json.dumps(dict(name=name, first=int(first), last=int(last), position=int(position) + i,
                                  seed=int(seed), inside=os.getcwd() == os.path.realpath(workdir),
                                  rest=sys.argv[9:])), file=file)
"""
ALL = ("{input}", "{first}", "{last}", "{events}", "{position}", "{seed}", "{output}", "{workdir}")


def test_every_placeholder(make: Make, tmp_path: Path) -> None:
    axis = Axis([("/data/a.lhe", 10), ("/data/b.lhe", 10)])
    payload = make(ECHO, *ALL, "./card.dat", "x={first}", "{{first}}", "{print $1}", axis=axis)
    made = payload.process_events([None] * 3, [12, 13, 14])
    rest = [str(tmp_path / "job" / "card.dat"), "x=3", "{first}", "{print $1}"]
    for position, fields in zip([12, 13, 14], made, strict=True):
        assert list(fields.pop("rest")) == rest
        expected = {"name": "/data/b.lhe", "first": 3, "last": 5, "position": position, "seed": 42, "inside": True}
        assert fields == expected
    assert left_in(payload) == []
    assert not payload.per_event and not payload.needs_events


def test_one_process_per_run_of_neighbours_in_one_file(make: Make) -> None:
    payload = make(ECHO, *ALL, axis=Axis([("/a", 10), ("/b", 10)]))
    made = payload.process_events([None] * 5, [2, 8, 9, 10, 11])
    assert [fields["position"] for fields in made] == [2, 8, 9, 10, 11]
    assert [(fields["name"], fields["first"], fields["last"]) for fields in made] == [
        ("/a", 3, 3),
        ("/a", 9, 10),
        ("/a", 9, 10),
        ("/b", 1, 2),
        ("/b", 1, 2),
    ]


def test_generate_counts_on_the_axis(make: Make) -> None:
    fields = make(ECHO, *ALL).process_events([None], [99])[0]
    assert (fields["name"], fields["first"], fields["last"]) == ("generate", 100, 100)


def test_without_output_standard_output_is_read(make: Make) -> None:
    payload = make('#!/bin/sh\nfor i in `seq $1 $2`; do echo "{\\"x\\": $i}"; done\n', "{first}", "{last}")
    assert payload.process_events([None] * 3, [4, 5, 6]) == [{"x": 5}, {"x": 6}, {"x": 7}]


def test_output_may_have_a_suffix(make: Make) -> None:
    payload = make("#!/bin/sh\necho '{\"x\": 1}' > $1\n", "{output}.json")
    assert payload.process_events([None], [0])[0] == {"x": 1}


def test_a_program_on_the_path_and_awk_braces(tmp_path: Path) -> None:
    payload = CommandPayload(["awk", 'BEGIN {print "{\\"x\\": {first}}"}'], tmp_path, axis=Axis.generate(5))
    payload.start(Worker(0, 1, tmp_path, 1))
    assert payload.process_events([None], [2])[0] == {"x": 3}


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("#!/bin/sh\necho no licence >&2; exit 3\n", 3, "ended with exit status 3\n  | no licence"),
        ("#!/bin/sh\necho only here; exit 3\n", 3, "| only here"),
        ("#!/bin/sh\nkill -SEGV $$\n", -signal.SIGSEGV, "was ended by SIGSEGV"),
        ("#!/bin/sh\n", 0, "wrote no output"),
        ("#!/bin/sh\necho '{\"x\": 1}' > $1\n", 0, "wrote 1 events, and the range has 2"),
        ("#!/bin/sh\necho half > $1\n", 0, "line 1 is no JSON"),
        ("no first line", 127, "cannot be started"),
    ],
)
def test_failures_carry_their_evidence(make: Make, text: str, code: int, says: str) -> None:
    payload = make(text, "{output}")
    with pytest.raises(PayloadFailed) as caught:
        payload.process_events([None] * 2, [4, 5])
    error = caught.value
    assert says in str(error)
    assert "prog, events generate:5-6" in str(error)
    assert error.code == code
    assert error.text in str(error) and "\n  -> " in str(error)
    assert left_in(payload) == []


def test_last_words_are_kept_short(make: Make) -> None:
    payload = make("#!/bin/sh\nseq 100000 >&2; exit 1\n", "{output}")
    with pytest.raises(PayloadFailed) as caught:
        payload.process_events([None], [0])[0]
    assert len(caught.value.stderr) <= 4000 and caught.value.stderr.endswith("100000")
    assert "99980" not in str(caught.value) and "99999" in str(caught.value)


def test_a_failure_can_be_sent_to_another_process(make: Make) -> None:
    import pickle

    with pytest.raises(PayloadFailed) as caught:
        make("#!/bin/sh\necho why >&2; exit 4\n", "{output}").process_events([None], [0])[0]
    other = pickle.loads(pickle.dumps(caught.value))
    assert (str(other), other.code, other.stderr) == (str(caught.value), 4, "why")


@pytest.mark.parametrize(
    ("program", "says"),
    [("./nothing", "is not there"), ("./data", "is not executable"), ("no-such-program-xyz", "PATH")],
)
def test_the_program_is_looked_for_at_once(tmp_path: Path, program: str, says: str) -> None:
    (tmp_path / "data").write_text("x")
    with pytest.raises(PayloadError, match=says) as caught:
        CommandPayload([program], tmp_path)
    assert caught.value.exit_code == BAD_CONFIG


@pytest.mark.parametrize("options", [{"tune": 1}, {"fields": {"x": "nothing"}}, {"fields": {"x": "O"}}, {"fields": 3}])
def test_options_other_than_fields_are_refused(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(PayloadOptions):
        make("#!/bin/sh\n", options=options)


def test_a_child_that_stays_behind_does_not_keep_us_waiting(make: Make) -> None:
    payload = make('#!/bin/sh\nsleep 60 &\necho $! > pid\necho "{\\"pid\\": $!}" > $1\n', "{output}")
    pid = payload.process_events([None], [0])[0]["pid"]  # returns although the sleeper holds the program's stderr
    os.kill(pid, signal.SIGKILL)


def test_the_program_dies_with_its_worker(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from droid.channel import CommandPayload
        from droid.payload import Worker
        from eventrange.axis import Axis
        script = "cd {tmp_path}; echo $$ > pid.tmp; mv pid.tmp pid; exec sleep 60"
        payload = CommandPayload(["sh", "-c", script], "/", axis=Axis.generate(1))
        payload.start(Worker(0, 1, Path("{tmp_path}"), 1))
        payload.process_events([None], [0])[0]
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]) as worker:
        pid = tmp_path / "pid"
        while not pid.exists():
            assert worker.poll() is None
            time.sleep(0.01)
        child = int(pid.read_text())
        os.kill(worker.pid, signal.SIGKILL)
    for _ in range(500):
        try:
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    pytest.fail("the program outlived its worker")


# --- what a program may write -----------------------------------------------------------------------------------------


def test_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "o", "w") as file:
        file["mass"] = np.array([1.5, 2.5, 3.5], np.float32)
        file["p4"] = np.arange(12.0).reshape(3, 4)
        file["pt"] = np.array([1.0, 2.0, 3.0])
        file["pt_count"] = np.array([2, 0, 1])
        file["n_count"] = np.array([7, 8, 9])  # counts of nothing: the check of fields refuses the name
    events = read_output(tmp_path / "o")
    assert [list(event) for event in events] == [["mass", "n_count", "p4", "pt"]] * 3
    assert [event["pt"].tolist() for event in events] == [[1.0, 2.0], [], [3.0]]
    assert events[1]["mass"].dtype == np.float32 and events[2]["p4"].tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("datasets", "says"),
    [
        ({"a": [1, 2], "b": [1]}, "different numbers of events: a 2, b 1"),
        ({"a": 5}, "'a' has no axis of events"),
        ({"g/a": [1]}, "'g' is a group"),
        ({"a": [1, 2], "a_count": [1, 2]}, "a_count adds up to 3, and a has 2 rows"),
        ({"a": [1, 2], "a_count": [3, -1]}, "a_count is not one whole number"),
        ({"a": [1, 2], "a_count": [1.0, 1.0]}, "a_count is not one whole number"),
        ({}, "no datasets"),
    ],
)
def test_hdf5_that_cannot_be_used(tmp_path: Path, datasets: dict[str, Any], says: str) -> None:
    with h5py.File(tmp_path / "o", "w") as file:
        for name, values in datasets.items():
            file[name] = values
    with pytest.raises(Unreadable, match=says):
        read_output(tmp_path / "o")


def test_hdf5_strings_are_those_of_json(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "o", "w") as file:
        file["name"] = ["ab", "grüße", ""]
        file.create_dataset("plain", data=[b"a", "ß".encode(), b"abc"], dtype=h5py.string_dtype("ascii"))
        file["pair"] = np.array([["a", "bc"], ["", "d"], ["e", "fgh"]], object)
        file["names"] = ["muon", "e"]
        file["names_count"] = [2, 0, 0]
    found = read_output(tmp_path / "o")
    assert [(event["name"], event["plain"]) for event in found] == [("ab", "a"), ("grüße", "ß"), ("", "abc")]
    lines = [
        {"name": "ab", "plain": "a", "pair": ["a", "bc"]},
        {"name": "grüße", "plain": "ß", "pair": ["", "d"]},
        {"name": "", "plain": "abc", "pair": ["e", "fgh"]},
    ]
    (tmp_path / "lines").write_text("\n".join(map(json.dumps, lines)))
    same = read_output(tmp_path / "lines")
    for event, names in zip(same, (["muon", "e"], [], []), strict=True):
        event["names"] = np.array(names, object)
    assert image.build(0, None, found) == image.build(0, None, same)
    assert [image.schema(event) for event in found] == [image.schema(found[0])] * 3


def test_what_was_merged_may_be_read_as_output(tmp_path: Path) -> None:
    made = [
        {"s": text, "w": np.array([text] * count, "U1"), "b": np.array(text, "S5")} for count, text in enumerate("xyz")
    ]
    data = image.build(0, None, made)
    with h5py.File(io.BytesIO(data)) as merged, h5py.File(tmp_path / "o", "w") as file:
        for name in merged.keys() - {"event"}:
            merged.copy(name, file)
    assert image.build(0, None, read_output(tmp_path / "o")) == data


def test_hdf5_fixed_bytes_have_one_length(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "o", "w") as file:
        file["name"] = np.array([b"ab", b"abc", b""], "S5")
    found = read_output(tmp_path / "o")
    assert image.read(image.build(0, None, found)).fields["name"].values.tolist() == [b"ab", b"abc", b""]
    assert {image.schema(event) for event in found} == {'{"name":["|S5",0,[]]}'}


def test_hdf5_strings_that_are_no_utf8(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "o", "w") as file:
        file.create_dataset("name", data=[b"ab", b"\xff"], dtype=h5py.string_dtype())
    with pytest.raises(Unreadable, match=r"dataset 'name' holds a string that is no UTF-8: b'\\xff'"):
        read_output(tmp_path / "o")


def test_hdf5_cut_short(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "o", "w") as file:
        file["a"] = np.zeros(10000)
    data = (tmp_path / "o").read_bytes()
    (tmp_path / "o").write_bytes(data[: len(data) // 2])
    with pytest.raises(Unreadable, match="no whole HDF5 file"):
        read_output(tmp_path / "o")


def test_json_lines(tmp_path: Path) -> None:
    line = {
        "i": 3,
        "f": 3.0,
        "b": True,
        "s": "top",
        "l": [1, 2],
        "m": [[1.0, 2.0], [3.0, 4.0]],
        "e": [],
        "w": ["a", "b"],
    }
    (tmp_path / "o").write_text(json.dumps(line) + "\n\n" + json.dumps(line))
    first, second = read_output(tmp_path / "o")
    assert {name: type(value) for name, value in first.items() if name in "ifbs"} == {
        "i": int, "f": float, "b": bool, "s": str,
    }  # fmt: skip
    dtypes = {name: (first[name].dtype.str, first[name].shape) for name in "lme"}
    assert dtypes == {"l": ("<i8", (2,)), "m": ("<f8", (2, 2)), "e": ("<f8", (0,))}
    assert first["w"].tolist() == ["a", "b"]
    assert second.keys() == first.keys()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"x": [1, 2.5]}', "line 1, field 'x': float and int in one list; write 1.0"),
        ('{"x": [[1], [1, 2]]}', "not equally long"),
        ('{"x": [1, [2]]}', "not equally long"),
        ('{"x": null}', "null cannot be stored"),
        ('{"x": {"y": 1}}', "an object cannot be stored"),
        ('{"x": 9223372036854775808}', "does not fit int64"),
        ('{"x": [9223372036854775808]}', "does not fit int64"),
        ('{"x": 1}\n[1]', "line 2 is no object"),
        ('{"x": 1', "line 1 is no JSON"),
        ("\xff", "neither HDF5 nor JSON lines"),
    ],
)
def test_json_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "o").write_text(text, encoding="latin-1")
    with pytest.raises(Unreadable, match=says):
        read_output(tmp_path / "o")


def test_declared_fields(tmp_path: Path) -> None:
    fields = declared({"pt": "float64", "id": "int32", "hits": "3f8", "n": "uint8"})
    (tmp_path / "o").write_text(
        '{"pt": [1, 2.5], "id": 5, "hits": [], "n": 7}\n{"pt": [], "id": 6, "hits": [[1, 2, 3]], "n": 255}'
    )
    first, second = read_output(tmp_path / "o", fields)
    assert first["pt"].tolist() == [1.0, 2.5] and first["id"].dtype == np.int32
    assert first["hits"].shape == (0, 3) and second["hits"].shape == (1, 3)
    for text, says in (
        ('{"id": 1.5}', "is float64, declared as int32"),
        ('{"n": 256}', "does not fit uint8"),
        ('{"hits": [[1, 2]]}', "declared as rows of"),
    ):
        (tmp_path / "o").write_text(text)
        with pytest.raises(Unreadable, match=says):
            read_output(tmp_path / "o", fields)


# --- what it costs ----------------------------------------------------------------------------------------------------

BURNS = """
    #!PYTHON
    import subprocess, sys, time
    def burn(seconds):
        while time.process_time() < seconds:
            pass
    if sys.argv[1] == "child":
        burn(0.2)
    else:
        burn(0.2)
        subprocess.run([sys.executable, __file__, "child"], check=True)
        for event in range(int(sys.argv[1]), int(sys.argv[2]) + 1):
            print('{"x": 1}')
"""


def test_the_cpu_seconds_of_a_program_and_what_it_starts_are_in_the_records(make: Make) -> None:
    sent: list[bytes] = []
    send = lambda parts, ring: sent.append(b"".join(bytes(part) for part in parts))  # noqa: E731
    payload = make(BURNS, "{first}", "{last}")
    loop = WorkerLoop(payload, InputsOfPrograms(), Slots(1).worker(0), send, {})
    loop.process((0, 3, 0))
    loop.process((3, 4, 0))
    loop.flush()
    ((_, batch),) = wire.FrameReader().feed(sent[0])
    rows, _, _ = wire.unbatch(batch)
    assert rows["kind"].tolist() == [Kind.DONE] * 2
    assert (rows["cpu"] >= 0.4).all() and (rows["cpu"] < rows["wall"] + 0.1).all()


class InputsOfPrograms:
    """Programs read their input themselves."""

    def read(self, start: int, stop: int) -> list[Any]:
        raise AssertionError("nobody reads for a program")
