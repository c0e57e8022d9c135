"""Hand a script to Slurm, or ask Slurm what it would do with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from eventrange.errors import SlurmMissing, SlurmRefused, SlurmSilent
from slurm.commands import NOT_FOUND, Runner
from slurm.environment import unix_time
from slurm.site import SlurmSite, seconds

# what Slurm says when it is not the job that is wrong
_NOT_THE_JOB = (
    *("Unable to contact", "timed out", "not responding", "Socket"),
    *("Connection refused", "no answer", "configuration source"),
)


@dataclass(frozen=True)
class Submitted:
    """A job Slurm has accepted."""

    jobid: int
    script: Path


@dataclass(frozen=True)
class Forecast:
    """What `sbatch --test-only` says. A forecast ignores holes that only the backfill scheduler finds: it is a latest
    time."""

    start: float
    """Unix time."""
    nodes: str
    partition: str


def submit(script: Path, run: Runner, options: tuple[str, ...] = ()) -> Submitted:
    """Submit a script; `options` go before those in the script, such as `--time=00:20:00`."""
    out = _sbatch(["sbatch", "--parsable", *options, str(script)], run)
    found = re.match(r"(\d+)", out.strip().splitlines()[-1] if out.strip() else "")
    if not found:
        raise SlurmSilent(command="sbatch", detail=f"no job id in its answer {out!r}")
    return Submitted(int(found[1]), script)


def submit_several(script: Path, number: int, run: Runner, options: tuple[str, ...] = ()) -> list[Submitted]:
    """Submit the script several times: each job is an allocation and a failure domain of its own."""
    return [submit(script, run, options) for _ in range(number)]


def forecast(script: Path, run: Runner, options: tuple[str, ...] = ()) -> Forecast:
    """When Slurm would start the script if it were submitted now."""
    return read_forecast(_sbatch(["sbatch", "--test-only", *options, str(script)], run))


def read_forecast(text: str) -> Forecast:
    """The answer of `sbatch --test-only`, which comes on stderr."""
    found = re.search(r"to start at (\S+) using \d+ processors on nodes? (\S+)(?: in partition (\S+))?", text)
    start = unix_time(found[1]) if found else None
    if not found or start is None:
        raise SlurmSilent(command="sbatch --test-only", detail=f"cannot read {text.strip()!r}")
    return Forecast(start, found[2], found[3] or "")


def core_hours(site: SlurmSite, cpus_per_node: int) -> float:
    """What the allocation costs if it is used to its end."""
    return site.nodes * cpus_per_node * seconds(site.time) / 3600


def _sbatch(argv: list[str], run: Runner) -> str:
    ran = run(argv)
    if ran.code == NOT_FOUND:
        raise SlurmMissing(command=argv[0])
    if ran.code:
        detail = re.sub(r"(?m)^sbatch: (error: )?", "", (ran.err or ran.out).strip()).replace("\n", "; ")
        if any(words in detail for words in _NOT_THE_JOB):
            raise SlurmSilent(command=argv[0], detail=detail)
        raise SlurmRefused(detail=detail, keys="partition, account, qos, nodes, time, constraint, gres, extra")
    return ran.out + ran.err
