"""No secret in any file, output or error: whole runs, every command that looks at a task, and every injected fault.

The credentials come from the environment, with a session token, from a file and from a profile that is wrong; what is
searched for are their values, and signatures made with them.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
import yaml
from buckets import Bucket
from faultproxy import ANSWERS, Fault

from eventrange.errors import StorageError
from stageout.endpoint import Tools
from stageout.opening import open_endpoint
from stageout.probe import probe
from stageout.s3client import S3Client

sys.path.append(str(Path(__file__).parents[1] / "mpi"))

import runs

TOKEN = "TOKENfortests0"
SIGNED = re.compile(r"(?i)(Signature|Credential|Security-Token)[=:]\s*(?!\*\*\*)[\w/+%-]+|AWSAccessKeyId=(?!\*\*\*)\w+")
KINDS = [*ANSWERS, "reset", "lost", "truncated", "etag", "garbage", "echo"]


def search(text: str, where: object) -> None:
    """Fails when `text` holds a secret or a signature."""
    assert "fortests0" not in text and servers.ACCESS not in text, where
    found = SIGNED.search(text)
    assert found is None, (where, found)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", servers.ACCESS),
        ("AWS_SECRET_ACCESS_KEY", servers.SECRET),
        ("AWS_SESSION_TOKEN", TOKEN),
    ):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("token")
def test_no_fault_brings_a_secret_into_an_error(
    swift_bucket: Bucket, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every verb meets the fault; with `echo` the server repeats all that it was sent, headers with the signature
    included. Causes and contexts of errors count, as a traceback would show them."""
    caplog.set_level("DEBUG")
    swift_bucket.proxy.faults = [Fault(kind)]
    endpoint = open_endpoint(swift_bucket.site(attempts=2, read_timeout=2.0), Tools(sleep=lambda seconds: None))
    data = b"x" * 1000
    sums: dict[str, Any] = {"size": 1000, "adler32": zlib.adler32(data), "sha256": hashlib.sha256(data).hexdigest()}
    failed = 0
    for verb in (
        lambda: endpoint.put(data, "k", **sums),
        lambda: endpoint.put(b"x" * (6 << 20), "big", **{**sums, "size": 6 << 20}),
        lambda: endpoint.head("k"),
        lambda: endpoint.get_range("k", 0, 10),
        lambda: list(endpoint.list("")),
        lambda: endpoint.delete("k"),
        lambda: endpoint.clean(""),
    ):
        try:
            verb()
        except StorageError as error:
            failed += 1
            seen: BaseException | None = error
            while seen is not None:
                search(f"{seen} {seen!r} {getattr(seen, 'values', '')}", (kind, seen))
                seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    endpoint.close()
    assert failed or kind in ("lost", "etag", "501")
    search(caplog.text, "log")
    for one in probe(swift_bucket.site()):
        search(f"{one.what} {one.todo}", "doctor")


def test_addresses_with_signatures_are_blanked(swift_bucket: Bucket) -> None:
    """A presigned address is a credential, too: in headers, queries, any case, and cut short."""
    client = S3Client(swift_bucket.site(), Tools(), 1)
    signed = swift_bucket.plain.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    old = "https://h/b/k?AWSAccessKeyId=AKIA123&Signature=abc%2Fdef%3D&Expires=1"
    header = "Authorization: AWS4-HMAC-SHA256 Credential=AKIA123/2026/us-east-1/s3/aws4_request, Signature=0123abc"
    token = "x-amz-security-token: FwoGZXIvYXdzEJr//////////wEaDN"
    for text in (signed, signed.upper(), old, header, token, f"{{'X-Amz-Credential': 'AKIA123', {header!r}}}"):
        shown = client.scrub(text)
        assert SIGNED.search(shown) is None and "AKIA123" not in shown and "0123abc" not in shown, shown
        assert "FwoGZXIv" not in shown


@pytest.fixture
def place(tmp_path: Path) -> Iterator[runs.Place]:
    mpi = runs.here()
    if mpi is None:
        pytest.skip("no mpiexec in this environment: pip install 'yoda-droid[mpi]'")
    with runs.place(mpi, tmp_path / "place") as made:
        yield made


@pytest.mark.usefixtures("token")
def test_no_command_writes_a_secret_anywhere(place: runs.Place, swift_bucket: Bucket) -> None:
    """A run whose storage fails in several ways, and all that looks at it afterwards; every file and every output."""
    place.job("def one(event, random):\n    return {'x': random.normal(size=500)}\n", "one")
    url = swift_bucket.proxy.url
    swift_bucket.proxy.faults = [
        Fault("echo", "PUT", times=3),
        Fault("403", "POST", times=2),
        Fault("garbage", times=2),
    ]
    quick: dict[str, Any] = {"attempts": 1, "endpoint_url": url, "read_timeout": 5.0}
    place.site(
        stageout=[
            {"name": "wrong", "url": f"s3://{swift_bucket.name}/w", "profile": "wrong", **quick},
            {"name": "nobody", "url": "s3://nosuchbucket/n", **quick},
            {"name": "good", "url": f"s3://{swift_bucket.name}/g", **quick},
        ],
        stageout_rules={"tries": 1, "backoff": 0.05, "backoff_max": 0.1, "breaker": {"samples": 1}},
        segments={"max_bytes": "64KiB"},
    )
    done = place.run()
    assert done.code == 0, done.text
    said = [done.text]
    site = str(place.folder / "site.yaml")
    for words, command in (
        (("--site", site), "stageout"),
        (("--manifest",), "stageout"),
        (("--sweep", "--site", site), "stageout"),
        (("--json",), "status"),
        ((), "status"),
        ((), "journal"),
        (("--json",), "journal"),
        ((), "report"),
        (("generate:1-10",), "explain"),
        ((), "verify"),
    ):
        said.append(place.run(*words, command=command).text)
    said.append(place.run("--site", site, command="config").text)
    doctor = [place.mpi.python, runs.ENTRY, "doctor", "--site", site, "--task", str(place.folder / "task")]
    said.append(subprocess.run(doctor, capture_output=True, text=True, env=place.mpi.environment()).stdout)
    assert "stageout: good" in said[-1]
    for text in said:
        search(text, text[:200])
    assert len(json.loads(place.run("--json", command="status").out)["storage"]["endpoints"]) == 3
    assert yaml.safe_load(Path(site).read_text())["stageout"][0]["profile"] == "wrong"
    files = [path for path in place.folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"report.html", "task.yaml", "breaker.json"} <= names
    assert any(name.endswith(".yj") for name in names)
    assert any("prom" in name or "metrics" in name for name in names), names
    for path in files:
        if path.suffix not in (".tar", ".h5"):
            search(path.read_bytes().decode("latin-1"), path)
