"""The story of an allocation: its sentences, in a log and on stderr, and a plain line a minute."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any


def told_when_moved(end: Callable[[], float | None], say: Callable[[str], None]) -> Callable[[], float | None]:
    """The end of the allocation, which is told when it is first known and when it moved by more than a few seconds."""
    last: list[float] = []

    def look() -> float | None:
        now = end()
        if now is not None and not (last and abs(now - last[0]) < 10.0):
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
            say(f"this allocation ends at {when}" + (", not as was told before" if last else ""))
            last[:] = [now]
        return now

    return look


def sayer(path: str, aloud: bool = True) -> Callable[[str], None]:
    """A function that logs a sentence, with the time, to the allocation's story and, if `aloud`, to stderr."""

    def say(text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {text}"
        if aloud:
            print(line, file=sys.stderr, flush=True)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "a") as file:
                file.write(line + "\n")
        except OSError:
            pass  # a full disk must not end the run that is trying to say so

    return say


def plain_progress(say: Callable[[str], None], every: float = 60.0) -> Callable[[Any, float], None]:
    """One plain line a minute."""
    state = {"next": time.monotonic() + every, "done": -1, "at": time.monotonic()}

    def progress(dispatcher: Any, lag: float) -> None:
        now = time.monotonic()
        ledger = dispatcher.ledger
        if state["done"] < 0:
            state["done"], state["at"] = ledger.done, now
        if now < state["next"]:
            return
        rate = (ledger.done - state["done"]) / (now - state["at"])
        workers = sum(d.workers for d in dispatcher.at_work)
        busy = sum(d.busy for d in dispatcher.at_work)
        eta = f"{ledger.open / rate:.0f} s" if rate > 0 else "unknown"
        say(
            f"{ledger.done}/{ledger.total} events, {rate:.1f} events/s, ETA {eta}, "
            f"{busy} of {workers} workers busy, commit lag {lag:.1f} s"
        )
        state.update(next=now + every, done=ledger.done, at=now)

    return progress
