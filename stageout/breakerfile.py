"""What breakers have learned, in a file: one per task, or one per site that all its tasks share.

Used for endpoints by the stage-out process, and through `ask` and `tell` for queues and nodes by whoever feeds them. It
saves requests and nothing else: lost or damaged, an endpoint that is down is found out again. The journals tell its
history. Several processes write it; each key's latest state wins, and a writer that comes too late costs one round.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from stageout.breaker import VERSION, Breaker, Change
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


def ask(path: str, rules: StageoutRules, key: str, now: float) -> tuple[bool, str]:
    """Whether `key` (`queue:preempt`, `node:nid001`) may be used now, and if not, what a person should know."""
    breaker = Breaker(rules.breaker, load(path))
    allowed, changes = breaker.allow(key, now)
    if changes:
        save(path, breaker.to_dict())
    if allowed:
        return True, ""
    retry = breaker.retry_at(key)
    when = "until somebody resets it" if retry is None else f"for another {max(0.0, retry - now):.0f} s"
    return False, f"{key.partition(':')[2]} failed too often and is not used {when}"


def tell(path: str, rules: StageoutRules, key: str, good: bool, now: float, reason: str = "") -> list[Change]:
    """What came of using `key`; returns its changes of state, of which those with `alert` are for people."""
    breaker = Breaker(rules.breaker, load(path))
    changes = breaker.success(key, now) if good else breaker.failure(key, now, reason)
    save(path, breaker.to_dict())
    return changes
