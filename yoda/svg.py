"""Drawing: the few shapes our pictures need, as SVG text. Colours come with patterns, for print and for other eyes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yoda.timeaxis import TimeAxis

#: state -> (colour, pattern, what it means)
STATES = {
    "productive": ("#2f6fb7", "", "productive"),
    "startup": ("#a7adb5", "", "start-up"),
    "failed": ("#e69f00", "dots", "failed, or done twice"),
    "lost": ("#c62828", "bars", "lost in flight"),
    "merge": ("#6a4fa3", "", "merge"),
    "drained": ("#ffffff", "hatch", "drained"),
    "idle": ("#ffffff", "", "idle"),
}
#: States of a breaker and parts of the core time that no lane has
LOOKS = {
    **STATES,
    "overhead": ("#efe3b8", "", "overhead"),
    "closed": ("#cfe3d4", "", "in use"),
    "half-open": ("#e69f00", "dots", "on trial"),
    "open": ("#c62828", "bars", "off"),
    "exhausted": ("#3b0a0a", "", "off for good"),
}
LEFT, RIGHT = 96, 24  #: margins beside a picture whose columns are TimeAxis.columns wide


def patterns() -> str:
    """Definitions to put once into a document."""
    return (
        '<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="5" height="5" fill="#fff"/><path d="M0 0V5" stroke="#6b7280" stroke-width="1.6"/></pattern>'
        '<pattern id="bars" width="3" height="3" patternUnits="userSpaceOnUse">'
        '<rect width="3" height="3" fill="#c62828"/><path d="M0 1.5H3" stroke="#7f1010" stroke-width="1"/></pattern>'
        '<pattern id="dots" width="4" height="4" patternUnits="userSpaceOnUse">'
        '<rect width="4" height="4" fill="#e69f00"/><circle cx="2" cy="2" r="0.9" fill="#5c4000"/></pattern>'
    )


def fill(state: str) -> str:
    colour, pattern, _ = LOOKS[state]
    return f"url(#{pattern})" if pattern else colour


def svg(width: float, height: float, body: str, title: str) -> str:
    """A picture with a title for those who do not see it. It carries its own patterns, to stand alone as a file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui,DejaVu Sans,sans-serif" font-size="11" fill="#1f2933">'
        f"<title>{escape(title)}</title><defs>{patterns()}</defs>{body}</svg>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", **attributes: Any) -> str:
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def legend(x: float, y: float, states: Sequence[str]) -> str:
    """One box and word for each state, on one line."""
    out = []
    for state in states:
        out.append(
            f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="14" height="10" fill="{fill(state)}" stroke="#6b7280" '
            f'stroke-width="0.6"/>' + text(x + 19, y, LOOKS[state][2])
        )
        x += 34 + 6.4 * len(LOOKS[state][2])
    return "".join(out)


def time_ruler(axis: TimeAxis, top: float, bottom: float) -> str:
    """Ticks with the time of day below a picture, and the cut pauses as marks through it."""
    out = []
    drawn = sum(end - begin for begin, end in axis.pieces)
    step = _time_step(axis.scale * 90)
    days = axis.pieces[-1][1] - axis.pieces[0][0] > 86400
    free = -1e9
    for begin, end in axis.pieces:
        first = float(axis.place(begin))
        ticks = [begin] + [t for t in np.arange(math.ceil(begin / step) * step, end, step).tolist()]
        for number, at in enumerate(ticks):
            x = float(axis.place(at))
            if x < free or (number and x < first + 60):
                continue
            shape = "%H:%M:%S" if step < 60 or (number == 0 and drawn < 7200) else "%H:%M"
            day = days and number == 0
            words = time.strftime(f"%b %d {shape}" if day else shape, time.gmtime(at))
            out.append(f'<path d="M{LEFT + x:.1f} {bottom}v4" stroke="#6b7280"/>')
            anchor = "start" if number == 0 else "middle"
            out.append(text(LEFT + x, bottom + 15, words, anchor, fill="#52606d"))
            free = x + 7 * len(words) + (14 if number == 0 else 8 + 3.5 * len(words))
    for begin, end, pause in axis.gaps():
        middle = LEFT + (begin + end) / 2
        out.append(
            f'<path d="M{middle:.1f} {top}V{bottom}" stroke="#9aa5b1" stroke-dasharray="2 3"/>'
            f"<title>pause of {escape(seconds_words(pause))}</title>"
        )
    return "".join(out)


