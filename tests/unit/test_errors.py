"""Every error a user can be told: its templates fill, it says what to do, and its exit code is one of ours."""

from __future__ import annotations

import pickle

import pytest

from eventrange import errors
from eventrange.errors import YodaError
from yoda.errors_table import CODES, classes, document, fields


def values(cls: type[YodaError]) -> dict[str, object]:
    return {name: 7.0 if name in ("seconds", "missing", "events", "size") else f"<{name}>" for name in fields(cls)}


def made(cls: type[YodaError]) -> YodaError:
    given = values(cls)
    given.pop("stderr_lines", None)
    return cls(**given)


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_text_and_exit_code(cls: type[YodaError]) -> None:
    error = made(cls)
    text = str(error)
    assert "{" not in text and "}" not in text
    what, arrow, todo = text.partition("\n  -> ")
    assert what and arrow and todo, "every error says what to do"
    for name, value in values(cls).items():
        if isinstance(value, str) and name != "stderr_lines":
            assert value in text, name
    assert error.exit_code in CODES and error.exit_code not in (errors.OK, errors.BUG)
    assert cls.__doc__ and cls.__doc__ != YodaError.__doc__


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_it_travels_between_processes(cls: type[YodaError]) -> None:
    error = made(cls)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls and str(again) == str(error)


def test_the_list_is_whole() -> None:
    assert len(classes()) > 30
    assert {errors.CannotWrite, errors.ConfigError, errors.MergeIncomplete} <= set(classes())
    assert all(cls.__name__ in document() for cls in classes())
