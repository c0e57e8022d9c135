"""Whole runs under a real mpiexec: the same bytes from any history (L2, L3), nothing twice (L4), exit codes."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import runs
from runs import Place

from eventrange.records import Code

LHE = '''
import numpy as np

def leptons(event, random):
    """Momenta with a little smearing: depends on the event and on its random numbers."""
    p = event.particles
    final = p[p["status"] == 1]
    pt = np.hypot(final["px"], final["py"])
    return {"pt": pt * random.normal(1.0, 0.01, len(pt)), "id": final["id"], "weight": np.float64(event.xwgtup)}
'''


def inputs(what: str, folder: Path) -> tuple[str, str, dict[str, Any]]:
    """(payload code, its name, inputs section) for generated events or for the MadGraph file."""
    if what == "generate":
        return runs.LIGHT, "light", {"format": "generate", "events": 10_000}
    data = runs.data_folder()
    if data is None:
        pytest.skip("no test data: set YODA_TEST_DATA")
    file = data / "pylhe-testfile-madgraph-2.2.1-Z-ckkwl.lhe.gz"
    if not file.exists():
        pytest.skip(f"no {file}")
    return LHE, "leptons", {"format": "lhe", "files": [str(file)]}


@pytest.fixture(scope="session")
def references() -> dict[str, str]:
    """sha256 of the merged file of each input, from the first run that made one; all others must agree, in any MPI."""
    return {}


def slowly(code: str, name: str) -> str:
    """The same payload, a little slower, so that a run can be hit while it is at work."""
    return code.replace(
        f"def {name}(event, random):", f"def {name}(event, random):\n    import time; time.sleep(0.0004)"
    )


@pytest.mark.parametrize("what", ["generate", "lhe"])
def test_same_bytes_from_any_history(place: Place, references: dict[str, str], what: str) -> None:
    """One worker; two Droids of two workers under mpirun; killed three times at random moments and resumed."""
    code, name, section = inputs(what, place.folder)
    place.job(code, name, inputs=section)
    done = place.run(task="one", workers=1)
    assert done.code == 0, done.text
    reference = references.setdefault(what, place.sha256("one"))
    assert place.sha256("one") == reference
    done = place.run(task="two", ranks=3)
    assert done.code == 0, done.text
    assert place.sha256("two") == reference
    place.job(slowly(code, name), name, inputs=section)
    chance = random.Random(what)
    before = -1
    for _ in range(3):
        run = place.start(task="killed", ranks=4, workers=1)
        after = before + chance.randrange(1, 2500)
        run.until(lambda: place.done("killed") > after, f"more than {after} events done")  # noqa: B023
        time.sleep(chance.uniform(0, 0.1))
        run.kill_everything()
        before = place.done("killed")
    done = place.run(task="killed", ranks=4, workers=1)
    assert done.code == 0, done.text
    assert place.sha256("killed") == reference
    story = place.story("killed")
    assert runs.granted_again(story) == []
    assert place.progress("killed").done.total == 10_000


def merged(place: Place, task: str = "task") -> list[Path]:
    return sorted(Path(place.task(task).merged).glob("*.h5"))


def test_payload_per_range_gives_what_the_one_per_event_gives(place_here: Place) -> None:
    """process_range in ranges of any size; sizes are kept to where the job fixes them; a second run does nothing."""
    place = place_here
    code = (
        runs.LIGHT
        + """
class Groups:
    def process_range(self, events, randoms):
        made = [light(event, random) for event, random in zip(events, randoms)]
        return {name: [fields[name] for fields in made] for name in made[0]}
