from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_BLOCKS = """
import resource, sys
from eventrange.memory import keep_freed
if sys.argv[1] == "keep":
    assert keep_freed()
for rounds in 2, 20:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        some = [bytearray(8 * 2**20) for _ in range(4)]  # those of a merge: read, joined, being written
        del some
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of another C library is left as it is")
def test_memory_that_was_freed_is_used_again() -> None:
    def faults(how: str) -> float:
        done = subprocess.run([sys.executable, "-c", _BLOCKS, how], capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    left_alone, kept = faults("leave"), faults("keep")
    assert left_alone > 1000, "glibc keeps it by itself: keep_freed is not needed any more"
    assert kept < left_alone / 8
