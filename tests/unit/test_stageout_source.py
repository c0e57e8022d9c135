"""Images from anywhere: which copy is read, what is damage and what is only away; and the probe of an endpoint."""

from __future__ import annotations

import errno
import http.server
import json
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eventrange.errors import ImageDamaged, StorageTransient
from eventrange.segment import checksum, writer
from eventrange.taskdir import TaskDir
from stageout.alert import alert
from stageout.catalogue import Catalogue, SegmentId
from stageout.opening import open_endpoint
from stageout.probe import _clock, probe
from stageout.site import EndpointSite, StageoutRules
from stageout.source import Images
from stageout.winners import PLACED

IMAGES = [bytes([n]) * 3000 for n in range(200)]


class World:
    """One segment of 200 images in a task directory, with two copies on file endpoints."""

    def __init__(self, folder: Path) -> None:
        self.taskdir = TaskDir(str(folder / "task"))
        self.path = Path(self.taskdir.segment("a", 1, 0, "tar"))
        self.path.parent.mkdir(parents=True)
        out = writer(str(self.path))
        self.placed = np.zeros(len(IMAGES), PLACED)
        for number, data in enumerate(IMAGES):
            row = self.placed[number]
            row["start"] = row["keep_start"] = number
            row["stop"] = row["keep_stop"] = number + 1
            row["offset"] = out.append(f"t.{number + 1}.h5", data)
            row["size"], row["checksum"], row["droid"] = len(data), checksum(data), 1
        sealed = out.seal()
        sums = {"size": sealed.size, "adler32": f"{sealed.adler32:08x}", "sha256": sealed.sha256}
        self.catalogue = Catalogue()
        self.catalogue.add("a", {"note": "sealed", "droid": 1, "segment": 0, "members": 1, **sums})
        self.sites, self.copies = [], {}
        for name in ("primary", "failover"):
            self.sites.append(EndpointSite(name=name, url=f"file://{folder}/{name}"))
            (folder / name).mkdir()
            (folder / name / "another.tar").touch()
            self.copies[name] = folder / name / "k.tar"
            shutil.copy(self.path, self.copies[name])
            where = {"endpoint": name, "key": "k.tar", "url": self.sites[-1].url + "/k.tar"}
            self.catalogue.add("a", {"note": "staged", "droid": 1, "segment": 0, **where, **sums})

    def images(self, *endpoints: Any) -> Images:
        def open_all() -> list[Any]:
            return list(endpoints) or [open_endpoint(site) for site in self.sites]

        return Images(self.taskdir, ["a"], self.placed, self.catalogue, open_all)

    def spoil(self, path: Path, number: int) -> None:
        with open(path, "r+b") as file:
            file.seek(int(self.placed["offset"][number]) + 100)
            file.write(b"?")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Down:
    """An endpoint that does not answer."""

    def __init__(self, name: str) -> None:
        self.name, self.asked = name, 0

    def url(self, key: str) -> str:
        return f"down://{self.name}/{key}"

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        self.asked += 1
        raise StorageTransient(endpoint=self.name, operation="get", key=key, detail="down")

    def close(self) -> None:
        pass


def test_no_endpoint_is_opened_for_what_is_here(world: World) -> None:
    images = Images(world.taskdir, ["a"], world.placed, world.catalogue, lambda: pytest.fail("opened"))
    assert [images.fetch(row) for row in world.placed] == IMAGES


def test_what_is_damaged_here_and_on_the_primary_comes_from_the_failover(world: World) -> None:
    for number in (3, 7):
        world.spoil(world.path, number)
    world.spoil(world.copies["primary"], 7)
    images = world.images()
    assert [images.fetch(row) for row in world.placed] == IMAGES and not images.away


def test_a_deleted_segment_is_read_in_few_large_pieces_by_many_threads(world: World) -> None:
    world.path.unlink()
    images = world.images()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.fetch, world.placed)) == IMAGES
    assert images.remote_bytes < 1.3 * sum(map(len, IMAGES))
    assert len(images._spans[SegmentId("a", 1, 0)]) == 1


def test_only_what_is_needed_travels(world: World) -> None:
    world.path.unlink()
    world.placed = world.placed[[0, 1, 199]]
    images = world.images()
    assert [images.fetch(row) for row in world.placed] == [IMAGES[0], IMAGES[1], IMAGES[199]]
    assert images.remote_bytes < 5 * 3000


