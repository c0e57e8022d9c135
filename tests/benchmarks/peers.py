"""One peer doing the same work, started by benchlib.peer: `python peers.py '{"kind": ..., "work": ..., ...}'`.

Prints one JSON line. `noop` and `sleep` work is timed from the first submission to the last result, workers warm.
`spin` and `pythia` work return their own times, and the parent writes the fields to HDF5, a thousand events at a time:
the fastest simple way there is, and neither durable nor resumable.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

Map = Callable[[Callable[[int], Any], Iterable[int], int], Iterable[Any]]


def noop(event: int) -> dict[str, Any]:
    return {}


def sleep(event: int, seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {}


def spin(event: int, mean: float, events: int, seed: int) -> dict[str, Any]:
    import payloads

    begin, end = payloads.spin(float(payloads.durations(mean, events, seed)[event]))
    return {"begin": begin, "end": end, "vertex": payloads._VERTEX, "jets": payloads._JETS}


def pythia(event: int) -> dict[str, Any]:
    import payloads

    return payloads.pythia().process(event)


@contextmanager
def pool(kind: str, workers: int) -> Iterator[Map]:
    """A started pool as one function: (work, events, chunk) -> results in any order."""
    if kind == "mpi4py.futures":
        from mpi4py.futures import MPIPoolExecutor

        with MPIPoolExecutor() as executor:
            yield lambda work, events, chunk: executor.map(work, events, chunksize=chunk, unordered=True)
    elif kind == "concurrent.futures":
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(workers) as local:
            yield lambda work, events, chunk: local.map(work, events, chunksize=chunk)
    elif kind == "multiprocessing.Pool":
        from multiprocessing import Pool

        with Pool(workers) as processes:
            yield lambda work, events, chunk: processes.imap_unordered(work, events, chunk)
    elif kind == "dask":
        from distributed import Client, LocalCluster, as_completed

        with LocalCluster(workers, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:

            def dask_map(work: Callable[[int], Any], events: Iterable[int], chunk: int) -> Iterator[Any]:
                futures = client.map(partial(many, work), chunks(events, chunk), pure=False)
                for batch in as_completed(futures, with_results=True).batches():
                    for _, results in batch:
                        yield from results

            yield dask_map
    elif kind == "ray":
        import ray

        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
        remote = ray.remote(many)

        def ray_map(work: Callable[[int], Any], events: Iterable[int], chunk: int) -> Iterator[Any]:
            waiting = [remote.remote(work, part) for part in chunks(events, chunk)]
            while waiting:
                ready, waiting = ray.wait(waiting, num_returns=min(len(waiting), 100), timeout=0.05)
                for results in ray.get(ready):
                    yield from results

        yield ray_map
        ray.shutdown()
    elif kind == "parsl":
        import parsl
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        executor = HighThroughputExecutor(
            max_workers_per_node=workers,
            encrypted=False,
            address="127.0.0.1",
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        with parsl.load(parsl.Config([executor], usage_tracking=0)):
            app = parsl.python_app(many)

            def parsl_map(work: Callable[[int], Any], events: Iterable[int], chunk: int) -> Iterator[Any]:
                for future in [app(work, part) for part in chunks(events, chunk)]:
                    yield from future.result()

            yield parsl_map
    elif kind == "hyperqueue":
        import pickle
        from pathlib import Path
        from tempfile import TemporaryDirectory

        from hyperqueue import Job, LocalCluster
        from hyperqueue.cluster import WorkerConfig
        from hyperqueue.task.function import PythonEnv

        with TemporaryDirectory() as name, LocalCluster(f"{name}/server", WorkerConfig(workers)) as hq:
            client = hq.client(python_env=PythonEnv(sys.executable))

            def hq_map(work: Callable[[int], Any], events: Iterable[int], chunk: int) -> Iterator[Any]:
                # a process for every task, and what it returns is gone unless it is put into a file
                def into_file(part: list[int], path: str) -> None:
                    Path(path).write_bytes(pickle.dumps([work(event) for event in part]))

                job, paths = Job(name), list[Path]()
                for number, part in enumerate(chunks(events, chunk)):
                    paths.append(Path(name, f"{number}"))
                    job.function(into_file, args=(part, str(paths[-1])), stdout=None, stderr=None)
                client.wait_for_jobs([client.submit(job)])
                for path in paths:
                    yield from pickle.loads(path.read_bytes())
                    path.unlink()

            yield hq_map
    else:
        raise ValueError(kind)


def many(work: Callable[[int], Any], events: list[int]) -> list[Any]:
    return [work(event) for event in events]


def chunks(events: Iterable[int], size: int) -> list[list[int]]:
    listed = list(events)
    return [listed[at : at + size] for at in range(0, len(listed), size)]


class Writer:
    """Appends events to one HDF5 file."""

    def __init__(self, path: str, step: int = 1000) -> None:
        import h5py

        self.file, self.step, self.waiting = h5py.File(path, "w"), step, list[dict[str, Any]]()

    def add(self, fields: dict[str, Any]) -> None:
        self.waiting.append(fields)
        if len(self.waiting) >= self.step:
            self.flush()

    def flush(self) -> None:
        import numpy as np

        for name in self.waiting[0] if self.waiting else ():
            values = np.array([fields[name] for fields in self.waiting])
            if name not in self.file:
                shape = values.shape[1:]
                self.file.create_dataset(
                    name, (0, *shape), values.dtype, maxshape=(None, *shape), chunks=(self.step, *shape)
                )
            data = self.file[name]
            data.resize(len(data) + len(values), axis=0)
            data[-len(values) :] = values
        self.waiting.clear()


def main() -> None:
    # What a runner leaves behind as a daemon stays in our tree: its CPU time is this runner's, not somebody else's.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    request = json.loads(sys.argv[1])
    events, chunk, workers = request["events"], request["chunk"], request["workers"]
    work: Callable[[int], Any] = {"noop": noop, "sleep": sleep, "spin": spin, "pythia": pythia}[request["work"]]
    if request["work"] == "spin":
        work = partial(spin, mean=request["mean"], events=events, seed=request["seed"])
    elif request["work"] == "sleep":
        work = partial(sleep, seconds=request["seconds"])
    with pool(request["kind"], workers) as run:
        warm = work if request["work"] == "pythia" else noop
        for _ in run(warm, range(100 * workers), 50 if request["kind"] == "hyperqueue" else 1):
            pass  # workers are up, and have imported and made what they need
        out: dict[str, Any] = {}
        begin = time.time()
        if request["work"] in ("spin", "pythia"):
            writer, times, cpu = Writer("peer.h5"), [], 0.0
            for fields in run(work, range(events), chunk):
                times.append((fields["begin"], fields["end"]))
                cpu += fields.get("cpu", 0.0)
                writer.add(fields)
            writer.flush()
            writer.file.close()
            out["cpu"] = cpu
            out["window"] = (min(t[0] for t in times), max(t[1] for t in times))
        else:
            count = sum(1 for _ in run(work, range(events), chunk))
            assert count == events
        end = time.time()
        out |= {"begin": begin, "end": end, "rate": events / (end - begin)}
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
