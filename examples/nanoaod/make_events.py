"""Write a small ROOT file that looks like CMS NanoAOD: python make_events.py [FILE.root] [EVENTS]"""

import os
import sys

import awkward as ak
import numpy as np
import uproot


def make(target, events=4000, seed=7):
    """Z -> mu mu over a background of other muons, and jets, as branches nMuon, Muon_pt, ... of a TTree `Events`."""
    random = np.random.default_rng(seed)
    z = random.random(events) < 0.6
    n = np.where(z, 2, 0) + random.poisson(0.7, events)
    pt = random.exponential(20.0, n.sum()) + 3.0
    eta = random.uniform(-2.4, 2.4, n.sum())
    phi = random.uniform(-np.pi, np.pi, n.sum())
    charge = random.choice([-1, 1], n.sum())
    first = np.concatenate([[0], np.cumsum(n)[:-1]])[z]  # the first two muons of these events are a Z at rest in pt
    mass = 91.19 + 2.5 * random.standard_cauchy(len(first)).clip(-8, 8)
    cosine = random.uniform(-0.9, 0.9, len(first))
    for offset, sign in ((0, 1), (1, -1)):
        pt[first + offset] = mass / 2 * np.sqrt(1 - cosine**2)
        eta[first + offset] = sign * np.arctanh(cosine)
        charge[first + offset] = sign
    phi[first + 1] = (phi[first] + 2 * np.pi) % (2 * np.pi) - np.pi
    n_jets = random.poisson(3.0, events)
    jets = {"pt": random.exponential(40.0, n_jets.sum()) + 15.0, "eta": random.normal(0.0, 2.0, n_jets.sum())}
    muons = {"pt": pt, "eta": eta, "phi": phi}
    with uproot.recreate(target) as file:
        branches = {
            "run": np.full(events, 1, np.uint32),
            "event": np.arange(1, events + 1, dtype=np.uint64),
            "Muon": ak.zip(
                {name: ak.unflatten(values.astype(np.float32), n) for name, values in muons.items()}
                | {"charge": ak.unflatten(charge.astype(np.int32), n)}
            ),
            "Jet": ak.zip({name: ak.unflatten(values.astype(np.float32), n_jets) for name, values in jets.items()}),
        }
        types = {name: getattr(array, "dtype", None) or array.type for name, array in branches.items()}
        file.mktree("Events", types)
        for start in range(0, events, 500):  # small baskets, so that reading a few events fetches a few
            file["Events"].extend({name: array[start : start + 500] for name, array in branches.items()})


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "events.root")
    make(target, int(sys.argv[2]) if len(sys.argv) > 2 else 4000)
    print(f"wrote {target}")
