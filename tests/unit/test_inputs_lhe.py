"""LHE: every dialect, against a naive reader; indexes of plain and gzip files; damage is named."""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from inputs_samples import DIALECTS, HEADER, lhe_event, lhe_text, real, write

from droid.inputs import blocks, index_file, open_input
from droid.inputs.lhe import LHEInput
from droid.inputs.lhe_event import LHEEvent, write_lhe
from eventrange.errors import InputDamaged, InputMissing

REAL = [
    ("pylhe-testfile-madgraph-2.0.0-wbj.lhe", 59),
    ("pylhe-testfile-pr29.lhe", 791),
    ("pylhe-testfile-madgraph-2.2.1-Z-ckkwl.lhe.gz", 10000),
]


def opened(path: str, cache: Path | None = None, **options: object) -> LHEInput:
    found = open_input("lhe", path, index_file("lhe", path, options, cache))
    assert isinstance(found, LHEInput)
    return found


@pytest.mark.parametrize(("name", "count"), REAL)
def test_real_files_agree_with_a_naive_reader(name: str, count: int, tmp_path: Path) -> None:
    path = real(name)
    text = Path(path).read_bytes()
    text = gzip.decompress(text) if path.endswith("gz") else text
    naive = re.findall(rb"<event.*?</event>", text, re.DOTALL)
    file = opened(path, tmp_path)
    assert file.count() == len(naive) == count
    for start, stop in [(0, 3), (count // 2, count // 2 + 10), (count - 2, count), (5, 5)]:
        assert [event.raw for event in file.read(start, stop)] == naive[start:stop]
    for event in file.read(count // 2, count // 2 + 20):
        lines = [line for line in event.text.splitlines()[1:] if line[0] not in "#<"]
        expected = np.array([line.split() for line in lines[1 : 1 + event.nup]], float)
        found = np.array([list(row) for row in event.particles.tolist()])
        assert np.array_equal(found, expected)
        first = (event.nup, event.idprup, event.xwgtup, event.scalup, event.aqedup, event.aqcdup)
        assert list(first) == [float(token) for token in lines[0].split()]
    assert file.head.raw + text[file.index.meta["body"] :] == text
    assert file.init.startswith("<init>") and file.init.endswith("</init>")
    assert "<init>" not in file.header


@pytest.mark.parametrize("suffix", ["lhe", "lhe.gz"])
@pytest.mark.parametrize("crlf", [False, True])
@pytest.mark.parametrize("dialect", [*DIALECTS, "mixed"])
def test_dialects(dialect: str, crlf: bool, suffix: str, tmp_path: Path) -> None:
    file = opened(write(tmp_path / f"a.{suffix}", lhe_text(13, dialect, crlf=crlf)), tmp_path / "index")
    events = file.read(0, 13)
    assert file.count() == 13
    for i, event in enumerate(events):
        assert (event.nup, event.idprup, event.xwgtup, event.position) == (i % 4, 66, i + 0.25, i)
        assert event.scalup == pytest.approx(91.4)
        assert event.particles.shape == (i % 4,)
        for k, row in enumerate(event.particles):
            assert (row["id"], row["status"], row["color1"]) == (21 - k, -1, int(f"50{k}"))
            assert (row["px"], row["py"], row["pz"], row["e"]) == (i + 0.5, -2.5, k, 100 + i)
            assert row["spin"] == (9 if k else -1)
    assert [event.raw for event in file.read(4, 9)] == [event.raw for event in events[4:9]]
    assert file.head.beams is not None
    assert file.head.beams.ebmup == (6500.0, 6500.0)
    assert file.head.beams.processes[0].lprup == 66


def test_weights_and_attributes(tmp_path: Path) -> None:
    event = opened(write(tmp_path / "a.lhe", lhe_text(6, "rwgt"))).read(5, 6)[0]
    assert event.weights == {"1001": 5.0, "1002": 2.0}
    assert event.attributes == {"npLO": " 5 ", "npNLO": " -1 "}
    assert opened(write(tmp_path / "b.lhe", lhe_text(6, "weights"))).read(5, 6)[0].weights == {"1001": 5, "1002": 3}
    bare = re.sub("<initrwgt.*</initrwgt>", "", HEADER)
    assert opened(write(tmp_path / "c.lhe", lhe_text(6, "weights", bare))).read(5, 6)[0].weights == {"0": 5, "1": 3}
    plain = opened(write(tmp_path / "d.lhe", lhe_text(6))).read(5, 6)[0]
    assert plain.weights == {} and plain.attributes == {}


def test_what_events_share_cannot_be_changed_by_one_of_them(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "a.lhe", lhe_text(6, "weights")))
    first = file.read(0, 1)[0]
    assert isinstance(first.head.weight_ids, tuple) and first.head.weight_ids
    assert first.head.beams is not None and isinstance(first.head.beams.processes, tuple)
    first.particles["px"] = 0
    first.weights.clear()
    again = file.read(0, 2)
    assert len(again[0].weights) == 2 and (again[1].particles["px"] == 1.5).all()


def test_a_small_file_made_of_some_events_is_read_again(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "a.lhe.gz", lhe_text(30, "mixed")), tmp_path / "index")
    small = opened(write(tmp_path / "small.lhe", write_lhe(file.head, file.read(10, 20))))
    assert [event.raw for event in small.read(0, 10)] == [event.raw for event in file.read(10, 20)]
    assert small.head.raw == file.head.raw
    event = pickle.loads(pickle.dumps(file.read(3, 4)[0]))
    assert isinstance(event, LHEEvent) and event.nup == 3 and event.head.beams is not None


def test_tags_that_straddle_the_pieces_of_the_first_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = lhe_text(40, "mixed", header=HEADER + "<!--" + " <event> " * 9000 + "-->\n")
    whole = [event.raw for event in opened(write(tmp_path / "a.lhe", text)).read(0, 40)]
    for chunk in (1000, 1013, 70001):
        monkeypatch.setattr(blocks, "CHUNK", chunk)
        for name in ("a.lhe", "a.lhe.gz"):
            file = opened(write(tmp_path / name, text), tmp_path / f"index{chunk}")
            assert [event.raw for event in file.read(0, 40)] == whole


def test_very_many_events_keep_every_kth_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("droid.inputs.lhe.MOST_OFFSETS", 16)
    monkeypatch.setattr(blocks, "BLOCK", 512)
    path = write(tmp_path / "a.lhe.gz", lhe_text(150, "mixed"))
    file = opened(path, tmp_path / "index")
    assert len(file.index.arrays["offsets"]) <= 16 and file.index.meta["stride"] == 16
    whole = [event.raw for event in file.read(0, 150)]
    assert len(whole) == 150
    for start in range(0, 150, 7):
        for length in (1, 5, 40):
            stop = min(start + length, 150)
            assert [event.raw for event in file.read(start, stop)] == whole[start:stop]
    copy = gzip.decompress(Path(str(file.index.copy)).read_bytes())
    assert copy == lhe_text(150, "mixed"), "the copy is an ordinary gzip file"


def test_without_a_cache_directory_gzip_works_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.lhe.gz", lhe_text(9))
    assert [event.position for event in opened(path).read(3, 6)] == [3, 4, 5]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.lhe.gz"]


def test_header_that_is_not_utf8(tmp_path: Path) -> None:
    text = lhe_text(3).replace(b"a comment with", "größer".encode("latin-1")).replace(b"66\n", b"66 #\xff\n")
    file = opened(write(tmp_path / "a.lhe", text))
    assert file.head.header.encode("utf-8", "surrogateescape") in text
    assert file.read(0, 3)[2].nup == 2


def test_no_events_no_init(tmp_path: Path) -> None:
    assert opened(write(tmp_path / "a.lhe", lhe_text(0))).read(0, 0) == []
    bare = "<LesHouchesEvents version='1.0'>\n"
    file = opened(write(tmp_path / "b.lhe", lhe_text(2, header=bare)))
    assert file.count() == 2 and file.init == "" and file.head.beams is None
    assert opened(write(tmp_path / "c.lhe", bare.encode() + b"</LesHouchesEvents>")).count() == 0


def test_event_group(tmp_path: Path) -> None:
    body = "<eventgroup nreal='2'>\n" + lhe_event(1) + lhe_event(2) + "</eventgroup>\n</LesHouchesEvents>\n"
    assert opened(write(tmp_path / "a.lhe", (HEADER + body).encode())).count() == 2


WHOLE = lhe_text(5)
CUT = WHOLE.rindex(b"</event>")
FIRST = WHOLE.index(b"</event>", WHOLE.index(b"</init>"))


@pytest.mark.parametrize("suffix", ["lhe", "lhe.gz"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (WHOLE[: CUT - 20], f"event 5, which begins at byte {WHOLE.rindex(b'<event>')}, is cut in its middle"),
        (WHOLE[:CUT] + WHOLE[CUT + 9 :], "event 5, which begins at byte"),
        (WHOLE[:FIRST] + WHOLE[FIRST + 8 :], "event 1, which begins at byte"),
        (WHOLE.replace(b"<event>", b"", 9), "has </event> without <event>"),
        (WHOLE[: WHOLE.rindex(b"</Les")], "ends without </LesHouchesEvents> after event 5"),
        (WHOLE[: WHOLE.index(b"</header>") - 30], "never closed"),
        (WHOLE[: WHOLE.index(b"</init>")], "never closed"),
        (WHOLE[: WHOLE.index(b"<init>", 300)], "ends inside its header"),
        (WHOLE + WHOLE, "second <LesHouchesEvents> after event 5"),
        (WHOLE.replace(b"</Les", b"<!-- </Les"), "comment without -->"),
        (b"\x00\x01\x02" * 1000, "is no LHE file"),
        (b"{}\n", "is no LHE file"),
    ],
)
def test_damage_is_named(text: bytes, says: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(InputDamaged) as caught:
        index_file("lhe", write(tmp_path / f"a.{suffix}", text), {}, tmp_path / "index")
    assert says in str(caught.value) and "byte" in str(caught.value) and "\n  -> " in str(caught.value)
    assert caught.value.exit_code == 65
    assert not list(tmp_path.glob("index/*")), "nothing is kept of a damaged file"


def test_a_file_known_to_be_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.lhe", WHOLE[: WHOLE.rindex(b"</Les")])
    assert opened(path, allow_unclosed=True).count() == 5
    with pytest.raises(InputDamaged, match="event 5"):
        opened(write(tmp_path / "b.lhe", WHOLE[: CUT - 20]), allow_unclosed=True)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.9999])
