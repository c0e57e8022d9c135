"""What a person waits for, and what continuous integration runs besides.

Tests marked `slow` repeat, on another MPI or another server or for longer, what a quicker test has shown. They run
where CI is set in the environment, or with `--slow`; elsewhere they are left out, so that the suite takes minutes.
"""

from __future__ import annotations

import glob
import os
import shutil

import pytest

# Started processes find compiled modules, as those of an installation do; else each compiles all of them anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_sessionstart() -> None:
    """Remove what launchers of earlier sessions left when they were killed: /tmp/ompi.PID. One that starts with such
    a process id would end at once."""
    for folder in glob.glob("/tmp/ompi.*"):
        number = folder.rpartition(".")[2]
        if number.isdigit() and not os.path.exists(f"/proc/{number}") and os.stat(folder).st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that are marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or os.environ.get("CI"):
        return
    slow = [item for item in items if "slow" in item.keywords]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]
