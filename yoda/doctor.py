"""`yoda doctor`: every check there is, for this machine, a site and a task directory, before they cost an allocation.

The checks themselves are in slurm/doctor.py, and yoda/ranks.py is the tiny MPI program that is started as the site
starts ranks, to see how many find each other, with which library, on which cores, and how their clocks differ; here is
which are asked.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eventrange.errors import BAD_CONFIG, OK, RanksAlone, SlurmRefused, YodaError
from slurm import doctor as checks
from slurm.commands import Runner, run_command
from slurm.doctor import Finding, Level
from slurm.environment import cpus_given
from slurm.submit import forecast
from yoda.placing import allocation_launcher, launcher, nodes_here
from yoda.ranks import Rank, look
from yoda.schema import Site
from yoda.setting import Setting

VERSION = 1
NEEDED = 1 << 30  #: bytes that should be free in the task directory and on scratch, whatever the payload is

#: Further checks of a site, by other rooms (its storage endpoints, say).
MORE: list[Callable[[Site], list[Finding]]] = []


def doctor(
    site: Site, task: str | None, environ: Mapping[str, str] = os.environ, run: Runner = run_command
) -> list[Finding]:
    """All findings, in the order in which a person would look."""
    found = [package(environ)]
    workers = site.workers or len(os.sched_getaffinity(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found.append(checks.check_open_files(soft, hard, workers))
    found += check_mpi(site, environ, where=nearest(task))
    found += check_places(site, task)
    if site.slurm is not None:
        found += check_slurm(site, run)
    found += check_storage(site)
    for check in MORE:
        found += check(site)
    return found


def package(environ: Mapping[str, str]) -> Finding:
    """Whether `import yoda` in a fresh interpreter would find us: cheap, so `yoda run` asks too."""
    ours = Path(__file__).resolve().parents[1]
    fresh = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    # our own entry point puts our folder first, and an installation in place comes last, through site-packages
    rest = [entry for entry in sys.path if entry and Path(entry).resolve() != ours]
    return checks.check_yoda_package([*fresh, *rest, str(ours)], ours)


def check_storage(site: Site) -> list[Finding]:
    """Each storage endpoint: a probe object is written, read and deleted."""
    if not site.stageout:
        return []
    from stageout.probe import probe_all

    found = []
    for name, findings in probe_all(site.stageout):
        found += [Finding(Level(one.level), one.what, f"stageout: {name}", one.todo) for one in findings]
    return found


# -- files -------------------------------------------------------------------------------------------------------------


def nearest(task: str | None) -> Path:
    """The task directory, or what is there of the path to it."""
    place = Path(os.path.abspath(task or os.getcwd()))
    return next(folder for folder in (place, *place.parents) if folder.exists())


def check_places(site: Site, task: str | None) -> list[Finding]:
    """The task directory (or where one would be made), and scratch as far as it is on this machine."""
    found: list[Finding] = []
    place, there = Path(os.path.abspath(task or os.getcwd())), nearest(task)
    nodes = site.slurm.nodes if site.slurm is not None else 1
    with open("/proc/mounts") as file:
        found.append(checks.check_shared(place, nodes, file.read()))
    found += checks.check_directory(there)
    found.append(checks.check_space(place, NEEDED))
    if site.scratch is None:
        import tempfile

        found.append(checks.check_space(Path(tempfile.gettempdir()), NEEDED >> 4))
    elif "$" not in site.scratch:
        scratch = Path(site.scratch)
        found += checks.check_writable([scratch])
        if found[-1].level is Level.OK:
            found.append(checks.check_space(scratch, NEEDED))
    return found


# -- MPI ---------------------------------------------------------------------------------------------------------------


def check_mpi(site: Site, environ: Mapping[str, str], ranks: int = 2, where: Path | None = None) -> list[Finding]:
    """Start a tiny MPI program as the site starts Yoda, and look at who found whom, and sees a file in `where`."""
    try:
        import mpi4py  # noqa: F401  only whether it is there: MPI itself is for the probe's processes
    except ImportError:
        return [Finding(Level.FAIL, "mpi4py is not installed", "MPI", "pip install mpi4py")]
    try:
        if "SLURM_JOB_ID" in environ:
            ranks = nodes_here(environ) + 1
            command, extra = allocation_launcher(site.launcher, ranks - 1)
        else:
            command, extra = launcher(site.launcher, ranks, environ)
    except YodaError as error:
        what, _, todo = str(error).partition("\n  -> ")
        return [Finding(Level.FAIL, what, "launcher", todo)]
    first = os.path.basename(command[0])
    if first == "srun" and "SLURM_JOB_ID" not in environ:
        what = "srun would wait for an allocation here, so MPI was not tried"
        return [Finding(Level.WARN, what, "launcher", "salloc a node or two, and run yoda doctor --site there")]
    seen = look(command, {**environ, **extra}, str(where or ""))
    shown = shlex.join(command)
    offered = checks.mpi_types(run_command) if first == "srun" else []
    if not seen.spoke:
        library = _library(environ)
        todo = f"see whether `{shown} hostname` works"
        hint = checks.srun_hint(library, offered) if first == "srun" else ""
        if hint and re.search(r"--mpi=\w+|$", hint)[0] not in shown:  # type: ignore[index]
            todo = hint
        what = f"{shown} starts no MPI program: {seen.failure}"
        return [Finding(Level.FAIL, what, "launcher", todo), *_match(command, library)]
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(seen.spoke), "SLURM_PROCID": "0"}
    findings = [checks.check_singletons(step if seen.size < ranks else {}, seen.size, offered, seen.library)]
    findings += _match(command, seen.library)
    findings += _cores(seen.ranks[1:], cpus_given(environ), site.workers)
    if len(seen.ahead) > 1:
        findings.append(checks.check_clocks(seen.ahead, seen.uncertain))
        if where is not None:
            sees = {rank.host: rank.sees for rank in seen.ranks}
            findings.append(checks.check_seen(where, seen.ranks[0].host, sees))
    return findings


def _cores(droids: Sequence[Rank], given: Mapping[str, int], workers: int | None) -> list[Finding]:
    """Droids that cannot use the cores they should, three at most; or one line for all of them."""
    found = []
    for droid in droids:
        who = f"rank {droid.rank} on {droid.host}"
        found.append(checks.check_cores(who, droid.cpus, droid.reach, given.get(droid.host.split(".")[0]), workers))
    bad = [one for one in found if one.level is not Level.OK]
    return bad[:3] or found[:1]


def _library(environ: Mapping[str, str]) -> str:
    """The version text of the MPI that mpi4py loads; starts no MPI. Empty if it cannot be loaded."""
    ask = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    try:
        return subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, timeout=30, env=dict(environ)
        ).stdout
    except subprocess.TimeoutExpired:
        return ""


def _match(command: Sequence[str], library: str) -> list[Finding]:
    """Whether mpiexec belongs to the MPI that mpi4py loads. srun belongs to none."""
    if os.path.basename(command[0]) not in ("mpiexec", "mpirun", "mpiexec.hydra", "orterun", "prterun"):
        return []
    found = shutil.which(command[0])
    if found is None:
        return [Finding(Level.FAIL, f"there is no {command[0]}", "launcher", "correct launcher in the site file")]
    said = subprocess.run([found, "--version"], capture_output=True, text=True)
    return [checks.check_mpi_match(library, said.stdout + said.stderr)]


# -- Slurm -------------------------------------------------------------------------------------------------------------


def check_slurm(site: Site, run: Runner) -> list[Finding]:
    """Slurm's commands, the partition, and whether Slurm would take a job of this shape."""
    assert site.slurm is not None
    found = [checks.check_commands(shutil.which)]
    if found[0].level is Level.FAIL:
        return found
    found += checks.check_partition(site.slurm, run)
    if checks.worst(found) is not Level.FAIL:
        found.append(_shape(site, run))
    return found


