"""Top pairs at the LHC, from nothing but the random numbers of each event."""

import numpy as np
import pythia8mc
from seeding import reseed


class TopPairs:
    jagged = ("particle_id", "particle_p4")

    def __init__(self, ecm=13000.0, settings=()):
        self.settings = [
            "Print:quiet = on",
            f"Beams:eCM = {ecm}",
            "Top:gg2ttbar = on",
            "Top:qqbar2ttbar = on",
            "Random:setSeed = on",
            "Random:seed = 1",  # of the set-up: phase-space maxima must not differ between nodes
            *settings,
        ]

    def setup(self):
        self.pythia = pythia8mc.Pythia("", False)
        for setting in self.settings:
            if not self.pythia.readString(setting):
                raise ValueError(f"Pythia does not know the setting {setting!r}")
        if not self.pythia.init():
            raise RuntimeError("Pythia cannot be set up; it says above why")

    def process(self, event, random):
        pythia = self.pythia
        reseed(pythia, random)
        while not pythia.next():  # one in some ten thousand fails; the next try goes on with the same random numbers
            pass
        final, tops = [], {}
        for particle in pythia.event:
            if particle.isFinal():
                final.append((particle.id(), particle.px(), particle.py(), particle.pz(), particle.e()))
            elif abs(particle.id()) == 6:
                tops[particle.id()] = (particle.px(), particle.py(), particle.pz(), particle.e())  # keeps the last copy
        table = np.array(final)
        return {
            "weight": pythia.infoPython().weight(),
            "top_p4": np.array([tops[6], tops[-6]]),  # t and tbar just before they decay: px, py, pz, E in GeV
            "particle_id": table[:, 0].astype(np.int32),
            "particle_p4": table[:, 1:].astype(np.float32),
        }
