"""Accounting in words: one line on how well the core-seconds were used, and tables by allocation and node. Pure."""

from __future__ import annotations

import textwrap
from typing import Any

from eventrange.quantity import span
from yoda.core_seconds import WORDS

#: part -> (word, what makes it smaller)
ADVICE = {
    "lost_in_flight": ("lost with killed work", "a warning before the kill (slurm.signal_before_end, grace) saves it"),
    "retried": ("failed or done twice", "see the failures"),
    "hung": ("events that ran into their time limit", "see the failures"),
    "quarantined": ("events that were given up", "see the failures"),
    "idle_waiting": ("waiting for Yoda", "ranges were too short for their number, or rank 0 shares its core"),
    "idle_input": ("waiting for input", "the file system or the server of the input is slow"),
    "idle_tail": ("idle at the tail", "the last events took long, or there were more cores than events"),
    "idle_draining": ("idle in a drain", "single events took long, and others had to wait for their end"),
    "idle_merging": ("idle while one core merged", "output: {merge: false}, then `yoda merge` somewhere else"),
    "startup": ("start-up", "allocations were short for the time the payload takes to start"),
    "overhead": ("overhead", "events are very short: more of them per range cost less"),
}
COLUMNS = ("productive", "lost_in_flight", "retried", "idle", "startup", "overhead")
HEADS = ("where", "core time", "productive", "lost", "retried", "idle", "start-up", "overhead")


def verdict(seconds: dict[str, float]) -> str:
    """One line on `core_seconds_detail`."""
    total = seconds["total"]
    if total <= 0:
        return "No core time was used yet."
    share = {name: 100 * seconds[name] / total for name in ADVICE}
    good = 100 * seconds["productive"] / total
    word = "Excellent" if good >= 95 else "Good" if good >= 80 else "Fair" if good >= 50 else "Poor"
    line = f"{word}: {good:.1f} % of {span(total)} of core time was productive"
    worst = max(ADVICE, key=lambda name: share[name])
    if share[worst] < 0.5:
        return line + "."
    name, advice = ADVICE[worst]
    line += f"; the largest loss is {name}, {share[worst]:.1f} %"
    return line + (f" ({advice})." if share[worst] >= 5 else ".")


def rows(state: dict[str, Any], by: str) -> list[tuple[str, dict[str, float]]]:
    """(name, core_seconds) by `allocation` or by `node`, in order of time or name."""
    if by == "node":
        return sorted(state["nodes"].items())
    return [(one["name"], one["core_seconds"]) for one in state["allocations"] if one["core_seconds"]["total"] > 0]


def cells(name: str, seconds: dict[str, float]) -> tuple[str, ...]:
    """One line of a table, shares in per cent."""
    total = seconds["total"] or 1.0
    return (name, span(seconds["total"]), *(f"{100 * seconds[part] / total:.1f}" for part in COLUMNS))


def table(state: dict[str, Any], width: int = 80, most: int = 40) -> str:
    """Accounting by outcome, by allocation and by node for a terminal, at most `width` columns."""
    out = textwrap.wrap(verdict(state["core_seconds_detail"]), width)
    fine = state["core_seconds_detail"]
    if fine["total"]:
        wide = max(len(word) for word in WORDS.values())
        out += ["", f"{'outcome':<{wide}}  {'core time':>11}  {'%':>6}"]
        for name, word in {**WORDS, "total": "all"}.items():
            if fine[name]:
                out.append(f"{word:<{wide}}  {span(fine[name]):>11}  {100 * fine[name] / fine['total']:6.2f}")
    for by in ("allocation", "node"):
        found = rows(state, by)
        if not found:
            continue
        lines = [cells(name, seconds) for name, seconds in found[:most]] + [cells("all", state["core_seconds"])]
        head = (by, "core time", "prod.", "lost", "retr.", "idle", "start", "overh.")
        sizes = [max(len(line[n]) for line in [head, *lines]) for n in range(len(head))]
        sizes[0] = max(8, min(sizes[0], width - sum(sizes[1:]) - 2 * (len(sizes) - 1)))
        out.append("")
        for line in [head, *lines]:
            first = line[0] if len(line[0]) <= sizes[0] else line[0][: sizes[0] - 1] + "…"
            rest = (f"{word:>{size}}" for word, size in zip(line[1:], sizes[1:], strict=True))
            out.append("  ".join([f"{first:<{sizes[0]}}", *rest]))
        if len(found) > most:
            out.append(f"and {len(found) - most} more; --json has them all")
    if fine["total"]:
        note = "Per cent of the core time of the line. Attempts that hung or were given up count as retried here, the"
        out += ["", *textwrap.wrap(note + " merge as overhead; --json has all parts of every line.", width)]
    return "\n".join(out)
