"""A server that speaks the protocol by which the Hugging Face hub hands out files: `HEAD` and `GET` of
`OWNER/NAME/resolve/main/FILE`."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Contents of the server, its faults, and the requests that it got."""

    files: dict[str, bytes] = field(default_factory=dict)  # "OWNER/NAME/FILE" -> content
    refusals: dict[str, tuple[int, str]] = field(
        default_factory=dict
    )  # "OWNER/NAME" -> status and the hub's code
    served: bytes | None = None  # arrives in place of a file
    small: bool = False  # files have the hash of git, as small ones have, and no SHA-256
    port: int = 0
    requests: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"


class Quiet(BaseHTTPRequestHandler):
    """Answers without a log, and keeps connections."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(handler: type[Quiet]) -> Iterator[int]:
    """Serve on a port of this machine, which is given."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    """Serve it on a port of this machine."""

    class Answer(Quiet):
        def answer(self) -> None:
            hub.requests.append(self.path)
            repository, _, file = self.path.removeprefix("/").partition("/resolve/main/")
            refusal = hub.refusals.get(repository)
            if refusal is None and not any(name.startswith(f"{repository}/") for name in hub.files):
                refusal = (404, "RepoNotFound")
            content = hub.files.get(f"{repository}/{file}")
            if refusal is None and content is None:
                refusal = (404, "EntryNotFound")
            if refusal is not None:
                status, code = refusal
                self.head(status, 0, **{"X-Error-Code": code, "X-Repo-Commit": COMMIT} if code else {})
                return
            assert content is not None
            sha256 = hashlib.sha256(content).hexdigest()
            etag = sha256[:40] if hub.small else sha256
            content = content if hub.served is None else hub.served
            self.head(200, len(content), **{"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET = answer  # noqa: N815 - the names that http.server calls

        def head(self, status: int, length: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

    with serve(Answer) as hub.port:
        yield hub
