"""Launchers inside a batch allocation: one Droid on each of its nodes, and Yoda beside the first.

`yoda submit` writes such a command into its script; `yoda run` without a launcher, in any other script, starts it by
itself.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping

from eventrange.errors import YodaError
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
    from yoda.run import launcher

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
