"""Whether a user's class or function can be called as a payload is, found out before any event is touched."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from eventrange.errors import PayloadInterface, PayloadOptions

_SIGNATURES = {
    "setup": ("setup(self)",),
    "start": ("start(self, worker)",),
    "process": ("process(self, event)", "process(self, event, random)"),
    "process_range": ("process_range(self, events)", "process_range(self, events, randoms)"),
}
_RANDOM = ("random", "randoms")


def has_methods(target: Any) -> bool:
    """Whether this is an object with the methods of the interface, and not a function."""
    return hasattr(target, "process") or hasattr(target, "process_range")


def check_class(spec: str, target: type) -> None:
    """Raise PayloadInterface unless the class has one of the two methods, and each can be called as it will be."""
    has = [name for name in ("process", "process_range") if callable(getattr(target, name, None))]
    if len(has) != 1:
        detail = "has both process and process_range" if has else "has neither process nor process_range"
        public = [key for key in dir(target) if not key.startswith("_")]
        hint = "keep the one that is to be called" if has else "write `def process(self, event, random)`"
        raise PayloadInterface(
            payload=spec,
            detail=f"class {target.__name__} {detail}",
            hint=hint if has else nearest(hint, "process", _close("process", public)),
        )
    for name in ("setup", "start", *has):
        method = getattr(target, name, None)
        if method is None:
            continue
        signature, own = signature_of(method), 1  # `self`
        if isinstance(inspect.getattr_static(target, name), (staticmethod, classmethod)):
            own = 0
        should = _SIGNATURES[name]
        arguments = [None] * (should[-1].count(",") + own)
        full = f"{target.__name__}.{name}"
        if name in has and not _draws(spec, full, signature, own):
            arguments.pop()
        if not _binds(method, arguments):
            raise PayloadInterface(
                payload=spec,
                detail=f"{full}{signature} cannot be called as {' or '.join(should)}",
                hint=f"write `def {should[-1]}`; what comes from the job file goes to __init__",
            )


def draws(signature: inspect.Signature | None, own: int = 0, options: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether what is called with an event takes its random numbers too: as the second argument, after `own` others.

    Raises ValueError, with a hint, where that cannot be told: numbers that are not given where they are meant would be
    taken from elsewhere, and the result be another one every time (L3).
    """
    if signature is None:
        return True
    kinds = inspect.Parameter
    parameters = list(signature.parameters.values())
    places = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
    positional = [parameter for parameter in parameters if parameter.kind in places]
    second = next((p for p in positional[own : own + 2] if p.kind is kinds.VAR_POSITIONAL), None)
    if second is None and len(positional) > own + 1:
        second = positional[own + 1]
    for parameter in parameters:
        if parameter.name in _RANDOM and parameter is not second and parameter.kind is not kinds.VAR_KEYWORD:
            raise ValueError(f"make {parameter.name} the second argument")
    if second is None or (second.name in options and second.name not in _RANDOM):
        return False
    if second.kind is kinds.VAR_POSITIONAL or second.name in _RANDOM or second.default is kinds.empty:
        return True
    raise ValueError(
        f"call {second.name} `random` if it is to have the event's random numbers, else write `*, ` before it"
    )


def check_function(spec: str, target: Any, options: dict[str, Any]) -> None:
    """Raise PayloadInterface or PayloadOptions unless it can be called with (event, **options), or (event, random,
    **options)."""
    signature = signature_of(target)
    if signature is None:
        return
    name = getattr(target, "__name__", "function")
    hint = f"write `def {name}(event)`, or `def {name}(event, random)`, then arguments for payload.options"
    taken = 2 if _draws(spec, name, signature, options=options) else 1
    check_options(spec, signature, options, skip=taken)
    if not _binds(target, [None] * taken, options):
        raise PayloadInterface(payload=spec, detail=f"{name}{signature} cannot be called with an event", hint=hint)


def _draws(
    spec: str,
    name: str,
    signature: inspect.Signature | None,
    own: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> bool:
    """The same, of `name`; raises PayloadInterface."""
    try:
        return draws(signature, own, options)
    except ValueError as error:
        detail = f"{name}{signature} does not say whether it takes random numbers"
        raise PayloadInterface(payload=spec, detail=detail, hint=str(error)) from error


def check_options(spec: str, signature: inspect.Signature | None, options: dict[str, Any], skip: int) -> None:
    """Every option is a keyword argument, and every argument without a default is an option; `skip` the first ones."""
    if signature is None:
        return
    kinds = inspect.Parameter
    parameters = list(signature.parameters.values())[skip:]
    named = {p.name: p for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    if not any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        for option in options:
            if option not in named:
                hint = (
                    "correct payload.options in the job file" if named else "remove payload.options from the job file"
                )
                raise PayloadOptions(
                    payload=spec, detail=f"takes no option {option!r}", hint=nearest(hint, option, list(named))
                )
    missing = [name for name, p in named.items() if p.default is kinds.empty and name not in options]
    if missing:
        raise PayloadOptions(
            payload=spec,
            detail=f"needs the option {missing[0]!r}",
            hint=f"write payload.options: {{{missing[0]}: ...}} in the job file, or give the argument a default",
        )


def signature_of(target: Any) -> inspect.Signature | None:
    """The signature, or None where Python cannot know it."""
    try:
        return inspect.signature(target)
    except (ValueError, TypeError):  # compiled code that says nothing of itself: the first call will tell
        return None


def _binds(target: Any, arguments: Sequence[Any], options: Mapping[str, Any] | None = None) -> bool:
    """Whether it can be called so: by what it says of itself and, where a decorator shows the signature of what is
    inside, by its own."""
    for follow in (True, False):
        try:
            signature = inspect.signature(target, follow_wrapped=follow)
        except (ValueError, TypeError):  # as in signature_of
            continue
        try:
            signature.bind(*arguments, **(options or {}))
        except TypeError:
            return False
    return True


def jagged_fields(name: str, target: Any) -> tuple[str, ...]:
    """The attribute `jagged` of a payload, checked."""
    value = getattr(target, "jagged", None)
    if value is None and isinstance(target, functools.partial):
        value = getattr(target.func, "jagged", None)
    if value is None:
        return ()
    if isinstance(value, str) or not all(isinstance(field, str) for field in value):
        raise PayloadInterface(
            payload=name, detail=f"jagged is {value!r}", hint='write the names of fields: jagged = ("field", ...)'
        )
    return tuple(value)


def nearest(hint: str, name: str, known: Sequence[str]) -> str:
    """`hint`, and the known name that was probably meant."""
    close = _close(name, known)
    if close:
        return f"{hint}; did you mean {close[0]}?"
    return f"{hint}; there is {', '.join(sorted(known)[:8])}" if known else hint


def _close(name: str, known: Sequence[str]) -> list[str]:
    import difflib  # late: most payloads are as they should be

    return difflib.get_close_matches(name, known, 1, 0.5)
