"""Durations and sizes as people write them, and back again without loss.

A duration is a float of seconds, a size an int of bytes; a bare number means seconds or bytes. Struct fields of type
`Duration` or `Size` are understood by `yoda.config` in every room's part of the site file, which is why this lives on
the ground floor.

Slurm's `D-HH:MM:SS` and `HH:MM:SS` are taken as Slurm takes them; `4:30` is refused, since Slurm means minutes and
seconds and most people mean hours and minutes. A size of one letter (`2G`) is a power of 1024, again as in Slurm;
`2GB` is a power of 1000.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

if TYPE_CHECKING:
    from fractions import Fraction  # every rank imports this module, and few read a fraction

Duration = Annotated[float, Meta(extra={"quantity": "duration"}, examples=["30min"])]
Size = Annotated[int, Meta(extra={"quantity": "size"}, examples=["1GiB"])]

_UNITS = {  # milliseconds
    **dict.fromkeys(("d", "day", "days"), 86_400_000),
    **dict.fromkeys(("h", "hour", "hours"), 3_600_000),
    **dict.fromkeys(("min", "m", "minute", "minutes"), 60_000),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1000),
    "ms": 1,
}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?"
_PART = re.compile(rf"\s*({_NUMBER})\s*([A-Za-z]*)")
_SLURM = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(\d+):(\d+):(\d+))")

_STEPS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_SIZE = re.compile(rf"\s*({_NUMBER})\s*(?:([kmgtpe])(i?b)?|b)?\s*", re.IGNORECASE)


def parse_duration(value: float | str) -> float:
    """Seconds from `4h`, `30min`, `120s`, `1.5h`, `1h30min`, `2-04:00:00`, `04:00:00` or a number of seconds.

    Raises ValueError, with a sentence, for anything else, for negative values and for values without an end.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not a duration")
    if isinstance(value, str):
        return _seconds(value)
    if not math.isfinite(value) or value < 0:
        raise ValueError("a duration is a finite number and not negative")
    return float(value)


def _seconds(text: str) -> float:
    text = text.strip()
    slurm = _SLURM.fullmatch(text)
    if slurm:
        days, hours, minutes, seconds = (int(slurm[i] or 0) for i in range(1, 5))
        if slurm[5]:
            hours, minutes, seconds = int(slurm[5]), int(slurm[6]), int(slurm[7])
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if re.fullmatch(r"\d+:\d+", text):
        first, second = text.split(":")
        raise ValueError(
            f"{text!r} is hours and minutes to some, minutes and seconds to others; "
            f"write {first}h{second}min or {first}min{second}s"
        )
    total, end, parts = _fraction("0"), 0, 0
    while end < len(text):
        part = _PART.match(text, end)
        if part is None:
            raise ValueError("not a duration")
        unit = part[2].lower()
        if unit not in _UNITS and not (unit == "" and parts == 0 and part.end() == len(text)):
            raise ValueError(
                f"unknown unit {part[2]!r}; the units are d, h, min, s, ms" if unit else "a unit is missing"
            )
        total += _fraction(part[1]) * _UNITS.get(unit, 1000)
        end, parts = part.end(), parts + 1
    if not parts:
        raise ValueError("not a duration")
    try:
        return float(total / 1000)
    except OverflowError:
        raise ValueError("the duration is too long") from None


def format_duration(seconds: float) -> str:
    """Text that `parse_duration` turns into exactly `seconds`: 5400 -> `90min`, 86400 -> `1d`, 0.5 -> `0.5s`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        count = seconds / length
        if count.is_integer() and 1 <= count < 1e15 and count * length == seconds:
            return f"{int(count)}{unit}"
    whole = float(seconds).is_integer() and seconds < 1e15
    return f"{int(seconds)}s" if whole else f"{float(seconds)!r}s"


def parse_size(value: float | str) -> int:
    """Bytes from `1GiB`, `500MB`, `1.5GiB`, `2G` (1024-based) or a number of bytes; fractions of a byte are dropped.

    Raises ValueError, with a sentence, for anything else and for negative values.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("not a size")
    if isinstance(value, int):
        if value < 0:
            raise ValueError("a size is not negative")
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError("not a size; the units are B, kB, MB, GB, TB (1000) and KiB, MiB, GiB, TiB (1024)")
    base = 1000 if (match[3] or "").lower() == "b" else 1024
    size = int(_fraction(match[1]) * base ** _STEPS[(match[2] or "").lower()])
    if size >= 1 << 63:
        raise ValueError("the size is too large")
    return size


def format_size(size: int) -> str:
    """The shortest text that `parse_size` turns into exactly `size`: 2**30 -> `1GiB`, 5 * 10**8 -> `500MB`."""
    best = f"{size}B"
    for base, names in (
        (1024, ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")),
        (1000, ("kB", "MB", "GB", "TB", "PB", "EB")),
    ):
        for step, name in enumerate(names, 1):
            if size and size % base**step == 0:
                text = f"{size // base**step}{name}"
                best = min(best, text, key=len)
    return best


def span(seconds: float) -> str:
    """A length of time for people, in two units: `3 h 07 min`; `4.2 s`, `30 ms`."""
    whole = round(seconds)
    for size, name, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size:,} {name} {whole % size // small:02d} {below}"
    return f"{seconds:.1f} s" if seconds >= 0.1 or seconds <= 0 else f"{1000 * seconds:.3g} ms"


def _fraction(text: str) -> Fraction:
    from fractions import Fraction

    _, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > 400:  # Fraction would build a number of that many digits
        raise ValueError("the number is out of range")
    return Fraction(text)
