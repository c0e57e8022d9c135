"""A Droid that cannot look whether its launcher is there, because MPI lets no Python run, is ended by its guardian."""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from droid import zygote
from droid.slots import Slots
from eventrange.errors import RUN_AGAIN


class Payload:
    jagged: frozenset[str] = frozenset()

    def setup(self) -> None: ...


def test_a_droid_that_stays_when_its_launcher_dies_is_ended(tmp_path: Path) -> None:
    assert ends(tmp_path, lambda: os.getppid(), within=30)


class Broken(Payload):
    def setup(self) -> None:
        raise ValueError("no calibration")


class Deadly(Payload):
    def setup(self) -> None:
        os._exit(2)


@pytest.mark.parametrize("payload", [Broken, Deadly])
def test_so_is_one_whose_payload_cannot_be_made(tmp_path: Path, payload: type[Payload]) -> None:
    assert ends(tmp_path, lambda: os.getppid(), within=30, payload=payload)


def test_a_droid_has_time_to_end_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "BY_ITSELF", 3600.0)
    assert not ends(tmp_path, lambda: os.getppid(), within=1)


def test_a_droid_without_launcher_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "BY_ITSELF", 0.0)
    assert not ends(tmp_path, lambda: 0, within=1)


def test_a_launcher_that_cannot_be_watched_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> int:
        raise PermissionError

    watch = os.pidfd_open
    monkeypatch.setattr(zygote, "BY_ITSELF", 0.0)
    monkeypatch.setattr(os, "pidfd_open", refused)
    assert not ends(tmp_path, lambda: os.getppid(), within=1, watch=watch)


def test_a_launcher_that_has_died_before(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        zygote.start(zygote.Blueprint(Payload, str(tmp_path)), Slots(1), os.getpid())
    assert ended.value.code == RUN_AGAIN


def ends(
    scratch: Path,
    launcher: Callable[[], int],
    within: float,
    watch: Any = os.pidfd_open,
    payload: type[Payload] = Payload,
) -> bool:
    """Whether a Droid that is in MPI, and keeps Python from running, ends so many seconds after its launcher died."""
    told, tell = os.pipe()
    above = os.fork()
    if not above:
        try:
            if not os.fork():
                control = zygote.start(zygote.Blueprint(payload, str(scratch)), Slots(1), launcher())
                select.select([control], [], [], 30)
                os.write(tell, b"%d" % os.getpid())
                ctypes.PyDLL(None).sleep(60)
            os.waitpid(-1, 0)
        finally:
            os._exit(1)
    os.close(tell)
    with open(told, "rb") as file:
        droid = int(os.read(file.fileno(), 20))
    watched = watch(droid)
    try:
        os.kill(above, signal.SIGKILL)
        os.waitpid(above, 0)
        return bool(select.select([watched], [], [], within)[0])
    finally:
        try:
            signal.pidfd_send_signal(watched, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(watched)
