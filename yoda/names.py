"""What people call a range or an event: as they count it, and as it stands in the output."""

from __future__ import annotations

from eventrange.axis import Axis

SHOWN = 6  #: names of an interval in several pieces, at most


def event_name(axis: Axis, position: int) -> str:
    """`FILE:n`; `#position` outside the axis."""
    if not 0 <= position < axis.total:
        return f"#{position}"
    number, local = axis.locate(position)
    return f"{axis.files[number].name}:{local + 1}"


def range_name(axis: Axis, start: int, stop: int) -> str:
    """`FILE:n` of one event, `FILE:first-last` of more; the positions where that is no interval of the axis.

    Where named ranges lie apart, the first and the last of many are shown.
    """
    if stop == start + 1:
        return event_name(axis, start)
    if not 0 <= start < stop <= axis.total:
        return f"[{start}, {stop})"
    names = axis.names(start, stop)
    if len(names) > SHOWN:
        names[SHOWN - 1 : -1] = [f"{len(names) - SHOWN} more"]
    return ", ".join(names)


def foreign_name(axis: Axis, start: int, stop: int) -> str:
    """What someone else called the range that [start, stop) lies in; empty where there is none, or more than one."""
    if axis.ranges is None or not 0 <= start < stop <= axis.total:
        return ""
    number = axis.ranges.number(start)
    return axis.ranges.name(number) if stop <= axis.ranges.bounds(number)[1] else ""
