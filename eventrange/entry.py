"""The `yoda` command's first step: find our own packages, then run the command line.

The HEP histogramming package YODA imports as `yoda` too and sits on the PYTHONPATH of many software views, ahead of
site-packages. This module's name collides with nothing, so it is what the console script and the ranks start. It
imports our packages with the folder it came from first on the path, and then takes that folder off the front again:
modules of a package are found through the package, and as long as a folder is first, every import of anything looks
there, which is a call to the file system, and may find a back-port where the standard library was meant.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys

#: Libraries that start a thread per core when they are loaded. There is a worker per core already, forked from a
#: process that has loaded them.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
#: Objects made before the collector looks for cycles. Python's 700 has it look a hundred times during the imports.
COLLECT = 20_000
PACKAGES = ("eventrange", "stageout", "droid", "slurm", "yoda")


def main() -> int:
    """Run the command line of this distribution and return its exit code."""
    gc.set_threshold(COLLECT, *gc.get_threshold()[1:])
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    here = os.path.dirname(os.path.abspath(__file__))
    home = os.path.dirname(here)
    if sys.path[0] == here:  # started as a script: `import image` in a payload must not find ours
        del sys.path[0]
    before = list(sys.path)
    sys.path.insert(0, home)
    for name in PACKAGES:
        importlib.import_module(name)
    sys.path[:] = before if home in before else [*before, home]
    return int(importlib.import_module("yoda.cli").main())


if __name__ == "__main__":
    sys.exit(main())
