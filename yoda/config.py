"""Job and site files -> one typed object each, validated once, before any work.

`load_job(path, sets)` and `load_site(path, sets)` are all the rest of the product needs; `explain_config` says for
every key what holds and where it came from. `sets` are the `--set key=value` of the command line: the same list may be
given to both, each takes its own keys. Environment variables in paths are read from `environ` here and nowhere else.

Importing this module brings yaml and msgspec, and neither numpy nor anything of the size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import msgspec.inspect

from eventrange.errors import ConfigError
from eventrange.quantity import format_duration, format_size
from yoda.inputfiles import Undefined, expand, resolve, undefined
from yoda.schema import PLACEHOLDERS, Job, JobKeys, Site, SiteKeys
from yoda.validate import SET, Origins, build, nearest
from yoda.yamlfile import Document, inline, parse_document, read_document

__all__ = ["Job", "Site", "config_json", "config_text", "default_task_dir", "explain_config", "load_job", "load_site"]

_JOB_KEYS = tuple(JobKeys.__struct_fields__)
_SITE_KEYS = tuple(SiteKeys.__struct_fields__)
_NOT_SHOWN = ("path", "origins")


def load_job(path: str, sets: Sequence[str] = (), *, environ: Mapping[str, str] = os.environ) -> Job:
    """The job in the file at `path`, with `sets` applied before anything is checked.

    Paths come back absolute: relative ones start at the folder of the job file, those of `--set` too. ConfigError and
    InputMissing (both exit 78) name the file, the key, what is wrong and what to write.
    """
    document = read_document(path, "job file")
    tree, given = _apply(document, sets, _JOB_KEYS)
    origins = Origins(path, document.lines, given)
    _foreign(tree, _JOB_KEYS, _SITE_KEYS, "the site file", origins)
    keys = build(JobKeys, tree, origins)
    if keys.task in (".", ".."):
        raise origins.error("task", f"{keys.task!r} is no name", "write for example `task: zjets-shower`")
    absolute = os.path.abspath(path)
    _check_payload(keys, os.path.dirname(absolute), origins)
    inputs = _check_inputs(keys, os.path.dirname(absolute), environ, origins)
    ranges = _check_ranges(keys, os.path.dirname(absolute), environ, origins)
    values = {name: getattr(keys, name) for name in _JOB_KEYS} | {"inputs": inputs, "ranges": ranges}
    return Job(**values, path=absolute, origins=_origins_of(tree, os.path.basename(path), origins))


def load_site(
    path: str | None, sets: Sequence[str] = (), *, environ: Mapping[str, str] = os.environ, here: bool = True
) -> Site:
    """The site in the file at `path`; without a path, what stands by default.

    `here=False` is for a machine that only submits: `scratch` keeps variables that are not set on it.
    """
    document = Document("site defaults", {}) if path is None else read_document(path, "site file")
    tree, given = _apply(document, sets, _SITE_KEYS)
    origins = Origins(document.file, document.lines, given)
    _foreign(tree, _SITE_KEYS, _JOB_KEYS, "the job file", origins)
    keys = build(SiteKeys, tree, origins)
    values = {name: getattr(keys, name) for name in _SITE_KEYS}
    if keys.scratch is not None:
        try:
            values["scratch"] = os.path.abspath(expand(keys.scratch, environ))
        except Undefined as error:
            if here:
                raise undefined("scratch", keys.scratch, str(error), origins) from None
    names = [endpoint.name for endpoint in keys.stageout]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise origins.error(f"stageout.{number}.name", f"{name!r} is already an endpoint", "give each its own name")
    places = [endpoint.place for endpoint in keys.stageout]
    for number, place in enumerate(places):
        if place in places[:number]:  # what is deleted on one would be gone from both
            same = f"is the same place as that of {names[places.index(place)]!r}"
            raise origins.error(
                f"stageout.{number}.url", same, "give each endpoint a place of its own, or leave it out"
            )
    absolute = None if path is None else os.path.abspath(path)
    return Site(**values, path=absolute, origins=_origins_of(tree, os.path.basename(document.file), origins))


def default_task_dir(job: Job) -> str:
    """The task directory where `--task` is not given: `NAME.task` beside the job file."""
    return os.path.join(job.folder, f"{job.task}.task")


# --- what a key is and where it came from -----------------------------------------------------------------------------


def explain_config(job: Job | None, site: Site | None) -> list[tuple[str, Any, str]]:
    """(dotted key, value as one would write it, origin) for every key, the job's first.

    The origin is `default`, the base name of the job or site file, or `--set`. Mappings and lists are one line per
    entry.
    """
    rows: list[tuple[str, Any, str]] = []
    for config in (job, site):
        if config is not None:
            _rows(config, msgspec.inspect.type_info(type(config)), "", config.origins, rows)
    return rows


def config_text(job: Job | None, site: Site | None) -> str:
    """`explain_config` for people: one `key: value` per line, with its origin behind a #."""
    lines = [(f"{key}: {inline(value)}", origin) for key, value, origin in explain_config(job, site)]
    width = min(60, max((len(line) for line, _ in lines), default=0))
    return "".join(f"{line:<{width}}  # {origin}\n" for line, origin in lines)


