"""How long a resumed run takes to find out what is done, where its shards lie in object storage. Part of `make scale`.

python -m benchmarks.soak.resuming --shards 20000

The storage is the server of the tests, which answers some hundred requests a second. Shards are objects of one byte,
but for those that the killed driver had no time to note: these are read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from phrasebox.pipeline.output.journal import FLUSH_SHARE, Journal, shard_entry, shard_stem, take_over
from phrasebox.stages.files.shards import ShardFile
from phrasebox.stages.files.storage import AnyPath, place_of
from tests.object_storage import LOG, object_storage

ROWS = 1000  # of a shard


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the requests of the block, by their kind such as "GET", in the counter when the block has ended."""
    log, requests = Path(os.environ[LOG]), Counter[str]()
    before = len(log.read_bytes())
    yield requests
    requests.update(re.findall(r'"(?:\x1b\[\d+m)*([A-Z]+) /', log.read_bytes()[before:].decode()))


def putter() -> Callable[[AnyPath, bytes], None]:
    """What puts an object by one request, where a stream takes three."""
    import boto3  # noqa: PLC0415  it reads the environment that names the storage

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

    def put(path: AnyPath, content: bytes) -> None:
        bucket, _, key = str(path).partition("://")[2].partition("/")
        client.put_object(Bucket=bucket, Key=key, Body=content)

    return put


def refuse(path: AnyPath, reason: str, *, is_lost: bool) -> None:
    """Raise AssertionError: nothing is damaged here."""
    raise AssertionError(f"{path} {reason}")


def killed_run(folder: AnyPath, shards: int, unnoted: int, files: int) -> Journal:
    """What a killed run left: so many shards, of which some are not in the journal, and a journal of so many files."""
    data, run_folder = folder / "data", folder / ".phrasebox"
    journal = take_over(run_folder, data, same_input=True, set_aside=refuse)
    names = [shard_stem([str(number)], journal.attempt) + "-0.parquet" for number in range(shards)]
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (shards, ROWS))
    for some in np.array_split(np.arange(shards - unnoted), files):
        for number in some:
            shard = ShardFile(name=names[number], rows=ROWS, size_bytes=1, sha256="", footer_sha256="")
            journal.add(shard_entry(shard, keys[number]))
        journal.flush()
    put = putter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(data / name, b"x"), names[: shards - unnoted]))
    for number in range(shards - unnoted, shards):
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({"sample_id": [f"{number}-{row}" for row in range(ROWS)]}), buffer)
        put(data / names[number], buffer.getvalue().to_pybytes())
    return journal


def measure(shards: int, unnoted: int, files: int) -> dict[str, Any]:
    """Seconds and requests of a take-over, and of one after it."""
    folder = place_of(f"s3://bucket/resuming-{shards}")
    killed_run(folder, shards, unnoted, files)
    figures: dict[str, Any] = {
        "shards": shards,
        "rows": shards * ROWS,
        "not_noted": unnoted,
        "journal_files": files,
    }
    for name in ("take_over", "again"):
        start = time.perf_counter()
        with counted() as requests:
            journal = take_over(folder / ".phrasebox", folder / "data", same_input=True, set_aside=refuse)
            seconds = time.perf_counter() - start
        assert len(journal.keys) == shards * ROWS
        assert len(journal.shards) == shards
        figures[name] = {"seconds": round(seconds, 1), "requests": requests.total(), **requests}
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=300, help="of the journal, as after some hours")
    given = parser.parse_args()
    with object_storage() as environment:
        os.environ.update(environment)
        figure = measure(given.shards, round(FLUSH_SHARE * given.shards), given.files)
    sys.stdout.write(json.dumps({"name": "resuming", **figure}) + "\n")
