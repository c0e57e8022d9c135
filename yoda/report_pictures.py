"""The pictures of the report, as SVG text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eventrange.times import PER_OCTAVE, edge, quantile
from yoda import svg
from yoda.report_facts import Facts


def draw(facts: Facts) -> dict[str, str]:
    """Name -> SVG of every picture there is something to show for."""
    c = facts.chronicle
    out: dict[str, str] = {}
    if not facts.account.core_seconds.total:
        return out
    nodes = c.nodes.sums()
    out["nodes"] = svg.lanes(nodes, c.node_labels, c.axis, "Nodes over time", 420)
    out["cores"] = svg.lanes(c.cores.sums(), c.core_labels, c.axis, "Cores over time", 640)
    order = [state for state in svg.STATES if state != "merge" or nodes["merge"].any()]
    layers = [(state, nodes[state].sum(axis=0)) for state in order]
    out["utilisation"] = svg.stacked(c.axis, layers, "What the cores did over time", "cores")
    rate, left = history(facts)
    out["throughput"] = svg.curve(c.axis, rate, "Events per second over time", "events/s")
    done = np.where(c.axis.inside(), 100 * np.cumsum(c.done) / max(1, facts.axis.total), np.nan)
    out["done"] = svg.curve(c.axis, done, "Events done over time", "% done")
    if np.isfinite(left).any():
        out["eta"] = svg.curve(c.axis, left, "Working time left, as estimated then", "time left", seconds=True)
    out["outcome"] = svg.share_bar(_outcome(facts.state["core_seconds_detail"]), "Core time by outcome")
    if c.times:
        out["times"] = _times(c.times)
    lanes = breakers(facts)
    if lanes:
        out["breakers"] = svg.switches(lanes, c.axis, "What was switched off over time")
    return out


def _outcome(detail: dict[str, float]) -> list[tuple[str, str, float]]:
    """(look, word, seconds) of what the bar shows: failures of all kinds together."""
    failed = detail["retried"] + detail["hung"] + detail["quarantined"]
    looks = (("productive", "productive"), ("lost_in_flight", "lost"), ("", "failed"), ("startup", "startup"))
    more = (("idle", "idle"), ("merge", "merge"), ("overhead", "overhead"))
    return [(look, svg.LOOKS[look][2], detail[part] if part else failed) for part, look in (*looks, *more)]


def breakers(facts: Facts) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """(key, [(state, since, until)]) of everything that was ever switched off, over the time that is drawn."""
    axis = facts.chronicle.axis
    begin, end = axis.pieces[0][0], axis.pieces[-1][1]
    out: dict[str, list[tuple[str, float, float]]] = {}
    for note in facts.chronicle.breaker:
        after, at = str(note.get("after")), note["time"]
        if after not in svg.LOOKS:
            continue
        spans = out.setdefault(str(note.get("key", "?")), [])
        since = spans[-1][1] if spans else begin
        before = spans.pop()[0] if spans else str(note.get("before"))
        if before in svg.LOOKS:
            spans.append((before, since, at))
        spans.append((after, at, end))
    return sorted(out.items())


def history(facts: Facts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(events per second, estimated working seconds left) by column, not a number where no Droid lived; smoothed over a
    fiftieth of the picture."""
    c = facts.chronicle
    inside = c.axis.inside() & (c.nodes.sums()["alive"].sum(axis=0) > 0)
    width = max(1, c.axis.columns // 50)
    box = np.ones(width)
    seen = np.convolve(inside.astype(float), box, "same") * c.axis.scale
    rate = np.where(inside, np.convolve(c.done, box, "same") / np.maximum(seen, 1e-12), np.nan)
    # An estimate looks back only: what was known then.
    back = np.convolve(c.done, box)[: c.axis.columns] / np.maximum(
        np.convolve(inside.astype(float), box)[: c.axis.columns] * c.axis.scale, 1e-12
    )
    to_do = facts.axis.total - np.cumsum(c.done)
    left = np.full(c.axis.columns, np.nan)
    known = inside & (back > 0) & (np.arange(c.axis.columns) >= width)
    left[known] = np.maximum(0.0, to_do[known] / back[known])
    if known.any():  # the first moments, from a handful of events, would only set the scale
        left[left > 4 * np.nanmedian(left) + c.axis.scale * c.axis.columns] = np.nan
    return rate, left


def _times(times: dict[int, int]) -> str:
    """Bars of equal width in the logarithm of time, as high as the logarithm of their events: tails are to be seen."""
    first, last = min(times), max(times)
    step = max(1, -(-(last - first + 1) // 80))

    def place(seconds: float) -> float:
        return float((PER_OCTAVE * np.log2(seconds) - first) / step)

    values = []
    for bin_ in range(first, last + 1, step):
        events = sum(times.get(n, 0) for n in range(bin_, bin_ + step))
        low, high = (svg.seconds_words(2.0 ** (n / PER_OCTAVE)) for n in (bin_, bin_ + step))
        values.append((f"{low} to {high}", float(events)))
    ticks = [(place(size), svg.seconds_words(size)) for size in svg.decades(2.0 ** (first / PER_OCTAVE), edge(last))]
    marks = [(place(quantile(times, q)), word) for q, word in ((0.5, "median"), (0.99, "99 %"))]
    return svg.bars(values, "Distribution of event times", "events", ticks, marks)
