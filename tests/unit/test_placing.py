"""Which MPI an mpiexec belongs to, and what it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from yoda.placing import launcher


def place(folder: Path, says: str, *beside: str) -> Path:
    """An mpiexec that says `says` when it is run, and leaves a mark."""
    folder.mkdir(exist_ok=True)
    mpiexec = folder / "mpiexec"
    mpiexec.write_text(f"#!/bin/sh\n: > {folder}/ran\necho '{says}'\n")
    mpiexec.chmod(0o755)
    for name in beside:
        (folder / name).touch()
    return mpiexec


OPEN_5, OPEN_4, OTHER = "mpirun (Open MPI) 5.0.11", "mpiexec (OpenRTE) 4.1.4", "HYDRA build details:"


@pytest.mark.parametrize(
    ("says", "beside", "ran", "flags"),
    [
        ("", ["prterun"], False, ["--oversubscribe", "--with-ft", "ulfm", "btl"]),
        ("", ["hydra_pmi_proxy"], False, []),
        (OPEN_5, ["hydra_pmi_proxy", "prterun"], True, ["--oversubscribe", "--with-ft", "ulfm", "btl"]),
        (OPEN_4, [], True, ["--oversubscribe"]),
        (OTHER, ["hydra_pmi_proxy", "prterun"], True, []),
    ],
)
def test_the_mpiexec_of_the_python_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, beside: list[str], ran: bool, flags: list[str]
) -> None:
    mpiexec = place(tmp_path / "bin", says, *beside)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    command, _ = launcher(None, 3, {})
    assert command[0] == str(mpiexec) and command[-2:] == ["-n", "3"]
    assert (tmp_path / "bin" / "ran").exists() == ran
    assert [word for word in command if word in ("--oversubscribe", "--with-ft", "ulfm", "btl")] == flags


def test_what_lies_beside_a_system_mpiexec_may_belong_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path / "usr", OPEN_4, "prterun")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'usr'}:/usr/bin:/bin")
    command, _ = launcher(None, 2, {"PATH": "/usr/bin:/bin"})
    assert "--oversubscribe" in command and "--with-ft" not in command
