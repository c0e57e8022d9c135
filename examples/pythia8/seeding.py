"""Give Pythia the random numbers of one event, so that the event is the same whatever was made before it and where."""

MOST = 900_000_000  # the largest seed Pythia takes


def reseed(pythia, random, *, parts=()):
    """Seed `pythia`, and Pythia objects it keeps inside (`parts`), from the event's Generator.

    Pythia's seeds have thirty bits: among a million events about 550 pairs would be the same event. Skipping up to 127
    numbers makes that about four, and costs next to nothing.
    """
    for generator in (pythia, *parts):
        generator.rndm.init(int(random.integers(1, MOST + 1)))
        for _ in range(int(random.integers(128))):
            generator.rndm.flat()
