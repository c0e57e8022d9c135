"""YAML as job, site and task files use it: the core schema of YAML 1.2, with line numbers, duplicates refused.

PyYAML follows YAML 1.1, where `1e-3` is text, `010` is eight, `4:30` is 270, `no` is false and `2024-01-01` is a date.
People who write physics options mean none of that, so scalars are resolved here by the core schema; writing uses the
same rules.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from eventrange.errors import ConfigError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_TAG = "tag:yaml.org,2002:"
_NUMBER_START = list("-+0123456789.")
_RESOLVERS: list[tuple[str, str, list[str]]] = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", _NUMBER_START),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", _NUMBER_START),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", _NUMBER_START),
    ("merge", r"<<", ["<"]),
]


class _CoreLoader(_Loader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  PyYAML's own protocol


class _CoreDumper(_Dumper):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Literal(str):
    """Text that is written as a block, unchanged and unfolded."""


def _integer(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(loader: Any, node: Any) -> float:
    return float(loader.construct_scalar(node).replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_CoreLoader, _CoreDumper):
        _class.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)
_CoreLoader.add_constructor(_TAG + "int", _integer)
_CoreLoader.add_constructor(_TAG + "float", _float)
_CoreDumper.add_representer(
    Literal, lambda dumper, text: dumper.represent_scalar(_TAG + "str", str(text), style="|" if text else None)
)


@dataclass(frozen=True)
class Document:
    """What a file says, and on which line (from 1) each dotted key stands."""

    file: str
    value: Any
    lines: dict[str, int] = field(default_factory=dict)


def read_document(path: str, kind: str) -> Document:
    """The mapping in the file at `path`; `kind` ("job file") is what errors call it. ConfigError otherwise."""
    try:
        with open(path, "rb") as stream:
            text = stream.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise _refuse(path, kind, "there is no such file", f"correct the path of the {kind}") from None
    except IsADirectoryError:
        raise _refuse(path, kind, "this is a directory", f"name the {kind} itself") from None
    except OSError as error:
        raise _refuse(path, kind, f"cannot be read: {error.strerror}", "correct the permissions") from None
    except UnicodeDecodeError as error:
        raise _refuse(path, kind, f"byte {error.start} is not UTF-8 text", f"save the {kind} as UTF-8") from None
    document = parse_document(text, path)
    if document.value is None:
        raise _refuse(path, kind, "the file is empty", f"write the keys of a {kind}, one per line, as in `key: value`")
    if not isinstance(document.value, dict):
        found = "a list" if isinstance(document.value, list) else f"only {document.value!r:.60}"
        raise _refuse(
            path, kind, f"the file holds {found}, not keys", "write one `key: value` per line, without a dash"
        )
    return document


def parse_document(text: str, file: str) -> Document:
    """`text` as YAML. ConfigError with line and column for bad syntax, a key twice, a value that holds itself."""
    lines: dict[str, int] = {}
    try:
        loader = _CoreLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(file, None)
            _survey(node, "", file, lines, set())
            return Document(file, loader.construct_document(node), lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "YAML"
        problem = " ".join(part for part in (error.context, error.problem) if part)
        hint = _syntax_hint(text, mark)
        raise ConfigError(file=file, key=where, detail=f"not valid YAML: {problem}", hint=hint) from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            file=file,
            key="YAML",
            detail=f"a character that YAML forbids at position {error.position}",
            hint="remove it",
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(file=file, key="YAML", detail=str(error), hint="write the value in quotes") from None
    except RecursionError:
        raise ConfigError(file=file, key="YAML", detail="nested too deeply", hint="write less levels") from None


def parse_value(text: str) -> Any:
    """The value that `text` has behind a key, as in `--set key=text`. ConfigError for bad syntax."""
    return parse_document(text, "--set").value


def dump(value: Any) -> str:
    """`value` as YAML that `parse_document` turns into the same value; keys keep their order."""
    return str(yaml.dump(value, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=120))


def inline(value: Any) -> str:
    """`value` as YAML on one line, for messages."""
    text = yaml.dump(
        value, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=1 << 30, default_flow_style=True
    )
    return str(text).replace("\n...", "").strip()


def _survey(node: Any, key: str, file: str, lines: dict[str, int], above: set[int]) -> None:
    """Note the line of every key below `node`; refuse keys written twice and nodes that contain themselves."""
    if id(node) in above:
        raise ConfigError(file=file, key=key, detail="the value contains itself", hint="write it without the alias (*)")
    prefix = f"{key}." if key else ""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name_node, value_node in node.value:
            name, line = str(name_node.value), name_node.start_mark.line + 1
            dotted = prefix + name
            if isinstance(name_node, yaml.ScalarNode) and name != "<<":
                if name in seen:
                    detail = f"written twice, on lines {lines[dotted]} and {line}"
                    raise ConfigError(file=file, key=dotted, detail=detail, hint="keep one of the two")
                seen.add(name)
                lines[dotted] = line
            _survey(value_node, dotted, file, lines, above | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[f"{prefix}{number}"] = item.start_mark.line + 1
            _survey(item, f"{prefix}{number}", file, lines, above | {id(node)})


def _syntax_hint(text: str, mark: Any) -> str:
    if mark is None:
        return "correct the syntax"
    found = text.splitlines()[mark.line : mark.line + 1]
    if found and found[0].startswith("\t"):
        return "indent with spaces, not tabs"
    return (
        f"correct the syntax there: {found[0].strip():.80}"
        if found and found[0].strip()
        else "correct the lines before it"
    )


def _refuse(path: str, kind: str, detail: str, hint: str) -> ConfigError:
    return ConfigError(file=os.fspath(path), key=kind, detail=detail, hint=hint)
