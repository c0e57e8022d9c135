"""Import the payload once before anything is submitted: a missing package or a misspelt name should not cost a queue.

In a process of its own, because payloads may crash, hang, or import what this process must not have; without `setup()`,
which may need the data or the devices of a compute node.
"""

from __future__ import annotations

import os
import subprocess
import sys

from eventrange.errors import PayloadImport
from yoda.schema import Job, Site

PATIENCE = 120.0  #: seconds an import may take before we stop waiting and believe it

_TRIAL = """\
import sys
sys.path.insert(0, sys.argv[1])
from eventrange.errors import YodaError
from yoda.config import load_job
from yoda.setting import load_payload
try:
    load_payload(load_job(sys.argv[2], sys.argv[3:]))
except YodaError as error:
    print(str(error).partition("\\n  -> ")[0], file=sys.stderr)
    sys.exit(78)
"""


def try_payload(job: Job, site: Site, sets: tuple[str, ...] = ()) -> str:
    """A warning if the payload cannot be imported here; empty if it can.

    Raises PayloadImport (exit 78) where the site has no set-up lines that could bring what is missing.
    """
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    argv = [sys.executable, "-c", _TRIAL, home, job.path, *sets]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"importing the payload takes more than {PATIENCE:.0f} s here"
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines()
    last = said[-1] if said else f"exit code {done.returncode}"
    if site.slurm is not None and site.slurm.setup_lines:
        return f"{last} (here; the set-up lines of the site may bring what is missing)"
    hint = (
        "correct payload in the job file, or load what it needs: a job starts with the environment it is submitted from"
    )
    payload = job.payload.python or " ".join(job.payload.command or ())
    raise PayloadImport(payload=payload, detail=last, hint=hint)
