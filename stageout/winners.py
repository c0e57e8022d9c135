"""Which image holds each event (pure): from done records in journal order to disjoint pieces in axis order.

The first record of an event wins (L2); a `pending` record that voids takes all earlier ones of its range out of the
race, since it says that their images cannot be used. Nearly always no two records overlap; then this is one sort. Only
records that share events with another one go through the slow way, a look at each of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange.records import Kind, voids

#: One piece of an image that goes into the merged files: the image holds [start, stop) and lies in (allocation, droid,
#: segment) at `offset`; of it the events [keep_start, keep_stop) win. `allocation` is an index into a list of names.
PLACED = np.dtype(
    [
        ("start", "<i8"),
        ("stop", "<i8"),
        ("keep_start", "<i8"),
        ("keep_stop", "<i8"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("checksum", "<u4"),
        ("segment", "<u4"),
        ("allocation", "<u4"),
        ("droid", "<u2"),
    ]
)
_COPIED = ("start", "stop", "offset", "size", "checksum", "segment", "droid")


def winners(records: NDArray[Any], allocations: NDArray[Any] | int = 0) -> NDArray[Any]:
    """The winning pieces, sorted by `keep_start`, disjoint; PLACED, shape (k,).

    `records` (n,) of RECORD, all journals one after another; all but those that are done or void are ignored.
    `allocations` (n,) or one number: the index of the allocation each record is from.
    """
    of = np.broadcast_to(np.asarray(allocations, np.uint32), records.shape)
    wanted = ((records["kind"] == Kind.DONE) | voids(records)) & (records["start"] < records["stop"])
    if not wanted.all():
        records, of = records[wanted], of[wanted]
    if not len(records):
        return np.zeros(0, PLACED)
    start, stop = np.ascontiguousarray(records["start"]), np.ascontiguousarray(records["stop"])
    if (start[1:] >= stop[:-1]).all() and (records["kind"] == Kind.DONE).all():
        return _placed(records, of, slice(None), start, stop)
    order = np.arange(len(start)) if (start[1:] >= start[:-1]).all() else np.argsort(start, kind="stable")
    reach = np.maximum.accumulate(stop[order])
    touches = start[order[1:]] < reach[:-1]
    if not touches.any():
        rows = order[records["kind"][order] == Kind.DONE]
        return _placed(records, of, rows, start[rows], stop[rows])
    shared = np.zeros(len(order), np.bool_)
    shared[1:] |= touches
    shared[:-1] |= touches
    alone = order[~shared]
    alone = alone[records["kind"][alone] == Kind.DONE]
    rows, begin, end = _race(records, np.sort(order[shared]))
    rows, begin, end = (np.concatenate(pair) for pair in ((alone, rows), (start[alone], begin), (stop[alone], end)))
    by_place = np.argsort(begin)
    return _placed(records, of, rows[by_place], begin[by_place], end[by_place])


def _placed(
    records: NDArray[Any], of: NDArray[Any], rows: NDArray[Any] | slice, begin: NDArray[Any], end: NDArray[Any]
) -> NDArray[Any]:
    out = np.zeros(len(begin), PLACED)
    for name in _COPIED:
        out[name] = records[name][rows]
    out["allocation"] = of[rows]
    out["keep_start"], out["keep_stop"] = begin, end
    return out


def _race(records: NDArray[Any], rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(row, begin, end) of each winning piece of `rows`, which are in journal order and overlap."""
    start, stop = records["start"][rows], records["stop"][rows]
    edges = np.unique(np.concatenate((start, stop)))
    first, last = np.searchsorted(edges, start).tolist(), np.searchsorted(edges, stop).tolist()
    done = (records["kind"][rows] == Kind.DONE).tolist()
    winner = np.full(len(edges), -1, np.int64)  # of the piece that begins at each edge
    for number, (low, high, is_done) in enumerate(zip(first, last, done, strict=True)):
        if not is_done:
            winner[low:high] = -1
        elif high - low == 1:
            if winner[low] < 0:
                winner[low] = number
        else:
            piece = winner[low:high]
            piece[piece < 0] = number
    change = np.flatnonzero(np.concatenate(([True], winner[1:] != winner[:-1])))
    who = winner[change]
    begin, end = edges[change], np.append(edges[change[1:]], edges[-1])
    taken = who >= 0
    return rows[who[taken]], begin[taken], end[taken]


