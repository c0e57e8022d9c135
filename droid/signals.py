"""Signals of a rank, from its first moment on: noted, never fatal, never forgotten.

A batch system warns when it likes: while the payload is loaded, inside MPI_Init, several times in a row with TERM and
USR1 mixed. So handlers are there before anything slow is imported, and again after MPI has started, which may have put
its own in place. What came before a shell listens is in `received` when it begins, and it drains at once.
"""

from __future__ import annotations

import signal
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGINT)

#: Numbers of the signals this process got and no shell has taken yet, oldest first. One list, as signals are one per
#: process; the shell of this rank takes from it.
received: list[int] = []


def listen() -> None:
    """Note every signal of SIGNALS from now on. May be called again, and only from the main thread."""
    for number in SIGNALS:
        signal.signal(number, _note)


def _note(number: int, _: Any) -> None:
    received.append(number)
