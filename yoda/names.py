"""What people call a range or an event: as they count it, and as it stands in the output."""

from __future__ import annotations

from eventrange.axis import Axis


def event_name(axis: Axis, position: int) -> str:
    """`FILE:n`; `#position` outside the axis."""
    if not 0 <= position < axis.total:
        return f"#{position}"
    number, local = axis.locate(position)
    return f"{axis.files[number].name}:{local + 1}"


def range_name(axis: Axis, start: int, stop: int) -> str:
    """`FILE:n` of one event, `FILE:first-last` of more; the positions where that is no interval of the axis."""
    if stop == start + 1:
        return event_name(axis, start)
    if not 0 <= start < stop <= axis.total:
        return f"[{start}, {stop})"
    return ", ".join(axis.names(start, stop))
