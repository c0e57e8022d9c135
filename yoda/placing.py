"""Launchers: on one machine; and inside a batch allocation, one Droid on each of its nodes and Yoda beside the first.

`yoda submit` writes such a command into its script; `yoda run` without a launcher, in any other script, starts it by
itself.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping

from eventrange.errors import LauncherMissing, YodaError
from slurm.script import DEFAULT_LAUNCHER, PLACEMENT


def nodes_here(environ: Mapping[str, str]) -> int:
    """Nodes of the Slurm allocation this process is in; 1 outside of any."""
    text = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES") or ""
    return int(text) if "SLURM_JOB_ID" in environ and text.isdigit() else 1


def script_launcher(template: str | None) -> str:
    """The launcher as a script takes it, with `{ranks}`: that of the site file, or this Python environment's mpiexec.

    An Open MPI is asked for fault tolerance, so that the loss of one Droid does not end the job. Placement is told by
    the environment (slurm.script.PLACEMENT).
    """
    if template is not None:
        return template
    try:
        words, _ = launcher(None, 0, os.environ)
    except YodaError:
        return DEFAULT_LAUNCHER  # the set-up lines of the site may bring one
    ulfm = "--with-ft ulfm " if "--with-ft" in words else ""
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    command = shlex.quote(words[0]) if words[0] == beside else "mpiexec"
    return f"{command} {ulfm}-n {{ranks}}"


def allocation_launcher(template: str | None, nodes: int) -> tuple[list[str], dict[str, str]]:
    """(command, environment to add) that starts one rank more than `nodes`, from within an allocation of as many."""
    command = script_launcher(template).replace("{ranks}", str(nodes + 1)).replace("{nodes}", str(nodes))
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
    return shlex.split(command), {**PLACEMENT, **root}


def launcher(template: str | None, ranks: int, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """(command, environment to add) that starts `ranks` processes.

    By default the mpiexec of this Python environment, or of the PATH. An Open MPI is asked for fault tolerance (ULFM),
    so that the loss of one Droid does not end the job, and to allow more ranks than cores: Yoda sleeps nearly always.
    All ranks are on this machine, so Open MPI 5 is spared the search for networks, which takes it a second.
    """
    if template is not None:
        return shlex.split(template.format(ranks=ranks, nodes=1)), {}
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    found = beside if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise LauncherMissing(python=sys.executable)
    add = {"PATH": os.path.dirname(found) + os.pathsep + environ.get("PATH", "")}
    if not environ.get("HOME"):
        from tempfile import gettempdir

        add["HOME"] = gettempdir()  # Open MPI does not start without
    version = _open_mpi(found, {**environ, **add})
    if version:
        ulfm = ["--with-ft", "ulfm"] if version > 4 else []
        if ulfm and "OMPI_MCA_btl" not in environ:
            ulfm += ["--mca", "btl", "self,sm"]
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
        flags = ["--oversubscribe", "--bind-to", "none", *ulfm]
        return [found, *flags, "-n", str(ranks)], {**add, **root}
    return [found, "-n", str(ranks)], add


def _open_mpi(found: str, environ: Mapping[str, str]) -> int:
    """The version (4, 5) of the Open MPI whose mpiexec `found` is; 0 for any other.

    In a Python environment what came with it tells. Running it does so everywhere, and takes as long as an import of
    numpy.
    """
    folder = os.path.dirname(found)
    if folder == os.path.dirname(sys.executable):
        there = [name for name in ("prterun", "hydra_pmi_proxy") if os.path.exists(os.path.join(folder, name))]
        if len(there) == 1:
            return 5 if there == ["prterun"] else 0
    version = subprocess.run([found, "--version"], capture_output=True, text=True, env=environ).stdout
    if "Open MPI" not in version and "OpenRTE" not in version and "prte" not in version.lower():
        return 0
    return 4 if " 4." in version.splitlines()[0] else 5
