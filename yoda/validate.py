"""Plain values from YAML -> the typed structs of `yoda.schema`, with errors that say what to write.

msgspec does the conversion; the walk before it exists for the errors (nearest known key, expected type with an
example, line in the file) and for what msgspec has no words for: `auto`, durations and sizes. What is asked of a key
is read from its type.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from eventrange.errors import ConfigError
from eventrange.quantity import parse_duration, parse_size
from yoda.yamlfile import inline

T = TypeVar("T")

SET = "--set"
_PARSE = {"duration": parse_duration, "size": parse_size}
_YES_NO = {"yes": True, "on": True, "no": False, "off": False}


@dataclass(frozen=True)
class Origins:
    """Where keys were written: `file` and its `lines`, and `sets`, the dotted keys given on the command line."""

    file: str
    lines: dict[str, int] = field(default_factory=dict)
    sets: tuple[str, ...] = ()

    def is_set(self, key: str) -> bool:
        """Whether the command line gave the value of `key`."""
        return any(key == given or key.startswith(f"{given}.") for given in self.sets)

    def error(self, key: str, detail: str, hint: str) -> ConfigError:
        """The error at a dotted key, naming the file and line, or `--set`."""
        if self.is_set(key):
            file = SET
        elif key in self.lines:
            file = f"{self.file}:{self.lines[key]}"
        else:
            file = self.file
        return ConfigError(file=file, key=key, detail=detail, hint=hint)


def build(cls: type[T], tree: dict[str, Any], origins: Origins) -> T:
    """`tree` as a `cls`. ConfigError for the first key that is unknown, missing or wrong."""
    plain = _Walk(origins).value(tree, inspect.type_info(cls), "", {}, [])
    try:
        return msgspec.convert(plain, cls)
    except msgspec.ValidationError as error:  # rules that a struct checks itself
        detail, _, path = str(error).partition(" - at `$")
        key = re.sub(r"\[(\d+)\]", r".\1", path.rstrip("`")).lstrip(".")
        own = re.match(r"([a-z_]+): ", detail)  # a struct that names the key itself
        if own:
            key, detail = _join(key, own[1]), detail[own.end() :]
        detail, _, hint = detail.partition("; ")
        raise origins.error(key, detail, hint or "correct this value") from None


def nearest(word: str, known: list[str]) -> str:
    """`did you mean 'x'?`, or the list of all that is known."""
    import difflib  # every rank imports this module; only who makes a mistake needs that one

    close = difflib.get_close_matches(word, known, n=1) or difflib.get_close_matches(
        word.lower().replace("-", "_"), known, n=1, cutoff=0.5
    )
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"


class _Walk:
    def __init__(self, origins: Origins) -> None:
        self.origins = origins

    def value(self, value: Any, kind: Any, key: str, extra: dict[str, Any], examples: list[Any]) -> Any:
        """`value` normalised for msgspec, checked against `kind`, a type of `msgspec.inspect`."""
        while isinstance(kind, inspect.Metadata):
            extra = {**(kind.extra or {}), **extra}
            examples = examples or (kind.extra_json_schema or {}).get("examples", [])
            kind = kind.type
        if isinstance(kind, inspect.UnionType):
            return self._union(value, kind, key, extra, examples)
        if isinstance(kind, inspect.StructType):
            return self._struct(value, kind, key, examples)
        if isinstance(kind, (inspect.ListType, inspect.VarTupleType)):
            if not isinstance(value, list):
                raise self._wrong(value, "a list", key, examples)
            return [self.value(item, kind.item_type, f"{key}.{i}", {}, examples[:0]) for i, item in enumerate(value)]
        if isinstance(kind, inspect.DictType):
            if value is None:  # `options:` with nothing behind it
                return {}
            if not isinstance(value, dict):
                raise self._wrong(value, "keys and values", key, examples)
            return {
                name: self.value(item, kind.value_type, _join(key, name), {}, [])
                for name, item in self._names(value, key)
            }
        if isinstance(kind, inspect.AnyType):
            return self._any(value, key)
        if extra.get("quantity") in _PARSE:
            value = self._quantity(value, extra["quantity"], key, examples)
        return self._scalar(value, kind, key, extra, examples)

    def _union(self, value: Any, kind: Any, key: str, extra: dict[str, Any], examples: list[Any]) -> Any:
        empty = [member for member in kind.types if isinstance(member, inspect.NoneType)]
        members = [member for member in kind.types if member not in empty]
        if empty and (value is None or (value == "auto" and extra.get("auto"))):
            return None
        errors = []
        for member in members:
            try:
                return self.value(value, member, key, extra, examples)
            except ConfigError as error:
                errors.append(error)
        raise errors[0]

    def _struct(self, value: Any, kind: Any, key: str, examples: list[Any]) -> dict[str, Any]:
        fields = {item.encode_name: item for item in kind.fields}
        if value is None and not any(item.required for item in kind.fields):  # `ranges:` with nothing behind it
            return {}
        if not isinstance(value, dict):
            raise self._wrong(value, "keys and values", key, examples or [dict.fromkeys(list(fields)[:1], "...")])
        for name, _ in self._names(value, key):
            if name not in fields:
                raise self.origins.error(_join(key, name), "unknown key", nearest(name, list(fields)))
        found = {}
        for name, item in fields.items():
            if name in value:
                found[name] = self.value(value[name], item.type, _join(key, name), {}, [])
            elif item.required:
                example = (getattr(item.type, "extra_json_schema", None) or {}).get("examples", ["..."])[0]
                place = f" to {key}" if key else ""
                raise self.origins.error(_join(key, name), "is missing", f"add {_example(name, example)}{place}")
        return found

    def _names(self, value: dict[Any, Any], key: str) -> list[tuple[str, Any]]:
        for name in value:
            if not isinstance(name, str):
                hint = f"put it in quotes: {str(name)!r}"
                raise self.origins.error(_join(key, str(name)), f"the key {name!r} is not text", hint)
        return list(value.items())

    def _any(self, value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: self._any(item, _join(key, name)) for name, item in self._names(value, key)}
        if isinstance(value, list):
            return [self._any(item, f"{key}.{i}") for i, item in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise self.origins.error(
            key, f"a value of type {type(value).__name__}", "write text, a number, true, false or null"
        )

    def _quantity(self, value: Any, quantity: str, key: str, examples: list[Any]) -> Any:
        try:
            return _PARSE[quantity](value)
        except ValueError as error:
            detail = f"{error!s}: {inline(value):.80}" if isinstance(value, (str, int, float)) else f"not a {quantity}"
            raise self.origins.error(key, detail, self._write(key, examples)) from None

    def _scalar(self, value: Any, kind: Any, key: str, extra: dict[str, Any], examples: list[Any]) -> Any:
        auto = " or auto" if extra.get("auto") else ""
        if isinstance(kind, inspect.BoolType):
            value = _YES_NO.get(value.lower(), value) if isinstance(value, str) else value
            if not isinstance(value, bool):
                raise self._wrong(value, "true or false", key, examples)
        elif isinstance(kind, inspect.IntType):
            if isinstance(value, float) and value.is_integer():  # 1e6 events
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int):
                raise self._wrong(value, f"a whole number{auto}", key, examples)
            self._limits(value, kind, key, auto, examples)
        elif isinstance(kind, inspect.FloatType):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise self._wrong(value, f"a number{auto}", key, examples)
            self._limits(value, kind, key, auto, examples)
        elif isinstance(kind, inspect.StrType):
            if not isinstance(value, str):
                raise self._wrong(value, "text", key, examples)
            if kind.pattern and not re.search(kind.pattern, value):
                detail = f"{value!r} is not made of {extra.get('says', kind.pattern)} alone"
                raise self.origins.error(key, detail, self._write(key, examples))
            if kind.max_length is not None and len(value) > kind.max_length:
                detail = f"{len(value)} characters, at most {kind.max_length} are allowed"
                raise self.origins.error(key, detail, self._write(key, examples))
        elif isinstance(kind, inspect.LiteralType) and value not in kind.values:
            known = [str(word) for word in kind.values]
            hint = nearest(value, known) if isinstance(value, str) else f"write one of {', '.join(known)}"
            raise self.origins.error(key, f"{inline(value)} is not one of {', '.join(known)}", hint)
        return value

    def _limits(self, value: float, kind: Any, key: str, auto: str, examples: list[Any]) -> None:
        for bad, words in (
            (kind.ge is not None and not value >= kind.ge, f"{kind.ge} or more{auto}"),
            (kind.gt is not None and not value > kind.gt, f"more than {kind.gt}{auto}"),
            (kind.le is not None and not value <= kind.le, f"{kind.le} or less{auto}"),
            (kind.lt is not None and not value < kind.lt, f"less than {kind.lt}{auto}"),
        ):
            if bad:
                raise self.origins.error(
                    key, f"{inline(value)} is out of range; it must be {words}", self._write(key, examples)
                )

    def _wrong(self, value: Any, expected: str, key: str, examples: list[Any]) -> ConfigError:
        hint = self._write(key, examples)
        if isinstance(value, dict) and expected == "text" and list(value.values()) == [None]:
            hint = f"braces need quotes in YAML: '{{{next(iter(value))}}}'"
        return self.origins.error(key, f"expected {expected}, found {_describe(value)}", hint)

    def _write(self, key: str, examples: list[Any]) -> str:
        name = key.rpartition(".")[2]
        if not examples:
            return "correct this value" if name.isdigit() else f"correct {name}"
        return "write for example " + " or ".join(_example(name, example) for example in examples)


def _example(name: str, example: Any) -> str:
    return f"`{name}: {inline(example)}`"


def _describe(value: Any) -> str:
    kinds: dict[type, str] = {dict: "keys and values", list: "the list", str: "the text", bool: "the truth value"}
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return f"{kinds[type(value)]} {inline(value):.60}"
    word = kinds.get(type(value), "the number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")
    return f"{word} {inline(value):.60}"


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else os.fspath(name)
