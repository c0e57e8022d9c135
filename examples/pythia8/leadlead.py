"""Lead-lead collisions with Angantyr: seconds of set-up, then events of very different length."""

import ctypes

import numpy as np
import pythia8mc
from seeding import reseed

LEAD = 1000822080
EDGES = np.linspace(-5, 5, 51)


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
        # Angantyr collides nucleons with Pythias of its own. Each has random numbers that go on from event to event:
        # if they are not seeded as well, an event depends on those made before it.
        self.angantyr = self.pythia.getHeavyIonsPtr()
        self.parts = list(self.angantyr.pythia)

    def process(self, event, random):
        pythia = self.pythia
        reseed(pythia, random, parts=self.parts)
        # Short strings are tried more often if the last collision was diffractive, and at the beginning of an event
        # "the last" is one of the event before: without this line one event in ten depends on its predecessor.
        self.info.setType("", 0, 0)
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
