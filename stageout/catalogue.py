"""Which segments there are and where their copies lie: the fold of the journals' notes about storage. Pure.

A segment is known by (allocation, Droid, number), the three that every record carries. Notes about a segment may stand
in the journal of another allocation, which then name it: the next allocation, or a command on a login node, goes on
with what a dead one left. Notes: `sealed`, `staged`, `removed`, `unusable`; of endpoints: `endpoints`, `breaker`,
`blocked`, `upload_failed`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eventrange.taskdir import TaskDir
from stageout import protocol
from stageout.site import EndpointSite, StageoutRules

NOTES = frozenset(("sealed", "staged", "removed", "endpoints", "breaker", "blocked", "upload_failed", "unusable"))
KEPT = 100  # changes of breakers kept for status and report


class SegmentId(NamedTuple):
    """Names a segment of a task."""

    allocation: str
    droid: int
    number: int

    def __str__(self) -> str:
        return f"{self.allocation}/{self.droid:05d}-{self.number:04d}"

    @classmethod
    def parse(cls, text: str) -> SegmentId:
        """The inverse of `str`."""
        allocation, _, rest = text.rpartition("/")
        droid, _, number = rest.partition("-")
        return cls(allocation, int(droid), int(number))


class Copy(NamedTuple):
    """An object that holds a segment."""

    key: str
    url: str
    service: str | None = None  # the server, where the note says it

    def at(self, endpoint: EndpointSite) -> bool:
        """Whether that is where the endpoint is now: its name in the site file may have been given to another."""
        return self.url == endpoint.address(self.key) and self.service in (None, endpoint.service)


@dataclass
class Known:
    """What the journals say of one segment. `copies` are by endpoint, as that was when they were made."""

    id: SegmentId
    size: int = 0
    end: int = 0  # of the images that were looked at when it was sealed
    adler32: int = 0
    sha256: str = ""  # empty: never sealed
    members: int = 0
    file: str = ""  # name in the allocation's folder, where it is not the usual one: a repaired copy
    repaired: bool = False  # it was found open, so there may be more than one file
    copies: dict[str, Copy] = field(default_factory=dict)
    partial: dict[str, Copy] = field(default_factory=dict)  # made while its writer slept: good only for reading
    local: bool = True  # False: the local copy was deleted because others are recorded
    unusable: str = ""  # why the local file cannot be uploaded

    @property
    def sealed(self) -> bool:
        return bool(self.sha256)

    def on(self, endpoints: Iterable[EndpointSite]) -> tuple[str, ...]:
        """Names of those of `endpoints` that have a copy. One at an address that an endpoint had before is not there,
        and good only for reading."""
        return tuple(one.name for one in endpoints if one.name in self.copies and self.copies[one.name].at(one))

    def unfinished(self, endpoints: Sequence[EndpointSite], rules: StageoutRules) -> bool:
        """Whether anything is still to be done for it: to be staged, to be brought home, or to be deleted."""
        found = self.on(endpoints)
        if not found:
            return self.local and not self.unusable
        home = endpoints[0].name in found
        return (
            (rules.rehome and not home)
            or (rules.delete_local and self.local)
            or (rules.delete_failover and home and len(found) > 1)
        )

    def path(self, taskdir: TaskDir) -> str:
        """The local file that was sealed, whether or not it is (still) there."""
        if self.file:
            return os.path.join(taskdir.segments(self.id.allocation), self.file)
        return taskdir.segment(*self.id)

    def segment(self, taskdir: TaskDir, template: str, task: str) -> protocol.Segment:
        """As the stage-out process wants it. A key once used is used again, so that all copies have one name."""
        path = self.path(taskdir)
        return protocol.Segment(
            str(self.id), path, self.key(path, template, task), self.size, self.adler32, self.sha256
        )

    def key(self, path: str, template: str, task: str) -> str:
        """Its object name."""
        return next((copy.key for copy in self.copies.values()), None) or key_of(template, task, self.id, path)

    def take(self, note: dict[str, Any]) -> None:
        """The sums in this note are those of the segment. If it has grown, what was copied until now is but a part."""
        size, adler32, sha256 = int(note["size"]), int(note["adler32"], 16), str(note["sha256"])
        if size > self.size:
            self.partial, self.copies, self.local = {**self.partial, **self.copies}, {}, True
        self.size, self.adler32, self.sha256 = size, adler32, sha256
        self.end = int(note.get("end", size))
        self.members, self.file = int(note.get("members", self.members)), str(note.get("file", ""))


def key_of(template: str, task: str, segment: SegmentId, path: str) -> str:
    """The object name of a segment whose file is `path`. A repaired copy never takes the name of the original."""
    stem, extension = os.path.splitext(os.path.basename(path))
    _, repaired, which = stem.partition(REPAIRED)
    key = template.format(
        task=task, allocation=segment.allocation, droid=segment.droid, number=segment.number, format=extension[1:]
    )
    if repaired:
        root, ending = os.path.splitext(key)
        key = root + repaired + which + ending
    return key


REPAIRED = ".repaired"  # then, if it was repaired before, what tells the copies apart


def prefix_of(template: str, task: str, allocation: str, droid: int | None = None) -> str | None:
    """What the keys of all segments of an allocation, or of one of its Droids, begin with; None when others' keys begin
    so too."""
    words = ("{droid", "{number", "{format")[droid is not None :]
    cuts = [at for word in words if (at := template.find(word)) >= 0]
    head = template[: min(cuts)] if cuts else template
    whole = head.endswith("/")  # else the name of one may begin with that of another
    if droid is not None:
        whole = "{droid" in head and (whole or ("{allocation}/" in head and head.endswith(("-", "."))))
    return head.format(task=task, allocation=allocation, droid=droid) if whole and "{allocation}" in head else None


def task_prefix(template: str, task: str) -> str | None:
    """What the keys of all segments of a task begin with; None when those of other tasks begin so too."""
    head = template.partition("{allocation}")[0]
    whole = "{task}" in head and head.endswith("/") and "{d" not in head and "{n" not in head and "{f" not in head
    return head.format(task=task) if whole else None


class Catalogue:
    """Takes notes in journal order."""

    def __init__(self) -> None:
        self.segments: dict[SegmentId, Known] = {}
        self.endpoints: list[dict[str, Any]] = []  # of the site file, as the last allocation had them
        self.rules: dict[str, Any] = {}
        self.changes: list[dict[str, Any]] = []  # of breakers, the last KEPT
        self.breakers: dict[str, dict[str, Any]] = {}  # endpoint -> its last change
        self.others: dict[str, dict[str, Any]] = {}  # `node:NAME` or `queue:NAME` -> its last change
        self.blocked: dict[tuple[str, int], dict[str, Any]] = {}  # (allocation, Droid) -> note, until it stages again
        self.failures: dict[str, dict[str, Any]] = {}  # endpoint -> last failure, with the `count` of all

    def add(self, allocation: str, note: dict[str, Any]) -> None:
        """One note of the journal of `allocation`; one that is not understood is passed over (L7)."""
        name = note.get("note")
        if name not in NOTES:
            return
        try:
            self._add(allocation, str(name), note)
        except (KeyError, TypeError, ValueError):
            return

    def _add(self, allocation: str, name: str, note: dict[str, Any]) -> None:
        if name in ("sealed", "staged", "removed", "unusable"):
            id = SegmentId(str(note.get("allocation", allocation)), int(note["droid"]), int(note["segment"]))
            self._segment(self.segments.setdefault(id, Known(id)), name, note)
            if name == "staged":
                self.blocked.pop((allocation, int(note.get("by", id.droid))), None)
        elif name == "endpoints":
            self.endpoints, self.rules = list(note["endpoints"]), dict(note.get("rules", {}))
        elif name == "breaker":
            change = {k: v for k, v in note.items() if k not in ("note", "state")} | {"allocation": allocation}
            self.changes = [*self.changes[1 - KEPT :], change]
            kind, _, endpoint = str(note["key"]).partition(":")
            if kind == "endpoint":
                self.breakers[endpoint] = change
            else:
                self.others[f"{kind}:{endpoint}"] = change
        elif name == "blocked":
            self.blocked[allocation, int(note.get("by", 0))] = note
        elif name == "upload_failed":
            count = self.failures.get(str(note["endpoint"]), {}).get("count", 0)
            self.failures[str(note["endpoint"])] = {**note, "count": count + int(note.get("count", 1))}

    @staticmethod
    def _segment(known: Known, name: str, note: dict[str, Any]) -> None:
        # Of two that sealed it the one that found more is right, whatever the order of their notes: a segment only
        # grows, and one that is repaired while its writer sleeps may be sealed by that writer after all.
        if name == "sealed":
            known.repaired |= bool(note.get("file"))
            if int(note["size"]) < known.size or (int(note["size"]) == known.size and known.copies):
                return  # what is staged is what counts
            known.take(note)
            known.unusable = ""
        elif name == "staged":
            service = str(note["service"]) if "service" in note else None
            endpoint, copy = str(note["endpoint"]), Copy(str(note["key"]), str(note["url"]), service)
            known.repaired |= bool(note.get("file"))
            if int(note["size"]) > known.size:  # the note of its sealing was damaged: this one says all that matters
                known.take(note)
            if str(note["sha256"]) != known.sha256:
                known.partial[endpoint] = copy
                return
            known.copies[endpoint] = copy
            known.unusable = ""
        elif name == "unusable":
            known.unusable = str(note.get("detail", "")) or "damaged"
        elif note.get("endpoint") is None:
            known.local = known.local and not known.copies  # without a copy: a part was given up
        else:
            endpoint = str(note["endpoint"])
            for copies in (known.partial, known.copies):
                if endpoint in copies and copies[endpoint].key == note.get("key", copies[endpoint].key):
                    del copies[endpoint]
                    break


def read_catalogue(story: Iterable[tuple[str, Any]]) -> Catalogue:
    """The catalogue of what a `Story` says."""
    out = Catalogue()
    for _ in tapped(story, out):
        pass
    return out


def tapped(story: Iterable[tuple[str, Any]], catalogue: Catalogue) -> Iterator[tuple[str, Any]]:
    """The same story, with `catalogue` taking what it needs from it: one reading for two readers."""
    for allocation, entry in story:
        if isinstance(entry, dict):
            catalogue.add(allocation, entry)
        yield allocation, entry


def staged_note(report: protocol.Staged, service: str, file: str = "") -> dict[str, Any]:
    """The journal's note of a verified copy. `service` is that of the endpoint: URLs of S3 do not tell the server;
    `file` the local file, where it is not the usual one."""
    id = SegmentId.parse(report.segment)
    return {
        "note": "staged",
        "allocation": id.allocation,
        "droid": id.droid,
        "segment": id.number,
        "endpoint": report.endpoint,
        "key": report.key,
        "url": report.url,
        "service": service,
        "file": file,
        "size": report.size,
        "adler32": f"{report.adler32:08x}",
        "sha256": report.sha256,
        "rehomed": report.rehomed,
        "time": report.time,
    }


def removed_note(report: protocol.Removed) -> dict[str, Any]:
    """The journal's note of a copy that was given up; `endpoint` None: the local one."""
    id = SegmentId.parse(report.segment)
    return {
        "note": "removed",
        "allocation": id.allocation,
        "droid": id.droid,
        "segment": id.number,
        "endpoint": report.endpoint,
        "key": report.key,
        "time": report.time,
    }
