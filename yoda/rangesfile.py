"""A file of named ranges, as PanDA and Harvester write it, piece by piece: ten million of them in little memory.

| form | what |
|---|---|
| JSON list | `[{"eventRangeID": ..., "LFN": ..., "startEvent": 1, "lastEvent": 10}, ...]` |
| JSON by PandaID | `{"<PandaID>": [...], ...}`, Harvester's `JobsEventRanges.json` |
| JSON lines | one object per line |
| CSV | a header line with those four names, in any order |

Plain or gzip; what a file is shows in its first bytes. Other keys (GUID, scope, PFN, ...) are passed over. No library
reads a JSON document in pieces at this speed: here msgspec decodes runs of whole objects, whose end is guessed, or else
found by a regular expression.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

from eventrange.errors import ConfigError

KEY = "ranges.file"  #: of the job file
CHUNK = 1 << 20  #: bytes read at a time; some thousand ranges
SHOWN = 1 << 12  #: bytes in which a file shows what it is, and a PandaID ends
LONGEST_ENTRY = 1 << 24  #: bytes without the end of an object: then it is no list of ranges
ROWS = 1 << 14  #: lines of CSV at a time
COLUMNS = ("eventRangeID", "LFN", "startEvent", "lastEvent")

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_FLAT = rb'\{[^{}"]*(?:' + _STRING + rb'[^{}"]*)*\}'
_OBJECT = rb'\{[^{}"]*(?:(?:' + _STRING + rb"|" + _FLAT + rb')[^{}"]*)*\}'
_RUN = re.compile(rb"\s*((?:" + _OBJECT + rb"\s*,\s*)*(?:" + _OBJECT + rb"(?=\s*\]))?)", re.DOTALL)
_GROUP = re.compile(rb"\s*(" + _STRING + rb")\s*:\s*\[", re.DOTALL)
_FIRST_GROUP = re.compile(rb"\s*\{" + _GROUP.pattern, re.DOTALL)
_LOST = re.compile(r" - at `\$\[(\d+)\](.*)`")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One named range. Events are counted from 1, both included."""

    eventRangeID: str
    startEvent: int
    lastEvent: int
    LFN: str | None = None


@dataclass(frozen=True)
class Batch:
    """Some ranges, in the order of the file. `number` is that of the first, as `unit` (entry, line) counts them;
    `group` the key they stand under, None where they stand under none."""

    entries: list[Entry]
    number: int
    unit: str = "entry"
    group: str | None = None


_entries = msgspec.json.Decoder(list[Entry])
_entry = msgspec.json.Decoder(Entry)