def test_storage_that_is_down_is_asked_once_and_is_no_damage(world: World) -> None:
    world.path.unlink()
    down = [Down("primary"), Down("failover")]
    images = world.images(*down)
    for row in world.placed[:5]:
        with pytest.raises(ImageDamaged, match="cannot be reached"):
            images.fetch(row)
    assert [one.asked for one in down] == [1, 1] and len(images.away) == 5
    assert images.offline == {"primary": "down", "failover": "down"}


def test_many_at_once_are_those_whole_in_the_task_directory(world: World) -> None:
    world.spoil(world.path, 3)
    found = world.images().fetch_many(world.placed)
    assert found[3] is None and [bytes(view) for view in found if view is not None] == IMAGES[:3] + IMAGES[4:]
    world.path.unlink()
    assert world.images().fetch_many(world.placed) == [None] * len(IMAGES)


def test_missing_everywhere_is_damage(world: World) -> None:
    world.path.unlink()
    for path in world.copies.values():
        path.unlink()
    images = world.images()
    with pytest.raises(ImageDamaged):
        images.fetch(world.placed[0])
    assert not images.away and not images.offline


def test_a_folder_where_nothing_is_mounted_has_lost_nothing(world: World) -> None:
    world.path.unlink()
    for path in world.copies.values():
        shutil.rmtree(path.parent)
        path.parent.mkdir()
    images = world.images()
    with pytest.raises(ImageDamaged, match="is its file system mounted"):
        images.fetch(world.placed[0])
    assert len(images.away) == 1 and set(images.offline) == set(world.copies)


def test_a_copy_that_ends_early_costs_what_is_behind_its_end(world: World) -> None:
    world.path.unlink()
    for path in world.copies.values():
        os.truncate(path, int(world.placed[-1]["offset"]) + 1)
    images = world.images()
    assert [images.fetch(row) for row in world.placed[:-1]] == IMAGES[:-1]
    with pytest.raises(ImageDamaged):
        images.fetch(world.placed[-1])
    assert not images.away


def test_a_copy_on_an_endpoint_nobody_knows_any_more_is_away(world: World) -> None:
    world.path.unlink()
    world.sites = []
    images = Images(world.taskdir, ["a"], world.placed, world.catalogue, list)
    with pytest.raises(ImageDamaged, match="not in the site file"):
        images.fetch(world.placed[0])
    assert len(images.away) == 1


def test_a_copy_on_a_server_that_is_not_the_one_we_ask_is_away(world: World) -> None:
    """Buckets may have the same name on two servers: that one of them has no such object says nothing of the other."""
    world.path.unlink()
    for path in world.copies.values():
        path.unlink()
    known = world.catalogue.segments[SegmentId("a", 1, 0)]
    for name, copy in known.copies.copy().items():
        where = {"endpoint": name, "key": copy.key, "url": copy.url, "service": "https://s3.example.org"}
        sums = {"size": known.size, "adler32": f"{known.adler32:08x}", "sha256": known.sha256}
        world.catalogue.add("a", {"note": "staged", "droid": 1, "segment": 0, **where, **sums})
    images = world.images()
    with pytest.raises(ImageDamaged, match=r"k\.tar of https://s3\.example\.org is not in the site file"):
        images.fetch(world.placed[0])
    assert len(images.away) == 1
    for name, copy in known.copies.items():
        known.copies[name] = copy._replace(service="")  # noted by the endpoints that we ask
    images = world.images()
    with pytest.raises(ImageDamaged):
        images.fetch(world.placed[0])
    assert not images.away and not images.offline


def test_a_copy_where_the_site_file_no_longer_looks_is_away(world: World, tmp_path: Path) -> None:
    """The endpoints keep their names and get other addresses; then one gets the old address under another name."""
    world.path.unlink()
    old = world.sites
    world.sites = [EndpointSite(name=site.name, url=f"file://{tmp_path}/new/{site.name}") for site in old]
    for site in world.sites:
        (tmp_path / "new" / site.name).mkdir(parents=True)
    images = world.images()
    with pytest.raises(ImageDamaged, match=r"primary/k\.tar is not in the site file"):
        images.fetch(world.placed[0])
    assert len(images.away) == 1 and set(images.offline) == {"primary", "failover"}
    world.sites.append(EndpointSite(name="old", url=f"{old[0].url}/"))
    assert world.images().fetch(world.placed[0]) == IMAGES[0]
    world.copies["primary"].unlink()
    world.copies["failover"].rename(tmp_path / "new" / "failover" / "k.tar")  # moved by whoever changed the site file
    assert world.images().fetch(world.placed[0]) == IMAGES[0]


