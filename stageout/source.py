"""Images from wherever they are: the local segment, else the endpoints that have it, in the order of the site file.

From endpoints only the needed images travel, in ranged reads that take neighbours along; a few such spans are kept in
memory. An endpoint that cannot be reached is not asked again, and what only it has is `away`: that is not damage, and
nobody should make those events again. So is a copy at an address that no endpoint has any more, under whatever name;
the endpoint with the name it had is asked all the same, for the objects may have been moved there. An image that is
wrong in one place is looked for in the next.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eventrange.errors import ImageDamaged, ImageUnreadable, StorageCorrupt, StorageError, StorageMissing
from eventrange.segmentreader import SegmentReader, spans, verify
from eventrange.taskdir import TaskDir
from stageout.catalogue import Catalogue, Copy, Known, SegmentId
from stageout.endpoint import Endpoint

SPAN = 4 << 20  # bytes per ranged read, about: large enough that the rate of requests does not matter
KEPT = 24  # spans in memory, of all segments together: 96 MiB and images larger than a span

Where = tuple[SegmentId, int]  # segment and offset of an image
_Span = tuple[int, int]  # offset, size


class Images:
    """Reads images for a merge; `fetch` may be called from several threads.

    `placed` are all rows (PLACED) that will be asked for, `names` the allocations they number. `open_endpoints` is
    called once something is not found here.
    """

    def __init__(
        self,
        taskdir: TaskDir,
        names: Sequence[str],
        placed: NDArray[Any],
        catalogue: Catalogue,
        open_endpoints: Callable[[], Sequence[Endpoint]],
    ) -> None:
        self.taskdir, self.names, self.placed, self.catalogue = taskdir, names, placed, catalogue
        self.offline: dict[str, str] = {}  #: endpoint -> why it cannot be used
        self.away: set[Where] = set()  #: images that may be where we cannot look now
        self.remote_bytes = 0
        self._open_endpoints = open_endpoints
        self._endpoints: Sequence[Endpoint] | None = None
        self._down: set[str] = set()  # endpoints that did not answer
        self._lock = threading.Lock()
        self._local = threading.local()
        self._order: NDArray[np.int64] | None = None
        self._spans: dict[SegmentId, list[_Span]] = {}
        self._kept: OrderedDict[tuple[str, str, int], Future[bytes]] = OrderedDict()

    def id_of(self, row: Any) -> SegmentId:
        """The segment of a row of PLACED."""
        return SegmentId(self.names[int(row["allocation"])], int(row["droid"]), int(row["segment"]))

    def fetch(self, row: Any) -> bytes:
        """The image of one row of PLACED, checked. Raises ImageDamaged where no place has it whole, or none that
        answers; in the latter case the image is in `away`."""
        id, offset, size, crc = self.id_of(row), int(row["offset"]), int(row["size"]), int(row["checksum"])
        known = self.catalogue.segments.get(id) or Known(id)
        reader = self._reader()
        path = self.taskdir.segment(*id)
        try:
            return reader.read(path, offset, size, crc)
        except ImageDamaged as error:
            first = error
        if known.file:
            try:
                return reader.read(known.path(self.taskdir), offset, size, crc)
            except ImageDamaged:
                pass
        details = [str(first.values["detail"])]
        away = isinstance(first, ImageUnreadable)  # it may be whole: that cannot be told now
        if away:
            with self._lock:
                self.offline.setdefault("the task directory", f"{path}: {details[0]}")
        there: set[str] = set()  # endpoints that have the object, in whatever state
        candidates, lost_sight_of = self._candidates(known)
        for endpoint, key in candidates:
            if endpoint.name not in self._down:
                try:
                    return self._remote(endpoint, id, key, offset, size, crc)
                except (StorageMissing, StorageCorrupt, ImageDamaged) as error:
                    if not isinstance(error, StorageMissing):
                        there.add(endpoint.name)
                    details.append(f"{endpoint.name}: {error.values['detail']}")
                    continue
                except StorageError as error:
                    with self._lock:
                        self._down.add(endpoint.name)
                        self.offline[endpoint.name] = str(error.values["detail"])
            away = True
            details.append(f"{endpoint.name} cannot be reached: {self.offline[endpoint.name]}")
        for name, address in lost_sight_of:
            if name in there:  # it was moved to where that endpoint is now
                continue
            away = True  # the site file no longer tells how to get there
            with self._lock:
                self.offline.setdefault(name, f"{address} is not in the site file, under any name")
            details.append(f"{name}: {address} is not in the site file")
        if away:
            with self._lock:
                self.away.add((id, offset))
        raise ImageDamaged(path=path, offset=offset, detail="; ".join(details)) from first

    def fetch_many(self, rows: NDArray[Any]) -> list[memoryview | None]:
        """The images of many rows of PLACED that are whole in the task directory, read in few pieces; `fetch` finds the
        others."""
        out: list[memoryview | None] = [None] * len(rows)
        groups, which = np.unique(rows[["allocation", "droid", "segment"]], return_inverse=True)
        for group in range(len(groups)):
            numbers = np.flatnonzero(which == group)
            path = self.taskdir.segment(*self.id_of(rows[numbers[0]]))
            for number, image in zip(numbers.tolist(), self._reader().read_many(path, rows[numbers]), strict=True):
                out[number] = image
        return out

    def replace(self, placed: NDArray[Any]) -> None:
        """From now on these rows will be asked for. What is known of endpoints stays."""
        with self._lock:
            self.placed, self._order = placed, None
            self._spans.clear()
            self._kept.clear()

    def close(self) -> None:
        """Let go of connections."""
        for endpoint in self._endpoints or ():
            endpoint.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _reader(self) -> SegmentReader:
        reader: SegmentReader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = SegmentReader(16)
        return reader

    def _candidates(self, known: Known) -> tuple[list[tuple[Endpoint, str]], list[tuple[str, str]]]:
        """(endpoint, key) that may have a copy, and (name, address) of the copies that are at none of our endpoints."""
        # Of what is but a part the first images are there, too.
        copies = [*known.copies.items(), *known.partial.items()]
        if not copies:
            return [], []
        with self._lock:
            if self._endpoints is None:
                self._endpoints = self._open_endpoints()
        found: list[tuple[Endpoint, str]] = []
        seen: set[Copy] = set()
        for endpoint in self._endpoints:
            for name, copy in copies:
                same = endpoint.url(copy.key) == copy.url
                if same and copy.service in (None, endpoint.site.service):
                    seen.add(copy)
                if (same or endpoint.name == name) and (endpoint, copy.key) not in found:
                    found.append((endpoint, copy.key))
        away = [(name, copy) for name, copy in copies if copy not in seen]
        return found, [(name, f"{copy.url} of {copy.service}" if copy.service else copy.url) for name, copy in away]

    def _remote(self, endpoint: Endpoint, id: SegmentId, key: str, offset: int, size: int, crc: int) -> bytes:
        try:
            start, data = self._span(endpoint, id, key, offset)
            image = data[offset - start : offset - start + size]
        except StorageCorrupt:  # the object ends within the span: no news of the images before its end
            image = endpoint.get_range(key, offset, size)
        verify(image, size, crc, key, offset)
        return image

    def _span(self, endpoint: Endpoint, id: SegmentId, key: str, offset: int) -> tuple[int, bytes]:
        """(offset, bytes) of the span that holds the image at `offset`; read by whoever comes first."""
        with self._lock:
            spans = self._spans.get(id)
            if spans is None:
                spans = self._spans[id] = self._cut(id)
            number = bisect_right(spans, offset, key=itemgetter(0)) - 1
            start, size = spans[number]
            place = endpoint.name, key, number
            future = self._kept.get(place)
            mine = future is None
            if future is None:
                future = self._kept[place] = Future()
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(place)
        if mine:
            try:
                data = endpoint.get_range(key, start, size)
            except BaseException as error:
                with self._lock:
                    self._kept.pop(place, None)
                future.set_exception(error)
                raise
            with self._lock:
                self.remote_bytes += size
            future.set_result(data)
        return start, future.result()

    def _cut(self, id: SegmentId) -> list[_Span]:
        """The spans that cover all images wanted from a segment."""
        placed = self.placed
        if self._order is None:
            keys = (placed["offset"], placed["segment"], placed["droid"], placed["allocation"])
            self._order = np.lexsort(keys)
        order = self._order
        low, high = 0, len(order)
        for field, value in (
            ("allocation", self.names.index(id.allocation)),
            ("droid", id.droid),
            ("segment", id.number),
        ):
            column = placed[field][order[low:high]]
            low, high = low + int(np.searchsorted(column, value)), low + int(np.searchsorted(column, value, "right"))
        rows = placed[order[low:high]]
        places = zip(rows["offset"].tolist(), rows["size"].tolist(), strict=True)
        return [(begin, end - begin) for begin, end, _ in spans(places, SPAN)]
