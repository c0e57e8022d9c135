"""Les Houches event files (LHE 1 to 3), plain or gzip, as the generators really write them.

Events are found by their tags, not by an XML parser: headers hold run cards that are no XML, and a parser would have to
begin at the start of the file. Comments and CDATA are respected, so the word `<event>` in one of them is just text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from droid.inputs.blocks import Offsets, Text
from droid.inputs.index import Index
from droid.inputs.lhe_event import LHEEvent, LHEHead
from droid.inputs.text import LONGEST, MOST_OFFSETS, UNCLOSED, anchors, index_text
from eventrange.errors import InputDamaged

_TOKEN = re.compile(
    rb"<(?:(!--)|(event(?=[\s>]))|(/event\s*>)|(/LesHouchesEvents\s*>)|(LesHouchesEvents(?=[\s>])))", re.IGNORECASE
)
_COMMENT, _OPEN, _CLOSE, _END, _ROOT = range(1, 6)
_PASS = rb"<!--.*?-->|<!\[CDATA\[.*?\]\]>|(<!--|<!\[CDATA\[)"
_HEAD = re.compile(_PASS + rb"|<(?:(header)|(init)|(event)|(/LesHouchesEvents))(?=[\s>])", re.IGNORECASE | re.DOTALL)
_HEADER_END = re.compile(_PASS + rb"|(</header\s*>)", re.IGNORECASE | re.DOTALL)
_INIT_END = re.compile(_PASS + rb"|(</init\s*>)", re.IGNORECASE | re.DOTALL)
_ROOT_WITHIN = 1 << 16


class _Scanner:
    """Finds the end of the head, then events; `found(begin, end)` is called for each, with offsets in the text."""

    def __init__(self, path: str, found: Callable[[int, int], object], unclosed: bool = False) -> None:
        self.path = path
        self.found = found
        self.unclosed = unclosed
        self.body = -1  # where events may begin: after </init>
        self.count = 0
        self.end = -1  # where the last event ends
        self.closed = False
        self.offsets = Offsets(MOST_OFFSETS)

    def feed(self, buffer: bytes, base: int, last: bool) -> int:
        begin = 0
        if self.body < 0:
            begin = self._head(buffer, last)
            if begin < 0:
                return 0
            self.body = self.end = base + begin
        done = self._events(buffer, begin, base, last)
        if last and not (self.closed or self.unclosed):
            raise self._damaged(
                base + len(buffer),
                f"ends without </LesHouchesEvents> after event {self.count}, so events may be missing",
                f"copy it again from its source, or append that line, or set inputs.options.{UNCLOSED}: true",
            )
        return done

    def _events(self, buffer: bytes, position: int, base: int, last: bool) -> int:
        done, opened = position, -1
        search = _TOKEN.search
        while match := search(buffer, position):
            kind, begin, position = match.lastindex, match.start(), match.end()
            if kind == _OPEN:
                if opened < 0:
                    opened = begin
                elif not buffer[opened:begin].rpartition(b"\n")[2].strip():
                    # At the beginning of a line it is a tag and not a word in somebody's comment.
                    raise self._cut(base + opened, f"the next event begins at byte {base + begin}")
            elif kind == _CLOSE:
                if opened < 0:
                    raise self._damaged(base + begin, f"has </event> without <event> after event {self.count}")
                self.count += 1
                self.end = base + position
                self.found(base + opened, self.end)
                done, opened = position, -1
            elif kind == _COMMENT:
                close = buffer.find(b"-->", position)
                if close < 0:
                    if last:
                        raise self._damaged(base + begin, f"has a comment without --> after event {self.count}")
                    return begin if opened < 0 else opened
                position = close + 3
            elif opened >= 0:
                raise self._cut(base + opened, f"the file is closed at byte {base + begin}")
            elif kind == _ROOT:
                raise self._damaged(
                    base + begin,
                    f"holds a second <LesHouchesEvents> after event {self.count}: files were glued together",
                    "give the files one by one; their headers may differ",
                )
            else:
                self.closed, done = True, position
        if opened >= 0:
            if last:
                raise self._cut(base + opened, f"the file ends at byte {base + len(buffer)}")
            return opened
        return max(done, len(buffer) - 32)  # a tag may be cut by the end of the buffer

    def _head(self, buffer: bytes, last: bool) -> int:
        """Where events may begin, or -1 if more text is needed to say."""
        give_up = last or len(buffer) > LONGEST // 4
        if not last and len(buffer) < _ROOT_WITHIN:
            return -1
        if b"<leshouchesevents" not in buffer[:_ROOT_WITHIN].lower():
            raise self._damaged(
                0,
                f"is no LHE file: no <LesHouchesEvents> in its first {min(len(buffer), _ROOT_WITHIN)} bytes",
                "look at the file and at inputs.format in the job file",
            )
        position = 0
        while match := _HEAD.search(buffer, position):
            unclosed, header, init, event, end = match.groups()
            position = match.end()
            if event or end:
                return match.start()
            if unclosed and not give_up:
                return -1
            if header or init:
                position = self._close(_HEADER_END if header else _INIT_END, buffer, position, give_up)
                if position < 0:
                    break
                if init:
                    return position
        if last:
            what = "the file ends inside its header" if not match else "<header> or <init> is never closed"
            raise self._damaged(len(buffer), f"is cut before its first event: {what}")
        return -1

    @staticmethod
    def _close(pattern: re.Pattern[bytes], buffer: bytes, position: int, give_up: bool) -> int:
        while match := pattern.search(buffer, position):
            position = match.end()
            if match[2]:
                return position
            if match[1] and not give_up:
                return -1
        return -1

    def result(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        meta = {"body": self.body, "end": self.end, "stride": self.offsets.stride}
        return self.count, meta, {"offsets": self.offsets.array()}

    def _cut(self, begin: int, how: str) -> InputDamaged:
        return self._damaged(
            begin, f"event {self.count + 1}, which begins at byte {begin}, is cut in its middle: {how}"
        )

    def _damaged(self, byte: int, detail: str, hint: str = "") -> InputDamaged:
        if "byte" not in detail:
            detail += f" (byte {byte} of the text)"
        return InputDamaged(path=self.path, detail=detail, hint=hint or "copy the file again from its source")


def index_lhe(path: str, options: dict[str, Any], copy: Path | None = None) -> Index:
    """Count and locate the events of an LHE file in one pass. Option: `allow_unclosed`.

    Raises InputMissing, InputDamaged (with the event and the byte), InputChanged.
    """
    scanner = _Scanner(path, lambda begin, end: None, bool(options.get(UNCLOSED)))
    scanner.found = lambda begin, end: scanner.offsets.add(begin)
    return index_text("lhe", path, scanner, copy)


class LHEInput:
    """One open LHE file: `read` gives `LHEEvent`s, `head` and `init` what stands before the first event."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._text = Text(index)
        self._head: LHEHead | None = None

    @property
    def head(self) -> LHEHead:
        """Header and init, read when first asked for."""
        if self._head is None:
            self._head = LHEHead(self.index.path, self._text.piece(0, self.index.meta["body"]))
        return self._head

    @property
    def init(self) -> str:
        """The <init> block as text, tags included; empty if the file has none."""
        return self.head.init

    @property
    def header(self) -> str:
        """Everything before <init>, as text; bytes that are no UTF-8 survive as surrogates."""
        return self.head.header

    def count(self) -> int:
        return self.index.count

    def read(self, start: int, stop: int) -> list[LHEEvent]:
        """Events [start, stop) of this file, 0-based. Raises IndexError, InputDamaged, InputChanged."""
        if start == stop:
            return []
        first, begin, end = anchors(self.index, start, stop)
        text = self._text.piece(begin, end)
        spans: list[tuple[int, int]] = []
        scanner = _Scanner(self.index.path, lambda a, b: spans.append((a, b)), unclosed=True)
        scanner.body = 0
        scanner.feed(text, 0, True)
        wanted = spans[start - first : stop - first]
        if len(wanted) != stop - start or spans[0][0] != 0:
            raise InputDamaged(
                path=self.index.path,
                detail=f"bytes {begin} to {end} no longer hold events {start + 1} to {stop}",
                hint="restore the file the task was made with, or start a new task in another directory",
            )
        head = self.head
        return [LHEEvent(head, start + i, text[a:b]) for i, (a, b) in enumerate(wanted)]

    def close(self) -> None:
        self._text.close()
