"""HepMC ascii files, version 3 (Asciiv3) and 2 (IO_GenEvent), plain or gzip, through pyhepmc.

What stands between the start of a listing and its first event (weight names, tools, run attributes) is kept in the
index and put before every range, so an event in the middle knows its run as well as the first one does. Units need no
such care: both versions write them into each event.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from droid.inputs.blocks import Offsets, Text
from droid.inputs.index import Index
from droid.inputs.text import MOST_OFFSETS, UNCLOSED, anchors, index_text
from eventrange.errors import ExtraMissing, InputDamaged

_TOKEN = re.compile(rb"\n(?:(E )|HepMC::(Asciiv3|IO_GenEvent)-(?:(START)|(END))_EVENT_LISTING)")
_MARK_WITHIN = 1 << 16
_NAMES = {b"Asciiv3": 3, b"IO_GenEvent": 2}


class _Scanner:
    """Finds events, listings and their heads; a file may hold several listings, as `cat` of several files makes."""

    def __init__(self, path: str, unclosed: bool = False) -> None:
        self.path = path
        self.unclosed = unclosed
        self.offsets = Offsets(MOST_OFFSETS)
        self.heads: list[list[int]] = []  # first event, begin and end of the head, version
        self.open = False
        self.last_event = -1
        self.end = 0

    def feed(self, buffer: bytes, base: int, last: bool) -> int:
        lines = buffer.rfind(b"\n")  # only whole lines are looked at
        if base == 0 and not self.heads and b"HepMC::" not in buffer[:_MARK_WITHIN]:
            if not last and len(buffer) < _MARK_WITHIN:
                return 0
            raise self._damaged(
                f"is no HepMC ascii file: no HepMC:: in its first {min(len(buffer), _MARK_WITHIN)} bytes",
                "look at the file and at inputs.format in the job file",
            )
        for match in _TOKEN.finditer(buffer, 0, max(lines, 0)):
            event, name, start, _ = match.groups()
            begin = base + match.start() + 1
            if event:
                if not self.open:
                    raise self._damaged(f"has an event at byte {begin} outside of a START_EVENT_LISTING")
                if self.heads[-1][2] < 0:
                    self.heads[-1][2] = begin
                self.offsets.add(begin)
                self.last_event = begin
            elif start:
                if self.open:
                    raise self._cut(begin, "another listing starts there")
                self.open = True
                self.heads.append([self.offsets.count, begin, -1, _NAMES[name]])
            else:
                self.open = False
                self.end = begin
        if last:
            self._finish(base + len(buffer), buffer)
        return max(lines, 0)

    def _finish(self, length: int, tail: bytes) -> None:
        if not self.heads:
            raise self._damaged("has no START_EVENT_LISTING")
        # The end mark itself may stand on a last line that has no line feed.
        if self.open and tail.lstrip().startswith(b"HepMC::") and b"-END_EVENT_LISTING" in tail:
            self.open, self.end = False, length - len(tail.lstrip())
        if self.open:
            if not self.unclosed:
                raise self._cut(length, "it has no END_EVENT_LISTING, so events may be missing")
            self.end = length
        for head in self.heads:
            if head[2] < 0:  # a listing without events
                head[2] = head[1]

    def result(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        meta = {"end": self.end, "stride": self.offsets.stride}
        return self.offsets.count, meta, {"offsets": self.offsets.array(), "heads": np.array(self.heads, np.int64)}

    def _cut(self, byte: int, how: str) -> InputDamaged:
        return self._damaged(
            f"ends at byte {byte}, in or after event {self.offsets.count} (from byte {self.last_event}): {how}",
            f"copy it again from its source, or, if it is whole, set inputs.options.{UNCLOSED}: true",
        )

    def _damaged(self, detail: str, hint: str = "copy the file again from its source") -> InputDamaged:
        return InputDamaged(path=self.path, detail=detail, hint=hint)


def index_hepmc(path: str, options: dict[str, Any], copy: Path | None = None) -> Index:
    """Count and locate the events of a HepMC file in one pass. Option: `allow_unclosed`.

    Raises InputMissing, InputDamaged (with the event and the byte), InputChanged. Does not need pyhepmc.
    """
    scanner = _Scanner(path, bool(options.get(UNCLOSED)))
    index = index_text("hepmc", path, scanner, copy)
    if scanner.open and index.count:
        text = Text(index)
        try:
            _check_last(path, index.count, text.piece(scanner.last_event, scanner.end), int(scanner.heads[-1][3]))
        finally:
            text.close()
    return index


def _check_last(path: str, number: int, event: bytes, version: int) -> None:
    """Without an end mark only the event's own count of its lines tells whether it is whole."""
    kinds = [line[:2] for line in event.splitlines()]
    vertices, particles = kinds.count(b"V "), kinds.count(b"P ")
    try:
        numbers = event.splitlines()[0].split()
        # Version 3 leaves out vertices that a particle line implies; version 2 writes every one.
        whole = particles == int(numbers[3]) if version == 3 else vertices == int(numbers[8])
    except (IndexError, ValueError):
        whole = False
    if not (whole and event.endswith(b"\n")):
        raise InputDamaged(
            path=path,
            detail=f"event {number} is cut in its middle: it has {particles} particles, {vertices} vertices",
            hint="copy the file again from its source",
        )


