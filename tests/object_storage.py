"""A server that speaks S3's protocol, on this machine, for as long as it is needed."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

BUCKET = "bucket"
LOG = "OBJECT_STORAGE_LOG"  # The variable with the file in which the server notes its requests


@contextmanager
def object_storage() -> Iterator[dict[str, str]]:
    """Start the server with an empty bucket; gives the environment in which `s3://bucket/...` means it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    folder = tempfile.TemporaryDirectory()
    with (Path(folder.name) / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.05)
        fs.S3FileSystem(
            access_key="key",
            secret_key="secret",
            endpoint_override=f"127.0.0.1:{port}",
            scheme="http",
            allow_bucket_creation=True,
        ).create_dir(BUCKET)
        yield {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            LOG: log.name,
        }
    finally:
        server.kill()
        server.wait()
        folder.cleanup()
