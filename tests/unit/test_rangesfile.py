"""Files of named ranges: every form is read alike, and what is wrong is said with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from eventrange.errors import ConfigError
from yoda import rangesfile
from yoda.rangesfile import batches

TWO = [
    {"eventRangeID": "8-42-1-10", "LFN": "a.root", "GUID": "G", "scope": "s", "startEvent": 1, "lastEvent": 5},
    {"eventRangeID": 'odd "{[,]}\\" é', "LFN": "b:1.root", "startEvent": 6, "lastEvent": 6, "x": {"y": "}"}},
]
CSV = 'lastEvent,LFN,eventRangeID,startEvent\n5,a.root,8-42-1-10,1\n\n6,b:1.root,"odd ""{[,]}\\"" é",6\n'


def read(path: Path) -> list[tuple[Any, ...]]:
    return [
        (batch.group, entry.eventRangeID, entry.LFN, entry.startEvent, entry.lastEvent)
        for batch in batches(str(path))
        for entry in batch.entries
    ]


FORMS = {
    "list": json.dumps(TWO),
    "pretty": json.dumps(TWO, indent=4, ensure_ascii=False),
    "by PandaID": json.dumps({"42": TWO[:1], "none": [], "43": TWO[1:]}),
    "lines": "\n".join(json.dumps(entry) for entry in TWO) + "\n\n",
    "lines without an end": "\n".join(json.dumps(entry) for entry in TWO),
    "csv": CSV,
    "byte order mark": "\ufeff" + CSV,
    "spaces": "\n\n  " + json.dumps(TWO) + " \n",
}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, packed: bool, chunk: int
) -> None:
    monkeypatch.setattr(rangesfile, "CHUNK", chunk)
    data = FORMS[form].encode()
    path = tmp_path / "ranges"
    path.write_bytes(gzip.compress(data) if packed else data)
    groups = ("42", "43") if form == "by PandaID" else (None, None)
    assert read(path) == [
        (groups[0], "8-42-1-10", "a.root", 1, 5),
        (groups[1], 'odd "{[,]}\\" é', "b:1.root", 6, 6),
    ]


@pytest.mark.parametrize("text", ["[]", " [ ] ", "{}", '{"1": []}', ""])
def test_no_range_at_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(text)
    if text:
        assert read(path) == []
    else:
        with pytest.raises(ConfigError, match="no column eventRangeID"):
            read(path)


GOOD = json.dumps(TWO[0])


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("[" + GOOD, "entry 1", "ends in the middle"),
        ("[" + GOOD[:30], "entry 1", "ends in the middle"),
        ("[" + GOOD + ", 5]", "entry 2", "'5' where a range should begin"),
        ("[" + GOOD + GOOD + "]", "entry 1", "malformed|middle"),
        ("[" + GOOD + "] more", "entry 2", "something follows"),
        ("[" + GOOD + ', {"eventRangeID": "x", "startEvent": 1}]', "entry 2", "missing required field `lastEvent`"),
        ("[" + GOOD + "," + GOOD.replace('"lastEvent": 5', '"lastEvent": "five"') + "]", "entry 2", "in lastEvent"),
        ("[" + GOOD.replace('"8-42-1-10"', "8") + "]", "entry 1", "expected `str`, got `int` in eventRangeID"),
        ('{"42": [' + GOOD + "]", "entry 2", "neither a PandaID"),
        ('{"42": [' + GOOD + '], "43": 1}', "entry 2", "neither a PandaID"),
        (GOOD + "\n\n" + GOOD[:-5], "line 3", "malformed|truncated"),
        (GOOD + "\n{}\n" + GOOD, "line 2", "missing required field"),
        ("name,first\nx,1\n", "line 1", "no column eventRangeID"),
        (CSV + "1,a,x\n", "line 5", "out of range"),
        (CSV + "five,a,x,1\n", "line 5", "invalid literal"),
        ("just text", "line 1", "no column"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, where: str, says: str) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {where}: ")
    assert "\n  -> write" in str(caught.value)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json.gz"
    path.write_bytes(gzip.compress(json.dumps(TWO).encode())[:-20])
    with pytest.raises(ConfigError, match="gzip"):
        read(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match="line"):
        read(path)
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "absent")
