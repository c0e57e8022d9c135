"""Pages agree with the code: every key is described, generated parts are current, links lead somewhere."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import msgspec
import pytest

from droid.channel import CommandPayload
from eventrange.records import Code, Kind
from yoda.errors_table import CODES, pages
from yoda.schema import PLACEHOLDERS, JobKeys

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))


def keys(struct: type[msgspec.Struct], before: str = "") -> list[str]:
    """Dotted names of all keys."""
    found = []
    for field in msgspec.structs.fields(struct):
        inner: Any = field.type
        while hasattr(inner, "__metadata__"):
            inner = inner.__origin__
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            found += keys(inner, f"{before}{field.name}.")
        else:
            found.append(f"{before}{field.name}")
    return found


def test_every_key_of_the_job_file() -> None:
    page = (ROOT / "docs" / "job-file.md").read_text()
    described = re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)
    assert described == keys(JobKeys)


def test_the_job_file_of_the_page_is_one() -> None:
    import yaml

    page = (ROOT / "docs" / "job-file.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    plain = yaml.safe_load(example)
    assert set(plain) <= {field.name for field in msgspec.structs.fields(JobKeys)}


def test_placeholders() -> None:
    page = (ROOT / "docs" / "payloads.md").read_text()
    for word in PLACEHOLDERS:
        assert f"`{{{word}}}`" in page, word
    assert CommandPayload.__doc__


def test_records_and_codes() -> None:
    page = (ROOT / "docs" / "journal.md").read_text()
    for name in (*Kind, *(code for code in Code if code)):
        assert f"`{name.name.lower()}`" in page, name


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in pages(ROOT)])
def test_generated_parts_are_current(page: str) -> None:
    assert (ROOT / page).read_text() == pages(ROOT)[ROOT / page], "run: python -m yoda.errors_table --write"


def test_exit_codes() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    for code in CODES:
        assert re.search(rf"\b{code} ", text)


@pytest.mark.parametrize("page", ["README.md", *(path.relative_to(ROOT).as_posix() for path in DOCS)])
def test_links(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_pictures_are_xml() -> None:
    for picture in (ROOT / "docs").glob("*.svg"):
        ElementTree.parse(picture)
