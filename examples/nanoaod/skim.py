"""Muons of NanoAOD events: a skim of the good ones, and the best Z candidate of each event.

Works on a whole range at once (`process_range`), as arrays of all its events. That is allowed because no event's result
depends on the others in the range.
"""

import awkward as ak
import numpy as np

Z_MASS = 91.19  # GeV
MUON = ("pt", "eta", "phi", "charge")


class Skim:
    jagged = (*(f"muon_{name}" for name in MUON), "z_mass")

    def __init__(self, min_pt=10.0, max_eta=2.4):
        self.min_pt = min_pt
        self.max_eta = max_eta

    def process_range(self, events):
        counts = [event["nMuon"] for event in events]
        muons = ak.zip(
            {name: ak.unflatten(np.concatenate([event[f"Muon_{name}"] for event in events]), counts) for name in MUON}
        )
        good = muons[(muons.pt > self.min_pt) & (abs(muons.eta) < self.max_eta)]
        first, second = ak.unzip(ak.combinations(good, 2))
        mass = np.sqrt(2 * first.pt * second.pt * (np.cosh(first.eta - second.eta) - np.cos(first.phi - second.phi)))
        mass = mass[first.charge != second.charge]
        best = ak.argmin(abs(mass - Z_MASS), axis=1, keepdims=True)
        z_mass = ak.drop_none(mass[best])  # one entry, or none in an event without a pair
        return {
            "run": [event["run"] for event in events],
            "number": [event["event"] for event in events],  # `event` is taken: it is the position on the task's axis
            "ht": np.array([event["Jet_pt"].sum() for event in events], np.float32),
            "z_mass": arrays(z_mass),
            **{f"muon_{name}": arrays(good[name]) for name in MUON},
        }


def arrays(jagged):
    """One numpy array per event."""
    return np.split(ak.to_numpy(ak.flatten(jagged)), np.cumsum(ak.to_numpy(ak.num(jagged)))[:-1])