def _shape(site: Site, run: Runner) -> Finding:
    from slurm.script import sbatch_options

    assert site.slurm is not None
    import tempfile

    with tempfile.TemporaryDirectory(prefix="yoda-doctor-") as folder:
        script = Path(folder) / "trial.sh"
        options = sbatch_options("yoda-doctor", site.slurm, Path(folder))
        script.write_text("#!/bin/sh\n" + "".join(f"#SBATCH {option}\n" for option in options) + "true\n")
        try:
            told = forecast(script, run)
        except SlurmRefused as error:
            what, _, todo = str(error).partition("\n  -> ")
            return Finding(Level.FAIL, what, "slurm", todo)
        except YodaError as error:
            return Finding(Level.WARN, str(error).splitlines()[0], "slurm", "ask again later")
    hours = max(0.0, told.start - time.time()) / 3600
    return Finding(Level.OK, f"Slurm would start such a job within {hours:.1f} h", "slurm")


# -- what people and programs see --------------------------------------------------------------------------------------


def exit_code(found: Sequence[Finding]) -> int:
    """78 if anything will not work."""
    return BAD_CONFIG if checks.worst(found) is Level.FAIL else OK


def as_json(found: Sequence[Finding]) -> dict[str, Any]:
    """The findings as a versioned document."""
    rows = [{"level": f.level.value, "what": f.what, "where": f.where, "todo": f.todo} for f in found]
    return {"version": VERSION, "worst": checks.worst(found).value, "findings": rows}