def lanes(
    sums: dict[str, NDArray[np.float64]], labels: Sequence[str], axis: TimeAxis, title: str, height: float
) -> str:
    """One line per lane: what it did in each column. A column that did several things is split in height."""
    count = len(labels)
    row = max(4.0, min(16.0, height / max(1, count)))
    top, bottom = 26.0, 26.0 + row * count
    words = [state for state in ("productive", "idle", "startup", "lost", "failed", "merge", "drained")]
    parts = [legend(LEFT, 12, [state for state in words if state != "merge" or sums["merge"].any()])]
    alive = sums["alive"]
    paths: dict[str, list[str]] = {state: [] for state in ("idle", *STATES)}
    for lane in range(count):
        y = top + lane * row
        share = {s: sums[s][lane] / np.maximum(alive[lane], 1e-9) for s in STATES if s != "idle"}
        there = alive[lane] > 0.02 * max(alive[lane].max(), 1e-9)
        for begin, end in _runs(there.astype(int), 1):
            paths["idle"].append(_box(begin, y, end - begin, row))
        base = np.zeros(axis.columns)
        for state in ("productive", "startup", "merge", "failed", "lost", "drained"):
            # sixteenths of a lane: finer differences are not seen, and equal neighbours are drawn as one
            level = np.where(there, np.round(16 * share[state]), 0).astype(int)
            if state in ("lost", "failed"):
                level = np.where(there & (share[state] > 0.004), np.maximum(level, 3), level)
            level = np.minimum(level, 16 - base.astype(int))
            both = level * 32 + base.astype(int)
            for value in np.unique(both[level > 0]).tolist():
                tall, below = divmod(value, 32)
                for begin, end in _runs(both, value):
                    paths[state].append(_box(begin, y + row * (16 - below - tall) / 16, end - begin, row * tall / 16))
            base = base + level
    gap = 0.8 if row >= 6 else 0.0
    for state, boxes in paths.items():
        if boxes:
            stroke = ' stroke="#c3cad3" stroke-width="0.5"' if state == "idle" else ""
            parts.append(f'<path fill="{fill(state)}"{stroke} d="{"".join(boxes)}"/>')
    if gap:
        lines = "".join(f"M{LEFT} {top + n * row:.1f}h{axis.columns}" for n in range(1, count))
        parts.append(f'<path d="{lines}" stroke="#fff" stroke-width="{gap}"/>')
    every = max(1, math.ceil(11 / row))
    parts += [
        text(LEFT - 6, top + (n + 0.5) * row + 3.5, _short(label), "end", font_size=9.5)
        for n, label in enumerate(labels)
        if n % every == 0
    ]
    parts.append(time_ruler(axis, top, bottom))
    return svg(LEFT + axis.columns + RIGHT, bottom + 22, "".join(parts), title)


def switches(lanes: Sequence[tuple[str, Sequence[tuple[str, float, float]]]], axis: TimeAxis, title: str) -> str:
    """One line per lane (label, [(state of LOOKS, since, until)]), unix seconds."""
    row, top = 18.0, 26.0
    bottom = top + row * len(lanes)
    parts = [legend(LEFT, 12, ("closed", "open", "half-open", "exhausted"))]
    for number, (label, spans) in enumerate(lanes):
        y = top + number * row
        parts.append(text(LEFT - 6, y + 12, _short(label), "end", font_size=9.5))
        for state, since, until in spans:
            begin, end = axis.place([since, until]).tolist()
            parts.append(
                f'<rect x="{LEFT + begin:.1f}" y="{y + 2:.1f}" width="{max(1.0, end - begin):.1f}" height="{row - 4}" '
                f'fill="{fill(state)}"><title>{escape(f"{label}: {LOOKS[state][2]}")}</title></rect>'
            )
    parts.append(time_ruler(axis, top, bottom))
    return svg(LEFT + axis.columns + RIGHT, bottom + 22, "".join(parts), title)


