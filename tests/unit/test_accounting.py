"""Accounting: every core-second has one place, and the places sum to the total."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventrange import records
from eventrange.journal import Entry
from eventrange.records import Code, Kind
from yoda.accounting import account_entries
from yoda.core_seconds import PARTS, Account


def row(
    kind: Kind, start: int, stop: int, time: float, wall: float = 0, droid: int = 1, worker: int = 0, code: int = 0
):
    return records.new(
        1, kind=kind, start=start, stop=stop, time=time, wall=wall, droid=droid, worker=worker, code=code
    )  # fmt: skip


def joined(time: float, workers: int = 1, droid: int = 1, startup: float = 2.0, host: str = "n1") -> dict[str, Any]:
    return {"note": "joined", "time": time, "droid": droid, "workers": workers, "startup": startup, "host": host}


def left(time: float, droid: int = 1, reason: str = "bye") -> dict[str, Any]:
    return {"note": "left", "time": time, "droid": droid, "reason": reason}


def end(time: float) -> dict[str, Any]:
    return {"note": "end", "time": time, "reason": "complete", "exit_code": 0}


def pulse(time: float) -> dict[str, Any]:
    return {"note": "pulse", "time": time}


def run(*entries: Entry, alive_since: float = 0.0, **more: list[Entry]) -> Account:
    def story() -> Iterator[tuple[str, Entry]]:
        for name, list_ in {"a": list(entries), **more}.items():
            for entry in list_:
                yield name, entry

    return account_entries(story, alive_since)


def parts(account: Account) -> dict[str, float]:
    found = account.core_seconds.parts()
    assert sum(found[name] for name in PARTS) == found["total"]
    assert all(value >= 0 for value in found.values())
    return {name: round(value, 4) for name, value in found.items() if value}


def fine(account: Account, *names: str) -> list[float]:
    return [account.core_seconds.micro[name] / 1e6 for name in names]


def spent(time: float, droid: int = 1, starting: float = 0, input: float = 0, again: float = 0) -> dict[str, Any]:
    return {"note": "spent", "time": time, "droid": droid, "starting": starting, "input": input, "again": again}


def merging(time: float, done: int = 0) -> dict[str, Any]:
    return {"note": "merging", "time": time, "done": done, "total": 9}


def merged(time: float) -> dict[str, Any]:
    return {"note": "merged", "time": time, "exit_code": 0, "reason": ""}


G, D, F, R, Q, P = Kind.GRANTED, Kind.DONE, Kind.FAILED, Kind.RETURNED, Kind.QUARANTINED, Kind.PENDING


def test_plain() -> None:
    found = parts(
        run(joined(100), row(G, 0, 9, 100), row(D, 0, 4, 100.05, 10), row(D, 4, 9, 115.05, 20), left(137.05), end(138))
    )
    assert found == {"productive": 30, "overhead": 0.05, "idle": 7.95, "startup": 2, "total": 40}


def test_idle_is_told_apart() -> None:
    account = run(joined(100, workers=2), row(D, 0, 4, 101, 10), row(D, 4, 9, 115, 20), left(140), end(140))
    assert fine(account, "idle_waiting", "idle_tail") == [5.0, 45.0]
    assert parts(account) == {"productive": 30, "idle": 50, "startup": 4, "total": 84}


def test_failures() -> None:
    found = parts(
        run(
            joined(100),
            row(F, 0, 1, 100, 3, code=Code.EXCEPTION),
            row(D, 0, 1, 103, 4),
            row(F, 1, 2, 107, 5, code=Code.EXITED),
            row(F, 1, 2, 112, 6, code=Code.EXITED),
            row(Q, 1, 2, 118),
            row(F, 2, 3, 118, 7, code=Code.TIMEOUT),
            left(125),
            end(125),
        )
    )
    assert found == {"productive": 4, "retried": 3, "quarantined": 11, "hung": 7, "startup": 2, "total": 27}


def test_second_copy_is_retried() -> None:
    """The first record in journal order wins, in the same allocation or an earlier one, and by parts."""
    found = parts(
        run(
            *(joined(100), row(D, 0, 4, 100, 4), row(D, 2, 6, 104, 4), left(108), end(108)),
            b=[joined(200), row(D, 0, 6, 200, 6), row(D, 6, 7, 206, 1), left(207), end(207)],
        )
    )
    assert found == {"productive": 7, "retried": 8, "startup": 4, "total": 19}


def test_image_made_pending_again_is_retried() -> None:
    found = parts(
        run(
            *(joined(100), row(D, 0, 4, 100, 4), row(D, 4, 8, 104, 4), left(108), end(108)),
            b=[row(P, 0, 2, 150)],
            c=[joined(200), row(D, 0, 2, 200, 5), left(205), end(205)],
        )
    )
    assert found == {"productive": 11, "retried": 2, "startup": 4, "total": 17}


def test_pending_within_one_batch() -> None:
    rows = np.concatenate([row(D, 0, 4, 100, 4), row(P, 0, 4, 104), row(D, 0, 4, 104, 3), row(P, 3, 4, 107)])
    found = parts(run(joined(100), rows, left(107), end(107)))
    assert found == {"productive": 2.25, "retried": 4.75, "startup": 2, "total": 9}


def test_quarantined_event_that_two_take_up_is_productive_once() -> None:
    again = row(P, 3, 4, 150, code=Code.RETRY)
    rows = np.concatenate([again, row(D, 3, 4, 150, 5), again, row(P, 0, 1, 155), again])
    found = parts(run(joined(100), row(D, 0, 2, 100, 50), rows, left(155), end(155), b=[again]))
    assert found == {"productive": 30, "retried": 25, "startup": 2, "total": 57}


def test_killed_without_a_word() -> None:
    """No `left`, no `end`: it lived until the last pulse, and its workers were at work."""
    account = run(joined(100, workers=2), row(G, 0, 100, 100), row(D, 0, 9, 100, 10), pulse(130))
    assert parts(account) == {"productive": 10, "lost_in_flight": 50, "startup": 4, "total": 64}
    assert account.allocations[0].end is None and account.allocations[0].last == 130


def test_killed_while_waiting_for_work() -> None:
    account = run(joined(100, workers=2), row(G, 0, 10, 100), row(D, 0, 9, 100, 10), pulse(130))
    assert parts(account) == {"productive": 10, "lost_in_flight": 25, "idle": 25, "startup": 4, "total": 64}


def test_alive() -> None:
    account = run(joined(100), row(G, 0, 100, 100), row(D, 0, 9, 100, 10), pulse(130), alive_since=120)
    assert parts(account) == {"productive": 30, "startup": 2, "total": 32}


def test_drained_and_lost() -> None:
    found = parts(
        run(
            joined(100, workers=2),
            row(G, 0, 100, 100),
            row(D, 0, 9, 100, 10),
            row(R, 9, 100, 115, 8, code=Code.DRAINED),
            left(115),
            joined(100, workers=2, droid=2, host="n2"),
            row(G, 100, 200, 100),
            left(120, droid=2, reason="lost: its process died"),
            row(R, 100, 200, 120, 35, droid=2, code=Code.DROID_LOST),
            end(130),
        )
    )
    assert found == {"productive": 10, "lost_in_flight": 43, "idle": 47, "startup": 8, "total": 108}


def test_what_the_droid_knows() -> None:
    """Starting workers is start-up, waiting for input is idle, and what was broken off is retried."""
    account = run(
        joined(100, workers=2),
        spent(103, starting=5),
        row(D, 0, 4, 104, 6),
        row(D, 4, 8, 120, 6),
        row(D, 8, 9, 110, 16, worker=1),
        spent(126, input=2, again=7, starting=1),
        left(126),
        end(126),
    )
    assert parts(account) == {"productive": 26, "retried": 7, "idle": 13, "startup": 10, "total": 56}
    assert fine(account, "idle_waiting", "idle_input", "idle_tail") == [11, 2, 0]


def test_what_the_droid_knows_is_never_more_than_there_was() -> None:
    account = run(joined(100), row(D, 0, 4, 101, 6), spent(110, starting=99, input=99, again=99), left(110), end(110))
    assert parts(account) == {"retried": 4, "idle": 6, "startup": 2, "total": 12}


BEFORE = (joined(100, 2, host="n0"), joined(100, 2, 2), row(D, 0, 9, 100, 10), left(112), left(110, 2), end(113))


def test_merge() -> None:
    """One core of rank 0's node merges, all others wait for it, also those of Droids that have said Bye."""
    about = {"note": "journal", "created": 99, "host": "n0"}
    account = run(about, *BEFORE, merging(115), merging(125, 5), merged(130))
    assert parts(account) == {"productive": 10, "idle": 50 + 45, "startup": 8, "merge": 15, "total": 128}
    assert fine(account, "idle_tail", "idle_merging") == [50, 45]
    merge = {host: seconds.micro["merge"] / 1e6 for host, seconds in account.nodes().items()}
    assert merge == {"n0": 15, "n1": 0}
    assert sum(account.core_seconds.folded().values()) == 2 * account.core_seconds.total
    assert account.core_seconds.folded()["overhead"] == 15, "one of the six parts that are promised"


