"""Ranks of one node wake each other under either MPI: nobody has to probe, and what was rung for is there."""

from __future__ import annotations

import subprocess

import runs

PROGRAM = """
import select, sys
from mpi4py import MPI
from droid.transport import Transport

transport = Transport(MPI, MPI.COMM_WORLD)
transport.neighbours()
poll = select.poll()
poll.register(transport.bell, select.POLLIN)

def next_message():
    for _ in range(100):
        if not poll.poll(20000):
            sys.exit(f"rank {transport.rank} was not rung for")
        transport.hush()
        got = transport.receive()
        if got is not None:
            return got
    sys.exit(f"rank {transport.rank} was rung for nothing")

for size in (10, 3000, 100_000):
    if transport.rank == 0:
        for _ in range(2):
            rank, data = next_message()
            assert len(data) == size
            transport.send(rank, bytes(data))
        while transport.sending:
            pass
    else:
        transport.send(0, bytes(size))
        while transport.sending:
            pass
        assert next_message() == (0, bytearray(size))
with open(f"{sys.argv[1]}/rank-{transport.rank}", "w") as end:  # a file each: launchers mix what ranks print
    end.write("rung" if transport._rung else "not rung")
"""


def test_ranks_of_a_node_ring(place: runs.Place) -> None:
    script = place.folder / "ring.py"
    script.write_text(PROGRAM)
    command = [*place.mpi.command(3), place.mpi.python, str(script), str(place.folder)]
    environment = {**place.mpi.environment(), "PYTHONPATH": str(runs.REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=runs.PATIENCE, env=environment)
    assert done.returncode == 0, done.stderr
    assert [(place.folder / f"rank-{rank}").read_text() for rank in range(3)] == ["rung"] * 3
