"""Site keys, the sbatch script against golden files, submit and fit against recorded answers; no Slurm needed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from eventrange.errors import SlurmMissing, SlurmRefused, SlurmSilent
from slurm.commands import Ran, run_command
from slurm.environment import unix_time
from slurm.fit import Place, Shape, Waiting, best, fit, holes, look, smaller
from slurm.script import sbatch_script
from slurm.site import SlurmSite, clock_text, seconds
from slurm.submit import core_hours, forecast, read_forecast, submit, submit_several

GOLDEN = Path(__file__).parent.parent / "slurm" / "golden"

SITES: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("mpiexec -n {ranks}", {}),
    "preempt": (
        "srun --mpi=pmi2 --nodes={nodes} --ntasks={ranks}",
        {
            "partition": "regular",
            "account": "m0000",
            "qos": "preempt",
            "constraint": "cpu",
            "nodes": 4,
            "time": "4h",
            "time_min": "30min",
            "signal_before_end": "120s",
            "setup": "module load python\nmodule load cray-mpich",
            "extra": ["--mail-type=FAIL", "--comment=fine grained"],
        },
    ),
    "shared": (
        "mpiexec -n {ranks}",
        {"partition": "grid", "exclusive": False, "cpus_per_node": 8, "requeue": False, "time": "1-00:00:00"},
    ),
}


@pytest.mark.parametrize("name", SITES)
def test_golden(name: str, tmp_path: Path) -> None:
    """Changed on purpose? Write the golden file anew from the text below, read the difference, and commit it."""
    launcher, keys = SITES[name]
    text = sbatch_script(
        "zjets-shower",
        msgspec.convert(keys, SlurmSite),
        ["yoda", "run", "job.yaml", "--site", "my site.yaml", "--task", "/data/zjets"],
        script_path=Path("/data/zjets/logs/submit.sh"),
        logs=Path("/data/zjets/logs"),
        launcher=launcher,
        workdir=Path("/home/me/work"),
    )
    golden = GOLDEN / f"{name}.sh"
    assert text == golden.read_text(), "the script differs from its golden file"
    subprocess.run(["bash", "-n", str(golden)], check=True)


def test_odd_paths_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "50% of my 'work'"
    where = {"script_path": folder / "s.sh", "logs": folder}
    text = sbatch_script("a task", SlurmSite(), ["yoda", "run", "a b.yaml"], **where)
    assert '#SBATCH --job-name="a task"' in text
    assert f"#SBATCH --output=\"{tmp_path}/50%% of my 'work'/slurm-%j.out\"" in text
    assert "yoda run 'a b.yaml' &" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4h", 14400),
        ("30min", 1800),
        ("120s", 120),
        ("1h30min", 5400),
        ("2d", 172800),
        ("1.5h", 5400),
        (90, 90),
        ("90", 90),
        ("4:00:00", 14400),
        ("1-00:00:00", 86400),
        ("1-12:00", 129600),
        ("30:00", 1800),
    ],
)
def test_seconds(text: str | int, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "4 hours ago", "h", "-3h", -1, "1h-2", float("nan")])
def test_seconds_refuses(text: str | float) -> None:
    with pytest.raises(ValueError, match="length of time"):
        seconds(text)


@pytest.mark.parametrize("value", [1, 59, 60, 3599, 3600, 86399, 86400, 1000000])
def test_clock_text_reads_back(value: int) -> None:
    assert seconds(clock_text(value)) == value


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tme": "1h"}, "tme"),
        ({"time": "soon"}, "time: 'soon' is not a length of time"),
        ({"time": "1h", "time_min": "2h"}, "time_min"),
        ({"nodes": 0}, "nodes: at least 1"),
        ({"time": "60s", "signal_before_end": "60s"}, "signal_before_end"),
        ({"extra": ["constraint=cpu"]}, "extra"),
        ({"nodes": "four"}, "nodes"),
    ],
)
def test_bad_keys_are_named(keys: dict[str, object], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(keys, SlurmSite)


class Recorded:
    """A runner with one recorded answer per command; `told` remembers the arguments."""

    def __init__(self, **answers: Ran) -> None:
        self.answers = answers
        self.told: list[list[str]] = []

    def __call__(self, argv: Sequence[str], stdin: str | None = None) -> Ran:
        self.told.append(list(argv))
        return self.answers.get(argv[0], Ran(1, "", "no such answer"))


# recorded from Slurm 22.05.8
TEST_ONLY = "sbatch: Job 3 to start at 2026-11-22T17:56:35 using 1 processors on nodes n[1-3] in partition low\n"
REFUSED = "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified\n"
SINFO = (
    "n1|low*|alloc|2:00:00\nn1|high|alloc|2:00:00\nn2|low*|idle*|2:00:00\nn3|low*|plnd|2:00:00\nn3|high|plnd|2:00:00\n"
)
PENDING = "2026-11-22T18:00:25|n[1-3]|Resources\nN/A|(null)|Dependency\nN/A|(null)|JobHeldUser\nN/A|(null)|Priority\n"
RESERVED = (
    "ReservationName=m StartTime=2026-11-22T19:00:00 EndTime=2026-11-23T19:00:00 Duration=1 Nodes=n[2-3] NodeCnt=2\n"
)


def test_submit() -> None:
    run = Recorded(sbatch=Ran(0, "42;cluster\n"))
    assert submit(Path("s.sh"), run, ("--time=00:05:00",)).jobid == 42
    assert run.told == [["sbatch", "--parsable", "--time=00:05:00", "s.sh"]]
    assert len(submit_several(Path("s.sh"), 3, run)) == 3


def test_forecast() -> None:
    got = forecast(Path("s.sh"), Recorded(sbatch=Ran(0, "", TEST_ONLY)))
    assert (got.start, got.nodes, got.partition) == (unix_time("2026-11-22T17:56:35"), "n[1-3]", "low")
    with pytest.raises(SlurmSilent):
        read_forecast("something new")


def test_errors_of_sbatch() -> None:
    with pytest.raises(SlurmRefused, match="invalid partition specified: nope"):
        submit(Path("s.sh"), Recorded(sbatch=Ran(1, "", REFUSED)))
    down = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    with pytest.raises(SlurmSilent, match="Unable to contact"):
        submit(Path("s.sh"), Recorded(sbatch=Ran(1, "", down)))
    with pytest.raises(SlurmMissing, match="/no/such/sbatch"):
        raise SlurmMissing(command="/no/such/sbatch")
    assert run_command(["/no/such/sbatch"]).code == 127


def test_core_hours() -> None:
    assert core_hours(SlurmSite(nodes=4, time="90min"), 64) == 384


def test_look() -> None:
    run = Recorded(sinfo=Ran(0, SINFO), squeue=Ran(0, PENDING), scontrol=Ran(0, RESERVED))
    place = look(None, run)
    assert place.idle == ("n3",) and place.limit == 7200
    assert place.waiting == (
        Waiting(unix_time("2026-11-22T18:00:25"), ("n1", "n2", "n3")),
        Waiting(None, ()),
        Waiting(unix_time("2026-11-22T19:00:00"), ("n2", "n3")),
    )


NONE = Place(("a", "b", "c"), (), None)


def test_holes_without_waiting_jobs() -> None:
    assert holes(NONE, 0, 3600, 8) == [Shape(3, 3600, 0)]
    assert holes(NONE, 0, 3600, 2) == [Shape(2, 3600, 0)]


def test_holes_end_where_a_waiting_job_begins() -> None:
    place = Place(("a", "b", "c"), (Waiting(1000, ("a", "x")), Waiting(500, ("b",)), Waiting(None, ())), 3000)
    assert holes(place, 0, 3600, 8) == [Shape(1, 3000, 0), Shape(2, 940, 0), Shape(3, 440, 0)]


def test_a_job_without_planned_nodes_ends_all_holes() -> None:
    assert holes(Place(("a", "b"), (Waiting(300, ()),), None), 0, 3600, 8) == [Shape(2, 240, 0)]
    assert holes(Place(("a",), (Waiting(30, ()),), None), 0, 3600, 8) == []


def test_best() -> None:
    assert best([Shape(1, 3000, 0), Shape(2, 940, 0)], 300) == Shape(1, 3000, 0)
    assert best([Shape(1, 3000, 0), Shape(2, 2000, 0)], 300) == Shape(2, 2000, 0)
    assert best([Shape(1, 3000, 0), Shape(8, 200, 0)], 300) == Shape(1, 3000, 0)
    assert best([Shape(1, 3000, 0), Shape(8, 3000, 600)], 300) == Shape(1, 3000, 0)
    assert best([Shape(8, 200, 0)], 300) is None
    assert best([], 300) is None


def test_smaller() -> None:
    assert smaller(4, 4000, 1000) == [(n, t) for n in (4, 2, 1) for t in (4000, 2000, 1000)]


def test_fit_takes_the_hole() -> None:
    run = Recorded(sinfo=Ran(0, SINFO), squeue=Ran(0, PENDING))
    now = unix_time("2026-11-22T17:50:25")
    assert now is not None
    site = SlurmSite(partition="low", nodes=3, time="1h", time_min="5min")
    got = fit(Path("s.sh"), site, run, now)
    assert got.options == ("--nodes=1", "--time=00:09:00", "--time-min=00:05:00")
    assert not any(argv[0] == "sbatch" for argv in run.told)


def test_fit_asks_the_scheduler_when_there_is_no_hole() -> None:
    run = Recorded(sinfo=Ran(0, "n1|low|alloc|infinite\n"), squeue=Ran(0, ""), sbatch=Ran(0, "", TEST_ONLY))
    got = fit(Path("s.sh"), SlurmSite(partition="low", nodes=2, time="1h"), run, 0)
    assert got.options[0] == "--nodes=2" and got.shape.start == unix_time("2026-11-22T17:56:35")
    with pytest.raises(SlurmRefused):
        run.answers["sbatch"] = Ran(1, "", REFUSED)
        fit(Path("s.sh"), SlurmSite(partition="low"), run, 0)
