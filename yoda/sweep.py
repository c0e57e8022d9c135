"""`yoda stageout --sweep`: objects of this task that no journal knows of.

An upload whose note was lost with its Droid leaves one: the next stage-out may take another endpoint, or a repaired
copy of the segment. Looked at is what lies under the names of allocations that are dead beyond doubt: what is whole and
what was sealed is adopted, a copy more; what is no segment of the task any more is removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from eventrange.errors import StorageError
from eventrange.taskdir import TaskDir
from stageout import protocol
from stageout.catalogue import Catalogue, Known, prefix_of, staged_note
from stageout.endpoint import Endpoint, Stat, same_content
from stageout.site import StageoutRules


@dataclass(frozen=True)
class Swept:
    """Objects adopted and removed, and what could not be looked at."""

    adopted: int = 0
    removed: int = 0
    failed: tuple[str, ...] = ()


def unknown(objects: Iterable[Stat], endpoint: str, keys: dict[str, Known]) -> list[tuple[Stat, Known | None]]:
    """Those of `objects` that are not known to be on `endpoint`, with the segment whose name they have. Pure; `keys`
    are the names that the task's segments have or would have."""
    pairs = [(one, keys.get(one.key)) for one in objects]
    return [(one, known) for one, known in pairs if known is None or endpoint not in known.copies]


def sweep(
    taskdir: TaskDir,
    task: str,
    rules: StageoutRules,
    endpoints: Iterable[Endpoint],
    catalogue: Catalogue,
    dead: Collection[str],
    note: Callable[[dict[str, Any]], None],
    say: Callable[[str], None] = lambda text: None,
) -> Swept:
    """Look at every endpoint. `catalogue` takes what is adopted; `note` makes it durable."""
    prefixes = sorted(p for name in dead if (p := prefix_of(rules.key, task, name)))
    keys = {k.segment(taskdir, rules.key, task).key: k for k in catalogue.segments.values() if k.sealed}
    adopted = removed = 0
    failed = []
    for endpoint in endpoints:
        try:
            for one, known in unknown((o for p in prefixes for o in endpoint.list(p)), endpoint.name, keys):
                url = endpoint.url(one.key)
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
                values = staged_note(protocol.Staged(str(known.id), endpoint.name, one.key, url, *sums, time.time()))
                note(values)
                catalogue.add(known.id.allocation, values)
                adopted += 1
                say(f"{known.id} was staged to {url}, and no journal knew")
        except StorageError as error:
            failed.append(f"{endpoint.name}: {error.values.get('detail', '')}")
    return Swept(adopted, removed, tuple(failed))
