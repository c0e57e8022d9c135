"""Every key of the site file with its default, as docs/site-file.md shows them, from the typed schema."""

from __future__ import annotations

from typing import Any

import msgspec
import msgspec.inspect as inspect

from eventrange.quantity import format_duration, format_size
from yoda.schema import SiteKeys


def site_keys() -> dict[str, str]:
    """Dotted key -> default as one would write it, or `required`. `stageout[]` stands for an entry of the list."""
    rows: dict[str, str] = {}
    _walk(SiteKeys, "", rows)
    return rows


def _walk(struct: Any, prefix: str, rows: dict[str, str]) -> None:
    for field in inspect.type_info(struct).fields:  # type: ignore[attr-defined]
        key = f"{prefix}{field.name}"
        kind, extra = _peel(field.type)
        if isinstance(kind, inspect.StructType):
            _walk(kind.cls, f"{key}.", rows)
        elif isinstance(kind, inspect.VarTupleType) and isinstance(_peel(kind.item_type)[0], inspect.StructType):
            _walk(_peel(kind.item_type)[0].cls, f"{key}[].", rows)
        else:
            rows[key] = _default(field, extra)


def _peel(kind: Any) -> tuple[Any, dict[str, Any]]:
    """The type without its notes and without None, and the notes."""
    extra: dict[str, Any] = {}
    while isinstance(kind, (inspect.Metadata, inspect.UnionType)):
        if isinstance(kind, inspect.Metadata):
            extra = {**(kind.extra or {}), **extra}
            kind = kind.type
        else:
            members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
            if len(members) > 1:
                break
            kind = members[0]
    return kind, extra


def _default(field: Any, extra: dict[str, Any]) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return "auto" if extra.get("auto") else "none"
    if extra.get("quantity") == "duration":
        return str(format_duration(value))
    if extra.get("quantity") == "size":
        return str(format_size(value))
    if isinstance(value, bool):
        return str(value).lower()
    if value in ("", (), []):
        return "none"
    return str(value)
