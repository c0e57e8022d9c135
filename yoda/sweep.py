"""`yoda stageout --sweep`: objects of this task that no journal knows of.

An upload whose note was lost with its Droid leaves one: the next stage-out may take another endpoint, or a repaired
copy of the segment. Looked at is what lies under the names of allocations that are dead beyond doubt: what is whole and
what was sealed is adopted, a copy more; what is no segment of the task any more is removed, but only where the journals
tell all: the note that we do not see may be that of the only copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eventrange.errors import StorageError
from eventrange.history import JournalState, Story
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from stageout import protocol
from stageout.catalogue import Catalogue, Known, SegmentId, prefix_of, staged_note
from stageout.endpoint import Endpoint, Stat, same_content
from stageout.site import EndpointSite, StageoutRules


@dataclass(frozen=True)
class Swept:
    """Objects adopted and removed, those left alone as the journals do not tell all, and what could not be looked
    at."""

    adopted: int = 0
    removed: int = 0
    doubted: int = 0
    failed: tuple[str, ...] = ()


def unknown(
    objects: Iterable[tuple[Stat, str]], endpoint: EndpointSite, keys: Mapping[str, Known]
) -> list[tuple[Stat, Known | None, str]]:
    """Those of `objects`, each with its allocation, that are not known to be on `endpoint`, with the segment whose name
    they have. Pure; `keys` are the names that the task's segments have or would have."""
    found = [(one, keys.get(one.key), allocation) for one, allocation in objects]
    return [(one, known, name) for one, known, name in found if known is None or not known.on((endpoint,))]


def in_doubt(
    taskdir: TaskDir,
    fingerprint: str,
    journals: Mapping[str, JournalState],
    catalogue: Catalogue,
    dead: Collection[str],
) -> set[str]:
    """Those of the allocations `dead` of which objects may be wanted that `catalogue` does not know: a journal (and be
    it another one, which may tell of their segments) cannot be read whole, or images are done in segments of which the
    journals do not say that they were sealed."""
    story, found = Story(taskdir, fingerprint, dead), set()
    for allocation, entry in story.whole():
        if not isinstance(entry, dict):
            rows = entry[(entry["kind"] == Kind.DONE) & (entry["size"] > 0)][["droid", "segment"]]
            found |= {SegmentId(allocation, *pair) for pair in np.unique(rows).tolist()}
    states = [*journals.values(), *story.journals.values()]
    if any(state.damage or state.error for state in states):
        return set(dead)
    sealed = {id for id, known in catalogue.segments.items() if known.sealed}
    return {name for name, state in journals.items() if state.damaged} | {id.allocation for id in found - sealed}


def sweep(
    taskdir: TaskDir,
    task: str,
    rules: StageoutRules,
    endpoints: Iterable[Endpoint],
    catalogue: Catalogue,
    dead: Collection[str],
    doubted: Collection[str],
    note: Callable[[dict[str, Any]], None],
    say: Callable[[str], None] = lambda text: None,
) -> Swept:
    """Look at every endpoint. `catalogue` takes what is adopted; `note` makes it durable. Of allocations in `doubted`
    nothing is removed."""
    prefixes = sorted((p, name) for name in dead if (p := prefix_of(rules.key, task, name)))
    sealed = [known for known in catalogue.segments.values() if known.sealed]
    keys = {copy.key: known for known in sealed if not known.copies for copy in known.partial.values()}
    keys |= {known.segment(taskdir, rules.key, task).key: known for known in sealed}
    adopted = removed = kept = 0
    failed = []
    for endpoint in endpoints:
        try:
            pairs = ((one, name) for prefix, name in prefixes for one in endpoint.list(prefix))
            for one, known, name in unknown(pairs, endpoint.site, keys):
                url = endpoint.url(one.key)
                if known is None and name in doubted:
                    kept += 1
                    say(f"{url} is left alone: no journal knows of it, but the journals do not tell all of {name}")
                    continue
                if known is None:
                    endpoint.delete(one.key)
                    removed += 1
                    say(f"{url} is no segment of this task any more, and is removed")
                    continue
                wanted = Stat(one.key, known.size, known.adler32, known.sha256)
                if not same_content(endpoint, endpoint.head(one.key), wanted):
                    say(f"{url} is not what was sealed as {known.id}, and is left alone")
                    continue
                sums = known.size, known.adler32, known.sha256
                report = protocol.Staged(str(known.id), endpoint.name, one.key, url, *sums, time.time())
                values = staged_note(report, endpoint.site.service, known.file)
                note(values)
                catalogue.add(known.id.allocation, values)
                adopted += 1
                say(f"{known.id} was staged to {url}, and no journal knew")
        except StorageError as error:
            failed.append(f"{endpoint.name}: {error.values.get('detail', '')}")
    return Swept(adopted, removed, kept, tuple(failed))
