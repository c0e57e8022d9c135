"""Where ranges come from: own cutting of the input files, or a file in which someone else has named them.

Named ranges make the axis: it consists of their events and no others, in input order. So everything that counts events
(progress, holes, merge) is as for any task, and costs the same; only Axis knows that between two ranges there may lie
events of the files that are not the task's work. The ranges themselves are laid down once, in the task's `index/`
directory, under a name made of their checksum (eventrange.named).

Building is in columns, each spooled to the disk while the file is read and taken back one at a time.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from eventrange.axis import Axis
from eventrange.durable import FILES, explain
from eventrange.errors import ConfigError
from eventrange.named import LONGEST, NamedRanges, Writer, hashes
from yoda.rangesfile import Batch, batches, stamp, wrong
from yoda.schema import Job

Array = NDArray[np.int64]

SETTLE = 0.5  #: seconds in which a file that somebody is writing changes
LEFT = 600.0  #: seconds after which an unfinished file that nobody has written to is nobody's
_UNFINISHED = ".ranges-"
_SPOOLED = ("origin", "events", "place", "keys")
_REFUSED = re.compile(r"[\x00-\x1f\x7f/]")
_REFUSED_IN_LINES = re.compile(r"[\x00-\x09\x0b-\x1f\x7f/]")


def axis_of(job: Job, indexes: str, processes: int, *, refuse_changed: bool = True) -> Axis:
    """The axis of a job: count and index its inputs; lay down the ranges that someone else named, if it has any."""
    from droid.inputs import plan_axis

    inputs = job.inputs
    axis = plan_axis(
        inputs.format,
        inputs.files,
        inputs.events,
        inputs.options,
        indexes,
        processes,
        refuse_changed=refuse_changed,
        where=job.path,
    )
    return axis if job.ranges.file is None else named_axis(axis, job.ranges.file, indexes, job.ranges.numbering)


def named_axis(
    whole: Axis, path: str, folder: str, numbering: str = "file", sleep: Callable[[float], None] = time.sleep
) -> Axis:
    """The axis of the ranges named in the file at `path`, cut out of `whole`; laid down in `folder`.

    `numbering` says what startEvent and lastEvent count: the events of each `file`, or those of all `inputs`, one file
    after another. A file that is still being written (Harvester does not write in one step) is read again. Raises
    ConfigError and CannotWrite.
    """
    while True:
        before = stamp(path)
        try:
            place = _lay_down(_Builder(whole, path, numbering), folder)
        except ConfigError:
            sleep(SETTLE)
            if stamp(path) == before:
                raise
        else:
            if stamp(path) == before:
                return whole.named(NamedRanges(place))


def _lay_down(builder: _Builder, folder: str) -> str:
    """Where the copy is now."""
    try:
        os.makedirs(folder, exist_ok=True)
        with ExitStack() as stack:
            target = stack.enter_context(tempfile.NamedTemporaryFile(prefix=_UNFINISHED, dir=folder, delete=False))
            stack.callback(_remove, target.name)
            _remove_left(folder, os.fstat(target.fileno()).st_mtime)
            spools = {name: stack.enter_context(tempfile.TemporaryFile(dir=folder)) for name in _SPOOLED}
            sha256 = builder.build(target, spools)
            place = os.path.join(folder, f"ranges-{sha256[:16]}.bin")
            os.chmod(target.name, 0o644)
            FILES.replace(target.name, place)
            FILES.fsync_folder(folder)
    except OSError as error:
        raise explain(error, error.filename or folder) from error
    return place


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _remove_left(folder: str, now: float) -> None:
    """Remove what builders left that were killed; one that lives writes all the time. `now` by the folder's clock."""
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            if entry.name.startswith(_UNFINISHED) and entry.stat().st_mtime < now - LEFT:
                _remove(entry.path)


