"""`yoda stageout --manifest`: every object, for catalogues such as Rucio's or PanDA's.

One versioned JSON document: name, size, checksums, what is in it, and the URL of each copy. An object without copies is
not staged yet; one without ranges has been superseded and need not be registered.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eventrange.axis import Axis
from eventrange.history import done_records
from eventrange.interval_arrays import unite
from eventrange.taskdir import TaskDir
from stageout.catalogue import SegmentId
from stageout.site import StageoutRules
from stageout.winners import winners
from yoda.frozen import Frozen
from yoda.merging import read_notes
from yoda.stageout import ConfigError, Storage, storage_of

VERSION = 1


def manifest(taskdir: TaskDir, frozen: Frozen, site: Any = None) -> dict[str, Any]:
    """`endpoints`: name, URL and address of each. `objects`, in journal order of their allocations: `name`, `size`,
    `adler32`, `sha256`, `events`, `ranges` (as people write them; where someone else named them ID, or ID.FIRST-LAST
    for a part), `positions` ([start, stop) on the axis), `copies` {endpoint: URL}, `local`."""
    fingerprint = frozen.fingerprint
    axis = Axis.from_dict(frozen.axis)
    rows, allocation, names = done_records(taskdir, fingerprint)
    placed = winners(rows, allocation)
    _, catalogue = read_notes(taskdir, fingerprint)
    try:
        storage = storage_of(taskdir, catalogue, site)
    except ConfigError:
        storage = Storage((), StageoutRules())
    order = np.lexsort((placed["keep_start"], placed["segment"], placed["droid"], placed["allocation"]))
    placed = placed[order]
    keys = placed[["allocation", "droid", "segment"]]
    edges = np.flatnonzero(keys[1:] != keys[:-1]) + 1 if len(keys) else np.zeros(0, np.int64)
    inside = {}
    names_of: dict[SegmentId, list[str]] = {}
    for part in np.split(placed, edges) if len(placed) else ():
        id = SegmentId(names[int(part["allocation"][0])], int(part["droid"][0]), int(part["segment"][0]))
        inside[id] = unite(part["keep_start"][part["size"] > 0], part["keep_stop"][part["size"] > 0])
        if axis.ranges is not None:
            images = part[part["size"] > 0][["start", "stop"]].tolist()
            names_of[id] = [axis.member("", start, stop)[1:] for start, stop in dict.fromkeys(images)]
    objects = []
    none = np.zeros(0, np.int64)
    for id, known in sorted(catalogue.segments.items()):
        if not known.sealed:
            continue
        starts, stops = inside.get(id, (none, none))
        positions = np.stack((starts, stops), axis=1).tolist()
        path = known.path(taskdir)
        copies = {endpoint: copy.url for endpoint, copy in sorted(known.copies.items())}
        objects.append(
            {
                "name": known.key(path, storage.rules.key, frozen.task),
                "allocation": id.allocation,
                "droid": id.droid,
                "segment": id.number,
                "size": known.size,
                "adler32": f"{known.adler32:08x}",
                "sha256": known.sha256,
                "events": int((stops - starts).sum()),
                "positions": positions,
                "ranges": [name for start, stop in positions for name in axis.names(start, stop)]
                if axis.ranges is None
                else names_of.get(id, []),
                "copies": copies,
                "local": path if known.local else None,
            }
        )
    places = [{"name": e.name, "url": e.url, "endpoint_url": e.endpoint_url} for e in storage.endpoints]
    head = {"version": VERSION, "task": frozen.task, "fingerprint": fingerprint}
    return {**head, "endpoints": places, "objects": objects}
