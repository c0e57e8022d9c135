"""A node on which payloads keep failing, with a real mpiexec: doubted once, left aside by the next task of the site."""

from __future__ import annotations

import json
import time
from pathlib import Path

from runs import Place

# Every rank takes its own machine to be another one, and the payload fails on one of them.
HOSTS = """
import os, socket
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK")
if rank is not None:
    socket.gethostname = lambda: f"node{rank}"
"""
PAYLOAD = """
import os, time

def light(event, random):
    seen = os.environ.get("BAD_SEEN")
    if os.environ.get("BAD_NODE") == (os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK")):
        with open(seen, "a") as out:
            out.write("x")
        raise RuntimeError("a broken GPU")
    while seen and (not os.path.exists(seen) or os.path.getsize(seen) < 8):  # the bad one has had its chance
        time.sleep(0.01)
    time.sleep(0.001)
    return {"x": random.normal(size=3)}
"""


def test_a_bad_node_is_left_aside_by_the_next_task(place: Place, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOSTS)
    told = tmp_path / "told"
    state = tmp_path / "breaker.json"
    place.job(PAYLOAD, "light", inputs={"format": "generate", "events": 600}, ranges={"events": 2})
    rules = {"breaker_state": str(state), "alert_command": ["sh", "-c", f"cat >> {told}"]}
    place.site(stageout_rules=rules, node_breaker={"opens": 1})
    env = {"PYTHONPATH": str(tmp_path), "BAD_NODE": "1", "BAD_SEEN": str(tmp_path / "seen")}
    done = place.run(task="first", ranks=3, workers=1, env=env)
    assert done.code == 0, done.text
    assert {note["host"] for note in place.notes("doubted", "first")} == {"node1"}
    changes = place.notes("breaker", "first")
    assert [(note["key"], note["after"]) for note in changes] == [("node:node1", "exhausted")]
    assert set(json.loads(state.read_text())["keys"]) == {"node:node1"}
    until = time.monotonic() + 30
    while not told.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert json.loads(told.read_text())["node"] == "node1"
    assert "node node1 is exhausted" in done.err
    view = json.loads(place.run("--json", command="status", task="first").out)["breakers"]
    assert [(one["kind"], one["name"], one["state"]) for one in view["now"]] == [("node", "node1", "exhausted")]
    assert "Node node1 is off for good since" in place.run(command="explain", task="first").out.replace("\n", " ")
    done = place.run(task="second", ranks=3, workers=1, env=env)
    assert done.code == 0, done.text
    assert [note["host"] for note in place.notes("spare", "second")] == ["node1"]
    assert not place.notes("doubted", "second") and not place.notes("evidence", "second")
    done = place.run(task="third", ranks=2, workers=1, env={"PYTHONPATH": str(tmp_path)})
    assert done.code == 0, done.text  # the node is well again, and there is no other
    assert place.sha256("third") == place.sha256("second") == place.sha256("first")
