"""Many more ranks than cores: everybody gets work, every event is done once, and the run drains by itself."""

from __future__ import annotations

import numpy as np
import pytest
import runs
from runs import Place

from eventrange.records import Kind

NAP = """
import time

def nap(event, random):
    time.sleep(0.1)
    return {"x": random.normal()}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_24_ranks(place: Place) -> None:
    """23 Droids of one worker. They start at different times; there is enough to do for the last."""
    droids, events = 23, 23 * 300
    place.job(NAP, "nap", inputs={"format": "generate", "events": events}, output={"merge": False})
    place.site(starting="10min")
    done = place.start(ranks=droids + 1, workers=1).wait(600)
    assert done.code == 0, done.text
    story = place.story()
    assert place.progress().done.total == events
    assert runs.granted_again(story) == []
    rows = np.concatenate([entry for _, entry in story])
    finished = rows[rows["kind"] == Kind.DONE]
    assert set(finished["droid"].tolist()) == set(range(1, droids + 1)), "a Droid starved"
    assert {note["reason"] for note in place.notes("left")} == {"drained"}
    assert [note["exit_code"] for note in place.notes("end")] == [0]
    # Copies at the tail are the only events that may be done twice: one per worker at most.
    assert runs.done_twice(story) <= droids
