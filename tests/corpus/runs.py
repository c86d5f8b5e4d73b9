"""The corpus as inputs of real runs: one for each kind of input, with good samples between the bad ones."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.build.datasets import Json
from tests.build.files import write_json
from tests.corpus.files import CSV_FILES, JSONL_FILES
from tests.corpus.goods import COUNT, good, goods
from tests.corpus.pictures import PICTURES
from tests.corpus.rows import CAPTIONS, LINES, LOCATIONS
from tests.corpus.tables import COCO_ANNOTATIONS, COCO_IMAGES, PARQUETS
from tests.corpus.tars import TARS


class Wanted(NamedTuple):
    """The outcome that one row of a run must have, with the entry and the table that it is for."""

    group: str
    case: str
    outcome: str  # see `goods.meets`


class Input(NamedTuple):
    """The `input` section of a run, and its rows in order."""

    config: Json
    wanted: list[Wanted]


def write_images(folder: Path) -> None:
    """The good ones and `PICTURES`."""
    folder.mkdir(parents=True)
    for good_sample in goods():
        (folder / good_sample.name).write_bytes(good_sample.image)
    for name, (content, _) in PICTURES.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content(folder / name)


def as_json(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def rows(folder: Path) -> Input:
    """One jsonl file, in which every three cases stand between good rows."""
    write_images(folder / "images")
    cases = [
        (Wanted("picture", name, outcome), as_json({"image": name, "caption": "a red square"}))
        for name, (_, outcome) in PICTURES.items()
    ]
    for group, before, table in (
        ("caption", b'{"image": "plain.jpg", "caption": ', CAPTIONS),
        ("location", b'{"caption": "a red square", "image": ', LOCATIONS),
    ):
        cases += [
            (Wanted(group, name, outcome), before + as_json(value) + b"}")
            for name, (value, outcome) in table.items()
        ]
    cases += [(Wanted("line", name, outcome), line) for name, (line, outcome) in LINES.items()]
    lines = []
    wanted = []
    for number, start in enumerate(range(0, len(cases) + 3, 3)):
        good_sample = good(number)
        lines.append(
            as_json({"id": f"good {number}", "image": good_sample.name, "caption": good_sample.caption})
        )
        wanted.append(Wanted("good", "row", "good"))
        wanted += [case for case, _ in cases[start : start + 3]]
        lines += [line for _, line in cases[start : start + 3]]
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    keys = {"path": str(path), "image_root": str(folder / "images"), "group_rows": False}
    return Input({"kind": "jsonl", **keys}, wanted)


def coco(folder: Path) -> Input:
    write_images(folder / "images")
    images: list[Any] = []
    annotations: list[Any] = []
    wanted = []
    for number, (name, (image, captions, outcome)) in enumerate(COCO_IMAGES.items()):
        good_sample = good(number)
        good_id = f"good {number}"
        images += [{"id": good_id, "file_name": good_sample.name}, image]
        annotations.append({"id": good_id, "image_id": good_id, "caption": good_sample.caption})
        for text in captions:
            annotations.append({"id": 1000 + len(annotations), "image_id": image["id"], "caption": text})
        wanted += [Wanted("good", "row", "good"), Wanted("COCO image", name, outcome)]
    for name, (annotation, outcome) in COCO_ANNOTATIONS.items():
        annotations.append(annotation)
        wanted.append(Wanted("COCO annotation", name, outcome))
    path = write_json(folder / "captions.json", {"images": images, "annotations": annotations})
    keys = {"path": str(path), "image_root": str(folder / "images")}
    return Input({"kind": "coco_captions", **keys}, wanted)


def _files(kind: str, table: Mapping[str, tuple[bytes, list[str]]], **keys: Any) -> Callable[[Path], Input]:
    def write(folder: Path) -> Input:
        (folder / "images").mkdir()
        for good_sample in goods():
            (folder / "images" / good_sample.name).write_bytes(good_sample.image)
        (folder / "input").mkdir()
        wanted = []
        for name in sorted(table):
            content, outcomes = table[name]
            (folder / "input" / name).write_bytes(content)
            wanted += [Wanted(f"{kind} file", name, outcome) for outcome in outcomes]
        places = {key: str(folder / value) for key, value in keys.items()}
        return Input({"kind": kind, "path": str(folder / "input"), **places}, wanted)

    return write


RUNS: dict[str, Callable[[Path], Input]] = {
    "rows": rows,
    "jsonl": _files("jsonl", JSONL_FILES, image_root="images"),
    "csv": _files("csv", CSV_FILES, image_root="images"),
    "webdataset": _files("webdataset", TARS),
    "parquet": _files("parquet", PARQUETS, image_root="images"),
    "coco": coco,
}


def good_rows(folder: Path) -> Input:
    """The good samples alone."""
    for good_sample in goods():
        (folder / good_sample.name).write_bytes(good_sample.image)
    lines = [
        as_json({"image": good_sample.name, "caption": good_sample.caption}) for good_sample in goods()
    ]
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    wanted = [Wanted("good", "row", "annotated") for number in range(COUNT)]
    return Input({"kind": "jsonl", "path": str(folder / "rows.jsonl")}, wanted)
