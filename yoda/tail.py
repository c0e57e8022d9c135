"""The end of a task, when nothing is pending and some Droids are idle. Pure.

First work moves: Droids that hold more than they are on are asked to give some back. When nobody does, idle Droids get
copies of the events that have been running longest, and the first to finish wins (L2).
"""

from __future__ import annotations

from collections.abc import Iterable

from eventrange.ledger import Ledger
from eventrange.messages import Range
from eventrange.times import quantile
from yoda.droids import Droid

COPY_FACTOR = 2.0  #: an event is copied when it has run this many times the 90 % quantile
COPY_SECONDS = 0.5  #: and no sooner than this
ASK_FIRST, ASK_LAST = 0.5, 30.0  #: seconds between requests to one Droid to give something back, while it has nothing
PASS_SECONDS, PASS_PER_DROID = 0.05, 1e-4  #: between two looks at all Droids: a few per cent of a core however many


def pause(droids: int) -> float:
    """Seconds between two looks at `droids` Droids."""
    return PASS_SECONDS + PASS_PER_DROID * droids


def reclaim(
    now: float, ledger: Ledger, waiting: list[Droid], working: Iterable[Droid], whole: bool
) -> list[tuple[Droid, int]]:
    """Whom to ask for how many events, for the idle workers of `waiting`; `whole`: ranges once begun stay whole."""
    room = {d.rank: max(0, d.workers - d.busy) for d in waiting}
    idle = sum(room.values())
    loaded = []
    for droid in working:
        held = ledger.granted.get(droid.rank)
        spare = held.total - droid.busy if held else 0
        if whole:
            spare = min(spare, droid.backlog)
        if spare > 0 and now >= droid.ask_at:
            loaded.append((spare * (droid.seconds_per_event or 1.0) / droid.workers, spare, droid))
    loaded.sort(key=lambda entry: -entry[0])
    out = []
    for _, spare, droid in loaded:
        others = idle - room.get(droid.rank, 0)  # what it has for itself need not travel
        if others <= 0:
            continue
        share = max(1, spare * others // (others + droid.workers))
        droid.patience = min(max(ASK_FIRST, 2 * droid.patience), ASK_LAST)
        droid.ask_at = now + droid.patience
        out.append((droid, share))
        idle -= min(share, others)
    return out


def copies(
    now: float, ledger: Ledger, waiting: list[Droid], working: Iterable[Droid], times: dict[int, int]
) -> list[tuple[Droid, list[Range]]]:
    """Grant idle Droids copies of what runs for too long elsewhere; at most one copy of an event at a time."""
    typical = quantile(times, 0.9)
    if not typical:
        return []
    slow = max(COPY_FACTOR * typical, COPY_SECONDS)
    late = []
    for other in working:
        held = ledger.granted.get(other.rank)
        silent = now - other.heard
        for event, seconds in other.running if held else ():
            if seconds + silent <= slow:
                break  # the oldest come first
            if ledger.copied(event, event + 1) or event in ledger.attempts:
                continue  # what has failed before may well be hanging: copies would take turns for ever
            if held is not None and event in held:
                late.append((seconds + silent, event))
    late.sort()
    out = []
    for droid in waiting:
        chosen: list[Range] = []
        kept = []
        mine = ledger.granted.get(droid.rank)
        while late and len(chosen) < droid.workers - droid.busy:
            entry = late.pop()
            event = entry[1]
            if mine is not None and event in mine:
                kept.append(entry)
            elif not ledger.copied(event, event + 1):
                ledger.copy(droid.rank, event, event + 1)
                chosen.append((event, event + 1, 0))
        late += reversed(kept)
        if chosen:
            out.append((droid, chosen))
    return out