def test_merge_on_a_node_of_its_own() -> None:
    account = run({"note": "journal", "created": 99, "host": "n9"}, *BEFORE, merging(115), merged(130))
    assert parts(account) == {"productive": 10, "idle": 50 + 60, "startup": 8, "merge": 15, "total": 143}
    assert account.nodes()["n9"].total == 15 and account.allocations[0].core_seconds.total == 143


def test_merge_that_was_killed() -> None:
    account = run({"note": "journal", "created": 99, "host": "n0"}, *BEFORE, merging(115), merging(125, 5))
    assert parts(account)["merge"] == 10
    known = account.allocations[0].merging
    assert known is not None and known.over is None and (known.done, known.total) == (5, 9)


def test_drain() -> None:
    """Cores that are free because nothing new is begun are told from those for which there was no work."""
    account = run(
        joined(100, workers=3),
        row(D, 0, 4, 100, 10),
        {"note": "drain", "time": 120, "reason": "SIGTERM", "grace": 30},
        row(D, 4, 8, 100, 25, worker=1),
        row(R, 9, 10, 138, 8, code=Code.DRAINED),
        left(138),
        end(140),
    )
    assert parts(account) == {"productive": 35, "lost_in_flight": 8, "idle": 77, "startup": 6, "total": 126}
    assert fine(account, "idle_tail", "idle_draining") == [10 + 20, 20 + 15 + 20 - 8]


