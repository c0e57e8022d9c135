"""The zygote ends quietly with its Droid, whatever was still unread between them."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from droid import zygote
from droid.payload import load
from droid.slots import Slots

PAYLOAD = "def light(event, random):\n    return {'x': 1.0}\n"


def test_droid_that_leaves_without_reading_is_no_crash(tmp_path: Path) -> None:
    """The zygote says that it is ready, and the Droid closes unread: its guardian must not start another."""
    (tmp_path / "payload.py").write_text(PAYLOAD)
    tries = tmp_path / "tries"

    def payload() -> object:
        with tries.open("a") as file:
            file.write("x")
        return load(f"{tmp_path}/payload.py:light", {})

    control = zygote.start(zygote.Blueprint(load=payload, scratch=str(tmp_path)), Slots(1))
    assert select.select([control], [], [], 30)[0], "the zygote is not ready"
    control.close()  # with its word unread, so its own read fails with ECONNRESET
    guardian, _ = wait_child()
    assert guardian
    assert tries.read_text() == "x", "the payload was set up again for a Droid that has gone"


def wait_child() -> tuple[int, int]:
    """The next child of this process that ends."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            return pid, status
        time.sleep(0.02)
    raise AssertionError("the guardian does not end")