def test_damage_where_the_objects_were_moved_to_is_damage(world: World, tmp_path: Path) -> None:
    world.path.unlink()
    world.sites = [EndpointSite(name=site.name, url=f"file://{tmp_path}/new/{site.name}") for site in world.sites]
    for name, path in world.copies.items():
        world.spoil(path, 0)
        (tmp_path / "new" / name).mkdir(parents=True)
        path.rename(tmp_path / "new" / name / "k.tar")
    images = world.images()
    with pytest.raises(ImageDamaged):
        images.fetch(world.placed[0])
    assert not images.away and images.fetch(world.placed[1]) == IMAGES[1]


@pytest.mark.parametrize(("code", "away"), [(errno.EACCES, 1), (errno.ESTALE, 1), (errno.EMFILE, 1), (errno.EIO, 0)])
def test_what_cannot_be_read_now_may_be_whole(
    world: World, monkeypatch: pytest.MonkeyPatch, code: int, away: int
) -> None:
    for path in world.copies.values():
        path.unlink()
    really = os.open

    def refuses(path: Any, *rest: Any, **more: Any) -> int:
        if str(path) == str(world.path):
            raise OSError(code, os.strerror(code), path)
        return really(path, *rest, **more)

    images = world.images()
    with monkeypatch.context() as now:
        now.setattr(os, "open", refuses)
        with pytest.raises(ImageDamaged, match=os.strerror(code)):
            images.fetch(world.placed[0])
    assert len(images.away) == away and list(images.offline) == ["the task directory"] * away
    assert images.fetch(world.placed[0]) == IMAGES[0]


# --- probe and alert ------------------------------------------------------------------------------------------------


def test_a_good_endpoint_is_found_good_and_left_clean(tmp_path: Path) -> None:
    found = probe(EndpointSite(name="a", url=f"file://{tmp_path}"))
    assert {one.level for one in found} <= {"ok", "warn"} and len(found) == 6
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = probe(EndpointSite(name="a", url=f"file://{tmp_path}/missing/deep"))
    assert found[-1].level == "fail" and found[-1].what.startswith("write") and found[-1].todo


def test_a_server_that_is_not_there_is_a_finding() -> None:
    found = probe(EndpointSite(name="a", url="s3://bucket/x", endpoint_url="http://127.0.0.1:9"))
    assert any(one.level == "fail" and "cannot be reached" in one.what for one in found)


@pytest.mark.parametrize(("offset", "level"), [(0, "ok"), (30, "ok"), (-120, "warn"), (1200, "fail"), (-1200, "fail")])
def test_clocks(offset: float, level: str) -> None:
    from email.utils import formatdate

    assert _clock(formatdate(1_000_000 + offset, usegmt=True), 1_000_000.2, 1_000_000.4)[0].level == level


def test_a_server_without_a_clock_is_a_warning() -> None:
    assert _clock(None, 0.0, 1.0)[0].level == "warn"


def test_people_are_told_by_command_and_by_web_hook(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.handle_request, daemon=True).start()
    out = tmp_path / "told.json"
    command = (sys.executable, "-c", f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())")
    rules = StageoutRules(alert_command=command, alert_url=f"http://127.0.0.1:{server.server_address[1]}/hook")
    alert(rules, {"endpoint": "primary", "state": "exhausted"})
    server.server_close()
    assert heard == [{"endpoint": "primary", "state": "exhausted"}] == [json.loads(out.read_text())]


def test_an_alert_that_cannot_be_given_is_only_logged(tmp_path: Path) -> None:
    alert(StageoutRules(alert_command=(str(tmp_path / "missing"),), alert_url="http://127.0.0.1:9/"), {"endpoint": "a"})
    alert(StageoutRules(alert_command=(sys.executable, "-c", "raise SystemExit(3)")), {"endpoint": "a"})


def test_a_server_has_one_name_however_it_is_spelled() -> None:
    def service(url: str | None) -> str:
        return EndpointSite(name="a", url="s3://bucket/", endpoint_url=url).service

    assert service(None) == ""
    assert service("https://S3.Example.org/") == service("https://s3.example.org:443") == "https://s3.example.org:443"
    assert service("http://s3.example.org") != service("https://s3.example.org")


@pytest.mark.parametrize("url", ["http://", "https://host:99999", "https://host:port", "http://[::1"])
def test_an_address_without_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        EndpointSite(name="a", url="s3://b/", endpoint_url=url)