"""
    )
    place.job(code, "Groups", inputs={"format": "generate", "events": 500}, ranges={"events": 33})
    done = place.run(task="groups")
    assert done.code == 0, done.text
    rows = np.concatenate([r for _, r in place.story("groups")])
    ranges = sorted(set(rows[rows["kind"] == runs.Kind.DONE][["start", "stop"]].tolist()))
    assert ranges == [(at, min(at + 33, 500)) for at in range(0, 500, 33)]
    place.job(code, "light", inputs={"format": "generate", "events": 500})
    done = place.run(task="single")
    assert done.code == 0, done.text
    with h5py.File(merged(place, "groups")[0]) as a, h5py.File(merged(place, "single")[0]) as b:
        assert set(a) == set(b)
        for name in a:
            assert a[name].dtype == b[name].dtype and np.array_equal(a[name][:], b[name][:]), name
    journals = place.task("single").allocations()
    done = place.run(task="single")
    assert done.code == 0, done.text
    assert place.task("single").allocations() == journals, "a finished task needs no allocation"
    assert str(merged(place, "single")[0]) in done.out


def test_a_program_as_payload(place_here: Place) -> None:
    """One process per range, in another language than ours: here a shell script that writes JSON lines."""
    place = place_here
    program = place.folder / "simulate"
    program.write_text(
        '#!/bin/sh\ni=$1\nwhile [ $i -le $2 ]; do echo "{\\"n\\": $i, \\"x\\": [0.5, 2.5]}"; i=$((i+1)); done > "$3"\n'
    )
    program.chmod(0o755)
    place.job(
        inputs={"format": "generate", "events": 60},
        payload={"command": ["./simulate", "{first}", "{last}", "{output}"]},
        ranges={"events": 7},
    )
    done = place.run()
    assert done.code == 0, done.text
    with h5py.File(merged(place)[0]) as file:
        assert file["n"][:].tolist() == list(range(1, 61))
        assert file["event"][:].tolist() == list(range(60))


def test_a_program_that_fails_costs_its_events(place_here: Place) -> None:
    """Exit status and last words of a program are the evidence; the events of its range are tried one by one."""
    place = place_here
    program = place.folder / "simulate"
    program.write_text(
        "#!/bin/sh\ni=$1\nwhile [ $i -le $2 ]; do\n"
        '[ $i = 13 ] && { echo "no thirteen" >&2; exit 3; }\n'
        'echo "{\\"n\\": $i}"; i=$((i+1)); done > "$3"\n'
    )
    program.chmod(0o755)
    place.job(
        inputs={"format": "generate", "events": 40},
        payload={"command": ["./simulate", "{first}", "{last}", "{output}"]},
        ranges={"events": 10},
    )
    done = place.run()
    assert done.code == 65, done.text
    assert list(place.progress().quarantined) == [(12, 13)]
    notes = place.notes("evidence")
    assert {note["event"] for note in notes} == {12}
    assert {note["code"] for note in notes} == {Code.COMMAND}
    assert all("no thirteen" in note["text"] + note["stderr"] and "3" in note["text"] for note in notes), notes


def test_many_final_files(place_here: Place) -> None:
    """events_per_file: the same events in the same order, over several files."""
    place = place_here
    place.job(inputs={"format": "generate", "events": 250}, output={"merge": True, "events_per_file": 100})
    done = place.run(ranks=3)
    assert done.code == 0, done.text
    events = []
    for path in merged(place):
        with h5py.File(path) as file:
            events.append(file["event"][:].tolist())
    assert [len(part) for part in events] == [100, 100, 50]
    assert [event for part in events for event in part] == list(range(250))


def test_merge_into_a_file_of_any_name(place_here: Place, tmp_path: Path) -> None:
    """`yoda merge -o FILE` makes that file; where a folder is meant, the file in it is called after the task."""
    place = place_here
    place.job(inputs={"format": "generate", "events": 100}, output={"merge": True})
    assert place.run(ranks=2).code == 0
    [usual] = merged(place)
    for output, made in ((tmp_path / "new" / "mine.hdf5",) * 2, (tmp_path, tmp_path / usual.name)):
        done = place.run("-o", str(output), command="merge")
        assert done.code == 0 and done.out.strip() == str(made), done.text
        assert made.read_bytes() == usual.read_bytes()


@pytest.mark.parametrize("complete", [False, True])
def test_a_payload_that_was_edited_is_told_of_once(place_here: Place, complete: bool) -> None:
    """Whoever says it: our launcher is the one that finds out, and rank 0 the one with a log."""
    place = place_here
    code = (
        runs.LIGHT
        if complete
        else runs.LIGHT.replace("    n = int(", "    import time; time.sleep(0.01)\n    n = int(")
    )
    place.job(code, inputs={"format": "generate", "events": 300})
    begun = place.start()
    if complete:
        assert begun.wait().code == 0
    else:
        begun.until(lambda: place.done() > 0, "something done")
        begun.kill_everything()
    payload = place.folder / "payload.py"
    payload.write_text(payload.read_text() + "# edited\n")
    for times in (1, 0):
        done = place.run()
        assert done.code == 0 and done.text.count("has changed since this task was last run") == times, done.text


def test_runs_in_a_bare_environment(place_here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a cron job or a container may have it: no HOME, which Open MPI does not start without; no UTF-8."""
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("LC_ALL", "C")
    place_here.job(inputs={"format": "generate", "events": 50}, output={"merge": True})
    done = place_here.run()
    assert done.code == 0 and len(merged(place_here)) == 1, done.text


def test_starts_where_a_killed_launcher_had_the_same_process_id(place: Place, tmp_path: Path) -> None:
    """Process ids come round again, in a container soon; what the last to have one left behind is in the way."""
    host = socket.gethostname()
    for pid in range(os.getpid(), os.getpid() + 3000):
        for session in (f"ompi.{pid}", f"prterun.{pid}"):
            (tmp_path / session).mkdir()
            (tmp_path / session / f"pmix.{host}.tool").touch()
    place.job(inputs={"format": "generate", "events": 50}, output={"merge": True})
    done = place.run(env={"TMPDIR": str(tmp_path)})
    assert done.code == 0 and len(merged(place)) == 1, done.text