def config_json(job: Job | None, site: Site | None) -> dict[str, Any]:
    """`explain_config` as a versioned document for `--json`."""
    rows = [{"key": key, "value": value, "origin": origin} for key, value, origin in explain_config(job, site)]
    paths = {"job": job.path if job else None, "site": site.path if site else None}
    return {"version": 1, **paths, "task_dir": default_task_dir(job) if job else None, "keys": rows}


def _rows(value: Any, kind: Any, key: str, origins: Mapping[str, str], rows: list[tuple[str, Any, str]]) -> None:
    extra: dict[str, Any] = {}
    while isinstance(kind, (msgspec.inspect.Metadata, msgspec.inspect.UnionType)):
        if isinstance(kind, msgspec.inspect.Metadata):
            extra = {**(kind.extra or {}), **extra}
            kind = kind.type
        else:
            kind = next(member for member in kind.types if not isinstance(member, msgspec.inspect.NoneType))
    if isinstance(value, msgspec.Struct):
        fields = msgspec.inspect.type_info(type(value)).fields  # type: ignore[attr-defined]
        for item in fields:
            if key or item.name not in _NOT_SHOWN:
                _rows(getattr(value, item.name), item.type, f"{key}.{item.name}".lstrip("."), origins, rows)
    elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
        for number, entry in enumerate(value):
            _rows(entry, kind.item_type, f"{key}.{number}", origins, rows)
    elif isinstance(value, dict) and value:
        for name, entry in value.items():
            rows.append((f"{key}.{name}", entry, _origin(f"{key}.{name}", origins)))
    else:
        rows.append((key, _written(value, extra), _origin(key, origins)))


def _written(value: Any, extra: Mapping[str, Any]) -> Any:
    if value is None:
        return "auto" if extra.get("auto") else None
    if extra.get("quantity") == "duration":
        return format_duration(value)
    if extra.get("quantity") == "size":
        return format_size(value)
    return list(value) if isinstance(value, tuple) else value


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """The origin of a key is that of the longest key at or above it; a list of which any entry was set is `--set`."""
    if any(origin == SET and given.startswith(f"{key}.") for given, origin in origins.items()):
        return SET
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return "default"


def _origins_of(tree: Any, file: str, origins: Origins) -> dict[str, str]:
    found: dict[str, str] = {}

    def walk(value: Any, key: str) -> None:
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, entry in entries:
            dotted = f"{key}.{name}" if key else str(name)
            if not _holds_keys(entry):  # a mapping says nothing of the keys it does not have
                found[dotted] = SET if origins.is_set(dotted) else file
            walk(entry, dotted)

    walk(tree, "")
    return found


def _holds_keys(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(entry, dict) for entry in value))


# --- --set ------------------------------------------------------------------------------------------------------------