def test_truncated_gzip(keep: float, tmp_path: Path) -> None:
    packed = gzip.compress(lhe_text(2000, "rwgt"))
    path = tmp_path / "a.lhe.gz"
    path.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(InputDamaged, match=r"the gzip stream ends early, after \d+ bytes"):
        index_file("lhe", str(path), {}, tmp_path / "index")


def test_gzip_with_flipped_bits_padding_and_several_members(tmp_path: Path) -> None:
    text = lhe_text(300)
    members = b"".join(gzip.compress(text[i : i + 7000]) for i in range(0, len(text), 7000))
    path = tmp_path / "a.lhe.gz"
    path.write_bytes(members + bytes(512))
    assert opened(str(path), tmp_path / "index").count() == 300
    path.write_bytes(members + b"garbage")
    with pytest.raises(InputDamaged, match="gzip stream"):
        index_file("lhe", str(path))
    for place in (len(members) // 2, len(members) - 6):
        path.write_bytes(members[:place] + bytes([members[place] ^ 64]) + members[place + 1 :])
        with pytest.raises(InputDamaged, match="gzip"):
            index_file("lhe", str(path))


@pytest.mark.parametrize(
    ("magic", "name"), [(b"BZh91AY", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")]
)
def test_other_compressions_are_named(magic: bytes, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputDamaged, match=f"compressed with {name}"):
        index_file("lhe", write(tmp_path / "a.lhe", magic + b"x" * 99))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"<event>\n</event>", "has no first line"),
        (b"<event>\n 2 66 1.0\n</event>", "6 numbers expected, 3 found"),
        (b"<event>\n 2 66 1.0 x 1 1\n</event>", "its first line is"),
        (b"<event>\n 2 66 1 1 1 1\n 1 2 3 4 5 6 7 8 9 10 11 12 13\n</event>", "2 particles and has 1 whole lines"),
        (b"<event>\n 1 66 1 1 1 1\n 1 2 3 4 5 6 7 8 9 10 11 12\n</event>", "1 particles and has 0 whole lines"),
        (b"<event>\n 1 66 1 1 1 1\n 1 2 3 4 5 6 7 8 9 10 11 x 13\n</event>", "cannot be read"),
    ],
)
def test_a_bad_event_costs_one_event(text: bytes, says: str, tmp_path: Path) -> None:
    whole = lhe_text(1)[: -len("</LesHouchesEvents>\n")] + text + b"\n" + lhe_event(3).encode() + b"</LesHouchesEvents>"
    events = opened(write(tmp_path / "a.lhe", whole)).read(0, 3)
    assert events[2].nup == 3
    with pytest.raises(InputDamaged) as caught:
        _ = events[1].particles
    assert "event 2: " in str(caught.value) and says in str(caught.value)


def test_outside_and_elsewhere(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "a.lhe", lhe_text(3)))
    for start, stop in [(-1, 2), (2, 4), (2, 1)]:
        with pytest.raises(IndexError):
            file.read(start, stop)
    with pytest.raises(InputMissing, match="URLs work for the formats root and hdf5"):
        index_file("lhe", "https://example.org/a.lhe")
