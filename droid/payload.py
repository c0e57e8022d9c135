"""Payloads written in Python: the interface users write against, and how one is loaded.

A payload is named in the job file as `payload.python: FILE.py:NAME` or `package.module:NAME`; `payload.options` are
keyword arguments. NAME is a function `(event, random, **options) -> {field: value}`, or a class:

    class Shower:                                        # __init__ takes the options
        jagged = ("pt",)                                 # optional: fields stored with a count per event, always
        def setup(self): ...                             # optional: once per node, before the workers are forked
        def start(self, worker): ...                     # optional: once in each worker process; `worker` is a Worker
        def process(self, event, random): ...            # one event   -> {field: value}
        def process_range(self, events, randoms): ...    # or many     -> {field: sequence with one entry per event}

Exactly one of the last two; a payload that draws no random numbers leaves out their argument. A value is a number, a
string, or an array; an array's first axis may vary from event to event, nothing else may. An event without fields is
`{}` or None, and then all events of the task have to be.

`random` is a numpy Generator that depends on (seed, position of the event) alone. A payload that draws from nothing
else gives the same result whatever worker runs it, in whatever order and grouping.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
from numpy.random import Generator

from droid.payload_checks import (
    check_class,
    check_function,
    check_options,
    draws,
    has_methods,
    jagged_fields,
    nearest,
    signature_of,
)
from droid.randoms import random_for, streams
from eventrange.errors import (
    PayloadError,
    PayloadImport,
    PayloadName,
    PayloadReturned,
    PayloadStart,
)

__all__ = ["Payload", "Worker", "load", "random_for"]

Fields = dict[str, Any]

_FRAMES = 8


@dataclass(frozen=True)
class Worker:
    """What a payload's `start` is told about the process it runs in.

    `index` of `count` workers on this node, from 0; `scratch` a private folder on this node, removed at the end; `seed`
    of the task. Nothing an event gives may depend on index, count or scratch.
    """

    index: int
    count: int
    scratch: Path
    seed: int


# --- a loaded payload -------------------------------------------------------------------------------------------------


class Payload:
    """A user's class or function behind one interface. Made by `load`.

    `per_event` says whether events are given one at a time; `jagged` names fields always stored with a count per event;
    `needs_events` is False where the payload reads its input itself (programs). `origin` is Axis.origin where positions
    count the events of named ranges only.
    """

    needs_events = True
    origin: Callable[[int], int] | None = None

    def __init__(self, name: str, target: Any) -> None:
        self.name = name
        self.jagged = jagged_fields(name, target)
        self._target = target
        self._seed: int | None = None
        self._methods = has_methods(target)
        if not self._methods:
            self._process: Callable[..., Any] | None = target
            self._process_range: Callable[..., Any] | None = None
        else:
            self._process = getattr(target, "process", None)
            self._process_range = getattr(target, "process_range", None)
        self.per_event = self._process is not None
        self._draws = draws(signature_of(self._process or self._process_range))

    def setup(self) -> None:
        """Once per node, before workers are forked. Raises PayloadStart."""
        self._step("setup")

    def start(self, worker: Worker) -> None:
        """Once per worker process, before its first event. Raises PayloadStart."""
        self._seed = worker.seed
        self._step("start", worker)

    def _step(self, step: str, *arguments: Any) -> None:
        method = getattr(self._target, step, None) if self._methods else None
        if method is None:
            return
        try:
            method(*arguments)
        except (Exception, SystemExit) as error:
            raise _stopped(self.name, f"{step}()", error) from error

    def each(self, positions: Sequence[int]) -> Callable[[Any], Fields]:
        """What gives the fields of the events at `positions`, to be called with each of them in turn; for payloads that
        are `per_event`. It lets through whatever the payload raises; the next call is then for the next event."""
        process = self._process
        assert process is not None
        randoms = self._randoms(positions)  # none if it draws none

        def with_random(event: Any) -> Fields:
            fields = process(event, next(randoms))
            return {} if fields is None else fields

        def without(event: Any) -> Fields:
            fields = process(event)
            return {} if fields is None else fields

        return with_random if self._draws else without

    def process_events(self, events: Sequence[Any], positions: Sequence[int]) -> list[Fields]:
        """The fields of each event; `positions` are theirs on the axis.

        Lets through whatever the payload raises; PayloadReturned where its answer has another length.
        """
        if self._process is None:
            randoms = list(self._randoms(positions))
            return self._range(events, *([randoms] if self._draws else []))
        fields_of = self.each(positions)
        return [fields_of(event) for event, _ in zip(events, positions, strict=True)]

    def _randoms(self, positions: Sequence[int]) -> Iterator[Generator]:
        if self._seed is None:
            raise RuntimeError("start() comes before the first event")
        if not self._draws:
            return iter(())
        return streams(self._seed, positions if self.origin is None else list(map(self.origin, positions)))

    def _range(self, events: Sequence[Any], *randoms: list[Generator]) -> list[Fields]:
        assert self._process_range is not None
        answer = self._process_range(events, *randoms)
        n = len(events)
        if answer is None:
            answer = {}
        if not isinstance(answer, Mapping):
            raise self._returned(f"process_range returned {type(answer).__name__}, not a dict")
        for name, values in answer.items():
            if isinstance(values, (str, bytes, Mapping, set, frozenset)):
                raise self._returned(
                    f"field {name!r} is a {type(values).__name__}, not a sequence with an entry per event"
                )
            try:
                length = len(values)
            except TypeError:
                what = "a scalar array" if isinstance(values, np.ndarray) else type(values).__name__
                raise self._returned(f"field {name!r} is {what}, not a sequence with an entry per event") from None
            if length != n:
                raise self._returned(f"field {name!r} has {length} entries for {n} events")
        if not answer:
            return [{} for _ in events]
        names = list(answer)
        return [dict(zip(names, row, strict=True)) for row in zip(*answer.values(), strict=True)]

    def _returned(self, detail: str) -> PayloadReturned:
        return PayloadReturned(
            payload=self.name,
            detail=detail,
            hint="return {field: values}, values an array or list with one entry per event, in the order of `events`",
        )


# --- loading ----------------------------------------------------------------------------------------------------------


def load(spec: str, options: Mapping[str, Any] | None = None) -> Payload:
    """The payload `FILE.py:NAME` (FILE absolute) or `package.module:NAME`, made with `options`.

    Raises PayloadImport, PayloadName, PayloadInterface, PayloadOptions, PayloadStart.
    """
    options = dict(options or {})
    place, colon, name = spec.rpartition(":")
    if not (colon and place and all(part.isidentifier() for part in name.split("."))):
        raise PayloadError(
            payload=spec,
            detail="does not say which class or function to use",
            hint="write payload.python: FILE.py:NAME or package.module:NAME",
        )
    module = _module_from_file(spec, place) if place.endswith(".py") else _module(spec, place)
    target = _named(spec, module, name)
    short = f"{os.path.basename(place)}:{name}"
    if not inspect.isclass(target):
        check_function(spec, target, options)
        return Payload(short, functools.partial(target, **options) if options else target)
    check_class(spec, target)
    check_options(spec, signature_of(target), options, skip=0)
    try:
        made = target(**options)
    except (Exception, SystemExit) as error:
        raise _stopped(spec, f"{name}(...)", error) from error
    return Payload(short, made)


class _FromSource(importlib.machinery.SourceFileLoader):
    """Never takes compiled code from a cache: that one is told from newer source by second and size alone."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _module_from_file(spec: str, path: str) -> ModuleType:
    path = os.path.abspath(path)
    folder, base = os.path.split(path)
    if not os.path.isfile(path):
        there = [entry for entry in os.listdir(folder) if entry.endswith(".py")] if os.path.isdir(folder) else []
        raise PayloadImport(
            payload=spec,
            detail=f"there is no file {path}",
            hint=nearest("correct payload.python in the job file", base, there),
        )
    # Two files of one name in different folders are two modules; siblings are found as for a script.
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    name = f"yoda_payload_{base[:-3]}_{digest}"
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, path))
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _not_imported(spec, error) from error
    return module


