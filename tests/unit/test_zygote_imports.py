"""What the zygote's imports must not do: start programs, or leave something behind for payloads to see."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import platform, subprocess, sys
before = platform.processor() if sys.argv[1] == "asked" else None
started = []
old = subprocess.Popen.__init__
subprocess.Popen.__init__ = lambda self, *a, **k: (started.append(a[0]), old(self, *a, **k))[1]
from droid.zygote import _unasked
with _unasked():
    import h5py
assert not started, started
subprocess.Popen.__init__ = old
after = platform.processor()
assert after == subprocess.run(["uname", "-p"], capture_output=True, text=True).stdout.strip().replace("unknown", "")
assert before in (None, after)
"""


def test_no_program_is_started_and_the_processor_is_what_it_was() -> None:
    for asked in ("asked", "not"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, asked], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
