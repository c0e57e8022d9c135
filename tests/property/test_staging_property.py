"""Stage-out under any mixture of results: nothing is deleted early or sent twice, and in the end all is at home."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from stageout.protocol import Damaged, Removed, Segment, Staged
from stageout.site import BreakerRules, StageoutRules
from stageout.staging import Instruction, RemoveCopy, RemoveLocal, Staging, Tell, Upload

ENDPOINTS = ("primary", "failover", "third")
KINDS = ("ok", "ok", "StorageTransient", "StoragePermanent", "StorageFull", "StorageCorrupt")


class World:
    """Carries out instructions against a model of disks and journal, and checks each one."""

    def __init__(self, staging: Staging, parallel: int) -> None:
        self.staging, self.parallel = staging, parallel
        self.running: dict[str, Upload] = {}
        self.stored: set[tuple[str, str]] = set()
        self.journal: set[tuple[str, str]] = set()
        self.unrecorded: list[tuple[str, str, bool]] = []
        self.gone: set[str] = set()

    def do(self, orders: list[Instruction]) -> None:
        for order in orders:
            match order:
                case Upload(segment, endpoint, source):
                    assert segment.name not in self.running
                    assert (segment.name in self.gone) == (source is not None)
                    assert source is None or (segment.name, source) in self.journal
                    self.running[segment.name] = order
                    assert len(self.running) <= self.parallel
                    assert self.staging.breaker.state(f"endpoint:{endpoint}") in ("closed", "half-open")
                case RemoveLocal(segment):
                    assert any(name == segment.name for name, _ in self.journal & self.stored)
                    self.gone.add(segment.name)
                case RemoveCopy(segment, endpoint):
                    assert (segment.name, endpoint) not in self.journal
                    self.stored.discard((segment.name, endpoint))
                    assert any(name == segment.name for name, _ in self.journal & self.stored)
                case Tell(Staged() as report):
                    assert (report.segment, report.endpoint) in self.stored
                    self.unrecorded.append((report.segment, report.endpoint, False))
                case Tell(Removed(name, str(endpoint))):
                    self.unrecorded.append((name, endpoint, True))
                case Tell(Damaged()):
                    raise AssertionError("no segment is damaged here")

    def record(self, now: float) -> None:
        name, endpoint, removed = self.unrecorded.pop(0)
        (self.journal.discard if removed else self.journal.add)((name, endpoint))
        self.do(self.staging.recorded(name, endpoint, removed, now))

    def finish(self, name: str, kind: str, now: float) -> None:
        order = self.running.pop(name)
        if kind == "ok":
            self.stored.add((name, order.endpoint))
            self.do(self.staging.uploaded(name, order.endpoint, "url", now))
        else:
            self.do(self.staging.failed(name, order.endpoint, kind, "injected", now))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), delete_local=st.booleans(), delete_failover=st.booleans(), parallel=st.integers(1, 3))
def test_any_history_ends_with_everything_at_home(
    data: st.DataObject, delete_local: bool, delete_failover: bool, parallel: int
) -> None:
    rules = StageoutRules(
        parallel=parallel,
        delete_local=delete_local,
        delete_failover=delete_failover,
        breaker=BreakerRules(samples=2, opens=1000),
    )
    staging = Staging(ENDPOINTS, rules, lambda: data.draw(st.floats(0, 0.999)))
    world, now, names = World(staging, parallel), 0.0, [f"s{i}" for i in range(data.draw(st.integers(1, 6)))]
    todo = list(names)
    for _ in range(data.draw(st.integers(0, 60))):
        now += data.draw(st.sampled_from((0.0, 1.0, 100.0, 4000.0)))
        step = data.draw(st.sampled_from(("submit", "finish", "finish", "record", "tick")))
        if step == "submit" and todo:
            name = todo.pop()
            world.do(staging.submit(Segment(name, name, name, 1, 1, ""), (), now))
        elif step == "finish" and world.running:
            world.finish(data.draw(st.sampled_from(sorted(world.running))), data.draw(st.sampled_from(KINDS)), now)
        elif step == "record" and world.unrecorded:
            world.record(now)
        else:
            world.do(staging.tick(now))
    for name in todo:  # from here on all is well
        world.do(staging.submit(Segment(name, name, name, 1, 1, ""), (), now))
    for _ in range(1000):
        if world.running:
            world.finish(next(iter(world.running)), "ok", now)
        elif world.unrecorded:
            world.record(now)
        elif (wake := staging.wake(now)) is not None:
            now = wake
            world.do(staging.tick(now))
        else:
            break
    assert {(name, "primary") for name in names} <= world.journal & world.stored
    assert world.journal == world.stored and not staging.left()
    assert (world.gone == set(names)) if delete_local else not world.gone
    if delete_failover:
        assert world.stored == {(name, "primary") for name in names}