def batches(path: str) -> Iterator[Batch]:
    """All ranges in the file. Raises ConfigError that names the file, the entry or line, and what to do."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield from _Reader(path, gzip.GzipFile(fileobj=raw) if packed else raw).batches()
    except OSError as error:
        raise wrong(path, error.strerror or str(error), "put the file there, or correct its name") from error
    except (EOFError, zlib.error) as error:
        raise wrong(path, f"the gzip stream is damaged ({error})", "copy it again; `gzip -t` must accept it") from error


def wrong(path: str, detail: str, hint: str, where: str = "") -> ConfigError:
    """The error for what is wrong with a file of ranges, at `where` in it."""
    return ConfigError(file=path, key=where or KEY, detail=detail, hint=hint)


class _Reader:
    def __init__(self, path: str, stream: Any) -> None:
        self.path, self.stream = path, stream
        self.waiting = b""  # read and not used yet
        self.ended = False
        self.number = 1

    def batches(self) -> Iterator[Batch]:
        while not self.ended and len(self.waiting.lstrip()) < SHOWN:
            self._more()
        self.waiting = self.waiting.removeprefix(b"\xef\xbb\xbf").lstrip()
        if self.waiting.startswith(b"["):
            yield from self._list(1, None)
            self._nothing_left()
        elif not self.waiting.startswith(b"{"):
            yield from self._csv()
        elif (match := _FIRST_GROUP.match(self.waiting)) is not None:
            yield from self._groups(match)
        elif re.fullmatch(rb"\{\s*\}\s*", self.waiting) is None:
            yield from self._lines()

    # -- JSON --------------------------------------------------------------------------------------------------------

    def _groups(self, match: re.Match[bytes] | None) -> Iterator[Batch]:
        while match is not None:
            yield from self._list(match.end(), msgspec.json.decode(match[1], type=str))
            following = self._next()
            if following == b"}":
                self.waiting = self.waiting[1:]
                self._nothing_left()
                return
            if following == b",":
                self.waiting = self.waiting[1:]
            while (match := _GROUP.match(self.waiting)) is None and not self.ended and len(self.waiting) < SHOWN:
                self._more()
        raise self._bad("behind a list there is neither a PandaID with the next list nor the end", "entry")

    def _list(self, begin: int, group: str | None) -> Iterator[Batch]:
        """The objects of a list, up to behind its end."""
        self.waiting = self.waiting[begin:]
        empty = True
        while True:
            if (batch := self._guessed(group)) is not None:
                yield batch
                empty = False
            match = _RUN.match(self.waiting)
            assert match is not None
            if run := match[1].rstrip().removesuffix(b","):
                yield self._decoded(run, group)
                self.waiting, empty = self.waiting[match.end() :], False
            following = self._next()
            if following == b"]":
                if empty and group is not None:
                    yield Batch([], self.number, group=group)
                self.waiting = self.waiting[1:]
                return
            if following not in (b"{", b""):
                raise self._bad(f"there is {following.decode(errors='replace')!r} where a range should begin", "entry")
            if self.ended or len(self.waiting) > LONGEST_ENTRY:
                raise self._bad("the file ends in the middle of the list" if self.ended else "it has no end", "entry")
            self._more()

    def _guessed(self, group: str | None) -> Batch | None:
        """All up to the last `},`, if that is the end of an object. What decodes as a list is one, so a guess may fail
        but not mislead; looking for the end with an expression takes four times as long."""
        end = self.waiting.rfind(b"},") + 1
        if not end:
            return None
        try:
            found = _entries.decode(b"[%b]" % self.waiting[:end])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        batch = Batch(found, self.number, group=group)
        self.number += len(found)
        self.waiting = self.waiting[end + 1 :]
        return batch

    def _decoded(self, run: bytes, group: str | None) -> Batch:
        try:
            found = _entries.decode(b"[%b]" % run)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._said(error, "entry") from error
        batch = Batch(found, self.number, group=group)
        self.number += len(found)
        return batch

    def _lines(self) -> Iterator[Batch]:
        while self.waiting:
            whole = self.waiting if self.ended else self.waiting[: self.waiting.rfind(b"\n") + 1]
            if whole:
                yield self._some_lines(whole)
                self.waiting = self.waiting[len(whole) :]
            elif len(self.waiting) > LONGEST_ENTRY:
                raise self._bad("it has no end", "line")
            self._more()

    def _some_lines(self, text: bytes) -> Batch:
        lines = text.count(b"\n") + (not text.endswith(b"\n"))
        try:
            found = _entry.decode_lines(text)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            for line in text.split(b"\n"):  # which one is it?
                try:
                    if line.strip():
                        _entry.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise self._said(error, "line") from error
                self.number += 1
            raise
        batch = Batch(found, self.number, "line")
        self.number += lines
        return batch

    # -- CSV ---------------------------------------------------------------------------------------------------------

    def _csv(self) -> Iterator[Batch]:
        text = io.TextIOWrapper(io.BufferedReader(_Joined(self.waiting, self.stream)), "utf-8", newline="")
        rows = csv.reader(text, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            missing = [name for name in COLUMNS if name not in header and name != "LFN"]
            if missing:
                hint = f"write JSON, or CSV with the header {','.join(COLUMNS)}"
                raise wrong(self.path, f"it is no JSON, and as CSV has no column {missing[0]}", hint, "line 1")
            id, first, last = (header.index(name) for name in ("eventRangeID", "startEvent", "lastEvent"))
            file = header.index("LFN") if "LFN" in header else None
            while True:
                self.number = rows.line_num + 1
                some = list(islice(rows, ROWS))
                if not some:
                    return
                found = []
                for count, row in enumerate(some):
                    if not row:
                        continue
                    try:
                        found.append(
                            Entry(row[id], int(row[first]), int(row[last]), None if file is None else row[file])
                        )
                    except (ValueError, IndexError) as error:
                        self.number += count
                        raise self._said(error, "line") from error
                yield Batch(found, self.number, "line")
        except (csv.Error, UnicodeDecodeError) as error:
            self.number = rows.line_num
            raise self._said(error, "line") from error

    # -- what is read ------------------------------------------------------------------------------------------------

    def _more(self) -> None:
        piece = self.stream.read(CHUNK)
        self.ended = not piece
        self.waiting += piece

    def _next(self) -> bytes:
        """The next byte that is no space; empty at the end of what is there."""
        self.waiting = self.waiting.lstrip()
        while not self.waiting and not self.ended:
            self._more()
            self.waiting = self.waiting.lstrip()
        return self.waiting[:1]

    def _nothing_left(self) -> None:
        if self._next():
            raise self._bad("something follows the end of the list", "entry")

    def _bad(self, detail: str, unit: str) -> ConfigError:
        hint = f"write for example {_EXAMPLE}"
        return wrong(self.path, detail, hint, f"{unit} {self.number}")

    def _said(self, error: Exception, unit: str) -> ConfigError:
        """What msgspec or csv say, and where."""
        text = str(error)
        if match := _LOST.search(text):
            self.number += int(match[1])
            text = text[: match.start()] + (f" in {match[2].lstrip('.')}" if match[2] else "")
        return self._bad(text[:1].lower() + text[1:], unit)


class _Joined(io.RawIOBase):
    """What has been read already, and then the rest of a stream."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        piece = piece or self._rest.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


_EXAMPLE = '{"eventRangeID": "range-1", "LFN": "events.lhe", "startEvent": 1, "lastEvent": 10}'


def stamp(path: str) -> tuple[int, int]:
    """(size, mtime in ns) of the file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise wrong(path, error.strerror or str(error), "put the file there, or correct its name") from error
    return status.st_size, status.st_mtime_ns
