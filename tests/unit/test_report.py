"""The report: what must stand in it, nothing from outside, nothing a user named taken for HTML."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sample_task import BAD, BEGIN, EVIL, beating, frozen, merged_task, sample_task

from eventrange.errors import NotATask
from eventrange.taskdir import TaskDir
from yoda.cli import main
from yoda.lease_view import QUIET
from yoda.report import render, report
from yoda.report_facts import gather
from yoda.report_pictures import draw, history
from yoda.verdict import cells, rows, table, verdict

LATER = BEGIN + 90000


class Tags(HTMLParser):
    """Checks that what is opened is closed, and gathers tags and words."""

    VOID = ("meta", "path", "rect", "circle", "polyline", "br", "pattern")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def read(html: str) -> tuple[Tags, str]:
    tags = Tags()
    tags.feed(html)
    assert tags.open in ([], ["html"]), tags.open
    return tags, " ".join(" ".join(tags.words).split())


@pytest.fixture
def html(tmp_path: Path) -> str:
    facts = gather(sample_task(tmp_path), LATER)
    return render(facts, draw(facts))


def test_what_stands_in_it(html: str) -> None:
    _, words = read(html)
    for part in (
        "349 of 400 events",
        "Nothing is running; the same yoda run goes on with it",
        "killed without warning",
        "SIGTERM",
        "lost in flight",
        "start-up",
        "drained",
        "Quarantined events",
        f"generate:{BAD + 1} (#{BAD})",
        "failed: exception",
        "given back: drained",
        "endpoint:primary",
        "closed to open",
        "5 of 8 failed",
        "2 allocations, 1 of them killed,",
        "99.9 %",
        "sealed segments",
    ):
        assert part in words, part


def test_self_contained(html: str) -> None:
    tags, _ = read(html)
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "img", "iframe", "object"}
    for tag, attributes in tags.seen:
        for name, value in attributes.items():
            assert name not in ("src", "href", "xlink:href") and not name.startswith("on"), (tag, name)
            assert "url(" not in (value or "") or "url(#" in (value or ""), value
    rest = html.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "@import" not in html and "http" not in rest
    assert "default-src 'none'" in html


def test_names_are_no_html(html: str) -> None:
    assert EVIL not in html and "&lt;script&gt;" in html


def test_patterns_and_words_beside_colours(html: str) -> None:
    for pattern in ("hatch", "bars"):
        assert f"url(#{pattern})" in html
    assert html.count("lost in flight</text>") >= 2


def test_pictures(tmp_path: Path) -> None:
    facts = gather(sample_task(tmp_path), LATER)
    pictures = draw(facts)
    assert set(pictures) - {"eta"} == {
        *("nodes", "cores", "utilisation", "throughput", "done", "outcome", "times", "breakers")
    }  # fmt: skip
    for picture in pictures.values():
        read(picture)
        assert "nan" not in picture and "inf" not in picture.replace("in flight", "")
    rate, _ = history(facts)
    assert rate[facts.chronicle.axis.inside()].max() > 0


def test_storage_attempts_and_consumers(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    merged_task(task)
    facts = gather(task, LATER)
    pictures = draw(facts)
    _, words = read(render(facts, pictures))
    for part in (
        "done at attempt 1 176 373",
        "done at attempt 2 1 26",
        "quarantined 1 1",
        "Done by 14 workers of 4 Droids in 3 allocations",
        "events per worker 12",
        "tape file:///t in use 1 7.0 MB 0",
        "1 of 2 sealed segments are staged; 1 wait",
        "half-open to exhausted",
        "idle while another core merged",
    ):
        assert part in words, (part, words)
    assert fills(pictures["breakers"]) == {"#cfe3d4", "url(#bars)", "url(#dots)", "#3b0a0a"}
    assert "#6a4fa3" in pictures["nodes"] and "#6a4fa3" not in draw(gather(sample_task(tmp_path / "t"), LATER))["nodes"]


def test_the_dead_are_known_at_once(tmp_path: Path) -> None:
    task = sample_task(tmp_path)
    Path(task.journal("2")).unlink()
    with beating(task, "1"):
        facts = gather(task, BEGIN + 41)
    assert facts.state["core_seconds"]["lost_in_flight"] == 0 and facts.chronicle.nodes.sums()["lost"].sum() == 0
    with beating(task, "9"):
        facts = gather(task, BEGIN + 41 + QUIET)  # one whose file is gone is dead after a moment
    lost = facts.chronicle.nodes.sums()["lost"].sum() * facts.chronicle.axis.scale
    assert facts.state["core_seconds"]["lost_in_flight"] == pytest.approx(lost) and lost > 0
    assert "It is running" not in read(render(facts, draw(facts)))[1]


def test_only_what_was_granted_before_is_handed_out_again(tmp_path: Path) -> None:
    """Of an allocation that was killed, not what nobody has been given since."""
    task = sample_task(tmp_path)
    second = Path(task.journal("2"))
    whole = second.read_bytes()
    second.unlink()
    facts = gather(task, LATER)
    assert facts.chronicle.granted == 400 and "handed out again" not in render(facts, draw(facts))
    second.write_bytes(whole)
    facts = gather(task, LATER)
    assert "handed out again 100 28.65" in read(render(facts, draw(facts)))[1]


def fills(picture: str) -> set[str]:
    """What the boxes of a picture are filled with."""
    return set(re.findall('<rect x=[^>]* fill="([^"]*)"', picture))


def test_event_times_are_of_single_events_where_they_are_known(tmp_path: Path) -> None:
    """The last `times` of an allocation counts; without, ranges count with their mean, and the page says so."""
    task = sample_task(tmp_path)
    before = gather(task, LATER).chronicle
    assert before.single == 1 and sum(before.times.values()) == 349, "only the one beside the bad event was alone"
    merged_task(task)
    facts = gather(task, LATER)
    after = facts.chronicle
    assert after.single == before.single + 50 and sum(after.times.values()) == 399
    assert {bin_: n for bin_, n in after.times.items() if bin_ not in before.times} == {-20: 48, 4: 2}
    assert "12.78 % of the events are counted with their own time" in read(render(facts, draw(facts)))[1]


def test_images(tmp_path: Path) -> None:
    """Every picture as SVG of its own; with matplotlib the main ones as PNG, in the colours of the page."""
    image = pytest.importorskip("matplotlib.image")
    task = sample_task(tmp_path / "t", finish=True)
    report(task, str(tmp_path / "r.html"), str(tmp_path / "pictures"))
    found = {path.name for path in (tmp_path / "pictures").iterdir()}
    pictures = draw(gather(task))
    assert found == {f"{name}.svg" for name in pictures} | {"utilisation.png", "cores.png", "throughput.png"}
    for name in pictures:
        read((tmp_path / "pictures" / f"{name}.svg").read_text())
    for name in ("utilisation", "cores", "throughput"):
        pixels = image.imread(tmp_path / "pictures" / f"{name}.png")[..., :3]
        blue = np.abs(pixels - np.array([0x2F, 0x6F, 0xB7]) / 255).max(axis=2) < 0.02
        assert blue.sum() > 500, name


def test_a_task_that_never_ran(tmp_path: Path) -> None:
    from yoda.task import _text

    task = TaskDir(str(tmp_path))
    task.make()
    Path(task.task_file).write_text(_text(frozen(tmp_path)))
    facts = gather(task, LATER)
    _, words = read(render(facts, draw(facts)))
    assert "No Droid has worked on this task yet" in words and "0 of 400 events" in words


def test_no_task(tmp_path: Path) -> None:
    with pytest.raises(NotATask):
        report(TaskDir(str(tmp_path / "none")))
    assert main(["report", str(tmp_path / "none")]) == 78


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = sample_task(tmp_path / "t", finish=True)
    assert main(["report", task.root, "-o", str(tmp_path / "r.html"), "--images", str(tmp_path / "pictures")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html")
    assert (tmp_path / "pictures" / "cores.svg").stat().st_size > 1000
    assert main(["report", task.root]) == 0 and Path(task.report).exists()
    assert main(["status", task.root, "--cores"]) == 0
    assert "allocation" in capsys.readouterr().out


def test_verdict(tmp_path: Path) -> None:
    state = gather(sample_task(tmp_path), LATER).state
    detail = state["core_seconds_detail"]
    assert verdict(detail).startswith(("Fair", "Poor", "Good"))
    assert verdict(dict.fromkeys(detail, 0.0)) == "No core time was used yet."
    slow = dict.fromkeys(detail, 0.0) | {"productive": 80.0, "idle_input": 20.0, "idle": 20.0, "total": 100.0}
    assert verdict(slow) == (
        "Good: 80.0 % of 1 min 40 s of core time was productive; the largest loss is waiting for input, 20.0 % "
        "(the file system or the server of the input is slow)."
    )
    page = table(state)
    assert all(len(line) <= 80 for line in page.splitlines()) and "n3" in page
    whole = page[page.index("outcome") : page.index("allocation  ")].splitlines()[1:-1]
    shares = [float(line.split()[-1]) for line in whole]
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.1) and shares[-1] == 100
    for by in ("node", "allocation"):
        for name, seconds in rows(state, by):
            shares = [float(cell) for cell in cells(name, seconds)[2:]]
            assert sum(shares) == pytest.approx(100, abs=0.5)
    assert len(rows(state, "allocation")) == 2 and [name for name, _ in rows(state, "node")] == ["n1", "n2", "n3"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser(tmp_path: Path) -> None:
    """A real browser lays it out: the page is as tall as its content, and the pictures are painted."""
    assert CHROMIUM is not None
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    report(sample_task(tmp_path / "t"), str(page))
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars", "--window-size=1000,760",
    ]  # fmt: skip
    subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True, timeout=120)
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], check=True, capture_output=True, timeout=120)
    dom = done.stdout.decode()
    assert "Where the core time went" in dom and len(re.findall("<svg", dom)) >= 6
    pixels = _pixels(shot)
    for colour in ((0x2F, 0x6F, 0xB7), (0xC6, 0x28, 0x28), (0xA7, 0xAD, 0xB5)):  # productive, lost, start-up
        assert pixels.count(bytes(colour)) > 50, colour


def _pixels(path: Path) -> bytes:
    """Rough RGB content of a PNG without an imaging library: colours of flat areas survive any filter as runs."""
    import struct
    import zlib

    data, at, parts, width, channels = path.read_bytes(), 8, [], 0, 3
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        if kind == b"IHDR":
            width, channels = struct.unpack(">I", data[at + 8 : at + 12])[0], {2: 3, 6: 4}[data[at + 17]]
        elif kind == b"IDAT":
            parts.append(data[at + 8 : at + 8 + size])
        at += 12 + size
    raw, stride = zlib.decompress(b"".join(parts)), width * channels
    out, before = bytearray(), bytearray(stride)
    for row in range(0, len(raw), stride + 1):
        line = _unfilter(raw[row], bytearray(raw[row + 1 : row + 1 + stride]), before, channels)
        out += line if channels == 3 else bytes(v for n, v in enumerate(line) if n % 4 != 3)
        before = line
    return bytes(out)


def _unfilter(kind: int, line: bytearray, up: bytearray, channels: int) -> bytearray:
    for n in range(len(line)):
        a = line[n - channels] if n >= channels else 0
        b, c = up[n], up[n - channels] if n >= channels else 0
        if kind == 4:
            p = a + b - c
            near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        else:
            near = (0, a, b, (a + b) // 2)[kind]
        line[n] = (line[n] + near) & 255
    return line


def test_nothing_heavy_is_imported() -> None:
    """A Droid must not pay for what only the report needs."""
    heavy = "[m for m in ('rich', 'matplotlib', 'yoda.report') if m in sys.modules]"
    code = f"import sys, yoda.rank0, yoda.run, droid.rank; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