def stacked(axis: TimeAxis, layers: Sequence[tuple[str, NDArray[np.float64]]], title: str, unit: str) -> str:
    """Areas on top of each other along time; `layers` (state, values per column)."""
    top, bottom = 26.0, 166.0
    total = np.sum([values for _, values in layers], axis=0)
    peak, ticks = nice(float(total.max(initial=0.0)))
    parts = [legend(LEFT, 12, [state for state, _ in layers])]
    parts.append(_value_ruler(ticks, peak, top, bottom, axis.columns, unit))
    below = np.zeros(axis.columns)
    for state, values in layers:
        above = below + values
        for begin, end in _runs((total > 0).astype(int), 1):
            start = f"M{LEFT + begin} {_y(below[begin], peak, top, bottom)}V{_y(above[begin], peak, top, bottom)}"
            up = _steps(above, range(begin + 1, end), peak, top, bottom)
            down = _steps(below, range(end - 1, begin, -1), peak, top, bottom)
            turn = f"H{LEFT + end}V{_y(below[end - 1], peak, top, bottom)}"
            if (values[begin:end] > 0).any():
                edge = ' stroke="#c3cad3" stroke-width="0.5"' if state in ("idle", "drained") else ""
                parts.append(f'<path fill="{fill(state)}"{edge} d="{start}{up}{turn}{down}Z"/>')
        below = above
    parts.append(time_ruler(axis, top, bottom))
    return svg(LEFT + axis.columns + RIGHT, bottom + 22, "".join(parts), title)


def curve(axis: TimeAxis, values: NDArray[np.float64], title: str, unit: str, seconds: bool = False) -> str:
    """One value along time (`seconds`: a length of time); not a number where there is none."""
    top, bottom = 12.0, 132.0
    known = np.isfinite(values)
    highest = float(values[known].max()) if known.any() else 0.0
    peak, ticks = nice_seconds(highest) if seconds else nice(highest)
    parts = [_value_ruler(ticks, peak, top, bottom, axis.columns, unit, seconds_words if seconds else None)]
    for begin, end in _runs(known.astype(int), 1):
        points = " ".join(f"{LEFT + x + 0.5:g},{_y(values[x], peak, top, bottom)}" for x in range(begin, end))
        parts.append(f'<polyline points="{points}" fill="none" stroke="#2f6fb7" stroke-width="1.6"/>')
    parts.append(time_ruler(axis, top, bottom))
    return svg(LEFT + axis.columns + RIGHT, bottom + 22, "".join(parts), title)


def bars(
    values: Sequence[tuple[str, float]],
    title: str,
    unit: str,
    ticks: Iterable[tuple[float, str]] = (),
    marks: Iterable[tuple[float, str]] = (),
) -> str:
    """Upright bars (word, count), their height logarithmic; `ticks` (place in bars, word) stand below, `marks` are
    lines from top to bottom."""
    top, bottom, width = 24.0, 164.0, 800
    decades = max(1, math.ceil(math.log10(max(2.0, max((value for _, value in values), default=0.0))) - 1e-9))
    each, room = width / max(1, len(values)), (bottom - top) / (decades + 0.3)  # one event has a height, too

    def y(value: float) -> float:
        return bottom - room * (math.log10(value) + 0.3)

    parts = []
    for power in range(decades + 1):
        parts.append(f'<path d="M{LEFT} {y(10.0**power):.1f}h{width}" stroke="#e4e7eb"/>')
        parts.append(text(LEFT - 6, y(10.0**power) + 4, f"{10**power:,}", "end"))
    parts.append(_unit(unit, (top + bottom) / 2))
    for number, (word, value) in enumerate(values):
        if value >= 1:
            x, high = LEFT + (number + 0.08) * each, y(value)
            parts.append(
                f'<rect x="{x:.1f}" y="{high:.1f}" width="{each * 0.84:.1f}" height="{bottom - high:.1f}" '
                f'fill="#2f6fb7"><title>{escape(word)}: {value:,.0f}</title></rect>'
            )
    free = -1e9
    for place, word in ticks:
        x = LEFT + place * each
        parts.append(f'<path d="M{x:.1f} {bottom}v4" stroke="#6b7280"/>')
        if x > free:
            parts.append(text(x, bottom + 15, word, "middle", fill="#52606d"))
            free = x + 7 * len(word) + 6
    for place, word in marks:
        x = LEFT + place * each
        parts.append(f'<path d="M{x:.1f} {top - 4}V{bottom}" stroke="#c62828" stroke-dasharray="4 3"/>')
        parts.append(text(x, top - 8, word, "middle", fill="#8f1d1d"))
    return svg(LEFT + width + RIGHT, bottom + 22, "".join(parts), title)


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between `low` and `high`; powers of ten alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 8 else (1, 2, 5)
    return [size for p in powers for f in factors if low <= (size := f * 10.0**p) <= high]