def test_nodes() -> None:
    account = run(
        joined(100), row(D, 0, 1, 100, 5), left(105), joined(100, droid=2, host="n2"), left(110, droid=2), end(112)
    )
    nodes = account.nodes()
    assert {host: seconds.total for host, seconds in nodes.items()} == {"n1": 14, "n2": 14}, (
        "all nodes are ours till then"
    )
    assert sum(seconds.total for seconds in nodes.values()) == account.core_seconds.total


def test_records_without_their_notes() -> None:
    """The `joined` note fell to damage."""
    assert parts(run(row(D, 0, 1, 100, 5), row(D, 1, 2, 105, 5, worker=2), end(110))) == {
        "productive": 10,
        "idle": 20,
        "total": 30,
    }


def test_lost_and_back() -> None:
    found = parts(
        run(
            joined(100),
            left(110, reason="lost: silent"),
            {"note": "back", "droid": 1, "time": 120},
            left(130),
            end(130),
        )
    )
    assert found == {"idle": 30, "startup": 2, "total": 32}


def test_lost_and_back_and_killed() -> None:
    """What is lost at last is lost beside what was lost before."""
    account = run(
        joined(100),
        row(G, 0, 20, 100),
        left(110, reason="lost: silent"),
        row(R, 0, 20, 110, 10, code=Code.DROID_LOST),
        row(G, 0, 9, 120, code=Code.REVOKED),
        row(D, 0, 9, 100, 20),
        {"note": "back", "droid": 1, "time": 120},
        row(G, 9, 20, 120),
        pulse(150),
    )
    assert parts(account) == {"productive": 20, "lost_in_flight": 30, "startup": 2, "total": 52}


def test_nothing() -> None:
    assert parts(run()) == {}


NUMBER = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Kind)),
            st.integers(0, 30),
            st.integers(0, 8),
            st.one_of(st.floats(90, 200), NUMBER),
            st.one_of(st.floats(0, 30), NUMBER),
            st.integers(0, 3),
            st.integers(0, 2),
            st.sampled_from(list(Code)),
        ),
        max_size=30,
    ),
    st.integers(0, 5),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from([spent(110, 1, 3, 2, 1), spent(150, 2, 99, 99, 99), spent(90, 7, 1, 1, 1)]),
            st.sampled_from([merging(120), merging(170), merged(165), merged(50)]),
        ),
        max_size=3,
    ),
    st.sampled_from(["n1", "n9"]),
)
def test_parts_always_sum(rows: list[Any], split: int, ended: bool, notes: list[Any], host: str) -> None:
    """Whatever the records say, no part is negative and they sum to workers x time."""
    table = [row(k, a, a + n, t, w, d, v, c) for k, a, n, t, w, d, v, c in rows]
    entries: list[Entry] = [joined(100, workers=2), joined(101, workers=1, droid=2), *table[:split]]
    if table[split:]:
        entries.append(np.concatenate(table[split:]))
    entries += [{"note": "journal", "host": host}, *([left(150), end(160)] if ended else [pulse(170)])]
    account = run(*entries, *(note for pair in notes for note in pair))
    parts(account)
    for seconds in (account.core_seconds, *account.nodes().values()):
        assert min(seconds.micro.values()) >= 0
        assert seconds.folded()["total"] == pytest.approx(seconds.total)
    for life in (life for one in account.allocations for life in one.droids.values()):
        assert life.core_seconds.total == pytest.approx(life.workers * (life.end - life.begin), rel=1e-12, abs=1e-5)
    assert account.core_seconds.total == pytest.approx(
        sum(sum(s.parts()[name] for name in PARTS) for s in account.nodes().values())
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([D, P]), st.integers(0, 20), st.integers(1, 8)), max_size=20), st.integers(1, 20)
)
def test_productive_is_what_is_done_in_the_end(rows: list[Any], batch: int) -> None:
    """With one second per event, productive seconds are the events done, however records overlap and are voided."""
    table = [row(k, a, a + n, 100 + i, n, i % 3 + 1) for i, (k, a, n) in enumerate(rows)]
    entries = [np.concatenate(table[at : at + batch]) for at in range(0, len(table), batch)]
    account = run(*[joined(0, droid=d, workers=9) for d in (1, 2, 3)], *entries, left(500), left(500, 2), left(500, 3))
    assert account.core_seconds.parts()["productive"] == account.fold.result()[0].total
