"""What breakers have learned, in a file: one per task, or one per site that all its tasks share.

Used for endpoints by the stage-out process, for nodes by Yoda, for queues by `yoda submit`. It saves requests and
nothing else: lost or damaged, an endpoint that is down is found out again. The journals tell its
history. Several processes write it; each key's latest state wins, and a writer that comes too late costs one round.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from stageout.breaker import VERSION
from stageout.site import StageoutRules


def state_path(rules: StageoutRules, root: str) -> str:
    """Where the state of a task in the directory `root` is kept."""
    given = rules.breaker_state
    return os.path.expandvars(os.path.expanduser(given)) if given else os.path.join(root, "breaker.json")


def load(path: str) -> dict[str, Any]:
    """The state in `path`; empty where there is none that can be read."""
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    good = isinstance(found, dict) and found.get("version") == VERSION and isinstance(found.get("keys"), dict)
    return found if good else {}


def tried_now(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state for somebody who asks for it now: what is off for some time is tried at once, what is off for good is
    not. How often it was off already is not forgotten."""
    keys = dict(state.get("keys", {}))
    for key, entry in keys.items():
        if isinstance(entry, dict) and entry.get("state") in ("open", "half-open"):
            keys[key] = {**entry, "state": "closed", "slots": []}
    return {"version": VERSION, "keys": keys}


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both states as one: of every key the one that has seen the later time."""
    keys = dict(one.get("keys", {}))
    for key, entry in other.get("keys", {}).items():
        with contextlib.suppress(TypeError, KeyError, AttributeError):
            if key not in keys or float(entry["now"]) >= float(keys[key].get("now", 0.0)):
                keys[key] = entry
    return {"version": VERSION, "keys": keys}


def save(path: str, state: Mapping[str, Any]) -> None:
    """Bring `state` into the file; whoever reads sees the old or the new one. A full disk is no reason to fail."""
    temporary = f"{path}.{socket.gethostname()}-{os.getpid()}.tmp"
    try:
        with open(temporary, "w") as file:
            json.dump(merged(load(path), state), file)
        os.replace(temporary, path)
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            os.unlink(temporary)
