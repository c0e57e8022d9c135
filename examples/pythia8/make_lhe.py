"""Write a Les Houches event file of Z -> mu mu at parton level: python make_lhe.py [FILE.lhe.gz] [EVENTS]"""

import gzip
import os
import shutil
import sys
import tempfile

import pythia8mc

PROCESS = 9999
SETTINGS = (
    "Print:quiet = on",
    "Beams:eCM = 13000.",
    "WeakSingleBoson:ffbar2gmZ = on",
    "PhaseSpace:mHatMin = 60.",
    "PhaseSpace:mHatMax = 120.",
    "23:onMode = off",
    "23:onIfAny = 13",
    "PartonLevel:all = off",  # the hard process alone: showering is the job of the other program
    "Random:setSeed = on",
)


class Writer(pythia8mc.LHAup):
    """Pythia's own writer of LHE files, told what the hard process was."""

    def __init__(self, pythia):
        super().__init__(3)
        self.pythia = pythia

    def setInit(self):
        info = self.pythia.infoPython()
        self.setBeamA(info.idA(), info.eA())
        self.setBeamB(info.idB(), info.eB())
        self.addProcess(PROCESS, 1e9 * info.sigmaGen(), 1e9 * info.sigmaErr(), 1.0)  # pb from mb
        return True

    def setEvent(self, process=0):
        info = self.pythia.infoPython()
        self.setProcess(PROCESS, info.weight(), info.QFac(), info.alphaEM(), info.alphaS())
        for i, particle in enumerate(self.pythia.process):
            if i < 3:  # the system and the two beams, which stand in <init>
                continue
            status = {-21: -1, -22: 2}.get(particle.status(), 1)
            mothers = [max(mother - 2, 0) for mother in (particle.mother1(), particle.mother2())]
            colours = particle.col(), particle.acol()
            momentum = particle.px(), particle.py(), particle.pz(), particle.e(), particle.m()
            self.addParticle(particle.id(), status, *mothers, *colours, *momentum, 0.0, 9.0)
        return True


def make(target, events=400, seed=7):
    """Write `events` events to the gzip file `target`."""
    pythia = pythia8mc.Pythia("", False)
    for setting in (*SETTINGS, f"Random:seed = {seed}"):
        pythia.readString(setting)
    pythia.init()
    for _ in range(100):  # so that the cross section that the file begins with is known
        pythia.next()
    with tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, "events.lhe")
        writer = Writer(pythia)
        writer.openLHEF(plain)
        writer.setInit()
        writer.initLHEF()
        written = 0
        while written < events:
            if pythia.next():
                writer.setEvent()
                writer.eventLHEF()
                written += 1
        writer.closeLHEF()
        with open(plain, "rb") as source, gzip.open(target, "wb") as packed:
            shutil.copyfileobj(source, packed)


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "zmumu.lhe.gz")
    make(target, int(sys.argv[2]) if len(sys.argv) > 2 else 400)
    print(f"wrote {target}")
