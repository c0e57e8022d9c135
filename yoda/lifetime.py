"""The core-seconds of one Droid, shared out over the parts. Pure.

    total = workers x (end - start of its process)

Its node is taken to be the task's until the allocation is over, merge included, since nobody else could have it; a
Droid that was lost ends with the word of its loss. Times that stand in no record (a range given back, a worker that
started) are somewhere between the records of a worker, so they are taken out of the gaps there.
"""

from __future__ import annotations

import math

from yoda.core_seconds import NAMES, Allocation, CoreSeconds, DroidLife
from yoda.droid_sums import NOTHING, DroidSums, Lanes

#: Where seconds are taken back if all parts claim more than there was time for, first to last.
EXCESS = (
    *(
        "idle_waiting",
        "idle_tail",
        "idle_draining",
        "lost_in_flight",
        "retried",
        "hung",
        "quarantined",
        "idle_input",
        "productive",
    ),
    *("startup", "idle_merging", "merge"),
)


def share_out(allocation: Allocation, work: DroidSums, given_up: dict[int, float]) -> None:
    """Fill in what its Droids and the allocation itself spent their time on.

    `given_up` is seconds by Droid of attempts at events that were quarantined in the end. What an allocation has in
    flight that is alive is not lost.
    """
    drain = (allocation.drain or {}).get("time")
    since = float(drain) if isinstance(drain, (int, float)) else math.inf
    ends = work.by_droid(since if math.isfinite(since) else 0.0)
    for droid in set(ends) - set(allocation.droids):
        allocation.droids[droid] = DroidLife(droid)  # its `joined` note is lost
    for droid, life in sorted(allocation.droids.items()):
        _live(life, work, ends.get(droid, NOTHING), allocation)
    merger = merger_of(allocation)
    for droid, life in sorted(allocation.droids.items()):
        _share(life, work, ends.get(droid, NOTHING), allocation, given_up.get(droid, 0.0), droid == merger, since)
        allocation.core_seconds.add(life.core_seconds)
        allocation.events += life.events
    if allocation.merging is not None and allocation.droids and merger is None:
        allocation.apart.micro["merge"] = _micro(allocation.merging.last - allocation.merging.begin)
        allocation.core_seconds.add(allocation.apart)


def _live(life: DroidLife, work: DroidSums, lanes: Lanes, allocation: Allocation) -> None:
    """When it lived."""
    life.workers = max(life.workers, lanes.highest + 1)
    known = life.joined is not None
    joined = life.joined if known else work.begun(life.droid, allocation.created or allocation.last)
    assert joined is not None
    life.joined, life.begin = joined, joined - life.startup
    latest = lanes.latest if lanes.number else joined
    life.last = max(life.last, latest)
    over = allocation.last if allocation.end is None else float(allocation.end.get("time") or allocation.last)
    end = life.left if life.lost else max(over, life.left or 0.0)
    assert end is not None
    life.end = max(end, latest, joined)
    life.killed = life.lost or (life.left is None and allocation.end is None and not allocation.alive)
    if allocation.merging is not None and not life.lost:
        life.end = max(life.end, allocation.merging.last)


def merger_of(allocation: Allocation) -> int | None:
    """The Droid one of whose cores merged: the first on rank 0's node."""
    if allocation.merging is None:
        return None
    host = allocation.about.get("host")
    return min(
        (droid for droid, life in allocation.droids.items() if life.host == host and not life.lost), default=None
    )


def _share(
    life: DroidLife,
    work: DroidSums,
    lanes: Lanes,
    allocation: Allocation,
    quarantined: float,
    merger: bool,
    since: float,
) -> None:
    """`since` is when it began to drain, infinite if it did not."""
    droid, workers = life.droid, life.workers
    joined, end = life.joined or 0.0, life.end
    life.ranges, life.events = int(work.get("ranges", droid)), int(work.get("events", droid))
    merging = allocation.merging
    held = max(0.0, merging.last - max(merging.begin, joined)) if merging is not None and not life.lost else 0.0
    merge = held if merger and workers else 0.0

    worked = end - held  # until when its workers could have worked
    tail = lanes.number * (worked - lanes.base) - lanes.sum + (workers - lanes.number) * (worked - joined)
    tail = max(0.0, tail)
    draining = 0.0
    if since < worked:
        draining = lanes.number * (worked - lanes.base) - lanes.later
        draining = max(0.0, draining + (workers - lanes.number) * (worked - max(since, joined)))
        draining = min(tail, draining)
        tail -= draining
    waiting, overhead = work.get("idle_waiting", droid), work.get("overhead", droid)
    productive, revoked, lost = work.get("productive", droid), work.get("revoked", droid), work.get("returned", droid)
    draining, tail, waiting, overhead = _take(lost, draining, tail, waiting, overhead)
    before = waiting + tail + overhead
    waiting, tail, overhead = _take(revoked + life.spent.get("again", 0.0), waiting, tail, overhead)
    again = before - (waiting + tail + overhead)
    before -= again
    waiting, tail, overhead = _take(life.spent.get("starting", 0.0), waiting, tail, overhead)
    starting = before - (waiting + tail + overhead)
    at_work = allocation.alive and life.left is None
    if (life.killed or at_work) and work.get("open", droid) > 0 and workers:
        part = min(1.0, work.get("open", droid) / workers)
        under_way = (tail + draining) * part
        tail, draining = tail * (1 - part), draining * (1 - part)
        if life.killed:
            lost += under_way
        else:
            productive += under_way
    waited = min(life.spent.get("input", 0.0), productive)
    seconds = {
        "productive": productive - waited,
        "lost_in_flight": lost,
        "retried": work.get("retried", droid) + again,
        "hung": work.get("hung", droid),
        "quarantined": quarantined,
        "idle_waiting": waiting,
        "idle_input": waited,
        "idle_tail": tail,
        "idle_draining": draining,
        "idle_merging": workers * held - merge,
        "startup": workers * life.startup + starting,
        "merge": merge,
    }
    micro = {name: max(0, _micro(seconds.get(name, 0.0))) for name in NAMES}
    micro["overhead"] = _micro(workers * (end - life.begin)) - sum(micro.values())
    for name in EXCESS if micro["overhead"] < 0 else ():
        # Clocks of two nodes, or damaged records, can claim more work than there was time for.
        taken = min(micro[name], -micro["overhead"])
        micro[name] -= taken
        micro["overhead"] += taken
    life.core_seconds = CoreSeconds(micro)


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)


def _take(amount: float, *places: float) -> list[float]:
    """`places` less `amount`, taken from the first as far as it goes, then from the next."""
    out = []
    for place in places:
        taken = min(amount, max(place, 0.0))
        amount -= taken
        out.append(place - taken)
    return out
