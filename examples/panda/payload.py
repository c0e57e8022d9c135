"""What stands in the place of a simulation: a calorimeter's answer to one electron."""

import numpy as np


def simulate(event, random):
    """`event` is the number of the event in the job's input, whichever ranges of it this task has."""
    energy = random.uniform(10.0, 100.0)
    cells = random.poisson(20)
    shares = random.dirichlet(np.ones(cells)) if cells else np.zeros(0)
    return {"number": np.int64(event), "energy": energy, "cell": energy * shares}
