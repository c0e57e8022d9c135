"""`yoda status --watch` and the progress line of `yoda run`: a task on a terminal, redrawn as its journals grow.

Colour is an ornament here: every number has a word beside it, so that nothing is lost without colours.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from eventrange.axis import Axis
from eventrange.quantity import span
from eventrange.taskdir import TaskDir
from yoda.lease_view import leases_and_dead
from yoda.live import Live
from yoda.status import progress_bar
from yoda.storage_view import WORDS as STATES

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SECONDS = 2.0  #: between two looks
SHARE = 0.05  #: of one core that looking may cost: login nodes are shared
PARTS = (
    ("productive", "busy", "green"),
    ("idle", "idle", "default"),
    ("startup", "start-up", "default"),
    ("overhead", "overhead", "default"),
    ("lost_in_flight", "lost in flight", "red"),
    ("retried", "retried", "yellow"),
)


def follow(taskdir: TaskDir) -> Live:
    """A `Live` of the task in `taskdir`. Raises NotATask, TaskDamaged."""
    from yoda.task import need_task

    frozen = need_task(taskdir)
    return Live(taskdir, frozen.task, frozen.fingerprint, Axis.from_dict(frozen.axis))


def watch(taskdir: TaskDir, every: float = SECONDS) -> None:
    """Show the task until it is complete or the user has seen enough. Not on a terminal: show it once."""
    from rich.console import Console
    from rich.live import Live as Screen

    live = follow(taskdir)
    console = Console()
    if not console.is_terminal:
        console = Console(width=80)
        console.print(page(_look(live), 80))
        return
    state, pause = _look(live), 0.0
    with Screen(page(state, console.width), console=console, auto_refresh=False) as screen:
        try:
            while not state["complete"] or _merging(state):
                time.sleep(max(every, pause))
                begun = time.thread_time()
                state = _look(live)
                screen.update(page(state, console.width, console.height), refresh=True)
                pause = (time.thread_time() - begun) / SHARE
        except KeyboardInterrupt:
            pass


def _look(live: Live) -> dict[str, Any]:
    """The state now; leases know the dead at once, where journals only fall silent."""
    return live.state(dead=leases_and_dead(live.taskdir)[1])


def page(state: dict[str, Any], width: int, height: int = 1000) -> RenderableType:
    """The whole view, at most `width` columns."""
    from rich.console import Group
    from rich.text import Text

    width = max(40, min(width, 120))
    events = state["events"]
    head = Text(f"{state['task']}  ", "bold", no_wrap=True, overflow="ellipsis")
    head.append(_word(state))
    head.append(f"   {time.strftime('%H:%M:%S', time.localtime(state['time']))}", "dim")
    bar = Text(progress_bar(events, width), "green")
    parts: list[RenderableType] = [head, bar, _counts(state), _pace(state), _cores(state, width)]
    room = height - 9
    for name, table in _tables(state, width):
        rows = table.row_count
        if rows and room >= rows + 2:
            parts += [Text(name, "bold"), table]
            room -= rows + 1
    if state["damaged"]:
        parts.append(Text(f"damaged journals: {', '.join(state['damaged'])}", "red"))
    return Group(*parts)


def _merging(state: dict[str, Any]) -> str:
    """What is said of the merge that is under way, or an empty string."""
    return next((str(one["why"]) for one in state["allocations"] if one["state"] == "merging"), "")


def _word(state: dict[str, Any]) -> str:
    if state["complete"]:
        return _merging(state) or "complete"
    alive = sum(one["state"] == "alive" for one in state["allocations"])
    if alive:
        return f"running in {alive} allocation{'s' if alive > 1 else ''}"
    return "not running; the same `yoda run` goes on with it"


def _counts(state: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    events = state["events"]
    share = 100 * events["done"] / events["total"] if events["total"] else 100.0
    text = Text(f"{share:.1f} %  {events['done']:,} of {events['total']:,} events done")
    text.append(f", {events['in_flight']:,} in flight, {events['pending']:,} pending")
    if events["quarantined"]:
        text.append(f", {events['quarantined']:,} quarantined", "red")
    return text


def _pace(state: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    live, workers = state["live"], state["workers"]
    text = Text(f"{live['events_per_second']:,.1f} events/s, {eta_words(state)}")
    if workers["total"]:
        text.append(f"; {workers['busy']:,} of {workers['total']:,} workers busy")
        text.append(f", commit lag {live['commit_lag']:.1f} s")
    return text


def eta_words(state: dict[str, Any]) -> str:
    """When the task may end, and how well that is known."""
    if state["complete"]:
        return "nothing left to do"
    eta = state["eta"]
    if eta is None:
        return "time left unknown yet" if state["workers"]["busy"] else "nobody is working"
    low, high = span(eta["low"]), span(eta["high"])
    return f"about {span(eta['seconds'])} to go" + (f" ({low} to {high})" if low != high else "")


def _cores(state: dict[str, Any], width: int) -> RenderableType:
    from rich.text import Text

    seconds = state["core_seconds"]
    text = Text(f"{span(seconds['total'])} of core time")
    for key, word, style in PARTS if seconds["total"] else ():
        share = 100 * seconds[key] / seconds["total"]
        if share >= 0.05 or key in ("productive", "lost_in_flight"):
            part = f"{word} {share:.1f} %"
            here = len(text.plain) - text.plain.rfind("\n") - 1
            text.append(", " if here + len(part) + 3 <= width else ",\n")  # a number and its unit stay together
            text.append(part, style)
    return text


def _tables(state: dict[str, Any], width: int) -> list[tuple[str, Any]]:
    live = state["live"]
    slow = _table(width, "event", "running", "on")
    for one in live["slowest"]:
        slow.add_row(one["event"], span(one["seconds"]), f"Droid {one['droid']}, {one['host']}")
    droids = _table(width, "Droid", "workers", "last word")
    for one in live["silent"]:
        style = "red" if one["seconds"] > 30 else ""
        word = f"{span(one['seconds'])} ago" + (" (silent)" if one["seconds"] > 30 else "")
        droids.add_row(f"{one['droid']} on {one['host']}", str(one["workers"]), word, style=style)
    allocations = _table(width, "allocation", "state", "events", "why")
    worked = [one for one in state["allocations"] if one["state"] != "none"]
    for one in worked[-6:]:
        why = one["why"].splitlines()[0] if one["why"] else f"{one['droids_total']} Droids"
        allocations.add_row(_middle(one["name"], 24), one["state"], f"{one['events_done']:,}", why)
    failures = _table(width, "event", "attempt", "what happened")
    for one in live["evidence"][:4]:
        attempt = str(one["attempt"] + 1) if isinstance(one["attempt"], int) else "?"
        failures.add_row(one["event"], attempt, one["text"])
    storage = _table(width, "endpoint", "state", "there")
    view = live["storage"]
    for one in view["endpoints"] if view else ():
        failed = f", {one['failures']:,} failed" if one["failures"] else ""
        words = f"{one['copies']:,} segments, {one['bytes'] / 1e6:,.1f} MB{failed}"
        style = "red" if one["state"] in ("open", "exhausted") else ""
        storage.add_row(one["name"], STATES[one["state"]], words, style=style)
    if view and view["segments"]["waiting"]:
        words = f"{view['segments']['waiting']:,} segments, {view['bytes_waiting'] / 1e6:,.1f} MB"
        storage.add_row("nowhere yet", "waiting", words)
    shown = {f"endpoint:{one['name']}" for one in view["endpoints"]} if view else set()
    for key, after in live["breaker"].items():
        if key not in shown:
            storage.add_row(key, STATES.get(after, after), "", style="red" if after in ("open", "exhausted") else "")
    return [
        ("allocations", allocations),
        ("slowest events now running", slow),
        ("Droids, longest silent first", droids),
        ("last failures", failures),
        ("storage", storage),
    ]


def _table(width: int, *columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), width=width, show_header=False, expand=True)
    for number, column in enumerate(columns):
        last = number == len(columns) - 1
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=3 if last else 2 if not number else None)
    return table


def _middle(name: str, size: int) -> str:
    """`name` in at most `size` characters; names of allocations differ at both ends."""
    return name if len(name) <= size else f"{name[: size - size // 2 - 1]}…{name[-(size // 2) :]}"


# -- the progress line of `yoda run` -----------------------------------------------------------------------------------


def line(state: dict[str, Any], width: int) -> str:
    """Everything that matters on one line of at most `width` columns; what does not fit is left out from the end."""
    events, seconds = state["events"], state["core_seconds"]
    total = seconds["total"] or 1.0
    parts = [
        f"{events['done']:,}/{events['total']:,}",
        f"{100 * events['done'] / max(1, events['total']):.0f} %",
        f"{state['live']['events_per_second']:,.1f} events/s",
        _short_eta(state),
        f"busy {100 * seconds['productive'] / total:.0f} %",
        f"lost {100 * (seconds['lost_in_flight'] + seconds['retried']) / total:.1f} %",
        f"lag {state['live']['commit_lag']:.1f} s",
    ]
    if events["quarantined"]:
        parts.insert(2, f"{events['quarantined']} quarantined")
    while len("  ".join(parts)) > width and len(parts) > 1:
        parts.pop()
    return "  ".join(parts)[:width]


def _short_eta(state: dict[str, Any]) -> str:
    eta = state["eta"]
    if eta is None:
        return "ETA ?"
    low, high = span(eta["low"]), span(eta["high"])
    return f"ETA {low}" if low == high else f"ETA {low} to {high}"


def console() -> Console:
    """A console on stderr."""
    from rich.console import Console

    return Console(file=sys.stderr)
