"""What a payload has returned for an event, made independent of what it does with the next one.

Images are made of a range, but numeric code likes to fill the same array, or the same dict, for each event. Arrays that
nobody else holds need no copy, which is nearly all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from sys import getrefcount
from typing import Any

import numpy as np

from eventrange.fields import PLAIN


def _references(fields: Mapping[str, Any]) -> int:
    """To the value of `fields`, counted as `settled` does."""
    found = 0
    for _, value in fields.items():
        found = getrefcount(value)
    return found


def _alone() -> int:
    def count(fields: Any) -> int:
        return getrefcount(fields)

    fields = {"": 0}
    return count(fields)


_OURS = _references({"": np.empty(0)})
_ALONE = _alone()  #: to a dict that only its caller has, counted likewise


def settled(fields: Any) -> Any:
    """`fields` with copies of the values that somebody else holds, too. What is no mapping is returned as it is: it is
    refused later, by name."""
    if not isinstance(fields, Mapping):
        return fields
    shared = type(fields) is not dict or getrefcount(fields) > _ALONE  # then others have what is in it, too
    out: dict[str, Any] = {}
    for name, value in fields.items():
        kind = type(value)
        if kind is np.ndarray:
            if shared or not value.flags.owndata or getrefcount(value) > _OURS:
                value = value.copy()
        elif kind not in PLAIN:
            with contextlib.suppress(Exception):  # what cannot be an array is refused later, by name
                value = value.copy() if isinstance(value, np.ndarray) else np.array(value)
        out[name] = value
    return out
