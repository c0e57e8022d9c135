"""Whom to doubt: what speaks against an event, and what against the Droid it failed on. Pure.

One Droid's word does not condemn an event as long as nearly everything fails there and others can try. A Droid whose
failures others cannot repeat is doubted, and what failed there is forgiven: by this Yoda, and by all that read its
journal later, since the note `doubted` says so. droids.py has the evidence.
"""

from __future__ import annotations

import math

from eventrange.ledger import Ledger
from yoda.droids import RECENT, Droid, Roster

HOLD = 30.0  #: seconds that a Droid on which nearly everything fails waits for the verdict of others at most


class Doubt:
    """Judges the Droids of `roster` by what becomes of the events of `ledger`."""

    def __init__(self, ledger: Ledger, roster: Roster) -> None:
        self.ledger, self.roster = ledger, roster

    def only_word(self, droid: Droid, event: int) -> bool:
        """Whether all that speaks against `event` is one Droid on which nearly everything fails, and others can try."""
        return droid.suspect and self.ledger.retries[event].droids == {droid.rank} and self.roster.others

    def verdict(self, rank: int, innocent: bool) -> Droid | None:
        """An event that failed on Droid `rank` was tried elsewhere, too; `innocent`: it went well there. Returns the
        Droid if it is to be doubted because of that."""
        droid = self.roster.droids.get(rank)
        if droid is None:
            return None
        droid.verdicts.append(innocent)
        if droid.state != "active" or not droid.to_blame or self.roster.active < 2:
            return None
        return droid

    def forgive(self, rank: int) -> None:
        """What a bad node did is not the event's fault."""
        for retry in (*self.ledger.retries.values(), *self.ledger.attempts.values()):
            if rank in retry.droids:
                retry.droids.discard(rank)
                retry.attempts = max(0, retry.attempts - 1)

    def held_back(self, now: float, droid: Droid) -> bool:
        """Whether a Droid on which nearly everything fails has to wait, but not for ever, for the verdict of others."""
        if not droid.failing or not self.roster.others or not self._untried(droid.rank):
            droid.held_since = math.inf
            return False
        droid.held_since = min(droid.held_since, now)
        if now - droid.held_since < HOLD:
            return True
        droid.held_since = math.inf
        droid.recent.clear()
        return False

    def _untried(self, rank: int) -> bool:
        """Whether many events have failed on Droid `rank` alone, and somebody who does better can try them."""
        count = 0
        for retry in (*self.ledger.retries.values(), *self.ledger.attempts.values()):
            count += len(retry.droids) == 1 and rank in retry.droids
        better = bool(self.roster.awaited) or any(not d.failing for d in self.roster.in_state("active"))
        return count >= RECENT and better
