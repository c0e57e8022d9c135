"""Whole runs that stage out to real S3 servers: servers that die, everything killed, damaged objects, later stage-out.

Every run must end with the bytes of an undisturbed run that knew no storage, and no secret may be in any file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from buckets import Bucket, client
from faultproxy import Fault

sys.path.append(str(Path(__file__).parents[1] / "mpi"))

import runs

CODE = """
import numpy as np

def light(event, random):
    import os, time
    time.sleep(float(os.environ.get("YODA_TEST_SLEEP", "0")))
    return {"x": random.normal(size=4000), "pt": random.exponential(size=int(random.integers(0, 4)))}
"""
EVENTS = 240
RULES: dict[str, Any] = {"tries": 1, "backoff": 0.1, "backoff_max": 0.5, "nice": 0, "rehome_after": 0.1}


@pytest.fixture(scope="module")
def mpi() -> runs.Mpi:
    found = runs.here()
    if found is None:
        pytest.skip("no mpiexec in this environment: pip install 'yoda-droid[mpi]'")
    return found


@pytest.fixture(scope="module")
def reference(mpi: runs.Mpi, tmp_path_factory: pytest.TempPathFactory) -> str:
    """sha256 of the merged file of a run without storage."""
    with runs.place(mpi, tmp_path_factory.mktemp("reference")) as place:
        job(place)
        done = place.run()
        assert done.code == 0, done.text
        return place.sha256()


@pytest.fixture
def place(mpi: runs.Mpi, tmp_path: Path) -> Iterator[runs.Place]:
    with runs.place(mpi, tmp_path / "place") as made:
        job(made)
        yield made
        secrets(made)


def job(place: runs.Place) -> None:
    section = {"format": "generate", "events": EVENTS}
    place.job(CODE, "light", inputs=section, ranges={"events": 4})


def secrets(place: runs.Place) -> None:
    """No file of a run, its output and logs included, holds a secret."""
    for path in place.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"fortests0" not in data and servers.ACCESS.encode() not in data, path


def endpoint(name: str, bucket: str, url: str, **keys: Any) -> dict[str, Any]:
    quick = {"attempts": 2, "backoff": 0.05, "connect_timeout": 5.0, "read_timeout": 10.0}
    return {"name": name, "url": f"s3://{bucket}/yoda", "endpoint_url": url, **quick, **keys}


def site(place: runs.Place, *endpoints: dict[str, Any], segment: str = "1MiB", **rules: Any) -> None:
    place.site(segments={"max_bytes": segment}, stageout=list(endpoints), stageout_rules={**RULES, **rules})


def fresh(name: str, url: str) -> str:
    """A bucket of its own for one test."""
    bucket = f"{name}{time.time_ns()}"
    client(url).create_bucket(Bucket=bucket)
    return bucket


def staged(place: runs.Place) -> dict[str, set[str]]:
    """Endpoint -> keys that the journals say are there."""
    out: dict[str, set[str]] = {}
    for note in place.notes("staged"):
        out.setdefault(note["endpoint"], set()).add(note["key"])
    return out


def objects(bucket: str, url: str) -> set[str]:
    found = client(url).list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"].removeprefix("yoda/") for item in found}


def local(place: runs.Place) -> list[Path]:
    return sorted(Path(place.task().root, "segments").rglob("*.tar"))


def true_copies(place: runs.Place, bucket: str, url: str) -> int:
    """Every copy the journals promise has the promised bytes; returns their number."""
    plain, count = client(url), 0
    for note in place.notes("staged"):
        body = plain.get_object(Bucket=bucket, Key=f"yoda/{note['key']}")["Body"].read()
        assert hashlib.sha256(body).hexdigest() == note["sha256"]
        count += 1
    return count


def test_segments_go_to_s3_and_the_merge_comes_from_there(
    place: runs.Place, server: servers.Server, reference: str
) -> None:
    """Local copies are deleted once verified copies are recorded; the same bytes are merged from S3 alone."""
    bucket = fresh("run", server.url)
    site(place, endpoint("primary", bucket, server.url), delete_local=True)
    done = place.run()
    assert done.code == 0, done.text
    assert place.sha256() == reference and local(place) == []
    assert staged(place)["primary"] == objects(bucket, server.url) and len(objects(bucket, server.url)) > 3
    assert true_copies(place, bucket, server.url) > 3
    shutil.rmtree(place.task().merged)
    done = place.run(command="merge")
    assert done.code == 0 and place.sha256() == reference, done.text
    listed = json.loads(place.run("--manifest", command="stageout").out)["objects"]
    assert {one["name"] for one in listed} == objects(bucket, server.url)
    assert sum(one["events"] for one in listed) == EVENTS and all(one["copies"]["primary"] for one in listed)
    status = json.loads(place.run("--json", command="status").out)["storage"]
    assert status["segments"]["staged"] == len(listed) == status["segments"]["deleted_here"]
    assert place.run(command="verify").code == 0


def test_a_primary_that_is_dead_from_the_start_loses_nothing(
    place: runs.Place, rclone: servers.Server, reference: str
) -> None:
    (port,) = servers.free_ports(1)
    bucket = fresh("dead", rclone.url)
    site(
        place,
        endpoint("primary", "nowhere", f"http://127.0.0.1:{port}"),
        endpoint("failover", bucket, rclone.url),
        delete_local=True,
    )
    done = place.run()
    assert done.code == 0, done.text
    assert place.sha256() == reference and local(place) == []
    assert staged(place) == {"failover": objects(bucket, rclone.url)}
    view = json.loads(place.run("--json", command="status").out)["storage"]
    assert view["segments"]["waiting"] == 0 and view["endpoints"][0]["failures"] > 0


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_and_restarted(place: runs.Place, tmp_path: Path, reference: str) -> None:
    with servers.running("rclone", tmp_path / "own") as server:
        bucket = fresh("killed", server.url)
        site(place, endpoint("primary", bucket, server.url))
        run = place.start(env={"YODA_TEST_SLEEP": "0.03"})
        run.until(lambda: objects(bucket, server.url), "a segment staged")
        server.kill()
        before = place.done()
        run.until(lambda: place.done() > before + 20, "more events done while the server is dead")
        server.start()
        done = run.wait()
        assert done.code == 0, done.text
        assert place.sha256() == reference
        left = place.run("--wait", "60s", command="stageout")
        assert left.code == 0, left.text
        assert staged(place)["primary"] == objects(bucket, server.url)
        assert len(objects(bucket, server.url)) == len(local(place))
        true_copies(place, bucket, server.url)


@pytest.mark.slow
def test_both_endpoints_down_and_staged_later(place: runs.Place, tmp_path: Path, reference: str) -> None:
    """Processing goes on and completes, status says who waits, a merge needs no storage; later all is staged."""
    with servers.running("rclone", tmp_path / "own") as server:
        bucket = fresh("later", server.url)
        server.kill()
        (port,) = servers.free_ports(1)
        two = endpoint("primary", "nowhere", f"http://127.0.0.1:{port}"), endpoint("failover", bucket, server.url)
        site(place, *two, delete_local=True, rehome=False)
        done = place.run()
        assert done.code == 0 and place.sha256() == reference, done.text
        view = json.loads(place.run("--json", command="status").out)["storage"]
        assert view["segments"]["staged"] == 0 and view["blocked"] and len(local(place)) > 3
        assert "no endpoint takes anything" in place.run(command="status").out
        done = place.run(command="stageout")
        assert done.code == 75 and " 0 segments staged" in f" {done.out}", done.text
        server.start()
        done = place.run("--wait", "60s", command="stageout")
        assert done.code == 0, done.text
        assert local(place) == [] and true_copies(place, bucket, server.url) > 3
        shutil.rmtree(place.task().merged)
        server.kill()
        done = place.run(command="merge")
        assert done.code == 75 and "--wait" in done.err, done.text
        assert place.progress().done.total == EVENTS  # storage that is away costs no event
        merging = place.start("--wait", "90s", command="merge")
        merging.until(lambda: "trying again" in merging.said(), "the merge to wait")
        server.start()
        assert merging.wait().code == 0 and place.sha256() == reference


@pytest.mark.slow
def test_everything_killed_in_the_middle_of_an_upload(place: runs.Place, swift_bucket: Bucket, reference: str) -> None:
    """kill -9 while a part is on its way: no copy is promised that is not there, no upload in parts stays behind."""
    swift_bucket.proxy.faults = [Fault("hang", "PUT", "partNumber=2")]
    primary = endpoint("primary", swift_bucket.name, swift_bucket.proxy.url, part_size="5MiB", read_timeout=60.0)
    site(place, primary, segment="6MiB", nice=0)
    run = place.start(env={"YODA_TEST_SLEEP": "0.02"})
    run.until(lambda: any(kind == "hang" for _, _, kind in swift_bucket.proxy.seen), "a part on its way")
    run.kill_everything()
    assert swift_bucket.uploads() and staged(place) == {}
    swift_bucket.proxy.faults = []
    done = place.run()
    assert done.code == 0 and place.sha256() == reference, done.text
    done = place.run("--wait", "60s", command="stageout")
    assert done.code == 0, done.text
    assert swift_bucket.uploads() == []
    url = swift_bucket.server.url
    assert true_copies(place, swift_bucket.name, url) >= 2
    assert staged(place)["primary"] == objects(swift_bucket.name, url)
    shutil.rmtree(os.path.join(place.task().root, "segments"))
    shutil.rmtree(place.task().merged)
    done = place.run(command="merge")
    assert done.code == 0 and place.sha256() == reference, done.text


def stagers(run: runs.Running) -> list[int]:
    """The stage-out processes of the run's Droids."""
    found = []
    for process in runs.processes(run.mark):
        try:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"stageout.stager" in words and process.role != "other":
            found.append(process.pid)
    return found


