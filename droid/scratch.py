"""A Droid's private folder on its node, and what earlier Droids that were killed left of theirs.

A Droid that is killed cannot tidy up, and neither can its zygote, which the kernel kills with it. So the next Droid on
the node does it for them. The folder may be on a file system that other nodes see too: the name tells whose it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile

_SHARED, _NOTED = "/dev/shm/", "shared-memory"
_MARK = re.compile(r"yoda-droid-(?P<host>.+)-(?P<pid>\d+)-[^-]+\Z")


def make(base: str | None) -> str:
    """A new folder in `base`, or in the system's place for temporary files where `base` is not there."""
    place = base if base and os.path.isdir(base) else tempfile.gettempdir()
    _sweep(place)
    return tempfile.mkdtemp(prefix=f"yoda-droid-{_host()}-{os.getpid()}-", dir=place)


def _sweep(place: str) -> None:
    """Remove folders of Droids of this node and user whose process is gone."""
    try:
        entries = list(os.scandir(place))
    except OSError:
        return
    for entry in entries:
        found = _MARK.match(entry.name)
        if found is None or found["host"] != _host() or _alive(found["pid"]):
            continue
        try:
            ours = entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid()
        except OSError:
            continue  # another Droid was faster
        if ours:
            _free(entry.path)
            shutil.rmtree(entry.path, ignore_errors=True)


def note_shared(folder: str) -> None:
    """Note in `folder` which shared memory this process has: MPI makes it, and does not remove it when it is killed."""
    with contextlib.suppress(OSError), open(os.path.join(folder, _NOTED), "w") as file:
        file.write("\n".join(_mapped("self")))


def _free(folder: str) -> None:
    """Remove the shared memory noted in `folder` that nobody has any more; it is the node's memory until then."""
    try:
        with open(os.path.join(folder, _NOTED)) as file:
            noted = set(file.read().split("\n"))
    except OSError:
        return
    for pid in os.listdir("/proc") if noted else ():
        if pid.isdigit():
            noted -= _mapped(pid)
    for path in noted:
        with contextlib.suppress(OSError):
            if path.startswith(_SHARED) and os.lstat(path).st_uid == os.getuid():
                os.unlink(path)


def _mapped(pid: str) -> set[str]:
    """Files of shared memory a process has mapped. Some are removed as soon as all have them, as by MPICH's UCX."""
    try:
        with open(f"/proc/{pid}/maps") as file:
            paths = {line[line.index(_SHARED) :].rstrip("\n") for line in file if _SHARED in line}
            return {path for path in paths if not path.endswith(" (deleted)")}
    except OSError:
        return set()


def _alive(pid: str) -> bool:
    """Whether the process is there; one that has ended and whom nobody has waited for is not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _host() -> str:
    return socket.gethostname()
