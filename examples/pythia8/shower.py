"""Shower events of an LHE file, one at a time, with one Pythia for all of them.

Pythia usually reads the file itself, from its beginning. Here it asks `Feed` for the next event, and `Feed` gives the
one that is being processed: any event, in any order, without setting Pythia up again.
"""

import numpy as np
import pythia8mc
from seeding import reseed


class Feed(pythia8mc.LHAup):
    """Stands between Yoda's event and Pythia, as an LHE file would."""

    def __init__(self, beams):
        super().__init__()
        self.beams = beams
        self.event = None

    def setInit(self):
        beams = self.beams
        self.setBeamA(beams.idbmup[0], beams.ebmup[0], beams.pdfgup[0], beams.pdfsup[0])
        self.setBeamB(beams.idbmup[1], beams.ebmup[1], beams.pdfgup[1], beams.pdfsup[1])
        # 3: take every event as it is, weight included; 1 and 2 would have Pythia throw some of them away.
        self.setStrategy(3 if beams.idwtup > 0 else -3)
        for process in beams.processes:
            self.addProcess(process.lprup, process.xsecup, process.xerrup, process.xmaxup)
        return True

    def setEvent(self, process=0):
        event = self.event
        self.setProcess(event.idprup, event.xwgtup, event.scalup, event.aqedup, event.aqcdup)
        for row in event.particles.tolist():
            self.addParticle(*row)
        return True


class Shower:
    jagged = ("particle_id", "particle_p4")

    def __init__(self, settings=()):
        self.settings = settings
        self.pythia = None

    def begin(self, head):
        """Set Pythia up for a file: once per worker and header, since beams and processes stand in the file."""
        self.head = head
        self.feed = Feed(head.beams)
        self.pythia = pythia8mc.Pythia("", False)
        for setting in ("Print:quiet = on", "Beams:frameType = 5", "Random:setSeed = on", "Random:seed = 1"):
            self.pythia.readString(setting)
        for setting in self.settings:
            if not self.pythia.readString(setting):
                raise ValueError(f"Pythia does not know the setting {setting!r}")
        self.pythia.setLHAupPtr(self.feed)
        if not self.pythia.init():
            raise RuntimeError("Pythia cannot be set up; it says above why")

    def process(self, event, random):
        if self.pythia is None or event.head.raw != self.head.raw:
            self.begin(event.head)
        pythia = self.pythia
        self.feed.event = event
        reseed(pythia, random)
        for _ in range(10):
            if pythia.next():
                break
        else:
            raise RuntimeError("Pythia cannot shower this event")
        final = []
        for particle in pythia.event:
            if particle.isFinal():
                final.append((particle.id(), particle.px(), particle.py(), particle.pz(), particle.e()))
        table = np.array(final)
        return {
            "weight": event.xwgtup,
            "hard_mass": pythia.infoPython().mHat(),
            "particle_id": table[:, 0].astype(np.int32),
            "particle_p4": table[:, 1:].astype(np.float32),
        }
