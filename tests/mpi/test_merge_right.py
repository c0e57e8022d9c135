"""`yoda merge` by hand takes the same right to merge as a run that completes its task: one at a time, whoever it is."""

from __future__ import annotations

import os
from pathlib import Path

from runs import Place

from yoda.leasedir import Heart, LeaseDir, overview


def test_merge_by_hand_leaves_it_to_who_is_at_it(place_here: Place) -> None:
    place = place_here
    place.job(inputs={"format": "generate", "events": 50}, output={"merge": False})
    assert place.run().code == 0
    task = place.task()
    heart = Heart(task, "20260101T000000000Z-local-else-1", None, 0.05, 60.0)
    heart.rest("merging")
    with LeaseDir(task, heart.name).merging(60.0) as other:
        assert other is None
        assert [seen.merges for seen in overview(task)] == [True]
        done = place.run(command="merge")
        assert done.code == 75, done.text
        assert f"{heart.name} is merging this task (process {os.getpid()} on" in done.err
        assert not os.path.exists(task.merged)
        apart = place.run("-o", str(place.folder / "apart.h5"), command="merge")
        assert apart.code == 0, apart.text
    heart.stop()
    done = place.run(command="merge")
    assert done.code == 0, done.text
    assert (place.folder / "apart.h5").read_bytes() == Path(done.out.strip()).read_bytes()
    assert [seen.state for seen in overview(task)] == ["ended"], "it leaves no file of its own"
