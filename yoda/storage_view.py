"""Storage as `yoda status` shows it, from the notes in the journals. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from stageout.catalogue import Catalogue


def storage_view(catalogue: Catalogue) -> dict[str, Any] | None:
    """Endpoints with their breaker's state and copies, segments by where they are, who waits, and the breakers' changes
    over time; None for a task without stage-out."""
    segments = [known for known in catalogue.segments.values() if known.sealed and known.members]
    names = [str(one.get("name")) for one in catalogue.endpoints]
    names += sorted({name for known in segments for name in known.copies} - set(names))
    if not names:
        return None
    urls = {str(one.get("name")): str(one.get("url")) for one in catalogue.endpoints}
    endpoints = []
    for name in names:
        mine = [known.size for known in segments if name in known.copies]
        change, failed = _latest(catalogue, name), catalogue.failures.get(name, {})
        state = str(change.get("after", "closed"))
        endpoints.append(
            {
                "name": name,
                "url": urls.get(name),
                "state": state,
                "since": change.get("time"),
                "why": str(change.get("reason", "")) if state != "closed" else "",
                "alert": state == "exhausted",
                "copies": len(mine),
                "bytes": sum(mine),
                "failures": failed.get("count", 0),
                "last_failure": {k: failed.get(k) for k in ("time", "kind", "detail")} if failed else None,
            }
        )
    waiting = [known for known in segments if not known.copies and not known.unusable]
    blocked = max(catalogue.blocked.values(), key=lambda note: note.get("time") or 0.0, default=None)
    return {
        "endpoints": endpoints,
        "segments": {
            "sealed": len(segments),
            "staged": sum(bool(known.copies) for known in segments),
            "waiting": len(waiting),
            "unusable": sum(bool(known.unusable) and not known.copies for known in segments),
            "deleted_here": sum(not known.local for known in segments),
        },
        "bytes_waiting": sum(known.size for known in waiting),
        "blocked": None
        if blocked is None or not waiting
        else {k: blocked.get(k) for k in ("time", "until", "waiting")},
        "changes": catalogue.changes,
    }


def _latest(catalogue: Catalogue, name: str) -> dict[str, Any]:
    """The last change of an endpoint's breaker: journals written side by side come one after another."""
    mine = [change for change in catalogue.changes if change.get("key") == f"endpoint:{name}"]
    return max(mine, key=lambda change: change.get("time") or 0.0, default=catalogue.breakers.get(name, {}))


def switched_view(catalogue: Catalogue) -> dict[str, Any] | None:
    """Nodes and queues that were ever switched off, as they are now, and all changes of breakers over time, those of
    endpoints too; None where there was none."""
    if not catalogue.changes:
        return None
    now = []
    for key, change in sorted(catalogue.others.items()):
        kind, _, name = key.partition(":")
        state = str(change.get("after", "closed"))
        why = str(change.get("reason", "")) if state != "closed" else ""
        now.append({"kind": kind, "name": name, "state": state, "since": change.get("time"), "why": why})
    return {"now": now, "changes": catalogue.changes}


def explain_switched(view: Mapping[str, Any]) -> list[str]:
    """A sentence for each endpoint, node and queue that is not in use: since when, why, and how often it was so."""
    last = {str(change["key"]): change for change in view["changes"]}
    out = []
    for key, change in last.items():
        if change["after"] == "closed":
            continue
        kind, _, name = key.partition(":")
        count = sum(one["key"] == key and one["after"] in ("open", "exhausted") for one in view["changes"])
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(change.get("time") or 0)))
        what = {"endpoint": "Storage"}.get(kind, kind.capitalize())
        often = f", switched off {count} times" if count > 1 else ""
        why = change.get("reason", "")
        out.append(f"{what} {name} is {WORDS.get(change['after'], '?').lower()} since {since}{often}: {why}.")
    return out


def render_switched(view: Mapping[str, Any]) -> list[str]:
    """A line for each node and queue that is not in use."""
    off = [one for one in view["now"] if one["state"] != "closed"]
    return [f"{one['kind']:<8} {one['name']}  {WORDS.get(one['state'], '?')}: {one['why']}" for one in off]


def render(view: Mapping[str, Any]) -> list[str]:
    """A few lines for people."""
    segments = view["segments"]
    line = f"storage  {segments['staged']:,} of {segments['sealed']:,} sealed segments staged"
    if segments["waiting"]:
        line += f", {segments['waiting']:,} waiting ({view['bytes_waiting'] / 1e6:,.1f} MB)"
    if segments["unusable"]:
        line += f", {segments['unusable']:,} damaged"
    lines = [line]
    for one in view["endpoints"]:
        text = f"  {one['name']}  {WORDS[one['state']]}, {one['copies']:,} copies, {one['bytes'] / 1e6:,.1f} MB"
        lines.append(text + (f", {one['failures']:,} failed uploads" if one["failures"] else ""))
        if one["why"]:
            lines.append(f"    {one['why']}")
        elif one["last_failure"] and not one["copies"]:
            lines.append(f"    last failure: {one['last_failure']['kind']}: {one['last_failure']['detail']}")
        if one["alert"]:
            lines.append(f"    it stays off until `yoda stageout TASK --reset {one['name']}`")
    if view["blocked"]:
        lines.append("  no endpoint takes anything; processing goes on, `yoda stageout TASK` carries on later")
    return lines


WORDS = {"closed": "in use", "open": "off for now", "half-open": "on trial", "exhausted": "OFF FOR GOOD"}