def _module(spec: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _not_imported(spec, error) from error


def _named(spec: str, module: ModuleType, name: str) -> Any:
    target: Any = module
    for part in name.split("."):
        target = getattr(target, part, None)
    if target is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise PayloadName(
            payload=spec,
            detail=f"{module.__file__ or module.__name__} has no class or function {name}",
            hint=nearest("correct the name after the colon in payload.python", name, own),
        )
    if not callable(target):
        raise PayloadName(
            payload=spec,
            detail=f"{name} is a {type(target).__name__}, not a class or function",
            hint="name a class or a function after the colon in payload.python",
        )
    return target


# --- what the user's code raised --------------------------------------------------------------------------------------


def _not_imported(spec: str, error: BaseException) -> PayloadImport:
    hint = "correct the file, or the name in payload.python"
    if isinstance(error, ModuleNotFoundError):
        hint = f"install {error.name} where yoda runs, or correct the import" if error.name else hint
    return PayloadImport(payload=spec, detail=_tail(error), hint=hint)


def _stopped(payload: str, step: str, error: BaseException) -> PayloadStart:
    return PayloadStart(
        payload=payload, step=step, detail=_tail(error), hint="correct the payload, or payload.options in the job file"
    )


def _tail(error: BaseException) -> str:
    """The error in one line, and the end of its traceback without our own frames and those of the import system."""
    shown = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<frozen importlib")
    ]
    lines = "".join(traceback.format_list(shown[-_FRAMES:]) + traceback.format_exception_only(error)).splitlines()
    brief = f"{type(error).__name__}: {error}".splitlines()[0]
    return "\n".join([brief, *(f"  | {line}" for line in lines)])
