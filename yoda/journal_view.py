"""`yoda journal`: what stands in the journals, entry by entry, for people and programs.

Columns of a record are stable: new ones are only added at the end. Notes have the columns `allocation`, `record`,
`note`, and what they carry as one JSON object in `values`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any

import numpy as np

from eventrange.axis import Axis
from eventrange.history import Story
from eventrange.records import Code, Kind
from eventrange.taskdir import TaskDir
from yoda.names import foreign_name

#: Name and meaning of every column of a record, in order.
COLUMNS = {
    "allocation": "name of the allocation whose journal it is in",
    "record": "what happened: granted, done, failed, returned, quarantined, pending; or `note`",
    "start": "first event, position on the axis",
    "stop": "behind the last event",
    "droid": "number of the Droid in its allocation",
    "worker": "number of the worker in its Droid",
    "attempt": "failed attempts before (failed: number of the attempt)",
    "code": "how it failed, why it came back or is pending again; `none` otherwise",
    "time": "unix seconds when processing began (done, failed), else when it happened",
    "wall": "seconds of wall time",
    "cpu": "seconds of CPU time",
    "segment": "number of the segment file of (allocation, Droid)",
    "offset": "of the image in the segment, bytes",
    "size": "of the image, bytes; 0: no image",
    "checksum": "crc32 of the image, 8 hexadecimal digits",
    "note": "name of the note",
    "values": "what the note carries, as JSON",
    "range": "what someone else called the range it lies in, where they did",
}
_KINDS = {int(kind): kind.name.lower() for kind in Kind}
_CODES = {int(code): code.name.lower() for code in Code}
_RECORD = (
    "kind",
    "start",
    "stop",
    "droid",
    "worker",
    "attempt",
    "code",
    "time",
    "wall",
    "cpu",
    "segment",
    "offset",
    "size",
)


def rows(
    taskdir: TaskDir, fingerprint: str, only: Collection[str] | None = None, axis: Axis | None = None
) -> Iterator[dict[str, Any]]:
    """Every record and note of a task in journal order; dicts with the keys of COLUMNS that apply. `axis` knows the
    names of ranges."""
    named = axis is not None and axis.ranges is not None
    for allocation, entry in Story(taskdir, fingerprint, only).whole():
        if isinstance(entry, dict):
            values = {key: value for key, value in entry.items() if key != "note"}
            yield {"allocation": allocation, "record": "note", "note": entry.get("note"), "values": values}
            continue
        columns = [entry[name].tolist() for name in _RECORD]
        checksums = entry["checksum"].tolist()
        for kind, start, stop, droid, worker, attempt, code, time, wall, cpu, segment, offset, size, checksum in zip(
            *columns, checksums, strict=True
        ):
            yield {
                "allocation": allocation,
                "record": _KINDS.get(kind, str(kind)),
                "start": start,
                "stop": stop,
                "droid": droid,
                "worker": worker,
                "attempt": attempt,
                "code": _CODES.get(code, str(code)),
                "time": time,
                "wall": round(wall, 6),
                "cpu": round(cpu, 6),
                "segment": segment,
                "offset": offset,
                "size": size,
                "checksum": f"{checksum:08x}",
                **({"range": foreign_name(axis, start, stop)} if named and axis is not None else {}),
            }


def json_lines(
    taskdir: TaskDir, fingerprint: str, only: Collection[str] | None = None, axis: Axis | None = None
) -> Iterator[str]:
    """One JSON object per line; first one with `version` and the meaning of every key."""
    yield json.dumps({"version": 1, "columns": COLUMNS})
    for row in rows(taskdir, fingerprint, only, axis):
        yield json.dumps({key: _plain(value) for key, value in row.items()}, default=str)


def csv_lines(
    taskdir: TaskDir, fingerprint: str, only: Collection[str] | None = None, axis: Axis | None = None
) -> Iterator[str]:
    """A header line, then one line per entry; columns that do not apply are empty."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="")
    for row in chain([{name: name for name in COLUMNS}], rows(taskdir, fingerprint, only, axis)):
        values = row.get("values")
        line = {**row, "values": json.dumps(values, default=str)} if isinstance(values, dict) else row
        writer.writerow([line.get(name, "") for name in COLUMNS])
        yield out.getvalue()
        out.seek(0)
        out.truncate()


def text_lines(
    taskdir: TaskDir, fingerprint: str, only: Collection[str] | None = None, axis: Axis | None = None
) -> Iterator[str]:
    """One line per entry for people."""
    for row in rows(taskdir, fingerprint, only, axis):
        if row["record"] == "note":
            yield f"{row['allocation']}  {row['note']}: " + " ".join(f"{k}={v}" for k, v in row["values"].items())
            continue
        line = f"{row['allocation']}  {row['record']:<11} [{row['start']}, {row['stop']})  droid {row['droid']}"
        if row["record"] in ("done", "failed"):
            line += f" worker {row['worker']}  {row['wall']:.3f} s"
        if row["code"] != "none":
            line += f"  {row['code']}, attempt {row['attempt'] + 1}"
        if row.get("range"):
            line += f"  of {row['range']}"
        yield line


def _plain(value: Any) -> Any:
    """JSON has no word for what is not a number."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
