"""A server that speaks the protocol by which the Hugging Face hub hands out files: `HEAD` and `GET` of
`OWNER/NAME/resolve/main/FILE`, which lead to another host that has the large files by their SHA-256."""

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
    served: bytes | None = None  # arrives in place of a large file
    small: bool = False  # the hub itself serves the files with the hash of git, as it does with small ones
    port: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def downloads(self) -> int:
        """The number of large files that were asked for."""
        return sum(method == "GET" and path.startswith("/large/") for method, path in self.requests)


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
            hub.requests.append((self.command, self.path))
            if self.path.startswith("/large/"):
                self.large(self.path.removeprefix("/large/"))
                return
            if self.path.startswith(
                "/api/models/"
            ):  # a folder of more templates, for which transformers asks
                self.head(404, 0, **{"X-Error-Code": "EntryNotFound"})
                return
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
            if hub.small:
                self.head(200, len(content), **{"X-Repo-Commit": COMMIT, "ETag": f'"{sha256[:40]}"'})
                self.body(content)
                return
            linked = {
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(content)),
                "X-Repo-Commit": COMMIT,
            }
            self.head(302, 0, Location=f"http://localhost:{hub.port}/large/{sha256}", **linked)

        do_HEAD = do_GET = answer  # noqa: N815 - the names that http.server calls

        def large(self, sha256: str) -> None:
            name, content = next(i for i in hub.files.items() if hashlib.sha256(i[1]).hexdigest() == sha256)
            content = content if hub.served is None else hub.served
            headers = {"Content-Disposition": f'inline; filename="{name.rpartition("/")[2]}";'}
            self.head(200, len(content), **headers)
            self.body(content)

        def head(self, status: int, length: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

        def body(self, content: bytes) -> None:
            if self.command == "GET":
                self.wfile.write(content)

    with serve(Answer) as hub.port:
        yield hub
