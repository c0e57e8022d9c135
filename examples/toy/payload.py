"""The smallest useful payload: random tracks, no software but numpy."""

import numpy as np


class Toy:
    jagged = ("pt", "eta", "phi")

    def __init__(self, mean_tracks=20.0):
        self.mean_tracks = mean_tracks

    def process(self, event, random):
        """`event` is its position, since the job generates; `random` is the event's own numpy Generator."""
        n = random.poisson(self.mean_tracks)
        pt = random.exponential(2.0, n)
        phi = random.uniform(-np.pi, np.pi, n)
        return {
            "n_tracks": n,
            "pt": pt,
            "eta": random.normal(0.0, 1.5, n),
            "phi": phi,
            "missing": np.array([-(pt * np.cos(phi)).sum(), -(pt * np.sin(phi)).sum()]),
        }
