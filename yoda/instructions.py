"""What the Dispatcher tells its shell to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from eventrange.messages import Message


@dataclass(frozen=True)
class Send:
    droid: int
    message: Message


@dataclass(frozen=True)
class Write:
    """Records for the journal."""

    rows: NDArray[Any]


@dataclass(frozen=True)
class Note:
    """A note for the journal and, as a sentence, for the log."""

    name: str
    values: dict[str, Any]


Instruction = Send | Write | Note
