"""`yoda bench`: measure this machine, beside peers doing the same work, and say which budgets are met.

The benchmarks live with the sources, in tests/benchmarks/bench_NAME.py, because they are made to be changed together
with the code they measure; an installation without sources says so. Each has `run(quick)`, which returns what it
measured as plain values, and `figures(result)`, which says what of it counts: our value, the peer's, the budget. Here
is only what they share: finding them, running them, and showing the result.

All of it in one run, about an hour and a half on a machine that has nothing else to do:

    python -m venv peers
    peers/bin/pip install dask distributed ray parsl hyperqueue h5py pythia8mc==8.317.2
    yoda bench --peers peers/bin/python --json > bench.json
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from eventrange.errors import BUG, OK, ConfigError

JSON_VERSION = 1
_SHOWN = ("numpy", "h5py", "mpi4py", "msgspec", "openmpi", "mpich", "pythia8mc")
_PEERS = ("distributed", "ray", "parsl", "hyperqueue")


@dataclass(frozen=True)
class Figure:
    """One measured number, a median unless `what` says otherwise.

    `value` and `peer_value` are in `unit`; `peer` names who did the same work in the same run and what it left out.
    `budget` is the promise in words and `met` whether it holds here; None where nothing is promised.
    """

    what: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None
    budget: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """Our value over the peer's."""
        return self.value / self.peer_value if self.peer_value else None


def folder() -> str:
    """Where the benchmarks are. Raises ConfigError for an installation without sources."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.path.join(home, "tests", "benchmarks")
    if not os.path.isdir(path):
        raise ConfigError(
            file=home,
            key="bench",
            detail="this installation has no sources, and the benchmarks are part of them",
            hint="clone the repository, `pip install -e .` there, and run `yoda bench` again",
        )
    return path


def names() -> list[str]:
    """All benchmarks, sorted. A file without `figures` is a script of its own: it needs more than this machine."""
    out = []
    for entry in sorted(os.listdir(folder())):
        if entry.startswith("bench_") and entry.endswith(".py"):
            with open(os.path.join(folder(), entry)) as file:
                if "\ndef figures(" in file.read():
                    out.append(entry[6:-3])
    return out


def load(name: str) -> ModuleType:
    """The module of one benchmark."""
    place = folder()
    if place not in sys.path:
        sys.path.insert(0, place)
    return importlib.import_module(f"bench_{name}")


def measure(name: str, quick: bool = False) -> tuple[dict[str, Any], list[Figure]]:
    """Run one benchmark: (what it measured, what of it counts)."""
    module = load(name)
    result: dict[str, Any] = module.run(quick)
    figures = list(module.figures(result))
    # a quick run says whether a benchmark works; its numbers are of start-up and noise
    return result, [replace(figure, met=None) for figure in figures] if quick else figures


def machine() -> dict[str, Any]:
    """What the figures belong to: processor, cores, memory, versions. No name of a host."""
    model = ""
    try:
        with open("/proc/cpuinfo") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        pass
    return {
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": dict(_versions((*_SHOWN, *_PEERS))),
        "load": round(os.getloadavg()[0], 1),
    }


def _versions(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            pass


def _versions_there(python: str) -> dict[str, str]:
    """Of the peers in another environment."""
    code = "import importlib.metadata as m, json; d = {x.name.lower(): x.version for x in m.distributions()}"
    code += f"; print(json.dumps({{n: d[n] for n in {_PEERS!r} if n in d}}))"
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    return found


def bench(wanted: Sequence[str], as_json: bool = False, quick: bool = False, peers: str | None = None) -> int:
    """Run the benchmarks named `wanted` (all if empty) one after another and print their figures; returns the exit
    code. With `as_json` that is JSON at the end, and the table goes to stderr.

    `peers` is the Python of an environment that has the peers our own environment lacks (Dask, Ray, Parsl, HyperQueue).
    """
    known = names()
    for name in wanted:
        if name not in known:
            raise ConfigError(
                file="yoda bench", key=name, detail="no such benchmark", hint=f"one of: {', '.join(known)}"
            )
    if peers is not None:
        os.environ["YODA_BENCH_PEERS"] = os.path.abspath(peers)
    here = machine()
    if peers is not None:
        here["versions"] |= _versions_there(peers)
    document: dict[str, Any] = {"version": JSON_VERSION, "quick": quick, "machine": here, "benchmarks": {}}
    out = sys.stderr if as_json else sys.stdout  # the table grows as it goes, in case something cuts the run
    cores, memory = f"{here['cores']} cores of {here['processor']}", f"{here['memory_gb']} GB"
    print(f"{cores}, {memory}, Python {here['python']}, load {here['load']}", file=out)
    print(", ".join(f"{name} {number}" for name, number in here["versions"].items()), file=out, flush=True)
    code = OK
    for name in wanted or known:
        begin = time.monotonic()
        try:
            result, figures = measure(name, quick)
        except Exception as error:  # one that cannot run here must not cost the others
            code = BUG
            document["benchmarks"][name] = {"error": f"{type(error).__name__}: {error}"}
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        seconds = time.monotonic() - begin
        entries = [{**asdict(figure), "ratio": figure.ratio} for figure in figures]
        document["benchmarks"][name] = {"seconds": round(seconds, 1), "figures": entries, "result": result}
        print(f"\n{name} ({seconds:.0f} s)\n{table(figures)}", file=out, flush=True)
    if as_json:
        print(json.dumps(document, indent=1))
    return code


def table(figures: Sequence[Figure]) -> str:
    """The figures as lines of columns for people."""
    head = ("", "ours", "peer", "ours/peer", "", "budget", "met")
    lines = [head]
    for f in figures:
        peer = "" if f.peer_value is None else number(f.peer_value)
        ratio = "" if f.ratio is None else number(f.ratio)
        met = {None: "", True: "yes", False: "NO"}[f.met]
        lines.append((f.what, f"{number(f.value)} {f.unit}".strip(), peer, ratio, f.peer, f.budget, met))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    right = (1, 2, 3)
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float) -> str:
    """Three significant figures, thousands apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
