"""Lead-lead collisions with Angantyr: seconds of set-up, then events of very different length.

Angantyr keeps three things from one event for the next, and an event must not depend on its predecessor:

* the random numbers of the Pythias it collides nucleons with, each of which goes on where it was: all are seeded;
* what kind of process the last collision was: short strings are tried more often after a diffractive one, and at the
  beginning of an event "the last" is one of the event before. That note is cleared;
* in these Pythias, the tables for diffractive masses: they are kept while the mass changes by less than 1 %, so the
  masses of the event before decide which tables are used. Four collisions that are always the same put them in order.
"""

import ctypes

import numpy as np
import pythia8mc
from seeding import reseed

LEAD = 1000822080
EDGES = np.linspace(-5, 5, 51)


def diffractive_seeds(part, info):
    """Seeds of single diffraction with two different masses on either side: the second always makes new tables."""
    found = {103: {}, 104: {}}  # Pythia's codes for A B -> X B and A B -> A X
    seed = 0
    while any(len(masses) < 2 for masses in found.values()):
        seed += 1
        part.rndm.init(seed)
        if part.next() and info.code() in found:
            masses = found[info.code()]
            mass = max(part.process[3].m(), part.process[4].m())  # GeV
            if mass > 200 and len(masses) < 2 and all(abs(mass / other - 1) > 0.2 for other in masses.values()):
                masses[seed] = mass
    return [seed for masses in found.values() for seed in masses]


class LeadLead:
    jagged = ("pt", "id")

    def __init__(self, ecm=5020.0, settings=()):
        self.settings = [
            "Print:quiet = on",
            f"Beams:idA = {LEAD}",
            f"Beams:idB = {LEAD}",
            f"Beams:eCM = {ecm}",
            "HeavyIon:SigFitNGen = 0",  # parameters as they are: fitting them to cross sections takes long
            "Random:setSeed = on",
            "Random:seed = 1",
            *settings,
        ]

    def setup(self):
        """Once per node; the workers are forked from the process that did it."""
        self.pythia = pythia8mc.Pythia("", False)
        for setting in self.settings:
            if not self.pythia.readString(setting):
                raise ValueError(f"Pythia does not know the setting {setting!r}")
        watcher = pythia8mc.Angantyr.InfoGrabber()
        self.pythia.addUserHooksPtr(watcher)
        if not self.pythia.init():
            raise RuntimeError("Pythia cannot be set up; it says above why")
        self.info = watcher.getInfo()  # not a copy, as infoPython() is
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.info))  # Python believes it is its own, and must not free it
        self.angantyr = self.pythia.getHeavyIonsPtr()
        self.parts = list(self.angantyr.pythia)
        self.settling = [
            (part, diffractive_seeds(part, info))
            for name, part, info in zip(self.angantyr.pythiaNames, self.parts, self.angantyr.info, strict=True)
            if name in ("MBIAS", "SASD")
        ]

    def forget(self):
        """Leave nothing of the event before but its random numbers, which `reseed` replaces."""
        for part, seeds in self.settling:
            for seed in seeds:
                part.rndm.init(seed)
                part.next()
        self.info.setType("", 0, 0)

    def process(self, event, random):
        pythia = self.pythia
        self.forget()
        reseed(pythia, random, parts=self.parts)
        while not pythia.next():
            pass
        charged = [
            (particle.id(), particle.pT(), particle.eta())
            for particle in pythia.event
            if particle.isFinal() and particle.isCharged()
        ]
        identity, pt, eta = np.array(charged).reshape(-1, 3).T
        central = np.abs(eta) < 0.8
        return {
            "weight": pythia.infoPython().weight(),
            "b": self.angantyr.hiInfo.b(),  # impact parameter in fm
            "charged_eta": np.histogram(eta, EDGES)[0],  # number of charged particles in 50 bins of eta, -5 to 5
            "pt": pt[central].astype(np.float32),
            "id": identity[central].astype(np.int32),
        }
