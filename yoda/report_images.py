"""Pictures of the report as files, for talks and papers: SVG always, PNG of the main ones with matplotlib."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from eventrange.durable import explain, write_file
from yoda.svg import STATES

if TYPE_CHECKING:
    from yoda.report_facts import Facts

ORDER = ("productive", "startup", "failed", "lost", "merge", "drained")
HATCHES = {"drained": "////", "lost": "---", "failed": "..."}


def write_images(facts: Facts, pictures: dict[str, str], folder: str) -> list[str]:
    """Write all pictures into `folder`; returns their paths. Raises CannotWrite."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise explain(error, folder) from error
    out = []
    for name, picture in pictures.items():
        path = os.path.join(folder, f"{name}.svg")
        write_file(path, picture.encode())
        out.append(path)
    if not pictures:
        return out
    try:
        import matplotlib
    except ImportError:
        return out
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, draw in (("utilisation", _utilisation), ("cores", _cores), ("throughput", _throughput)):
        if name in pictures:
            figure, axes = pyplot.subplots(figsize=(9, 5 if name == "cores" else 3.2), layout="constrained")
            draw(facts, axes)
            path = os.path.join(folder, f"{name}.png")
            figure.savefig(path, dpi=200)
            pyplot.close(figure)
            out.append(path)
    return out


def _utilisation(facts: Facts, axes: Any) -> None:
    c = facts.chronicle
    sums = {state: values.sum(axis=0) for state, values in c.nodes.sums().items()}
    below = np.zeros(c.axis.columns)
    for state in (*ORDER, "idle"):
        colour, _, word = STATES[state]
        line = "#6b7280" if state in HATCHES or state == "idle" else "none"
        axes.fill_between(
            np.arange(c.axis.columns), below, below + sums[state], step="post", facecolor=colour, edgecolor=line,
            linewidth=0.3 * (state == "idle"), hatch=HATCHES.get(state), label=word,
        )  # fmt: skip
        below = below + sums[state]
    axes.set_ylabel("cores")
    axes.set_ylim(bottom=0)
    _time(facts, axes)
    axes.figure.legend(ncols=7, fontsize="x-small", loc="outside upper center", frameon=False)


def _cores(facts: Facts, axes: Any) -> None:
    c = facts.chronicle
    sums = c.cores.sums()
    # Red above all: a lane's last, interrupted event is what the picture is for.
    picture = np.ones((*sums["alive"].shape, 3))
    total = np.maximum(sums["alive"], 1e-9)[..., None]
    for state in ORDER:
        colour = np.array([int(STATES[state][0][n : n + 2], 16) / 255 for n in (1, 3, 5)])
        share = sums[state][..., None] / total
        picture = picture * (1 - share) + np.where(state == "drained", 0.85, colour) * share
    axes.imshow(np.clip(picture, 0, 1), aspect="auto", interpolation="nearest", origin="upper")
    names = [(lane, label) for lane, label in enumerate(c.core_labels) if label][:: -(-c.cores.lanes // 32)]
    axes.set_yticks([lane for lane, _ in names], [label for _, label in names], fontsize="x-small")
    from matplotlib.patches import Patch

    looks = [
        Patch(facecolor="0.85" if state == "drained" else STATES[state][0], edgecolor="#6b7280", label=STATES[state][2])
        for state in (*ORDER, "idle")
    ]
    axes.figure.legend(handles=looks, ncols=7, fontsize="x-small", loc="outside upper center", frameon=False)
    for lane in range(1, c.cores.lanes):
        axes.axhline(lane - 0.5, color="white", linewidth=0.6)
    _time(facts, axes)


def _throughput(facts: Facts, axes: Any) -> None:
    from yoda.report_pictures import history

    rate, _ = history(facts)
    axes.plot(rate, color=STATES["productive"][0])
    axes.set_ylabel("events/s")
    axes.set_ylim(bottom=0)
    _time(facts, axes)


def _time(facts: Facts, axes: Any) -> None:
    axis = facts.chronicle.axis
    ticks = [float(axis.place(t)) for begin, end in axis.pieces for t in (begin, (begin + end) / 2)]
    if len(ticks) > 8:
        ticks = ticks[:: -(-len(ticks) // 8)]
    axes.set_xticks(ticks, [time.strftime("%H:%M:%S", time.gmtime(float(axis.time(x)))) for x in ticks])
    axes.set_xlim(0, axis.columns)
    for begin, end, _ in axis.gaps():
        axes.axvline((begin + end) / 2, color="#9aa5b1", linestyle=":")
    axes.set_xlabel("time (UTC)")
