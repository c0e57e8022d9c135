"""The sbatch script under bash, with stand-ins for Slurm's commands: which starts count as having done nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.script import sbatch_script
from slurm.site import SlurmSite

RUNNING = "JobState=RUNNING Reason=None PreemptTime=None"
PREEMPTED = "JobState=COMPLETING Reason=None PreemptTime=2026-11-22T18:00:00"
MOST = 3
WORKS = "echo $(( $(cat $YODA_DONE_FILE || echo 0) + 1 )) > $YODA_DONE_FILE"


@dataclass
class Job:
    """The script in a folder of its own. Where requeue is forbidden it submits itself again and ends."""

    folder: Path

    def tool(self, name: str, text: str) -> None:
        path = self.folder / "tools" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def start(self, launcher: str = "true", job: str = RUNNING, number: int = 7, chain: str = "") -> int:
        """One start to its end: its exit code."""
        self.tool("scontrol", f'echo "JobId={number} {job} Restarts=0"')
        self.tool("sbatch", f'echo "$*" >> {self.folder}/submitted; env > {self.folder}/passed_on')
        self.tool("squeue", "exit 1")
        self.tool("sleep", "exec /bin/sleep 0.02")
        self.tool("launcher", launcher)
        where = {"script_path": self.folder / "job.sh", "logs": self.folder}
        site = SlurmSite(requeue=False)
        text = sbatch_script("t", site, [], launcher="launcher", workdir=self.folder, max_barren_starts=MOST, **where)
        (self.folder / "job.sh").write_text(text)
        path = f"{self.folder}/tools:{os.environ['PATH']}"
        environ = {"PATH": path, "SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
        with open(self.folder / "output", "a") as out:
            command = ["bash", "job.sh", *chain.split()]
            script = subprocess.Popen(
                command, cwd=self.folder, stdout=out, stderr=out, env=environ, start_new_session=True
            )
            code = script.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)  # as Slurm ends what a script has left
        return code

    @property
    def notes(self) -> int:
        """Starts noted since something was done."""
        found = list(self.folder.glob("*.barren"))
        return len(found[0].read_text().splitlines()) if found else 0


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.mark.parametrize("launcher", ["true", "echo 75 > $YODA_EXIT_FILE"])
def test_starts_in_a_row_that_do_nothing_end_the_job(job: Job, launcher: str) -> None:
    assert [job.start(launcher) for _ in range(MOST)] == [75] * (MOST - 1) + [1]
    assert f"gives up: {MOST} starts in a row" in (job.folder / "output").read_text()
    assert job.notes == 0, "submitted by hand, it may try again as often"


def test_open_mpi_gets_a_place_of_its_own(job: Job) -> None:
    """In /tmp a folder of the same process id, left by a launcher that was killed, would keep it from starting."""
    job.start("echo $PRTE_MCA_prte_tmpdir_base > place; touch $PRTE_MCA_prte_tmpdir_base/x")
    place = Path((job.folder / "place").read_text().strip())
    assert place.name.startswith("yoda-7.") and place.parent.is_dir() and not place.exists()
    assert "yoda-7." not in (job.folder / "passed_on").read_text(), "the job submitted next makes a place of its own"


def test_the_jobs_of_a_chain_count_together(job: Job) -> None:
    job.start(number=7)
    assert (job.folder / "submitted").read_text().split() == [str(job.folder / "job.sh"), "7"]
    job.start(number=8, chain="7")
    job.start(number=20)  # another allocation of the same task
    assert job.start(number=9, chain="7") == 1


def test_a_start_that_does_something_begins_anew(job: Job) -> None:
    codes = [job.start(launcher) for launcher in ("true", "true", WORKS, "true", "true")]
    assert codes == [75] * 5 and job.notes == 2


def test_preemption_does_not_count(job: Job) -> None:
    assert [job.start(job=PREEMPTED) for _ in range(2 * MOST)] == [75] * 2 * MOST
    assert job.notes == 0


def test_a_start_that_was_killed_without_a_word_counts(job: Job) -> None:
    """As on a node that always dies: the script itself is killed, and Slurm starts the job again."""
    for number in range(1, MOST + 1):
        assert job.start("kill -9 $PPID") == -9
        assert job.notes == number
    assert job.start(WORKS) == 1, "it gives up before it starts anything"
    assert not list(job.folder.glob("*.done"))