def instead(
    records: NDArray[Any], allocations: NDArray[Any] | int, placed: NDArray[Any], spoilt: NDArray[Any]
) -> NDArray[Any] | None:
    """`placed` with other images of the same events in place of those in `spoilt` (PLACED: all that are known to be
    bad): the next best by the same rule. What has no other image stays; None where nothing has one."""
    of = np.broadcast_to(np.asarray(allocations, np.uint32), records.shape)
    known = set(map(_place, spoilt, spoilt["allocation"]))
    bad = np.isin(placed["keep_start"], spoilt["keep_start"])
    bad[bad] = [_place(row, row["allocation"]) in known for row in placed[bad]]
    near = np.zeros(len(records), np.bool_)
    for first, stop in placed[bad][["keep_start", "keep_stop"]].tolist():
        near |= (records["start"] < stop) & (records["stop"] > first)
    rows, of = records[near], of[near]
    done = rows["kind"] == Kind.DONE
    good = ~done | (rows["size"] > 0)
    good[done] &= [_place(row, index) not in known for row, index in zip(rows[done], of[done], strict=True)]
    others, out, found = winners(rows[good], of[good]), [placed[~bad]], False
    for row in placed[bad]:
        first, stop = int(row["keep_start"]), int(row["keep_stop"])
        mine = others[(others["keep_start"] < stop) & (others["keep_stop"] > first)]
        mine["keep_start"], mine["keep_stop"] = (
            mine["keep_start"].clip(first, stop),
            mine["keep_stop"].clip(first, stop),
        )
        rest = gaps(np.stack((mine["keep_start"], mine["keep_stop"]), axis=1), first, stop)
        still = np.repeat(row.reshape(1), len(rest))
        still["keep_start"], still["keep_stop"] = rest[:, 0], rest[:, 1]
        out += [mine, still]
        found = found or len(mine) > 0
    whole = np.concatenate(out)
    return whole[np.argsort(whole["keep_start"])] if found else None


def _place(row: Any, allocation: Any) -> tuple[int, int, int, int]:
    """Where the image of a row is."""
    return int(allocation), int(row["droid"]), int(row["segment"]), int(row["offset"])


def gaps(pieces: NDArray[Any], first: int, stop: int) -> NDArray[np.int64]:
    """The intervals of [first, stop) in none of `pieces` ((k, 2), any order, may overlap); shape (m, 2), sorted."""
    pieces = np.asarray(pieces, np.int64).reshape(-1, 2)
    pieces = pieces[np.argsort(pieces[:, 0], kind="stable")]
    reach = np.maximum.accumulate(np.concatenate(([first], pieces[:, 1])))
    begin, end = reach, np.append(pieces[:, 0], stop)
    begin, end = np.clip(begin, first, stop), np.clip(end, first, stop)
    hole = begin < end
    return np.stack((begin[hole], end[hole]), axis=1)


def common(some: NDArray[np.int64], others: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """What sorted disjoint intervals (k, 2) share with any others (m, 2)."""
    if others is None or not len(others) or not len(some):
        return np.zeros((0, 2), np.int64)
    low, high = int(some[0, 0]), int(some[-1, 1])
    return gaps(np.concatenate((gaps(some, low, high), gaps(others, low, high))), low, high)


def joined(pieces: NDArray[np.int64]) -> NDArray[np.int64]:
    """At least one interval (k, 2), sorted and neighbours joined."""
    low, high = int(pieces[:, 0].min()), int(pieces[:, 1].max())
    return gaps(gaps(pieces, low, high), low, high)