def test_a_launcher_that_ends_before_anything_began_is_told_from_a_run_that_was_lost(place_here: Place) -> None:
    launcher = place_here.folder / "launch"
    launcher.write_text("#!/bin/sh\necho no listener >&2\nexit 213\n")
    launcher.chmod(0o755)
    place_here.job(inputs={"format": "generate", "events": 5_000_000})
    place_here.site(launcher=f"{launcher} -n {{ranks}}")
    done = place_here.run()
    assert done.code == 75, done.text
    assert "no listener" in done.err and "ended with status 213 before rank 0 had begun" in done.err
    assert f"{launcher} -n 2 true" in done.err
    place_here.site()
    run = place_here.start()
    run.until(lambda: place_here.done() > 0, "something durable")
    run.kill_launcher()
    done = run.wait()
    assert done.code == 75 and "without a result" in done.err, done.text


def test_status_says_what_the_journal_says(place_here: Place) -> None:
    """`yoda status --json`: one document, whose parts add up."""
    place = place_here
    place.job(inputs={"format": "generate", "events": 300})
    done = place.run(task="task")
    assert done.code == 0, done.text
    said = place.run("--json", command="status")
    assert said.code == 0, said.text
    status = json.loads(said.out)
    assert status["version"] == 1 and status["complete"] is True
    assert {k: status["events"][k] for k in ("total", "done", "quarantined", "in_flight", "pending")} == {
        "total": 300, "done": 300, "quarantined": 0, "in_flight": 0, "pending": 0,
    }  # fmt: skip
    assert len(status["allocations"]) == 1
    seconds = status["core_seconds"]
    parts = [v for k, v in seconds.items() if k != "total"]
    assert sum(parts) == pytest.approx(seconds["total"], rel=1e-6, abs=1e-3)


def test_a_changed_job_or_a_foreign_directory_is_refused(place_here: Place) -> None:
    """Exit 78, with what changed; nothing in the directory is touched. Under mpirun as without."""
    place = place_here
    place.job(inputs={"format": "generate", "events": 50})
    assert place.run().code == 0
    before = {p: p.stat().st_mtime_ns for p in Path(place.task().root).rglob("*") if p.is_file()}
    place.job(inputs={"format": "generate", "events": 60}, seed=8)
    for how in ({}, {"ranks": 2}):
        done = place.run(**how)
        assert done.code == 78, done.text
        assert "seed" in done.err and "7" in done.err and "8" in done.err, done.text
    place.job(inputs={"format": "generate", "events": 50}, task="other")
    done = place.run()
    assert done.code == 78 and "other" in done.err, done.text
    (place.folder / "foreign").mkdir()
    (place.folder / "foreign" / "thesis.tex").touch()
    done = place.run(task="foreign")
    assert done.code == 78 and "foreign" in done.err, done.text
    assert {p: p.stat().st_mtime_ns for p in Path(place.task().root).rglob("*") if p.is_file()} == before


def test_bad_jobs_are_refused_under_mpirun(place: Place) -> None:
    """What `yoda run` refuses on its own it also refuses when all ranks find it: exit 78, one error, no hang."""
    place.job(inputs={"format": "lhe", "files": ["missing.lhe"]})
    done = place.run(ranks=3)
    assert done.code == 78, done.text
    assert done.err.count("missing.lhe") == 1, done.text
    place.job_file.write_text("task: [")
    done = place.run(ranks=3)
    assert done.code == 78, done.text


def test_a_single_rank_under_mpirun_says_what_is_missing(place: Place) -> None:
    """Yoda alone can do nothing, and does not wait for ever."""
    place.job(inputs={"format": "generate", "events": 50})
    done = place.run(ranks=1)
    assert done.code != 0, done.text
    assert "only rank" in done.err, done.text


def test_two_runs_at_once_on_one_task(place: Place, references: dict[str, str]) -> None:
    """Both work on it, or one is refused; whatever, every event is there once and the bytes are the same."""
    code, name, section = inputs("generate", place.folder)
    place.job(slowly(code, name), name, inputs=section)
    first, second = place.start(), place.start()
    ends = [first.wait(), second.wait()]
    assert all(done.code in (0, 75) for done in ends), ends[0].text + ends[1].text
    if any(done.code == 75 for done in ends):
        done = place.run()
        assert done.code == 0, done.text
    assert place.progress().done.total == 10_000
    if "generate" in references:
        assert place.sha256() == references["generate"]
