"""The names of input files in a job -> absolute paths and URLs, in an order that does not depend on the file system."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from eventrange.errors import ConfigError, InputMissing

if TYPE_CHECKING:
    from yoda.validate import Origins

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


class Undefined(Exception):
    """A path uses an environment variable that is not set; the argument is its name."""


def is_url(name: str) -> bool:
    """Whether `name` is not a path of the local file system."""
    return _URL.match(name) is not None


def expand(path: str, environ: Mapping[str, str]) -> str:
    """`path` with `$VAR`, `${VAR}` and a leading `~` replaced. Raises Undefined for a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in environ:
            raise Undefined(name)
        return environ[name]

    path = _VARIABLE.sub(value, path)
    if path == "~" or path.startswith("~/"):
        return environ.get("HOME", os.path.expanduser("~")) + path[1:]
    return os.path.expanduser(path)


def resolve(names: tuple[str, ...], folder: str, environ: Mapping[str, str], origins: Origins) -> tuple[str, ...]:
    """The files that `names` of `inputs.files` mean, in the order of the names, those of a glob sorted by path.

    Relative paths start at `folder`; `**` crosses directories; URLs stay as they are. ConfigError for a glob that
    matches nothing and for a file that is there twice, InputMissing for a file that does not exist.
    """
    found: list[str] = []
    seen: dict[object, tuple[str, str]] = {}
    for number, name in enumerate(names):
        key = f"inputs.files.{number}"
        for path, identity in _one(name, folder, environ, key, origins):
            if identity in seen:
                first, first_path = seen[identity]
                same = "" if first_path == path else f", which is the same file as {first_path}"
                detail = f"{path}{same} is already there through {first!r}"
                raise origins.error(key, detail, "name every file once: its events would be done twice")
            seen[identity] = name, path
            found.append(path)
    return tuple(found)


def _one(name: str, folder: str, environ: Mapping[str, str], key: str, origins: Origins) -> list[tuple[str, object]]:
    if not name:
        raise origins.error(key, "an empty name", "write the path of an input file")
    if is_url(name):
        return [(name, name)]
    try:
        path = os.path.normpath(os.path.join(folder, expand(name, environ)))
    except Undefined as error:
        raise undefined(key, name, str(error), origins) from None
    if glob.has_magic(path) and not os.path.lexists(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        if not matches:
            raise origins.error(
                key, f"no file matches {name!r} ({path})", "correct the pattern, or put the files there"
            )
        return [(match, _identity(match)) for match in matches]
    return [(path, _identity(path))]


def undefined(key: str, value: str, variable: str, origins: Origins) -> ConfigError:
    """The error for a path with an environment variable that is not set."""
    return origins.error(
        key, f"{value!r} needs the variable ${variable}, which is not set", f"export {variable}, or write the path"
    )


def _identity(path: str) -> object:
    """What is equal for two names of one file, through links too."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputMissing(path=repr(path), detail="its name is not UTF-8, and could not be written down") from None
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputMissing(path=path, detail=(error.strerror or str(error)).lower() + _near(path)) from None
    if not os.path.isfile(path):
        raise InputMissing(path=path, detail=f"is not a file; for all files in it write {path}/*")
    if not os.access(path, os.R_OK):
        raise InputMissing(path=path, detail="permission denied")
    return status.st_dev, status.st_ino


def _near(path: str) -> str:
    import difflib

    folder, name = os.path.split(path)
    try:
        close = difflib.get_close_matches(name, os.listdir(folder), n=1)
    except OSError:
        return ""
    return f"; did you mean {close[0]}?" if close else ""
