"""docs/storage.md: the manifest has the keys of the table, and the example for Rucio works on a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from eventrange import records
from eventrange.journal import JournalWriter
from eventrange.records import Kind
from eventrange.taskdir import TaskDir
from yoda.frozen import Frozen, FrozenInputs, FrozenPayload
from yoda.manifest import manifest

PAGE = (Path(__file__).parents[2] / "docs" / "storage.md").read_text()


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """The manifest of a task with two sealed segments, of which one is staged."""
    taskdir = TaskDir(str(tmp_path))
    axis = {"files": [{"path": "generate", "events": 20}]}
    payload = FrozenPayload("p.py:P", None, {}, "0" * 64)
    frozen = Frozen("t", 1, FrozenInputs("generate", 20, {}, ()), payload, "job.yaml", {}, axis)
    os.makedirs(taskdir.journals)
    out = JournalWriter(taskdir.journal("a"), frozen.fingerprint, "a")
    place = {"name": "primary", "url": "s3://bucket/p", "endpoint_url": "https://s3.example.org:9000"}
    out.note("endpoints", endpoints=[place], rules={})
    sums = {"size": 10, "adler32": "0000002a", "sha256": "ab" * 32}
    for n in range(2):
        out.append(records.new(1, kind=Kind.DONE, start=10 * n, stop=10 * n + 10, droid=1, segment=n, size=9))
        out.note("sealed", droid=1, segment=n, members=1, **sums)
    key = "t/a/00001-0000.tar"
    out.note("staged", droid=1, segment=0, endpoint="primary", key=key, url=f"s3://bucket/p/{key}", **sums)
    out.flush()
    out.file.close()
    return manifest(taskdir, frozen)


def test_the_table_has_the_keys(found: dict[str, Any]) -> None:
    table = PAGE[PAGE.index("| `version`") : PAGE.index("An object with no events")]
    told = {
        name for row in table.split("\n") if row for name in re.findall(r"`(?:objects\[\]\.)?(\w+)`", row.split("|")[1])
    }
    assert told == {*found, *found["objects"][0]} - {"objects"}


def test_the_example_registers_what_is_staged(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    given: list[dict[str, Any]] = []

    class Client:
        def add_replicas(self, rse: str, files: list[dict[str, Any]]) -> None:
            given.extend(files)

    module = types.ModuleType("rucio.client")
    module.Client = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rucio", types.ModuleType("rucio"))
    monkeypatch.setitem(sys.modules, "rucio.client", module)
    monkeypatch.setattr(subprocess, "check_output", lambda words: json.dumps(found).encode())
    exec(code, {})
    assert given == [
        {
            "scope": "user.me",
            "name": "t.a.00001-0000.tar",
            "bytes": 10,
            "adler32": "0000002a",
            "pfn": "s3://s3.example.org:9000/bucket/p/t/a/00001-0000.tar",
        }
    ]
