"""Tables of the documentation that are made from the code: errors, journal columns, metrics.

    python -m yoda.errors_table            # print docs/errors.md
    python -m yoda.errors_table --write    # bring docs/errors.md, docs/journal.md and the README up to date

A test checks that they are current.
"""

from __future__ import annotations

import re
import string
import sys
from pathlib import Path

from eventrange import errors
from eventrange.errors import YodaError

CODES = {
    0: "complete",
    1: "a bug; there is a traceback",
    65: "complete, but some events are quarantined; or data that cannot be used",
    73: "output cannot be written",
    75: "stopped with work left: run the same command again",
    78: "configuration: nothing was started",
}
#: What users meet most, in the README; the class names what happened, the first words are what they see.
README = (
    "ConfigError",
    "InputMissing",
    "TaskChanged",
    "NotATask",
    "PayloadImport",
    "PayloadStart",
    "FieldsChanged",
    "ExtraMissing",
    "LauncherMissing",
    "CannotWrite",
    "MergeIncomplete",
    "StoragePermanent",
    "SlurmRefused",
)


def classes() -> list[type[YodaError]]:
    """Every error a user can see, in the order of the source."""
    found = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, YodaError) and value is not YodaError
    ]
    return [cls for cls in found if cls.__module__ == errors.__name__]


def fields(cls: type[YodaError]) -> set[str]:
    """Names of the values a class's templates are filled with."""
    parsed = [*string.Formatter().parse(cls.what), *string.Formatter().parse(cls.todo)]
    return {re.split(r"[.\[!:]", name)[0] for _, name, _, _ in parsed if name}


def summary(cls: type[YodaError]) -> str:
    """The first paragraph of a class's docstring, on one line."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def document() -> str:
    """docs/errors.md."""
    out = [
        "# Errors",
        "",
        "Everything a user can be told. Made from `eventrange/errors.py` by `python -m yoda.errors_table --write`.",
        "Every message says what happened and where, and behind `->` what to do. Words in braces are filled in.",
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in CODES.items()),
        "",
        "## Messages",
    ]
    for cls in classes():
        out += ["", f"### {cls.__name__} ({cls.exit_code})", "", summary(cls), "", "```", f"yoda: {cls.what}"]
        if cls.todo:
            out.append(f"  -> {cls.todo}")
        out.append("```")
    return "\n".join(out) + "\n"


def readme_table() -> str:
    """The README's troubleshooting table."""
    known = {cls.__name__: cls for cls in classes()}
    out = ["| you see | it means | do this | exit code |", "|---|---|---|---|"]
    for name in README:
        cls = known[name]
        # The hint of some messages is made for the case at hand.
        todo = cls.todo if cls.todo not in ("", "{hint}") else "what stands behind `->` in the message"
        seen = _plain(cls.what.splitlines()[0].replace("{detail}", "..."))
        out.append(f"| `{seen}` | {summary(cls)} | {_plain(todo)} | {cls.exit_code} |")
    return "\n".join(out)


def _plain(template: str) -> str:
    """A template as people write: what is filled in stands in capitals."""
    words = re.sub(r"\{(\w+)[^}]*\}", lambda found: found[1].upper(), template)
    return words.replace("|", "\\|")


def columns_table() -> str:
    """Columns of `yoda journal`."""
    from yoda.journal_view import COLUMNS

    return "\n".join(["| column | meaning |", "|---|---|", *(f"| `{n}` | {m} |" for n, m in COLUMNS.items())])


def metrics_table() -> str:
    """Names in metrics.prom."""
    from yoda.metrics import NAMES

    lines = (f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in NAMES.items())
    return "\n".join(["| name | type | meaning |", "|---|---|---|", *lines])


def filled(text: str, name: str, table: str) -> str:
    """`text` with what stands between the marks `<!-- name: begin -->` and `<!-- name: end -->` made anew."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{table}\n{end}{tail}"


def pages(root: Path) -> dict[Path, str]:
    """Every page with generated parts below `root`, as it should be."""
    page, journal = root / "README.md", root / "docs" / "journal.md"
    text = filled(journal.read_text(), "columns", columns_table())
    return {
        root / "docs" / "errors.md": document(),
        page: filled(page.read_text(), "errors", readme_table()),
        journal: filled(text, "metrics", metrics_table()),
    }


def main() -> None:
    if "--write" not in sys.argv[1:]:
        sys.stdout.write(document())
        return
    for path, text in pages(Path(__file__).resolve().parents[1]).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