def share_bar(parts: Sequence[tuple[str, str, float]], title: str) -> str:
    """One bar, 100 % long; `parts` (state of STATES for its look, word, value)."""
    width, total = 800, sum(value for _, _, value in parts) or 1.0
    out, x = [], float(LEFT)
    for state, word, value in parts:
        length = width * value / total
        if length > 0:
            out.append(
                f'<rect x="{x:.1f}" y="4" width="{length:.2f}" height="26" fill="{fill(state)}" stroke="#6b7280" '
                f'stroke-width="0.6"><title>{escape(word)}: {100 * value / total:.2f} %</title></rect>'
            )
        if length > 6.2 * len(word) + 50:
            colour = "#fff" if state == "productive" else "#1f2933"
            out.append(
                text(x + length / 2, 21, f"{word} {100 * value / total:.1f} %", "middle", fill=colour, stroke="none")
            )
        x += length
    return svg(LEFT + width + RIGHT, 36, "".join(out), title)


def nice(peak: float) -> tuple[float, list[float]]:
    """(upper end of a scale, its ticks) for values up to `peak`."""
    if not peak > 0:
        return 1.0, [0.0, 1.0]
    raw = peak / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    count = math.ceil(peak / step - 1e-9)
    return step * count, [step * n for n in range(count + 1)]


def nice_seconds(peak: float) -> tuple[float, list[float]]:
    """As `nice`, in steps of whole seconds, minutes, hours or days."""
    size = next((size for size in (86400.0, 3600.0, 60.0) if peak >= 2 * size), 1.0)
    top, ticks = nice(peak / size)
    return top * size, [tick * size for tick in ticks]


def seconds_words(seconds: float) -> str:
    """A length of time in one unit, short."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return "0 s" if seconds <= 0 else f"{seconds:.1g} s"


def _value_ruler(
    ticks: Sequence[float], peak: float, top: float, bottom: float, width: float, unit: str, words: Any = None
) -> str:
    out = []
    for tick in ticks:
        y = _y(tick, peak, top, bottom)
        word = words(tick) if words else f"{tick:,.6g}"
        out.append(f'<path d="M{LEFT} {y}h{width}" stroke="#e4e7eb"/>' + text(LEFT - 6, float(y) + 4, word, "end"))
    return "".join([*out, _unit(unit, (top + bottom) / 2)])


def _unit(unit: str, middle: float) -> str:
    return (
        f'<text transform="translate(12 {middle:g}) rotate(-90)" text-anchor="middle" fill="#52606d">'
        f"{escape(unit)}</text>"
    )


def _y(value: float, peak: float, top: float, bottom: float) -> str:
    return f"{bottom - (bottom - top) * min(1.0, max(0.0, value / peak)):.1f}"


def _steps(values: NDArray[np.float64], columns: range, peak: float, top: float, bottom: float) -> str:
    """The line of `values` along `columns`, in their order; it moves only where the value changes."""
    out, back = [], columns.step < 0
    for x in columns:
        before, after = (values[x], values[x - 1]) if back else (values[x - 1], values[x])
        if before != after:
            out.append(f"H{LEFT + x}V{_y(after, peak, top, bottom)}")
    return "".join(out)


def _box(begin: int, y: float, width: float, height: float) -> str:
    return f"M{LEFT + begin} {y:.1f}h{width:g}v{height:.1f}h-{width:g}z"


def _runs(values: NDArray[Any], wanted: int) -> list[tuple[int, int]]:
    """[begin, end) of every run of `wanted`."""
    at = np.concatenate(([0], (values == wanted).astype(int), [0]))
    change = np.diff(at)
    return list(zip(np.flatnonzero(change > 0).tolist(), np.flatnonzero(change < 0).tolist(), strict=True))


def _time_step(seconds: float) -> float:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    return float(next((step for step in steps if step >= seconds), 86400 * math.ceil(seconds / 86400)))


def _short(label: str) -> str:
    return label if len(label) <= 17 else "…" + label[-16:]
