"""Every command of the README and of the examples' READMEs is run, in order, as it stands there.

The two set-up commands would install what is being tested, and run this test: they are checked for their form only.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/README.md"))
#: Takes a minute of real physics; tests/docs/test_examples.py runs it with fewer events.
LONG = ("leadlead.yaml",)
NEEDS = {"pythia8": "pythia8mc", "nanoaod": "uproot"}


def blocks(*languages: str) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in FENCE.finditer(README) if found[1] in languages]


def marked(mark: str) -> str:
    """The one command in the block below `<!-- mark -->`, found as .ci/run finds it."""
    found = re.search(rf"<!-- {mark} -->\n```\n(.*?)\n```", README, re.DOTALL)
    assert found, f"the README has no block marked {mark}"
    return found[1]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with a copy of the examples and a `yoda` on the PATH; and the environment for it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__", "*.task"))
    tools = tmp_path / ".tools"
    tools.mkdir()
    code = "import sys; from eventrange.entry import main; sys.exit(main())"
    for name, script in (
        ("yoda", f'exec {shlex.quote(sys.executable)} -c "{code}" "$@"'),
        ("python", f'exec {shlex.quote(sys.executable)} "$@"'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    beside = os.path.dirname(sys.executable)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tools), beside, os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        # a small machine may have fewer cores than the README has ranks
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    # In /tmp itself a folder left by a launcher of the same process id that was killed keeps Open MPI from starting.
    with tempfile.TemporaryDirectory(prefix="yt", dir="/tmp") as own:
        yield tmp_path, {**environment, "PRTE_MCA_prte_tmpdir_base": own}


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("mark", ["main job", "tests"])
def test_set_up_commands_have_the_form_others_rely_on(mark: str) -> None:
    command = marked(mark)
    assert "\n" not in command
    subprocess.run(["bash", "-n", "-c", command], check=True)
    steps = command.split(" && ")
    assert steps[0] == "python3 -m venv venv" and steps[1].startswith("venv/bin/pip install") and len(steps) == 3
    extras = re.search(r"'\.\[([\w,]+)\]'", steps[1])
    assert extras
    known = (ROOT / "setup.cfg").read_text()
    for extra in extras[1].split(","):
        assert re.search(rf"^{extra} ?=", known, re.MULTILINE), extra
    program, *arguments = shlex.split(steps[2])
    if mark == "main job":
        assert program == "venv/bin/yoda" and arguments[0] == "run" and (ROOT / arguments[1]).exists()
    else:
        assert program == "venv/bin/pytest"


def test_nothing_else_is_set_up() -> None:
    assert README.count("python3 -m venv") == 2


@pytest.mark.skipif(shutil.which("mpiexec", path=os.path.dirname(sys.executable)) is None, reason="no mpiexec here")
def test_readme(place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    for language, script in blocks("sh", "python"):
        if language == "python":
            if importlib.util.find_spec("awkward") is None:
                continue
            (folder / "block.py").write_text(script)
            script = "python block.py"
        run(script, folder, environment)
    assert (folder / "toy.task" / "report.html").exists() and (folder / "toy.html").stat().st_size < 5e6
    assert (folder / "mine" / "dice.task" / "merged" / "dice.h5").exists()
    assert (folder / "attempts.csv").read_text().startswith("allocation,record,start,stop")


def commands(name: str) -> list[str]:
    """Lines of the blocks of an example's README, which are indented by four."""
    lines = (ROOT / "examples" / name / "README.md").read_text().splitlines()
    return [line[4:] for line in lines if re.match(r"    (yoda|python|cc) ", line)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, place: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name == "command" and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    folder, environment = place
    there = commands(name)
    assert any(line.startswith("yoda run") for line in there)
    for line in there:
        if not any(word in line for word in LONG):
            run(line.replace("/tmp/", f"{tmp_path}/"), folder / "examples" / name, environment)


def test_every_command_of_the_command_line_is_in_the_readme() -> None:
    from yoda.cli import parser

    (actions,) = [action for action in parser()._actions if action.choices]
    assert actions.choices is not None
    for name in actions.choices:
        assert f"yoda {name}" in README, name


def test_commands_in_all_pages_exist() -> None:
    from yoda.cli import parser

    (actions,) = [action for action in parser()._actions if action.choices]
    assert actions.choices is not None
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *(ROOT / "examples").glob("*/README.md")]:
        for name in re.findall(r"(?:`|^ *)yoda ([a-z]+)\b", page.read_text(), re.MULTILINE):
            assert name in actions.choices, (page.name, name)
