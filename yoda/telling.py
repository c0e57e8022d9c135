"""What happens in an allocation, as sentences for people."""

from __future__ import annotations

from collections.abc import Callable

from yoda.instructions import Note

FAILURES_SAID = 100  #: failed attempts told one by one; a payload that fails on all of a million events is one story


class Teller:
    """Says of a note in the journal what a person would want to know; of most of them, nothing."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._failures = 0

    def tell(self, note: Note) -> None:
        """Log what a person would want to know, as a sentence."""
        v = note.values
        if note.name == "left" and str(v.get("reason", "")).startswith(("lost", "sick")):
            self._say(
                f"Droid {v['droid']} on {v['host']} is {v['reason'].splitlines()[0]}; its events are given to others"
            )
        elif note.name == "doubted":
            self._say(f"Droid {v['droid']} on {v['host']} gets no more work: {v['reason']}")
        elif note.name == "spare":
            self._say(f"Droid {v['droid']} on {v['host']} gets no work while others are there: {v['reason']}")
        elif note.name == "drain":
            self._say(f"draining within {v['grace']:.0f} s: {v['reason']}")
        elif note.name == "quarantined":
            self._say(f"event {v['event']} is quarantined after {v['attempts']} attempts")
        elif note.name == "lost_parts":
            self._say(f"{len(v['parts'])} parts of the axis were taken over by {', '.join(v['to'])}")
        elif note.name == "claimed" and v.get("from"):
            self._say(f"{v['events']} events are taken over from {', '.join(v['from'])}")
        elif note.name == "gave":
            self._say(f"{len(v['parts'])} parts of the axis are given to allocations that have nothing to do")
        elif note.name == "breaker":
            kind, _, name = str(v["key"]).partition(":")
            well = f"{kind}:{name}" if kind == "node" else name
            more = f"; it stays off until somebody says `yoda stageout --reset {well}`" if v.get("alert") else ""
            if kind == "endpoint":
                self._say(f"storage {name} is {v['after']} for Droid {v['by']}: {v['reason']}{more}")
            else:
                self._say(f"{kind} {name} is {v['after']}: {v['reason']}{more}")
        elif note.name == "blocked":
            self._say(f"Droid {v['by']}: {v['waiting']} segments wait: no storage is well; processing goes on")
        elif note.name == "evidence":
            self._failures += 1
            if self._failures <= FAILURES_SAID:
                lines = (v["text"].strip() or "?").splitlines()
                brief = lines[-1] if lines[0].startswith("Traceback") else lines[0]
                self._say(f"event {v['event']} failed on droid {v['droid']} (attempt {v['attempt'] + 1}): {brief}")
            elif self._failures == FAILURES_SAID + 1:
                self._say("more events fail; see `yoda journal` for all of them")
