"""The `slurm:` part of a site file, and the ways a length of time may be written there."""

from __future__ import annotations

import re

import msgspec

# Yoda must be gone before Slurm's own kill; slurmctld looks for ended jobs every few seconds and answers a requeue in
# less
LAST_MOMENT = 20
_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


def seconds(duration: str | int | float) -> int:
    """A length of time in seconds.

    Takes a number of seconds, `4h`, `30min`, `1h30min`, `120s`, `2d`, and Slurm's own `4:00:00` and `1-00:00:00`.
    Raises ValueError saying what to write.
    """
    if isinstance(duration, (int, float)):
        value = float(duration)
    else:
        value = _read(duration.strip().lower())
    if not 0 <= value < 10 * 365 * 86400:
        raise ValueError(f"{duration!r} is not a sensible length of time")
    return round(value)


def _read(text: str) -> float:
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", text)
    if clock:
        days, first, second, third = (int(group or 0) for group in clock.groups())
        # Slurm reads D-HH:MM and MM:SS; a third number makes it HH:MM:SS in both
        if clock[1] is None and clock[4] is None:
            return first * 60 + second
        return days * 86400 + first * 3600 + second * 60 + third
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text) or any(unit not in _UNITS for _, unit in parts):
        raise ValueError(f"{text!r} is not a length of time: write 4h, 30min, 120s or 1h30min")
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))


def clock_text(duration: float) -> str:
    """Seconds as Slurm reads them back, D-HH:MM:SS; rounded down to what Slurm counts in, but never to nothing."""
    left = max(1, int(duration))
    days, left = divmod(left, 86400)
    text = f"{left // 3600:02d}:{left % 3600 // 60:02d}:{left % 60:02d}"
    return f"{days}-{text}" if days else text


class SlurmSite(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to ask of this site's Slurm. Lengths of time: see `seconds`."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    gres: str | None = None
    nodes: int = 1
    """One Droid is started on each; Yoda shares the first."""
    exclusive: bool = True
    """Whole nodes. Where nodes are shared, say false and give cpus_per_node."""
    cpus_per_node: int | None = None
    time: str | int | float = "1h"
    time_min: str | int | float | None = None
    """Slurm may shorten the allocation down to this to fit it into a hole."""
    signal_before_end: str | int | float = "120s"
    """How long before the end Slurm warns; it may be up to a minute early."""
    requeue: bool = True
    """False where the site forbids it: then the script submits itself again instead."""
    setup: str | list[str] = ""
    """Shell lines before the launcher, such as `module load python`."""
    extra: list[str] = []
    """Further sbatch options, each as on the command line: `--constraint=cpu`."""

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError("nodes: at least 1")
        if self.cpus_per_node is not None and self.cpus_per_node < 1:
            raise ValueError("cpus_per_node: at least 1")
        for key in ("time", "time_min", "signal_before_end"):
            value = getattr(self, key)
            try:
                length = seconds(value) if value is not None else None
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
            if length is not None and length < 1:
                raise ValueError(f"{key}: must be longer than {length} s")
        if self.time_min is not None and seconds(self.time_min) > seconds(self.time):
            raise ValueError(f"time_min: {self.time_min} is longer than time, {self.time}")
        if seconds(self.signal_before_end) > 65535:
            raise ValueError("signal_before_end: Slurm takes at most 65535 s")
        if seconds(self.signal_before_end) >= self.shortest:
            raise ValueError(f"signal_before_end: {self.signal_before_end} is longer than the allocation itself may be")
        for option in self.extra:
            if not option.startswith("-"):
                raise ValueError(f"extra: {option!r} is not an option: write it as on sbatch's command line")

    @property
    def shortest(self) -> int:
        """The shortest allocation Slurm may make of this, in seconds."""
        return seconds(self.time if self.time_min is None else self.time_min)

    @property
    def lead(self) -> int:
        """How long before the end Slurm warns, in seconds."""
        return seconds(self.signal_before_end)

    @property
    def patience(self) -> int:
        """How long after a warning our batch script waits for the run, in seconds: it has to come back in time."""
        return max(1, self.lead - LAST_MOMENT) if self.lead > 2 * LAST_MOMENT else max(1, self.lead // 2)

    @property
    def setup_lines(self) -> list[str]:
        """The set-up as lines of shell."""
        text = self.setup if isinstance(self.setup, str) else "\n".join(self.setup)
        return text.strip().splitlines()