@pytest.mark.parametrize(
    "request_",
    [
        ("PUT", "partNumber=2"),
        pytest.param(("POST", "uploads"), marks=pytest.mark.slow),
        pytest.param(("POST", "uploadId"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_stage_out_process_killed_in_an_upload_is_replaced_in_the_same_run(
    place: runs.Place, swift_bucket: Bucket, reference: str, request_: tuple[str, str]
) -> None:
    """Twice, at the same point: the run completes, one copy of each segment is recorded, no upload is left behind."""
    proxy = swift_bucket.proxy
    proxy.faults = [Fault("hang", *request_)]
    primary = endpoint("primary", swift_bucket.name, proxy.url, part_size="5MiB", read_timeout=60.0)
    site(place, primary, segment="6MiB", nice=0)
    run = place.start(env={"YODA_TEST_SLEEP": "0.03"})
    for count in (1, 2):
        run.until(lambda n=count: sum(kind == "hang" for _, _, kind in proxy.seen) >= n, "an upload under way")
        if count == 2:
            proxy.faults = []
        for pid in stagers(run):
            run.signal(pid)
        run.until(lambda n=count: len(place.notes("stager_gone")) >= n, "its end noted")
    done = run.wait()
    assert done.code == 0 and place.sha256() == reference, done.text
    assert runs.granted_again(place.story()) == [] and len(place.notes("stager_gone")) == 2
    keys = [note["key"] for note in place.notes("staged")]
    assert len(keys) == len(set(keys)) >= 2, keys
    assert set(keys) == objects(swift_bucket.name, swift_bucket.server.url) and swift_bucket.uploads() == []
    assert true_copies(place, swift_bucket.name, swift_bucket.server.url) == len(keys)


@pytest.mark.slow
def test_a_damaged_object_costs_the_events_of_its_damaged_images(
    place: runs.Place, rclone: servers.Server, reference: str
) -> None:
    """The only copy of some images is damaged: the others move, those events are made again, the merge completes."""
    bucket = fresh("damaged", rclone.url)
    site(place, endpoint("primary", bucket, rclone.url), delete_local=True)
    assert place.run().code == 0
    shutil.rmtree(place.task().merged)
    folder = rclone.folder / "data" / bucket / "yoda"
    victim = sorted(folder.rglob("*.tar"))[0]
    with open(victim, "r+b") as file:
        file.seek(300_000)
        file.write(b"\xff" * 4000)
    partial = place.run("--partial", "-o", str(place.folder / "part"), command="merge")
    assert partial.code == 75 and "are not in it" in partial.err, partial.text
    done = place.run(command="merge")
    assert done.code == 75, done.text
    pending = EVENTS - place.progress().done.total
    assert 0 < pending <= 8  # two images at most, of four events each
    assert place.notes("salvaged")[0]["pending"] == pending
    done = place.run()
    assert done.code == 0 and place.sha256() == reference, done.text
    assert runs.granted_again(place.story()) == []
    assert place.run(command="stageout").code == 0 and place.run(command="verify").code == 0


def test_an_endpoint_that_is_another_server_now_makes_no_event_again(
    place: runs.Place, swift: servers.Server, tmp_path: Path, reference: str
) -> None:
    """Same name, same bucket, another service, which has none of the objects: they are where they were."""
    bucket = fresh("moved", swift.url)
    site(place, endpoint("primary", bucket, swift.url), delete_local=True)
    assert place.run().code == 0 and local(place) == []
    shutil.rmtree(place.task().merged)
    with servers.running("rclone", tmp_path / "own") as other:
        client(other.url).create_bucket(Bucket=bucket)
        site(place, endpoint("primary", bucket, other.url), delete_local=True)
        done = place.run("--site", str(place.folder / "site.yaml"), command="merge")
        assert done.code == 75 and "is not in the site file" in done.text, done.text
        assert place.done() == EVENTS
    site(place, endpoint("primary", bucket, swift.url), delete_local=True)
    done = place.run(command="merge")
    assert done.code == 0 and place.sha256() == reference, done.text
