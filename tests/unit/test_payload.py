"""Loading what a user wrote, calling it, and what is said when it cannot be called."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from droid.payload import Payload, Worker, load, random_for
from eventrange.errors import (
    BAD_CONFIG,
    PayloadError,
    PayloadImport,
    PayloadInterface,
    PayloadName,
    PayloadOptions,
    PayloadReturned,
    PayloadStart,
)

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a payload file; gives the spec of NAME in it."""

    def write(text: str, name: str = "P", file: str = "mine.py") -> str:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return f"{path}:{name}"

    return write


def started(payload: Payload, seed: int = 1) -> Payload:
    payload.setup()
    payload.start(Worker(0, 1, Path("/nonexistent"), seed))
    return payload


# --- what works -------------------------------------------------------------------------------------------------------


def test_function_with_options(write: Write) -> None:
    spec = write("def P(event, random, scale=1.0): return {'x': scale * event, 'r': random.random()}")
    payload = started(load(spec, {"scale": 3}), seed=9)
    assert payload.per_event and payload.jagged == () and payload.needs_events
    first, second = payload.process_events([2, 5], [10, 11])
    assert (first["x"], second["x"]) == (6, 15)
    assert second["r"] == random_for(9, 11).random()
    assert payload.process_events([2], [10]) == [first]


def test_class_with_every_method(write: Write) -> None:
    spec = write("""
        class P:
            jagged = ("pt",)
            def __init__(self, tune, *, n=3): self.log = [tune, n]
            def setup(self): self.log.append("setup")
            def start(self, worker): self.log.append((worker.index, worker.count, worker.seed, str(worker.scratch)))
            def process(self, event, random): return {"log": len(self.log), "pt": random.random(event)}
    """)
    payload = load(spec, {"tune": "monash"})
    assert payload.jagged == ("pt",)
    payload.setup()
    payload.start(Worker(2, 4, Path("/scratch/w2"), 77))
    assert payload._target.log == ["monash", 3, "setup", (2, 4, 77, "/scratch/w2")]
    assert [len(fields["pt"]) for fields in payload.process_events([0, 4], [0, 1])] == [0, 4]


def test_process_range_gives_one_dict_per_event(write: Write) -> None:
    spec = write("""
        import numpy as np
        class P:
            def process_range(self, events, randoms):
                return {"mass": np.array(events) * 2.0, "pt": [r.random(e) for e, r in zip(events, randoms)]}
    """)
    payload = started(load(spec), seed=5)
    assert not payload.per_event
    made = payload.process_events([1, 2, 3], [7, 8, 9])
    assert [fields["mass"] for fields in made] == [2.0, 4.0, 6.0]
    assert (made[2]["pt"] == random_for(5, 9).random(3)).all()
    assert payload.process_events([3], [9])[0]["mass"] == 6.0
    assert payload.process_events([], []) == []


def test_no_fields_may_be_said_in_two_ways(write: Write) -> None:
    assert started(load(write("def P(event, random): return None"))).process_events([1, 2], [0, 1]) == [{}, {}]
    spec = write("class P:\n def process_range(self, events, randoms): pass")
    assert started(load(spec)).process_events([1, 2], [0, 1]) == [{}, {}]


def test_what_the_payload_raises_is_not_touched(write: Write) -> None:
    payload = started(load(write("def P(event, random): return {'x': 1 / event}")))
    with pytest.raises(ZeroDivisionError):
        payload.process_events([1, 0], [0, 1])


def test_an_event_after_one_that_raised_gets_its_own_random_numbers(write: Write) -> None:
    payload = started(load(write("def P(event, random): return {'x': random.random() / event}")), seed=3)
    fields_of = payload.each(range(10, 13))
    assert fields_of(1)["x"] == random_for(3, 10).random()
    with pytest.raises(ZeroDivisionError):
        fields_of(0)
    assert fields_of(1)["x"] == random_for(3, 12).random()


def test_events_and_positions_must_be_as_many(write: Write) -> None:
    payload = started(load(write("def P(event, random): return {'x': event}")))
    for events, positions in (([1], [0, 1]), ([1, 2], [0])):
        with pytest.raises(ValueError):
            payload.process_events(events, positions)


def test_stop_iteration_of_a_payload_does_not_end_the_events(write: Write) -> None:
    payload = started(load(write("def P(event, random): return {'x': next(iter(event))}")))
    with pytest.raises(StopIteration):
        payload.process_events([[1], [], [2]], [0, 1, 2])


def test_siblings_can_be_imported_also_later(write: Write, tmp_path: Path) -> None:
    (tmp_path / "physics_helper_a.py").write_text("VALUE = 11")
    (tmp_path / "physics_helper_b.py").write_text("VALUE = 22")
    spec = write("""
        from physics_helper_a import VALUE
        def P(event, random):
            import physics_helper_b
            return {"x": VALUE + physics_helper_b.VALUE}
    """)
    assert started(load(spec)).process_events([None], [0])[0] == {"x": 33}


