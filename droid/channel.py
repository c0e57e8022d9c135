"""Payloads that are programs: one process per range, in a private folder, no shell in between.

    payload:
      command: ["./simulate", "{input}", "{first}", "{last}", "{output}"]

| placeholder | stands for |
|---|---|
| `{input}` | absolute path of the input file; `generate` where there is none |
| `{first}` `{last}` | first and last event of the range in that file (`generate`: on the axis), 1-based, inclusive |
| `{events}` | how many: last - first + 1 |
| `{position}` | place of the first event among all events of all input files, 0-based: no two files share one |
| `{seed}` | the task's seed; random numbers must be a function of it and of an event's position, one event at a time |
| `{output}` | where to write the fields (droid/program_output.py says how); without it, standard output is read |
| `{workdir}` | the private folder, also the working directory; removed afterwards |

The program, and every argument that begins with `./` or `../`, is a path beside the job file; `{{word}}` gives
`{word}`. What an event gives must not depend on the range it is in: that is the program's duty, as it is that of
`process_range`.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from droid.payload import Worker
from droid.program_output import Fields, Unreadable, declared, read_output
from eventrange.axis import Axis
from eventrange.errors import PayloadError, PayloadFailed, PayloadOptions

_WORD = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
_PR_SET_PDEATHSIG = 1
_TAIL = 4000  # bytes of a program's last words that are worth keeping in a journal


class CommandPayload:
    """A program behind the interface of `droid.payload.Payload`.

    `folder` is where the job file is. `axis` may be given later, by assignment, before the first event: it says
    which file and which events of it a position is. Raises PayloadError where the program is not there, PayloadOptions
    for options other than `fields`.
    """

    per_event = False
    needs_events = False
    jagged: tuple[str, ...] = ()

    def __init__(
        self,
        command: Sequence[str],
        folder: str | os.PathLike[str],
        options: Mapping[str, Any] | None = None,
        axis: Axis | None = None,
    ) -> None:
        self.axis = axis
        self.name = os.path.basename(command[0])
        self._command = [_beside(word, folder) for word in command]
        self._command[0] = _program(command[0], folder)
        self._reads_stdout = not any("{output}" in word for word in command)
        self._fields = _declared_fields(self.name, dict(options or {}))
        self._worker: Worker | None = None
        self._libc = ctypes.CDLL(None)  # now: nothing is loaded between fork and exec

    def setup(self) -> None:
        """Nothing: a program is started for every range."""

    def start(self, worker: Worker) -> None:
        """Once per worker process, before its first event."""
        self._worker = worker

    def process_events(self, events: Sequence[Any], positions: Sequence[int]) -> list[Fields]:
        """The fields of the events at `positions`, ascending; one process for each run of neighbours in one file.

        `events` is not looked at: the program reads the input itself. Raises PayloadFailed.
        """
        if self._worker is None or self.axis is None:
            raise RuntimeError("start() and an axis come before the first event")
        made: list[Fields] = []
        for start, stop in _runs(positions):
            for number, low, high in self.axis.pieces(start, stop):
                made += self._range(self._worker, self.axis, number, low, high)
        return made

    def _range(self, worker: Worker, axis: Axis, number: int, low: int, high: int) -> list[Fields]:
        file = axis.files[number]
        with tempfile.TemporaryDirectory(
            prefix=f"range-{file.origin + low}-", dir=worker.scratch, ignore_cleanup_errors=True
        ) as folder:
            place = Path(folder)
            work = place / "work"
            work.mkdir()
            words = {
                "input": file.path,
                "first": str(low + 1),
                "last": str(high),
                "events": str(high - low),
                "position": str(file.origin + low),
                "seed": str(worker.seed),
                "output": str(work / "output"),
                "workdir": str(work),
            }
            arguments = [_filled(word, words) for word in self._command]
            name = f"{file.name}:{low + 1}-{high}"
            code = self._run(arguments, place, name)

            def failed(text: str, hint: str) -> PayloadFailed:
                return PayloadFailed(
                    program=self.name, events=name, code=code, text=text, stderr=_last_words(place), hint=hint
                )

            if code:
                raise failed(_ending(code), f"run it by hand: {shlex.join(arguments)}")
            output = place / "stdout" if self._reads_stdout else _written(work)
            if output is None:
                raise failed("ended well, but wrote no output", "it must write the file that stands for {output}")
            try:
                events = read_output(output, self._fields)
            except (Unreadable, OSError) as error:
                hint = "write HDF5, or one JSON object per event and line"
                raise failed(f"wrote output that cannot be used: {error}", hint) from error
            if len(events) != high - low:
                hint = "write one entry for every event from {first} to {last}, both included"
                raise failed(f"wrote {len(events)} events, and the range has {high - low}", hint)
            return events

    def _run(self, arguments: list[str], place: Path, name: str) -> int:
        """The exit status, negative for a signal. The process does not outlive this one."""
        parent, libc = os.getpid(), self._libc

        def die_with_worker() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it died before the kernel was told
                os._exit(1)

        # Files and not pipes: a child that the program leaves behind would keep a pipe open, and us waiting.
        # No session of its own: who kills the worker's process group reaches also the program's children.
        with open(place / "stdout", "wb") as out, open(place / "stderr", "wb") as err:
            try:
                process = subprocess.Popen(
                    arguments,
                    cwd=place / "work",
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    preexec_fn=die_with_worker,
                )
            except OSError as error:
                raise PayloadFailed(
                    program=self.name,
                    events=name,
                    code=127,
                    text=f"cannot be started: {error.strerror or error}",
                    hint="a script needs a first line such as #!/bin/sh, a program this machine's architecture",
                ) from error
            try:
                return process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        else:
            runs.append((position, position + 1))
    return runs


def _filled(word: str, words: Mapping[str, str]) -> str:
    """`word` with its placeholders; braces around anything else are the program's own (awk, Python)."""
    return _WORD.sub(lambda match: f"{{{match[1]}}}" if match[1] else words.get(match[2], match[0]), word)