def _apply(document: Document, sets: Sequence[str], own: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tree of `document` with those of `sets` that are for it, and the keys they set."""
    tree = msgspec.to_builtins(document.value)
    given: list[str] = []
    for text in sets:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key or "" in key.split("."):
            raise ConfigError(
                file=SET, key=text, detail="not key=value", hint="write for example --set ranges.max_attempts=5"
            )
        top = key.split(".")[0]
        if top not in _JOB_KEYS + _SITE_KEYS:
            import difflib

            known = [*_JOB_KEYS, *_SITE_KEYS]
            near = [f"{word}{key[len(top) :]}" for word in difflib.get_close_matches(top, known, n=1)]
            raise ConfigError(
                file=SET, key=key, detail="unknown key", hint=nearest(key, near) if near else nearest(top, known)
            )
        if top in own:
            try:
                parsed = parse_document(value, SET).value
            except ConfigError as error:
                raise ConfigError(**{**error.values, "key": key}) from None
            _put(tree, key, parsed)
            given = [other for other in given if not other.startswith(f"{key}.")] + [key]
    return tree, tuple(given)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    place: Any = tree
    for depth, name in enumerate(above):
        here = ".".join(above[: depth + 1])
        if isinstance(place, list):
            place = place[_index(place, name, key, here, len(place) - 1)]
        else:
            if place.get(name) is None:
                place[name] = {}
            place = place[name]
        if not isinstance(place, (dict, list)):
            raise ConfigError(
                file=SET, key=key, detail=f"{here} is {inline(place)}, which has no keys", hint=f"set {here} itself"
            )
    if isinstance(place, list):
        number = _index(place, last, key, ".".join(above), len(place))
        place[number : number + 1] = [value]
    else:
        place[last] = value


def _index(items: list[Any], name: str, key: str, here: str, largest: int) -> int:
    if not name.isdecimal() or int(name) > largest:
        hint = f"write a number from 0 to {largest}" if largest >= 0 else "the list is empty; set all of it"
        raise ConfigError(file=SET, key=key, detail=f"{name!r} is not an entry of the list {here}", hint=hint)
    return int(name)


def _foreign(tree: dict[str, Any], own: tuple[str, ...], others: tuple[str, ...], place: str, origins: Origins) -> None:
    for key in tree:
        if key in others and key not in own:
            raise origins.error(key, "does not belong here", f"move it to {place}")


# --- rules across keys ------------------------------------------------------------------------------------------------


def _check_inputs(keys: JobKeys, folder: str, environ: Mapping[str, str], origins: Origins) -> Any:
    inputs = keys.inputs
    if inputs.format == "generate":
        if inputs.files:
            raise origins.error(
                "inputs.files", "format generate reads no files", "leave files out, or correct inputs.format"
            )
        if inputs.events is None:
            raise origins.error(
                "inputs.events", "is missing; format generate needs it", "write for example `events: 1000`"
            )
        return inputs
    if not inputs.files:
        hint = f"write for example `files: [data/events.{inputs.format}]`"
        raise origins.error("inputs.files", f"format {inputs.format} needs input files", hint)
    return msgspec.structs.replace(inputs, files=resolve(inputs.files, folder, environ, origins))


def _check_ranges(keys: JobKeys, folder: str, environ: Mapping[str, str], origins: Origins) -> Any:
    ranges = keys.ranges
    if ranges.file is None:
        if "ranges.numbering" in origins.lines or origins.is_set("ranges.numbering"):
            hint = "add `file: ranges.json`, or leave numbering out"
            raise origins.error("ranges.numbering", "says how the ranges of ranges.file count, and there is none", hint)
        return ranges
    try:
        path = os.path.normpath(os.path.join(folder, expand(ranges.file, environ)))
    except Undefined as error:
        raise undefined("ranges.file", ranges.file, str(error), origins) from None
    if not os.path.isfile(path):
        raise origins.error("ranges.file", f"there is no file {path}", "it starts at the folder of the job file")
    if ranges.events is not None:
        hint = "leave ranges.events out: the named ranges are what is handed out"
        raise origins.error("ranges.events", "ranges.file says how many events each range has", hint)
    if keys.inputs.events is not None and keys.inputs.format != "generate":
        hint = "leave inputs.events out, or leave ranges out of the file"
        raise origins.error("inputs.events", "ranges.file says which events the task has", hint)
    return msgspec.structs.replace(ranges, file=path)


def _check_payload(keys: JobKeys, folder: str, origins: Origins) -> None:
    payload = keys.payload
    if (payload.python is None) == (payload.command is None):
        both = (
            "python and command are both there" if payload.python is not None else "neither python nor command is there"
        )
        raise origins.error("payload", both, "write exactly one: `python: FILE.py:NAME` or `command: [PROGRAM, ...]`")
    if payload.python is not None:
        _check_python(payload.python, folder, origins)
    else:
        _check_command(payload.command or (), folder, origins)


def _check_python(spec: str, folder: str, origins: Origins) -> None:
    key, hint = "payload.python", "write FILE.py:NAME or package.module:NAME, for example `python: shower.py:Shower`"
    place, colon, name = spec.rpartition(":")
    if not colon or not place:
        raise origins.error(key, f"{spec!r} does not say which class or function to take", hint)
    if not all(part.isidentifier() for part in name.split(".")):
        raise origins.error(key, f"{name!r} cannot be the name of a class or function", hint)
    if place.endswith(".py"):
        path = os.path.join(folder, os.path.expanduser(place))
        if not os.path.isfile(path):
            raise origins.error(
                key, f"there is no file {path}", "correct the path; it starts at the folder of the job file"
            )
    elif not all(part.isidentifier() for part in place.split(".")):
        raise origins.error(key, f"{place!r} is neither a .py file nor the name of a module", hint)


def _check_command(command: tuple[str, ...], folder: str, origins: Origins) -> None:
    if not command or not command[0]:
        raise origins.error(
            "payload.command", "names no program", "write for example `command: [./simulate, '{first}']`"
        )
    program = os.path.expanduser(command[0])
    if "/" in program and "{" not in program:
        path = os.path.normpath(os.path.join(folder, program))
        if not os.path.isfile(path):
            raise origins.error(
                "payload.command.0", f"there is no program {path}", "it starts at the folder of the job file"
            )
        if not os.access(path, os.X_OK):
            raise origins.error("payload.command.0", f"{path} may not be executed", f"chmod +x {path}")
    for number, word in enumerate(command):
        for found in re.finditer(r"(?<!\{)\{(\w+)\}(?!\})", word):
            if found[1] not in PLACEHOLDERS:
                hint = f"{nearest(found[1], list(PLACEHOLDERS))} (for the braces themselves write {{{{{found[1]}}}}})"
                raise origins.error(f"payload.command.{number}", f"unknown placeholder {found[0]}", hint)
