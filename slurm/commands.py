"""How this room talks to Slurm: one function type that runs a command, passed in everywhere, and the real one.

Whoever calls from a rank after MPI_Init passes a runner that does not fork there (the zygote's, say); tests pass
recorded outputs or a runner that enters a test cluster.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from eventrange.errors import SlurmMissing, SlurmSilent

TIMEOUT = 30.0  # seconds; slurmctld's own message timeout is 10 s, and clients try again for a while
NOT_FOUND = 127


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str = ""


class Runner(Protocol):
    """Runs a command to its end, with `stdin` as its input; never raises for what the command does."""

    def __call__(self, argv: Sequence[str], stdin: str | None = None) -> Ran: ...


def run_command(argv: Sequence[str], stdin: str | None = None, timeout: float = TIMEOUT) -> Ran:
    """Run a command on this machine; code 127 when there is no such command, 124 when it does not end in time."""
    # a date in the user's own format could not be read back
    environ = {**os.environ, "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, env=environ)
    except FileNotFoundError:
        return Ran(NOT_FOUND, "", f"{argv[0]}: not found")
    except subprocess.TimeoutExpired:
        return Ran(124, "", f"{argv[0]}: no answer in {timeout:.0f} s")
    return Ran(done.returncode, done.stdout, done.stderr)


def output_of(run: Runner, argv: Sequence[str], stdin: str | None = None) -> str:
    """The command's output, or the error that says what is wrong with Slurm here."""
    ran = run(argv, stdin)
    if ran.code == NOT_FOUND:
        raise SlurmMissing(command=argv[0])
    if ran.code:
        raise SlurmSilent(
            command=" ".join(argv), detail=(ran.err.strip() or ran.out.strip() or f"exit code {ran.code}")
        )
    return ran.out