def render(found: Sequence[Finding]) -> str:
    """One line per finding; under those that are not well, what to do."""
    lines = []
    for one in found:
        lines.append(f"{one.level.value:<4}  {one.where}: {one.what}")
        if one.level is not Level.OK and one.todo:
            lines.append(f"      -> {one.todo}")
    bad = sum(one.level is Level.FAIL for one in found)
    lines.append(f"{bad} will not work" if bad else "nothing stands in the way")
    return "\n".join(lines)


def offered_types(environ: Mapping[str, str]) -> list[str]:
    """What `srun --mpi=list` names, if we may need it: started by srun, and nothing of a PMI in the environment.

    For rank 0, and before MPI starts, since nothing may fork after.
    """
    if environ.get("SLURM_STEP_ID") and not any(name.startswith(("PMI", "OMPI_")) for name in environ):
        return checks.mpi_types(partial(run_command, timeout=5.0))
    return []


def singletons(environ: Mapping[str, str], size: int, library: str, offered: Sequence[str] = ()) -> None:
    """Raise RanksAlone if the launcher started several ranks and MPI, of `size`, knows of one only."""
    found = checks.check_singletons(environ, size, offered, library)
    if found.level is not Level.FAIL:
        return
    # the launcher's own variables tell whose it is; under srun there are none of these
    starter = "Open MPI" if "OMPI_COMM_WORLD_SIZE" in environ else "HYDRA" if "HYDI_CONTROL_FD" in environ else ""
    other = checks.check_mpi_match(library, starter)
    hint = other.todo if other.level is Level.FAIL else found.todo
    detail = f"{found.what} ({other.what})" if other.level is Level.FAIL else found.what
    raise RanksAlone(detail=detail, hint=hint)


def at_start(setting: Setting, environ: Mapping[str, str]) -> list[str]:
    """The cheap checks of every `yoda run`, as sentences, of what is not well. `singletons` needs MPI's size."""
    found = [package(environ)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cpus = os.sched_getaffinity(0)
    asked = setting.request.workers or setting.site.workers
    found.append(checks.check_open_files(soft, hard, asked or len(cpus)))
    given = cpus_given(environ).get(socket.gethostname().split(".")[0])
    if given is not None:  # a Droid on this node is bound as we are
        found.append(checks.check_cores("this rank", len(cpus), len(checks.reach(cpus)), given, asked))
    return [f"{one.what}\n  -> {one.todo}" for one in found if one.level is not Level.OK]
