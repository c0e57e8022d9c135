"""The house stands: imports only go down, none go round in a circle, and MPI is touched in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {"eventrange": 0, "stageout": 1, "droid": 2, "slurm": 2, "yoda": 3}
MPI = "mpi4py.MPI"


def _modules() -> dict[str, Path]:
    found = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _imports(path: Path) -> Iterator[str]:
    """Modules imported anywhere in a file, also inside functions, but for type checking alone."""
    tree = ast.parse(path.read_text())
    types_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in types_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([name for name in whole if name in MODULES or name == MPI] or [node.module])


GRAPH = {name: {other for other in _imports(path) if other != name} for name, path in MODULES.items()}


def test_imports_go_down() -> None:
    """A room knows its own floor and those below; slurm and droid do not know each other."""
    for name, others in GRAPH.items():
        mine = name.split(".")[0]
        theirs = {other.split(".")[0] for other in others} & FLOORS.keys() - {mine}
        assert all(FLOORS[floor] < FLOORS[mine] for floor in theirs), f"{name} imports from {sorted(theirs)}"


def test_mpi_is_touched_in_one_place() -> None:
    """Everything else gets it handed in, after the zygote has been started."""
    assert {name for name in MODULES if MPI in GRAPH[name]} == {"droid.transport"}


def test_no_circle() -> None:
    """No module imports itself by way of others, not even inside a function."""
    circles = []
    for start in MODULES:
        reached: set[str] = set()
        todo = [start]
        while todo:
            for other in GRAPH[todo.pop()] & set(MODULES):
                if other not in reached:
                    reached.add(other)
                    todo.append(other)
        if start in reached:
            circles.append(start)
    assert circles == []
