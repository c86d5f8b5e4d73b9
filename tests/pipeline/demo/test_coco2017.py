"""Photographs of COCO 2017, from a server of this machine with the layout of COCO's own."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from phrasebox.pipeline.demo import coco2017, download
from phrasebox.pipeline.demo.coco2017 import PhotographRequest, choose_photographs, fetch_photographs
from phrasebox.stages.contract.errors import ConfigError, InputError
from tests.build.files import read_json, read_lines
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import called

COUNT = 6
QUIET = Console(quiet=True)


class Server(SimpleHTTPRequestHandler):
    """A server with ranges of bytes, which notes what it is asked for, and can break off."""

    asked: list[tuple[str, str]]
    breaks_at: dict[str, int]

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.asked.append((self.path, self.headers.get("Range", "")))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        last = self.breaks_at.pop(self.path, len(content))
        self.wfile.write(content[start:last])
        if last < len(content):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def entry(number: int, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": f"{number:012}.jpg",
        "width": size[0],
        "height": size[1],
        "license": 1 + number % 2,
        "flickr_url": f"http://flickr/{number}.jpg",
    }


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Server], Path]]:
    """The URL, the class and the folder of a server with eight photographs, two without captions or boxes."""
    folder = tmp_path / "served"
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images = [entry(number, (40 + number, 30)) for number in range(1, COUNT + 3)]
    for image in images:
        size = (image["width"], image["height"])
        Image.effect_noise(size, 80).convert("RGB").save(folder / "val2017" / image["file_name"])
    boxed = [
        {
            "id": image["id"],
            "image_id": image["id"],
            "category_id": 3,
            "bbox": [1, 1, 20, 10],
            "iscrowd": int(image["id"] == COUNT + 1),
        }
        for image in images
    ]
    captioned = [
        {"id": 10 * image["id"] + place, "image_id": image["id"], "caption": f"A red car {place}. "}
        for image in images[: COUNT + 1]
        for place in range(5)
    ]
    licences = [{"id": 1, "name": "Attribution", "url": "by"}, {"id": 2, "name": "NoDerivs", "url": "nd"}]
    instances = {
        "images": images,
        "annotations": boxed,
        "categories": [{"id": 3, "name": "car"}],
        "licenses": licences,
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("annotations/instances_val2017.json"), json.dumps(instances))
        archive.writestr(
            zipfile.ZipInfo("annotations/captions_val2017.json"), json.dumps({"annotations": captioned})
        )
    content = packed.getvalue()
    (folder / coco2017.ARCHIVE).write_bytes(content)
    monkeypatch.setattr(coco2017, "ARCHIVE_BYTES", len(content))
    monkeypatch.setattr(coco2017, "ARCHIVE_MD5", hashlib.md5(content, usedforsecurity=False).hexdigest())
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
    handler = type("Handler", (Server,), {"asked": [], "breaks_at": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler, folder
        server.shutdown()
        thread.join()


def test_photographs_come_with_captions_boxes_and_licences(mirror: Any, tmp_path: Path) -> None:
    url, _, folder = mirror
    out = tmp_path / "coco"
    code, printed, _ = called("photographs", "coco2017", "--images", 4, "--out", out, "--mirror", url)
    assert code == 0
    assert f"4 photographs of coco2017 in {out}" in printed
    rows = read_lines(out / "captions.jsonl")
    assert len(rows) == 4
    assert all(row["captions"] == [f"A red car {place}." for place in range(5)] for row in rows)
    names = {row["image"] for row in rows}
    assert {path.name for path in (out / "images").iterdir()} == names
    assert all(
        (out / "images" / name).read_bytes() == (folder / "val2017" / name).read_bytes() for name in names
    )
    truth = read_json(out / "truth.json")
    assert {image["file_name"] for image in truth["images"]} == names
    assert {entry["image_id"] for entry in truth["annotations"]} == {
        image["id"] for image in truth["images"]
    }
    licences = read_json(out / "licences.json")
    assert licences.keys() == names
    page = (out / "README.md").read_text()
    assert all(f"| {origin['licence']} | " in page for origin in licences.values())
    assert not (out / ".download").exists()


def test_a_photograph_has_captions_and_an_object_and_more_photographs_keep_the_first(mirror: Any) -> None:
    _, _, folder = mirror
    with zipfile.ZipFile(folder / coco2017.ARCHIVE) as archive:
        instances, captions = (
            json.loads(archive.read(f"annotations/{kind}_val2017.json"))
            for kind in ("instances", "captions")
        )

    def chosen(**values: Any) -> list[int]:
        return [
            image["id"] for image in choose_photographs(instances, captions, PhotographRequest(**values))
        ]

    assert sorted(chosen(images=100)) == [*range(1, COUNT + 1)], "without a caption, or with a crowd alone"
    assert chosen(images=100)[:2] == chosen(images=2)
    assert chosen(images=100, seed=1) != chosen(images=100)


def test_what_was_interrupted_goes_on(mirror: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, server, _ = mirror
    out = tmp_path / "coco"
    archive = f"/{coco2017.ARCHIVE}"
    server.breaks_at[archive] = 100
    request = PhotographRequest(images=COUNT, mirror=url)
    with monkeypatch.context() as once:
        once.setattr(download, "TRIES", 1)
        with expect_error(InputError):
            fetch_photographs(out, request, QUIET)
    assert fetch_photographs(out, request, QUIET) == COUNT
    assert [asked for path, asked in server.asked if path == archive] == ["", "bytes=100-"]

    before = len(server.asked)
    assert fetch_photographs(out, request, QUIET) == COUNT
    assert len(server.asked) == before, "all is there, and has the noted bytes"

    first, *_ = sorted((out / "images").iterdir())
    content = first.read_bytes()
    first.write_bytes(content[:-200])
    assert fetch_photographs(out, request, QUIET) == COUNT
    assert first.read_bytes() == content
    assert [path for path, _ in server.asked[before:]] == [archive, f"/val2017/{first.name}"]


def test_a_broken_connection_is_tried_again(mirror: Any, tmp_path: Path) -> None:
    url, server, folder = mirror
    name = sorted(path.name for path in (folder / "val2017").iterdir())[0]
    server.breaks_at[f"/val2017/{name}"] = 50
    assert fetch_photographs(tmp_path / "coco", PhotographRequest(images=COUNT, mirror=url), QUIET) == COUNT


@pytest.mark.parametrize("fault", ["archive", "size", "gone", "page"])
def test_a_server_with_other_files_is_refused(fault: str, mirror: Any, tmp_path: Path) -> None:
    url, _, folder = mirror
    for path in (folder / "val2017").iterdir():
        if fault == "size":
            Image.new("RGB", (9, 9)).save(path)
        elif fault == "gone":
            path.unlink()
        elif fault == "page":
            path.write_text("<html>log in</html>")
    if fault == "archive":
        path = folder / coco2017.ARCHIVE
        path.write_bytes(path.read_bytes()[::-1])
    with expect_error(InputError):
        fetch_photographs(tmp_path / "coco", PhotographRequest(images=1, mirror=url), QUIET)
    assert not (tmp_path / "coco" / "captions.jsonl").exists()


def test_folders_of_something_else_are_refused(mirror: Any, tmp_path: Path) -> None:
    url, _, _ = mirror
    out = tmp_path / "coco"
    with expect_error(ConfigError, key="--mirror"):
        fetch_photographs(out, PhotographRequest(images=2, mirror="ftp://host"), QUIET)
    fetch_photographs(out, PhotographRequest(images=2, mirror=url), QUIET)
    with expect_error(ConfigError, key="--out"):
        fetch_photographs(out, PhotographRequest(images=3, mirror=url), QUIET)
    (out / coco2017.REQUEST_FILE).write_text("{")
    with expect_error(ConfigError, key="--out"):
        fetch_photographs(out, PhotographRequest(images=2, mirror=url), QUIET)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with expect_error(ConfigError, key="--out"):
        fetch_photographs(tmp_path / "mine", PhotographRequest(images=2, mirror=url), QUIET)