def _beside(word: str, folder: str | os.PathLike[str]) -> str:
    return os.path.normpath(os.path.join(folder, word)) if word.startswith(("./", "../")) else word


def _program(word: str, folder: str | os.PathLike[str]) -> str:
    word = os.path.expanduser(word)
    if "/" not in word:
        found = shutil.which(word)
        if found is None:
            raise PayloadError(
                payload=word,
                detail="there is no such program on the PATH",
                hint=f"install it, or write ./{word} for a program beside the job file",
            )
        return found
    path = os.path.normpath(os.path.join(folder, word))
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        there = "is not executable" if os.path.exists(path) else "is not there"
        raise PayloadError(
            payload=word, detail=f"{path} {there}", hint="build it, chmod +x it, or correct payload.command"
        )
    return path


def _declared_fields(name: str, options: dict[str, Any]) -> dict[str, Any]:
    fields = options.pop("fields", None) or {}
    if options or not isinstance(fields, Mapping):
        raise PayloadOptions(
            payload=name,
            detail=f"takes no option {next(iter(options), 'fields')!r}",
            hint="a command takes only payload.options: {fields: {NAME: DTYPE}}; give it other things as arguments",
        )
    try:
        return declared(fields)
    except ValueError as error:
        raise PayloadOptions(
            payload=name, detail=f"options.fields.{error}", hint="write for example {pt: float64, id: int32}"
        ) from None


def _written(work: Path) -> Path | None:
    """`output`, or the one `output.SUFFIX`, since many programs go by the suffix."""
    if (work / "output").is_file():
        return work / "output"
    found = list(work.glob("output.*"))
    return found[0] if len(found) == 1 else None


def _last_words(place: Path) -> str:
    for name in ("stderr", "stdout"):
        with open(place / name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            if text := file.read().decode("utf-8", "replace").strip():
                return text
    return ""


def _ending(code: int) -> str:
    if code > 0:
        return f"ended with exit status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
