"""Upload rate of the S3 endpoint against boto3's own transfer manager, on the same real server, in turns.

    python tests/benchmarks/upload.py [swift|rclone ...] [--mib 256] [--rounds 3]

Prints one JSON line per server: median MiB/s of both, the median of the ratios of neighbouring uploads, which must be
at least 0.8, and the same of CPU seconds used here, which a busy machine does not spoil.
Our figure includes what the transfer manager does not do: sha256 and adler32 of the file, and the check afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "s3")]

import servers  # noqa: E402

from stageout.opening import open_endpoint  # noqa: E402
from stageout.site import EndpointSite  # noqa: E402


def measure(kind: str, size: int, rounds: int, concurrency: int) -> dict[str, object]:
    """Median rates in MiB/s of uploading one file of `size` bytes."""
    import boto3

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(servers.running(kind, folder / "server"))
        os.environ |= {"AWS_ACCESS_KEY_ID": servers.ACCESS, "AWS_SECRET_ACCESS_KEY": servers.SECRET}
        client = boto3.client("s3", endpoint_url=server.url, region_name="us-east-1")
        client.create_bucket(Bucket="bench")
        data = os.urandom(size)
        path = folder / "segment.tar"
        path.write_bytes(data)
        sums = {"size": size, "adler32": zlib.adler32(data), "sha256": hashlib.sha256(data).hexdigest()}
        site = EndpointSite(name="bench", url="s3://bench/ours", endpoint_url=server.url, concurrency=concurrency)
        endpoint = open_endpoint(site)
        with contextlib.suppress(Exception):
            endpoint.head("warm-up")
        times: dict[str, list[float]] = {"ours": [], "boto3": []}
        used: dict[str, list[float]] = {"ours": [], "boto3": []}
        for turn in range(rounds):
            for who in ("ours", "boto3") if turn % 2 else ("boto3", "ours"):
                start, cpu = time.perf_counter(), time.process_time()
                if who == "ours":
                    endpoint.put(str(path), f"k{turn}", **sums)
                else:
                    client.upload_file(str(path), "bench", f"theirs/k{turn}")
                times[who].append(time.perf_counter() - start)
                used[who].append(time.process_time() - cpu)
            endpoint.delete(f"k{turn}")
            client.delete_object(Bucket="bench", Key=f"theirs/k{turn}")
        endpoint.close()
    rates = {who: round(size / (1 << 20) / statistics.median(taken), 1) for who, taken in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["boto3"], strict=True))
    cpu_ratio = statistics.median(b / a for a, b in zip(used["ours"], used["boto3"], strict=True))
    return {"server": kind, "mib": size >> 20, **rates, "ratio": round(ratio, 2), "cpu_ratio": round(cpu_ratio, 2)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers", nargs="*", default=["swift", "rclone"])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=8)
    values = parser.parse_args()
    for kind in values.servers or ["swift", "rclone"]:
        print(json.dumps(measure(kind, values.mib << 20, values.rounds, values.concurrency)), flush=True)


if __name__ == "__main__":
    main()
