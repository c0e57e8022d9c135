"""What all journals of a task say together: the fold that resume starts from.

Streaming and vectorised: memory is a few blocks of a journal and the holes of the result (L12). Done ranges add up in
any order; only a PENDING record makes order matter, since it voids what came before it (of a quarantined event that is
taken up again only that it was quarantined). So each batch of records is split: those that meet a PENDING record of the
batch are taken one by one, all others by one union.

A journal that cannot be read, is empty, or is no file at all is reported and never refused: its events are simply
pending.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eventrange import records
from eventrange.interval_arrays import Sum, difference, overlaps, unite
from eventrange.intervals import IntervalSet, Pair
from eventrange.journal import Damage, Entry, JournalReader
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir


class Tried(NamedTuple):
    """Failed attempts at one event so far, and the (allocation, Droid) of each that is known, in order; without those
    on Droids that were doubted."""

    attempts: int
    droids: tuple[tuple[str, int], ...]


@dataclass
class JournalState:
    """How the reading of one journal went."""

    damage: Damage = field(default_factory=Damage)
    error: str = ""  #: why it could not be read (to the end); empty if it could
    notes: int = 0
    records: int = 0
    offset: int = 0  #: bytes used

    @property
    def damaged(self) -> bool:
        return bool(self.damage or self.error or not (self.notes or self.records))

    def __str__(self) -> str:
        """For people: what is wrong, or an empty string."""
        d, out = self.damage, []
        if self.error:
            out.append(self.error)
        if d.spots:
            size = sum(size for _, size in d.spots)
            out.append(f"{size} bytes are no journal (first at byte {d.spots[0][0]}, {len(d.spots)} places)")
        for count, what in (
            (d.records_lost, "records lost"),
            (d.records_saved, "records found between damaged bytes"),
            (d.frames_lost, "frames not whole"),
            (d.notes_lost, "notes lost"),
            (d.duplicates, "frames twice"),
            (d.foreign, "frames of another journal"),
            (d.unknown, "frames of an unknown version"),
            (d.unreadable, "bytes unreadable"),
            (d.tail, "bytes of an unfinished commit at the end"),
        ):
            if count:
                out.append(f"{count} {what}")
        if not (out or self.notes or self.records):
            out.append("empty")
        return ", ".join(out)


@dataclass
class Progress:
    """What is known of a task. Positions are on its axis."""

    done: IntervalSet = field(default_factory=IntervalSet)
    quarantined: IntervalSet = field(default_factory=IntervalSet)  #: and not done by anyone
    attempts: dict[int, Tried] = field(default_factory=dict)  #: failed, neither done nor quarantined
    schema: str = ""  #: the first one any journal has
    journals: dict[str, JournalState] = field(default_factory=dict)  #: by allocation, in journal order
    ended: dict[str, str] = field(default_factory=dict)  #: reason of the `end` note of each allocation that has one
    #: first and last unix time of each allocation; only yoda/follower.py finds out
    lives: dict[str, tuple[float, float]] = field(default_factory=dict)
    records: int = 0

    @property
    def damage(self) -> dict[str, str]:
        """What is wrong with each journal that has something wrong, in words."""
        return {name: str(state) for name, state in self.journals.items() if state.damaged}


class Story:
    """All entries of a task's journals in journal order: (allocation, entry). Never raises on what is in the files.

    May be iterated again: it goes on where every journal ended, and finds new journals; allocation order then
    holds only within one iteration.
    """

    def __init__(self, taskdir: TaskDir, fingerprint: str, only: Collection[str] | None = None) -> None:
        self.taskdir, self.fingerprint, self.only = taskdir, fingerprint, only
        self.journals: dict[str, JournalState] = {}
        self._readers: dict[str, JournalReader] = {}
        self._closed: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return self._entries(lambda name: False)

    def whole(self) -> Iterator[tuple[str, Entry]]:
        """As iterating, and with what can be saved from unfinished tails; the last call on this object."""
        return self._entries(lambda name: True)

    def follow(self, over: Callable[[str], bool], names: Iterable[str] = ()) -> Iterator[tuple[str, Entry]]:
        """As iterating, with the journals of `names` even if the folder does not show them (yet). One whose allocation
        is `over` is read to the very end and not looked at again."""
        return self._entries(over, [name for name in names if os.path.exists(self.taskdir.journal(name))])

    def _entries(self, over: Callable[[str], bool], more: Iterable[str] = ()) -> Iterator[tuple[str, Entry]]:
        try:
            names = sorted({*self.taskdir.allocations(), *more})
        except OSError as error:
            self.journals[""] = JournalState(error=f"journal folder: {error.strerror or error}")
            return
        for name in names:
            if name in self._closed or (self.only is not None and name not in self.only):
                continue
            final = over(name)
            reader = self._readers.get(name)
            if reader is None:
                reader = self._readers[name] = JournalReader(self.taskdir.journal(name), self.fingerprint, name)
                self.journals[name] = JournalState(reader.damage)
            state = self.journals[name]
            state.error = ""
            try:
                for part in (reader, reader.rest()) if final else (reader,):
                    for entry in part:
                        if isinstance(entry, dict):
                            state.notes += 1
                        else:
                            state.records += len(entry)
                        yield name, entry
            except OSError as error:
                state.error = f"cannot be read: {error.strerror or error}"
            state.offset = reader.offset
            if final:
                self._closed.add(name)
                del self._readers[name]


def read_progress(
    taskdir: TaskDir,
    fingerprint: str,
    only: Collection[str] | None = None,
    restrict: Iterable[Pair] | None = None,
) -> Progress:
    """Fold all journals of a task, or of the allocations in `only`; of the axis all, or the parts in `restrict`."""
    out, fold, story = Progress(), Fold(), Story(taskdir, fingerprint, only)
    for name, entry in story.whole():
        if not isinstance(entry, dict):
            fold.add(entry, name)
            continue
        fold.note(entry, name)
        if entry.get("note") == "schema":
            out.schema = out.schema or str(entry.get("schema") or "")
        elif entry.get("note") == "end":
            out.ended[name] = str(entry.get("reason", ""))
    out.journals = story.journals
    out.records = sum(state.records for state in story.journals.values())
    out.done, out.quarantined, out.attempts = fold.result()
    if restrict is not None:
        inside = IntervalSet(restrict)
        out.done = IntervalSet(pair for part in inside for pair in out.done.overlap(*part))
        out.quarantined = IntervalSet(pair for part in inside for pair in out.quarantined.overlap(*part))
        out.attempts = {event: tried for event, tried in out.attempts.items() if event in inside}
    return out


def done_records(
    taskdir: TaskDir, fingerprint: str, only: Collection[str] | None = None
) -> tuple[NDArray[Any], NDArray[np.uint32], list[str]]:
    """What merge chooses its images from: all DONE records and those that void them in journal order, as
    `stageout.winners` wants them.

    Returns RECORD rows (n,), for each the index of its allocation (n,), and the allocations' names. 68 bytes per
    record.
    """
    rows: list[NDArray[Any]] = [records.new(0)]
    index: list[NDArray[np.uint32]] = [np.zeros(0, np.uint32)]
    names: list[str] = []
    for name, entry in Story(taskdir, fingerprint, only).whole():
        if isinstance(entry, dict):
            continue
        if not names or names[-1] != name:
            names.append(name)
        wanted = entry[(entry["kind"] == Kind.DONE) | records.voids(entry)]
        rows.append(wanted)
        index.append(np.full(len(wanted), len(names) - 1, np.uint32))
    return np.concatenate(rows), np.concatenate(index), names


class Fold:
    """Adds up records, in journal order, to what is done, quarantined and tried."""

    def __init__(self) -> None:
        self.done, self.quarantined = Sum(), Sum()
        self._failed: dict[int, list[tuple[str, int]]] = {}
        self._doubted: set[tuple[str, Any]] = set()

    def add(self, rows: NDArray[Any], allocation: str = "") -> None:
        """`rows` RECORD, shape (n,)."""
        kind = rows["kind"]
        pending = rows[kind == Kind.PENDING]
        if not len(pending):
            self._free(rows, kind, allocation)
            return
        voids = pending[records.voids(pending)]
        self.done.subtract(*unite(voids["start"], voids["stop"]))
        starts, stops = unite(pending["start"], pending["stop"])
        self.quarantined.subtract(starts, stops)
        touched = overlaps(rows["start"], rows["stop"], starts, stops)
        self._free(rows[~touched], kind[~touched], allocation)
        self._ordered(rows[touched], allocation)

    def _free(self, rows: NDArray[Any], kind: NDArray[np.uint8], allocation: str) -> None:
        counts = np.bincount(kind, minlength=max(Kind) + 1)
        for target, name in ((self.done, Kind.DONE), (self.quarantined, Kind.QUARANTINED)):
            if counts[name]:
                mine = rows if counts[name] == len(rows) else rows[kind == name]
                target.add(mine["start"], mine["stop"])
        if counts[Kind.FAILED]:
            for event, droid in rows[kind == Kind.FAILED][["start", "droid"]].tolist():
                self._failed.setdefault(event, []).append((allocation, droid))

    def _ordered(self, rows: NDArray[Any], allocation: str) -> None:
        done, quarantined = IntervalSet(), IntervalSet()
        for kind, code, start, stop, droid in rows[["kind", "code", "start", "stop", "droid"]].tolist():
            if kind == Kind.PENDING:
                if code != Code.RETRY:
                    done.remove(start, stop)
                quarantined.remove(start, stop)
                known = self._failed
                for event in range(start, stop) if stop - start <= len(known) else list(known):
                    if start <= event < stop:
                        known.pop(event, None)  # a new beginning: old attempts would quarantine it at once
            elif kind == Kind.DONE:
                done.add(start, stop)
            elif kind == Kind.QUARANTINED:
                quarantined.add(start, stop)
            elif kind == Kind.FAILED:
                self._failed.setdefault(start, []).append((allocation, droid))
        self.done.add(np.array(done.starts, np.int64), np.array(done.stops, np.int64))
        self.quarantined.add(np.array(quarantined.starts, np.int64), np.array(quarantined.stops, np.int64))

    def note(self, note: dict[str, Any], allocation: str) -> None:
        """What Yoda noted: the failures of a Droid that she came to doubt count against no event."""
        if note.get("note") == "doubted":
            self._doubted.add((allocation, note.get("droid")))

    def result(self) -> tuple[IntervalSet, IntervalSet, dict[int, Tried]]:
        """(done, quarantined and not done, failed and neither of these)"""
        done = IntervalSet.from_arrays(*self.done.result())
        quarantined = IntervalSet.from_arrays(*difference(*self.quarantined.result(), *self.done.result()))
        attempts = {}
        for event, droids in self._failed.items():
            held = tuple(droid for droid in droids if droid not in self._doubted)
            if held and event not in done and event not in quarantined:
                attempts[event] = Tried(len(held), held)
        return done, quarantined, attempts