class _Builder:
    """Reads the file, checks every range, writes the copy."""

    def __init__(self, whole: Axis, path: str, numbering: str) -> None:
        self.whole, self.path, self.by_file = whole, path, numbering == "file"
        self.starts = np.array([file.start for file in whole.files], np.int64)
        self.stops = np.array([file.start + file.events for file in whole.files], np.int64)
        self.known: dict[str | None, int] = {}
        # A base name that several files have is not in axis.files[].name, so it means none of them.
        for number, file in enumerate(whole.files):
            self.known |= {file.path: number, file.name: number}
        if len(whole.files) == 1:
            self.known[None] = self.known[""] = 0
        self.count = 0

    def build(self, target: IO[bytes], spools: Mapping[str, IO[bytes]]) -> str:
        writer = Writer(target)
        group = None
        for batch in batches(self.path):
            if batch.group is not None and batch.group != group:
                writer.group(batch.group)
                group = batch.group
            if batch.entries:
                self._add(batch, writer, spools)
        if not self.count:
            raise wrong(self.path, "it names no range", "name one or more ranges, or leave ranges.file out")
        target.flush()

        def column(name: str) -> Array:
            spools[name].flush()
            spools[name].seek(0)
            return np.fromfile(spools[name], np.uint64 if name == "keys" else np.int64)

        def name_at(place: int) -> str:
            return os.pread(target.fileno(), LONGEST + 1, place).partition(b"\n")[0].decode()

        origin, events = column("origin"), column("events")
        order: Any = slice(None)
        if (origin[1:] < origin[:-1]).any():
            order = np.argsort(origin, kind="stable")
            origin, events = origin[order], events[order]
        self._check_apart(origin, events, lambda number: name_at(int(column("place")[order][number])))
        at = np.zeros(self.count + 1, np.int64)
        np.cumsum(events, out=at[1:])
        del events
        writer.array(at)
        del at
        writer.array(origin)
        del origin
        writer.array(column("place")[order])
        keys = column("keys")[order]
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        self._check_different(keys, by_key, lambda number: name_at(int(column("place")[order][number])))
        writer.array(keys)
        writer.array(by_key)
        return writer.finish(self.count)

    def _add(self, batch: Batch, writer: Writer, spools: Mapping[str, IO[bytes]]) -> None:
        entries = batch.entries
        names = [entry.eventRangeID for entry in entries]
        text = "\n".join(names) + "\n"
        packed = text.encode()
        lengths = np.fromiter(
            map(len, names) if len(packed) == len(text) else (len(name.encode()) for name in names),
            np.int64,
            len(names),
        )
        inside = text.count("\n") != len(names) or _REFUSED_IN_LINES.search(text) is not None
        if inside or lengths.min() < 1 or lengths.max() > LONGEST:
            self._refuse_name(batch)
        first, last = self._column(batch, "startEvent"), self._column(batch, "lastEvent")
        try:
            files = np.fromiter((self.known[entry.LFN] for entry in entries), np.int64, len(entries))
        except KeyError as error:
            number = next(i for i, entry in enumerate(entries) if error.args[0] == entry.LFN)
            raise self._unknown(batch, number) from None
        start = first - 1 + (self.starts[files] if self.by_file else 0)
        stop = last + (self.starts[files] if self.by_file else 0)
        bad = (first < 1) | (last < first) | (start < self.starts[files]) | (stop > self.stops[files])
        if bad.any():
            number = int(bad.argmax())
            raise self._outside(batch, number, int(files[number]))
        place = writer.offset + np.cumsum(lengths + 1) - (lengths + 1)
        for name, values in (("origin", start), ("events", stop - start), ("place", place)):
            spools[name].write(values.tobytes())
        spools["keys"].write(hashes(packed.replace(b"\n", b""), lengths).tobytes())
        writer.names(packed)
        self.count += len(entries)

    def _column(self, batch: Batch, name: str) -> Array:
        try:
            return np.array([getattr(entry, name) for entry in batch.entries], np.int64)
        except OverflowError:
            number = next(i for i, entry in enumerate(batch.entries) if abs(getattr(entry, name)) >= 1 << 63)
            entry = batch.entries[number]
            raise self._at(batch, number, f"{name} is {getattr(entry, name)}", "correct it") from None

    # -- what is wrong -----------------------------------------------------------------------------------------------

    def _at(self, batch: Batch, number: int, detail: str, hint: str) -> ConfigError:
        name = batch.entries[number].eventRangeID
        where = f"{batch.unit} {batch.number + number}" + (f" ({name:.100})" if name.isprintable() and name else "")
        return wrong(self.path, detail, hint, where)

    def _refuse_name(self, batch: Batch) -> None:
        for number, entry in enumerate(batch.entries):
            name = entry.eventRangeID
            if not name or len(name.encode()) > LONGEST or _REFUSED.search(name):
                detail = f"{name[:40]!r} cannot be part of a file name"
                hint = f"an eventRangeID has 1 to {LONGEST} bytes, and no slash or control character in it"
                raise self._at(batch, number, detail, hint)

    def _unknown(self, batch: Batch, number: int) -> ConfigError:
        import difflib

        name = batch.entries[number].LFN
        if name is None:
            hint = "say in each range which input file its events are in"
            return self._at(batch, number, f"it has no LFN, and there are {len(self.whole.files)} input files", hint)
        same = [file.path for file in self.whole.files if os.path.basename(file.path) == name]
        if len(same) > 1:
            hint = "write as much of the path as tells them apart, as `yoda plan` shows it"
            return self._at(batch, number, f"{len(same)} input files are called {name!r}", hint)
        near = difflib.get_close_matches(name, [str(known) for known in self.known if known], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return self._at(
            batch, number, f"no input file is called {name!r}", f"{hint}correct LFN, or add it to inputs.files"
        )

    def _outside(self, batch: Batch, number: int, file: int) -> ConfigError:
        entry = batch.entries[number]
        detail = f"events {entry.startEvent} to {entry.lastEvent} are not in {self.whole.files[file].name}"
        first, last = 1, int(self.stops[file] - self.starts[file])
        if not self.by_file:
            first, last = int(self.starts[file]) + 1, int(self.stops[file])
        hint = f"its events are numbered {first} to {last}, both included"
        if self.by_file and entry.lastEvent > last and len(self.whole.files) > 1:
            hint += "; if they are counted through all input files, write `numbering: inputs` beside ranges.file"
        return self._at(batch, number, detail, hint)

    def _check_apart(self, origin: Array, events: Array, name: Any) -> None:
        over = origin[1:] - origin[:-1] < events[:-1]
        if over.any():
            second = int(over.argmax()) + 1
            begin = int(origin[second])
            number = int(np.searchsorted(self.starts, begin, "right")) - 1
            event = f"event {begin - int(self.starts[number]) + 1} of {self.whole.files[number].name}"
            detail = f"the ranges {name(second - 1)} and {name(second)} both have {event}"
            raise wrong(
                self.path, detail, "leave one of them out: no event is processed twice", f"range {name(second)}"
            )

    def _check_different(self, keys: NDArray[Any], order: Array, name: Any) -> None:
        for at in np.flatnonzero(keys[1:] == keys[:-1]).tolist():
            # Names with one hash stand together; nearly always there are two, and they are the same.
            if name(int(order[at])) == (same := name(int(order[at + 1]))):
                raise wrong(self.path, f"two ranges are called {same!r}", "give each its own ID", f"range {same}")
