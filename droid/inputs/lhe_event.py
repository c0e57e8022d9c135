"""One event of an LHE file, parsed when and as far as it is asked; and small LHE files made of such events."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from eventrange.errors import InputDamaged

PARTICLE = np.dtype(
    [(name, "i8" if number < 6 else "f8") for number, name in enumerate(
        ("id", "status", "mother1", "mother2", "color1", "color2", "px", "py", "pz", "e", "m", "lifetime", "spin")
    )]
)  # fmt: skip
"""One row per particle: momenta, energy and mass in GeV, lifetime in mm, as the Les Houches accord has them."""

_ATTRIBUTES = r"""((?:[^>"']|"[^"]*"|'[^']*')*)"""
_TAG = re.compile(rf"<event{_ATTRIBUTES}>".encode(), re.IGNORECASE)
_PAIRS = re.compile(r"""([\w:.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_INIT = re.compile(r"<!--.*?-->|<!\[CDATA\[.*?\]\]>|<header(?=[\s>]).*?</header\s*>|(<init(?=[\s>]))", re.I | re.S)
_WGT = re.compile(rf"<wgt{_ATTRIBUTES}>([^<]*)</wgt\s*>", re.IGNORECASE)
_WEIGHTS = re.compile(rf"<weights{_ATTRIBUTES}>([^<]*)</weights\s*>", re.IGNORECASE)
_WEIGHT_IDS = re.compile(r"""<weight\s[^>]*?\bid\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)
_INITRWGT = re.compile(r"<initrwgt.*?</initrwgt\s*>", re.IGNORECASE | re.DOTALL)
_COMMENTS = re.compile(r"<!--.*?-->", re.DOTALL)


class Process(NamedTuple):
    """One line of <init>: cross section and its error in pb, largest weight, label."""

    xsecup: float
    xerrup: float
    xmaxup: float
    lprup: int


class Beams(NamedTuple):
    """The first line of <init>, energies in GeV, and its processes."""

    idbmup: tuple[int, int]
    ebmup: tuple[float, float]
    pdfgup: tuple[int, int]
    pdfsup: tuple[int, int]
    idwtup: int
    processes: tuple[Process, ...]


class LHEHead:
    """What stands before the first event of a file; shared by all events read from it, so nothing in it changes."""

    def __init__(self, path: str, raw: bytes) -> None:
        self.path = path
        self.raw = raw
        """The bytes from the beginning of the file to the end of </init>."""

    @cached_property
    def _parts(self) -> tuple[str, str]:
        text = self.raw.decode("utf-8", "surrogateescape")
        begin = next((match.start(1) for match in _INIT.finditer(text) if match[1]), len(text))
        return text[:begin], text[begin:]

    @property
    def header(self) -> str:
        """The text before <init>, the opening <LesHouchesEvents> included."""
        return self._parts[0]

    @property
    def init(self) -> str:
        """The <init> block with its tags, or an empty string."""
        return self._parts[1]

    @cached_property
    def beams(self) -> Beams | None:
        """The numbers of <init>, or None if there is none or it is not as the accord has it."""
        lines = [line for line in _lines(self.init[self.init.find(">") + 1 :].encode("utf-8", "surrogateescape"))]
        try:
            first = [_number(token) for token in lines[0].split()]
            a = [int(value) for value in first]
            processes = []
            for line in lines[1 : 1 + a[9]]:
                x, error, largest, label = line.split()[:4]
                processes.append(Process(_number(x), _number(error), _number(largest), int(label)))
        except (IndexError, ValueError):
            return None
        return Beams((a[0], a[1]), (first[2], first[3]), (a[4], a[5]), (a[6], a[7]), a[8], tuple(processes))

    @cached_property
    def weight_ids(self) -> tuple[str, ...]:
        """Ids of the weights that <initrwgt> declares, in order: what names the values in <weights>."""
        whole = "".join(_INITRWGT.findall(self.raw.decode("utf-8", "surrogateescape")))
        return tuple(_WEIGHT_IDS.findall(_COMMENTS.sub("", whole)))


class LHEEvent:
    """One event. Only `raw` is there from the beginning; every other attribute is parsed when it is first used.

    `position` is the event's 0-based number in its file, `head` what that file begins with.
    Raises InputDamaged, on use, where the text is not what the format promises.
    """

    __slots__ = ("_first", "_particles", "head", "position", "raw")

    def __init__(self, head: LHEHead, position: int, raw: bytes) -> None:
        self.head = head
        self.position = position
        self.raw = raw
        """The bytes from `<event` to `</event>`."""
        self._first: tuple[float, ...] | None = None
        self._particles: np.ndarray | None = None

    @property
    def text(self) -> str:
        """The event block as text."""
        return self.raw.decode("utf-8", "surrogateescape")

    @property
    def attributes(self) -> dict[str, str]:
        """Attributes of the <event> tag, such as `npLO` of matched samples."""
        match = _TAG.match(self.raw)
        pairs = _PAIRS.findall(match[1].decode("utf-8", "surrogateescape")) if match else []
        return {name: double or single for name, double, single in pairs}

    @property
    def nup(self) -> int:
        """Number of particles."""
        return int(self._header[0])

    @property
    def idprup(self) -> int:
        """Label of the process."""
        return int(self._header[1])

    @property
    def xwgtup(self) -> float:
        """Weight of the event."""
        return self._header[2]

    @property
    def scalup(self) -> float:
        """Scale in GeV."""
        return self._header[3]

    @property
    def aqedup(self) -> float:
        return self._header[4]

    @property
    def aqcdup(self) -> float:
        return self._header[5]

    @property
    def particles(self) -> np.ndarray:
        """Structured array of shape (nup,), dtype PARTICLE."""
        if self._particles is None:
            self._parse()
        assert self._particles is not None
        return self._particles

    @property
    def weights(self) -> dict[str, float]:
        """Weights by id, from <rwgt> or <weights>; without ids in the header the latter are called "0", "1", ..."""
        text = _COMMENTS.sub("", self.text)
        try:
            found: dict[str, float] = {}
            for attributes, value in _WGT.findall(text):
                pairs = {key: a or b for key, a, b in _PAIRS.findall(attributes)}
                found[pairs.get("id", str(len(found)))] = _number(value.strip())
            if not found and (match := _WEIGHTS.search(text)):
                values = [_number(token) for token in match[2].split()]
                ids = self.head.weight_ids
                names = ids if len(ids) == len(values) else tuple(map(str, range(len(values))))
                found = dict(zip(names, values, strict=True))
        except ValueError as error:
            raise self._damaged(f"a weight is no number ({error})") from error
        return found

    @property
    def _header(self) -> tuple[float, ...]:
        if self._first is None:
            self._parse()
        assert self._first is not None
        return self._first

    def _parse(self) -> None:
        match = _TAG.match(self.raw)
        lines = _lines(self.raw[match.end() :]) if match else []
        if not lines:
            raise self._damaged("it has no first line")
        try:
            first = tuple(_number(token) for token in lines[0].split()[:6])
            if len(first) < 6:
                raise ValueError(f"6 numbers expected, {len(first)} found")
        except ValueError as error:
            raise self._damaged(f"its first line is {lines[0].strip()!r}: {error}") from error
        count = int(first[0])
        rows = [line.split()[:13] for line in lines[1 : 1 + count]]
        if len(rows) != count or any(len(row) != 13 for row in rows):
            whole = sum(len(row) == 13 for row in rows)
            raise self._damaged(f"it announces {count} particles and has {whole} whole lines of 13 numbers")
        particles = np.empty(count, PARTICLE)
        if count:
            try:
                for name, column in zip(PARTICLE.names or (), zip(*rows, strict=True), strict=True):
                    particles[name] = _numbers(column)
            except ValueError as error:
                raise self._damaged(f"a number of its particles cannot be read ({error})") from error
        self._first, self._particles = first, particles

    def _damaged(self, detail: str) -> InputDamaged:
        return InputDamaged(
            path=self.head.path,
            detail=f"event {self.position + 1}: {detail}",
            hint="look at that event; the rest of the file is usable",
        )

    def __repr__(self) -> str:
        return f"LHEEvent({self.head.path!r}, position {self.position}, {len(self.raw)} bytes)"


def write_lhe(head: LHEHead, events: Iterable[LHEEvent]) -> bytes:
    """A small LHE file: this head, these events, the closing tag. For generators that shower what they read."""
    return b"\n".join([head.raw, *(event.raw for event in events), b"</LesHouchesEvents>\n"])


def _lines(raw: bytes) -> list[bytes]:
    """Lines of numbers: up to the first tag, without comments and blank lines."""
    text = re.sub(rb"<!--.*?-->", b"", raw, flags=re.DOTALL) if b"<!--" in raw else raw
    found = []
    for line in text.splitlines():
        line = line.partition(b"#")[0].strip() if b"#" in line else line.strip()
        if line.startswith(b"<"):
            break
        if line:
            found.append(line.partition(b"<")[0])
    return found


def _number(token: bytes | str) -> float:
    try:
        return float(token)
    except ValueError:
        # Fortran writes double precision exponents with D.
        text = token.decode("ascii", "replace") if isinstance(token, bytes) else token
        return float(text.replace("D", "E").replace("d", "e"))


def _numbers(column: Iterable[bytes]) -> list[float]:
    try:
        return [float(token) for token in column]
    except ValueError:
        return [_number(token) for token in column]