class HepMCInput:
    """One open HepMC file: `read` gives `pyhepmc.GenEvent`s, with their run's weight names and units."""

    def __init__(self, index: Index) -> None:
        try:
            import pyhepmc
        except ImportError as error:
            raise ExtraMissing(feature="reading HepMC files", package="pyhepmc", extra="hepmc") from error
        self._pyhepmc = pyhepmc
        self.index = index
        self._text = Text(index)
        self._heads: np.ndarray = index.arrays["heads"]
        self._head: tuple[int, bytes] = (-1, b"")

    def count(self) -> int:
        return self.index.count

    def read(self, start: int, stop: int) -> list[Any]:
        """Events [start, stop) of this file, 0-based. Raises IndexError, InputDamaged, InputChanged."""
        if start == stop:
            return []
        first, begin, end = anchors(self.index, start, stop)
        text = b"\n" + self._text.piece(begin, end)
        starts: list[int] = []  # of events, in this piece
        ends: list[int] = []
        for match in _TOKEN.finditer(text):
            if len(ends) < len(starts):
                ends.append(match.start() + 1)
            if match[1]:
                starts.append(match.start() + 1)
        if len(ends) < len(starts):
            ends.append(len(text))
        skip = start - first
        if len(starts) < stop - first:
            raise self._damaged(start, stop, "are no longer where they were")
        events = []
        while start < stop:
            listing = int(np.searchsorted(self._heads[:, 0], start, side="right")) - 1
            last = listing + 1 == len(self._heads)
            upto = stop if last else min(stop, int(self._heads[listing + 1, 0]))
            low, high = starts[skip], ends[skip + upto - start - 1]
            events += self._parse(listing, text[low:high], start, upto)
            skip += upto - start
            start = upto
        return events

    def _parse(self, listing: int, text: bytes, start: int, stop: int) -> list[Any]:
        if listing != self._head[0]:
            self._head = (listing, self._text.piece(int(self._heads[listing, 1]), int(self._heads[listing, 2])))
        core = self._pyhepmc.io
        kind = core.ReaderAscii if self._heads[listing, 3] == 3 else core.ReaderAsciiHepMC2
        name = "Asciiv3" if self._heads[listing, 3] == 3 else "IO_GenEvent"
        whole = b"".join((b"HepMC::Version 3\n", self._head[1], text, f"HepMC::{name}-END_EVENT_LISTING\n\n".encode()))
        events = []
        # A larger buffer than the default 4 KiB: each refill is a call from C++ into Python.
        with kind(core.pyiostream(io.BytesIO(whole), 1 << 16)) as reader:
            for number in range(start, stop):
                event = self._pyhepmc.GenEvent()
                if not reader.read_event(event) or reader.failed():
                    raise self._damaged(number, number + 1, "cannot be parsed by HepMC")
                events.append(event)
        return events

    def _damaged(self, start: int, stop: int, detail: str) -> InputDamaged:
        return InputDamaged(
            path=self.index.path,
            detail=f"event {start + 1} cannot be read: events {start + 1} to {stop} {detail}",
            hint="look at that event, or copy the file again from its source",
        )

    def close(self) -> None:
        self._text.close()
