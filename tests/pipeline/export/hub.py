"""A server of the protocol by which the Hugging Face hub takes datasets: create, preupload, LFS batch and commit."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.stages.model.hub_server import Quiet, serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """Repositories by OWNER/NAME."""

    token: str = "hf_right"
    broken: str = ""  # requests whose path holds this fail
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    endpoint: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the content of the answer."""
        path = path.partition("?")[0]
        if self.broken and self.broken in path:
            return 400, {"error": "the disk is full"}
        if method == "PUT":
            oid = path.removeprefix("/large/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.large[oid] = body
            return 200, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            request = json.loads(body)
            assert request["operation"] == "upload"
            for item in request["objects"]:
                item["actions"] = {"upload": {"href": f"{self.endpoint}/large/{item['oid']}"}}
            return 200, {"transfer": "basic", "objects": request["objects"]}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            request = json.loads(body)
            assert request["type"] == "dataset"
            name = f"{request['organization']}/{request['name']}"
            url = {"url": f"{self.endpoint}/datasets/{name}"}
            if name in self.repositories:
                return 409, url
            private = request.get("private", request.get("visibility") == "private")
            self.repositories[name] = Repository(private, {".gitattributes": b""})
            return 200, url
        owner, name, *rest = path.removeprefix("/api/datasets/").split("/")
        return self.of_repository(self.repositories[f"{owner}/{name}"], f"{owner}/{name}", rest, body)

    def of_repository(
        self, repository: Repository, name: str, rest: list[str], body: bytes
    ) -> tuple[int, Any]:
        if rest[:1] == ["preupload"]:
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".parquet") else "regular" for path in paths}
            files = [
                {"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()
            ]
            return 200, {"files": files}
        if rest[:1] == ["commit"]:
            for line in body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "header":
                    repository.commits.append(value["summary"])
                elif operation["key"] == "file":
                    assert value["encoding"] == "base64"
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    repository.files[value["path"]] = self.large[value["oid"]]
                else:
                    assert operation["key"] == "deletedFile"
                    del repository.files[value["path"]]
            return 200, {
                "commitUrl": f"{self.endpoint}/datasets/{name}/commit/{COMMIT}",
                "commitOid": COMMIT,
            }
        if rest[:1] == ["tree"]:
            return 200, [
                {"type": "file", "path": path, "size": 1, "oid": COMMIT} for path in repository.files
            ]
        assert rest in ([], ["revision", "main"]), rest
        siblings = [{"rfilename": path} for path in repository.files]
        return 200, {"id": name, "sha": COMMIT, "private": repository.private, "siblings": siblings}


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve it on a port of this machine."""

    class Answer(Quiet):
        def answer(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            # The large files go to a signed place, without the token.
            is_known = self.command == "PUT" or self.headers.get("Authorization") == f"Bearer {hub.token}"
            unknown = 401, {"error": "who are you?"}
            status, content = hub.answer(self.command, self.path, body) if is_known else unknown
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - the names that http.server calls

    with serve(Answer) as port:
        hub.endpoint = f"http://127.0.0.1:{port}"
        yield hub