def test_two_files_of_one_name_are_two_modules(write: Write) -> None:
    one = load(write("def P(event, random): return {'x': 1}", file="a/same.py"))
    two = load(write("def P(event, random): return {'x': 2}", file="b/same.py"))
    assert started(one).process_events([None], [0])[0] == {"x": 1}
    assert started(two).process_events([None], [0])[0] == {"x": 2}


def test_classes_of_a_payload_file_can_be_pickled(write: Write) -> None:
    import pickle

    made = load(write("class P:\n x = 5\n def process(self, event, random): pass"))._target
    assert pickle.loads(pickle.dumps(made)).x == 5


def test_a_module_on_the_path(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("def P(event, random): return {'x': 5}", file="analysis_pkg/code.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert started(load("analysis_pkg.code:P")).process_events([None], [0])[0] == {"x": 5}


def test_static_methods_and_defaults_are_fine(write: Write) -> None:
    spec = write("class P:\n @staticmethod\n def process(event, random=None, more=1): return {'x': more}")
    assert started(load(spec)).process_events([None], [0])[0] == {"x": 1}


@pytest.mark.parametrize(
    ("text", "options", "x"),
    [
        ("def P(event): return {'x': event}", {}, 7),
        ("def P(event, cut): return {'x': cut}", {"cut": 3}, 3),
        ("def P(event, *, cut=4): return {'x': cut}", {}, 4),
        ("def P(event, cut=4): return {'x': cut}", {"cut": 3}, 3),
        ("def P(event, *, cut): return {'x': cut}", {"cut": 3}, 3),
        ("def P(event, **options): return {'x': options['cut']}", {"cut": 3}, 3),
        ("class P:\n def process(self, event): return {'x': event}", {}, 7),
        ("class P:\n def process(self, event, *, cut=4): return {'x': cut}", {}, 4),
        ("class P:\n @staticmethod\n def process(event): return {'x': event}", {}, 7),
        ("class P:\n @classmethod\n def process(cls, event): return {'x': event}", {}, 7),
        ("class P:\n def process_range(self, events): return {'x': events}", {}, 7),
    ],
)
def test_random_numbers_are_for_who_asks(write: Write, text: str, options: dict[str, Any], x: int) -> None:
    assert started(load(write(text), options)).process_events([7], [0]) == [{"x": x}]


@pytest.mark.parametrize(
    "text",
    [
        "def P(event, rng): return {'x': rng.random()}",
        "def P(event, random=None): return {'x': random.random()}",
        "def P(*both): return {'x': both[1].random()}",
        "def P(event, *rest): return {'x': rest[0].random()}",
        "def P(event, random=None, cut=4, *rest): return {'x': random.random()}",
        "class P:\n def process(self, event, _): return {'x': _.random()}",
        "class P:\n def process_range(self, events, all): return {'x': [r.random() for r in all]}",
    ],
)
def test_random_numbers_however_they_are_called(write: Write, text: str) -> None:
    assert started(load(write(text)), seed=9).process_events([7], [5]) == [{"x": random_for(9, 5).random()}]


def test_events_before_start_are_a_bug_of_the_caller(write: Write) -> None:
    with pytest.raises(RuntimeError):
        load(write("def P(event, random): pass")).process_events([1], [0])


# --- what does not ----------------------------------------------------------------------------------------------------

_METHOD = "class P:\n def process(self, event, random): pass\n"

REFUSED: list[tuple[str, str, dict[str, Any], type[PayloadError], str]] = [
    ("import no_such_package_xyz", "P", {}, PayloadImport, "install no_such_package_xyz"),
    ("x = 1 / 0", "P", {}, PayloadImport, 'mine.py", line 1'),
    ("def P(:", "P", {}, PayloadImport, "SyntaxError"),
    ("raise SystemExit(3)", "P", {}, PayloadImport, "SystemExit: 3"),
    ("class Shower: pass", "Shovel", {}, PayloadName, "did you mean Shower?"),
    ("P = 5", "P", {}, PayloadName, "P is a int"),
    ("class P:\n def proces(self, event, random): pass", "P", {}, PayloadInterface, "did you mean proces?"),
    ("class P: pass", "P", {}, PayloadInterface, "neither process nor process_range"),
    (_METHOD + " def process_range(self, events, randoms): pass", "P", {}, PayloadInterface, "both"),
    ("class P:\n def process(self): pass", "P", {}, PayloadInterface, "process(self) cannot be called"),
    ("class P:\n def process(self, a, b, c): pass", "P", {}, PayloadInterface, "P.process(self, a, b, c) cannot be"),
    (_METHOD + " def setup(self, worker): pass", "P", {}, PayloadInterface, "write `def setup(self)`"),
    (_METHOD + " def start(self): pass", "P", {}, PayloadInterface, "write `def start(self, worker)`"),
    (_METHOD + " jagged = 'pt'", "P", {}, PayloadInterface, 'jagged = ("field", ...)'),
    ("def P(): pass", "P", {}, PayloadInterface, "write `def P(event)`, or `def P(event, random)`"),
    ("def P(event, rng=None): pass", "P", {}, PayloadInterface, "call rng `random` if it is to have"),
    ("def P(event, cut=4, *rest): pass", "P", {}, PayloadInterface, "else write `*, ` before it"),
    ("def P(event, *, random=None): pass", "P", {}, PayloadInterface, "make random the second argument"),
    ("def P(event, cut, random): pass", "P", {"cut": 1}, PayloadInterface, "make random the second argument"),
    ("class P:\n def process(self, event, rng=None): pass", "P", {}, PayloadInterface, "call rng `random`"),
    ("class P:\n def process_range(self, e, *, randoms): pass", "P", {}, PayloadInterface, "make randoms the second"),
    (
        "import functools\ndef inner(event): pass\n@functools.wraps(inner)\ndef P(event, random): pass",
        *("P", {}, PayloadInterface, "cannot be called with an event"),
    ),
    ("def P(event): pass", "P", {"tune": 1}, PayloadOptions, "takes no option 'tune'"),
    ("def P(event, random): pass", "P", {"random": 1}, PayloadOptions, "takes no option 'random'"),
    ("def P(event, random, tune=1): pass", "P", {"tun": 1}, PayloadOptions, "did you mean tune?"),
    ("def P(event, random): pass", "P", {"tune": 1}, PayloadOptions, "takes no option 'tune'"),
    ("def P(event, random, tune): pass", "P", {}, PayloadOptions, "needs the option 'tune'"),
    (_METHOD + " def __init__(self, tune): pass", "P", {}, PayloadOptions, "needs the option 'tune'"),
    (_METHOD, "P", {"tune": 1}, PayloadOptions, "remove payload.options"),
    (_METHOD + " def __init__(self): raise OSError('no licence')", "P", {}, PayloadStart, "OSError: no licence"),
]


@pytest.mark.parametrize(("text", "name", "options", "error", "says"), REFUSED)
def test_refused(
    write: Write, text: str, name: str, options: dict[str, Any], error: type[PayloadError], says: str
) -> None:
    with pytest.raises(error) as caught:
        load(write(text, name), options)
    message = str(caught.value)
    assert says in message
    assert "\n  -> " in message and "mine.py" in message
    assert caught.value.exit_code == BAD_CONFIG
    assert "droid/payload.py" not in message and "importlib" not in message  # not our frames


def test_missing_file_names_its_neighbour(write: Write, tmp_path: Path) -> None:
    write("", file="shower.py")
    with pytest.raises(PayloadImport, match=r"did you mean shower\.py\?"):
        load(f"{tmp_path}/shovver.py:P")
    with pytest.raises(PayloadImport, match="no file"):
        load(f"{tmp_path}/nowhere/shower.py:P")


@pytest.mark.parametrize("spec", ["shower.py", ":P", "a.b:", "a.b:c-d", ""])
def test_spec_without_a_name(spec: str) -> None:
    with pytest.raises(PayloadError, match=r"FILE\.py:NAME"):
        load(spec)


def test_a_failed_import_can_be_tried_again(write: Write) -> None:
    with pytest.raises(PayloadImport):
        load(write("import no_such_package_xyz"))
    load(write("def P(event, random): pass"))


def test_setup_and_start_that_raise(write: Write) -> None:
    text = _METHOD + " def setup(self): self.deep()\n def deep(self): raise ValueError('no tune x')\n"
    payload = load(write(text + " def start(self, worker): 1 / 0"))
    with pytest.raises(PayloadStart, match=r"setup\(\) raised ValueError: no tune x") as caught:
        payload.setup()
    assert "in deep" in str(caught.value)
    with pytest.raises(PayloadStart, match=r"start\(\) raised ZeroDivisionError"):
        payload.start(Worker(0, 1, Path("/"), 1))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("{'x': [1, 2]}", "field 'x' has 2 entries for 3 events"),
        ("{'x': [1, 2, 3], 'y': np.zeros((2, 3))}", "field 'y' has 2 entries"),
        ("{'x': 5}", "field 'x' is int"),
        ("{'x': np.array(5)}", "field 'x' is a scalar array"),
        ("{'x': 'abc'}", "field 'x' is a str"),
        ("{'x': {1: 1, 2: 2, 3: 3}}", "field 'x' is a dict"),
        ("[{}, {}, {}]", "returned list"),
    ],
)
def test_answers_of_process_range_are_checked(write: Write, answer: str, says: str) -> None:
    spec = write(f"import numpy as np\nclass P:\n def process_range(self, events, randoms): return {answer}")
    with pytest.raises(PayloadReturned, match=says):
        started(load(spec)).process_events([1, 2, 3], [0, 1, 2])


def test_numpy_alone_is_imported_for_a_payload() -> None:
    """Every worker of every node pays for what this module imports."""
    import subprocess
    import sys

    code = "import sys, droid.payload; print([m for m in ('h5py', 'mpi4py', 'yaml', 'uproot') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert np.__version__
