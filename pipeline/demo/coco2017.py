"""Captioned photographs of COCO 2017 with the boxes of their objects, to measure and calibrate a model of one's own.

    out/images/000000000139.jpg
        captions.jsonl     five captions for each photograph: the input of a run
        truth.json         COCO instances of these photographs: for `eval` and `calibrate`
        licences.json      the licence of each photograph, and its place on Flickr
        README.md          the same in words
        photographs.json   the request, and the SHA-256 of each photograph

The annotations are those of Lin et al., Microsoft COCO: Common Objects in Context (ECCV 2014, arXiv 1405.0312) and
Chen et al., Microsoft COCO Captions (arXiv 1504.00325), under CC BY 4.0. Each photograph has a licence of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rich.console import Console

from phrasebox.pipeline.demo.download import download
from phrasebox.pipeline.terminal import progress_bar
from phrasebox.stages.contract.errors import ConfigError, InputError, RowFault
from phrasebox.stages.contract.values import Json
from phrasebox.stages.images.decode import decode_rgb
from phrasebox.stages.images.faults import DecodeLimits

MIRROR: Final = "http://images.cocodataset.org"

ARCHIVE: Final = "annotations/annotations_trainval2017.zip"
ARCHIVE_BYTES: Final = 252_907_541
ARCHIVE_MD5: Final = "f4bbac642086de4f52a3fdda2de5fa2c"
"""As people who mirror the file state it; COCO's own page has no checksums."""

Split = Literal["val2017", "train2017"]

CONNECTIONS: Final = 8

REQUEST_FILE: Final = "photographs.json"
_DOWNLOAD_FOLDER: Final = ".download"

WRITTEN: Final = ("captions.jsonl", "truth.json", "licences.json", "README.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotographRequest:
    """Which photographs to fetch, and from where.

    Attributes:
        images: How many photographs; fewer if the split has fewer with captions and boxes.
        split: The part of COCO 2017 that they come from: 5,000 photographs or 118,287.
        seed: Another seed draws other photographs.
        mirror: The URL of a server with the layout of COCO's.
    """

    images: int
    split: Split = "val2017"
    seed: int = 0
    mirror: str = MIRROR

    def to_json(self) -> Json:
        """Return what decides which photographs these are, as plain values."""
        return {"dataset": "COCO 2017", "split": self.split, "images": self.images, "seed": self.seed}


def fetch_photographs(out: Path, request: PhotographRequest, console: Console) -> int:
    """Fetch photographs with captions and boxes into a folder; return how many there are.

    The same call goes on where one was interrupted. A photograph that is there is kept if its bytes are the noted ones.

    Raises:
        ConfigError: The folder holds other photographs, or cannot be written to.
        InputError: The server does not answer, has no such file, or its file is another.
    """
    if not request.mirror.startswith(("http://", "https://")):
        raise ConfigError(f"a URL with http:// or https://, not {request.mirror!r}", key="--mirror")
    try:
        _check_folder(out, request)
        (out / "images").mkdir(parents=True, exist_ok=True)
        stored = _read_request(out)
        if stored is not None and all(
            _is_whole(out / "images" / name, digest) for name, digest in stored["sha256"].items()
        ):
            return len(stored["sha256"])
        instances, captions = _annotations(out / _DOWNLOAD_FOLDER, request, console)
        chosen = choose_photographs(instances, captions, request)
        digests = _fetch_images(out / "images", chosen, request, console)
        _write(out, request, chosen, instances, captions, digests)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}", key="--out") from error
    shutil.rmtree(out / _DOWNLOAD_FOLDER, ignore_errors=True)
    return len(digests)


def choose_photographs(instances: Json, captions: Json, request: PhotographRequest) -> list[Json]:
    """Return entries of `images` with captions and at least one box, by the digest of their name and the seed.

    With a larger number come the same photographs, and more.
    """
    captioned = {entry["image_id"] for entry in captions["annotations"]}
    boxed = {entry["image_id"] for entry in instances["annotations"] if not entry["iscrowd"]}
    usable = [image for image in instances["images"] if image["id"] in captioned & boxed]

    def place(image: Json) -> str:
        return hashlib.sha256(f"{request.seed} {image['file_name']}".encode()).hexdigest()

    return sorted(usable, key=place)[: request.images]


def _check_folder(out: Path, request: PhotographRequest) -> None:
    """Raise ConfigError if a folder holds something else than an earlier try to fetch these photographs."""
    stored = _read_request(out)
    if stored is not None:
        earlier = stored["request"]
        if earlier != request.to_json():
            raise ConfigError(
                f"{out} holds {earlier['images']} photographs of {earlier['split']}, seed {earlier['seed']}: "
                "give another folder",
                key="--out",
            )
    elif out.exists() and {path.name for path in out.iterdir()} - {"images", _DOWNLOAD_FOLDER, *WRITTEN}:
        raise ConfigError(f"{out} holds other files: give a new folder", key="--out")


def _read_request(out: Path) -> Json | None:
    """Return what `REQUEST_FILE` of a folder holds; None without it. Raise ConfigError if it is damaged."""
    path = out / REQUEST_FILE
    if not path.exists():
        return None
    try:
        stored: Json = json.loads(path.read_bytes())
        stored["request"]["images"], stored["sha256"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged: delete it, and run the command again", key="--out"
        ) from error
    return stored


def _annotations(folder: Path, request: PhotographRequest, console: Console) -> tuple[Json, Json]:
    """Return COCO's instances and captions of the split."""
    folder.mkdir(exist_ok=True)
    archive = folder / "annotations.zip"
    with progress_bar(console, "annotations, MB", ARCHIVE_BYTES // 10**6) as show:
        download(
            f"{request.mirror.rstrip('/')}/{ARCHIVE}",
            archive,
            size=ARCHIVE_BYTES,
            md5=ARCHIVE_MD5,
            on_bytes=lambda done: show(done // 10**6),
        )
    with zipfile.ZipFile(archive) as opened:
        instances, captions = (
            json.loads(opened.read(f"annotations/{kind}_{request.split}.json"))
            for kind in ("instances", "captions")
        )
    return instances, captions


def _fetch_images(
    folder: Path, chosen: Sequence[Json], request: PhotographRequest, console: Console
) -> dict[str, str]:
    """Fetch photographs, several at once; return the SHA-256 of each by its name."""
    base = f"{request.mirror.rstrip('/')}/{request.split}"
    with (
        progress_bar(console, "photographs", len(chosen)) as show,
        ThreadPoolExecutor(CONNECTIONS) as pool,
    ):
        tasks = [pool.submit(_fetch_image, folder, image, base) for image in chosen]
        try:
            for number, task in enumerate(as_completed(tasks), start=1):
                task.result()
                show(number)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {image["file_name"]: _sha256(folder / image["file_name"]) for image in chosen}


def _fetch_image(folder: Path, image: Json, base: str) -> None:
    """Fetch a photograph whose size is the one of its entry."""
    path = folder / Path(image["file_name"]).name  # never outside the folder
    url = f"{base}/{path.name}"
    if path.exists() and _fault_of(path, image):
        path.unlink()
    download(url, path)
    if fault := _fault_of(path, image):
        path.unlink()
        raise InputError(f"{url} is another photograph: {fault}. The same command tries it again")


def _fault_of(path: Path, image: Json) -> str:
    """Return why a file is not the photograph of an entry; "" if it is."""
    try:
        height, width = decode_rgb(path.read_bytes(), DecodeLimits()).shape[:2]
    except RowFault as fault:
        return str(fault)
    wanted = (image["width"], image["height"])
    size = (width, height)
    return (
        ""
        if size == wanted
        else f"it has {size[0]} x {size[1]} pixels, and should have {wanted[0]} x {wanted[1]}"
    )


def _write(
    out: Path,
    request: PhotographRequest,
    chosen: Sequence[Json],
    instances: Json,
    captions: Json,
    digests: dict[str, str],
) -> None:
    """Write all files but the photographs; the request last, which says that the folder is complete."""
    ids = {image["id"] for image in chosen}
    texts = defaultdict(list)
    for entry in sorted(captions["annotations"], key=lambda entry: entry["id"]):
        texts[entry["image_id"]].append(entry["caption"].strip())
    lines = (
        {"id": str(image["id"]), "image": image["file_name"], "captions": texts[image["id"]]}
        for image in chosen
    )
    truth = {
        "images": [{key: image[key] for key in ("id", "file_name", "width", "height")} for image in chosen],
        "annotations": [entry for entry in instances["annotations"] if entry["image_id"] in ids],
        "categories": instances["categories"],
    }
    licences = {licence["id"]: licence for licence in instances["licenses"]}
    origins = {
        image["file_name"]: {
            "licence": licences[image["license"]]["name"],
            "licence_url": licences[image["license"]]["url"],
            "source": image["flickr_url"],
        }
        for image in chosen
    }
    write = {
        "captions.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
        "truth.json": json.dumps(truth),
        "licences.json": json.dumps(origins, indent=1),
        "README.md": _readme(request, Counter(origin["licence"] for origin in origins.values())),
        REQUEST_FILE: json.dumps({"request": request.to_json(), "sha256": digests}, indent=1),
    }
    for name, text in write.items():
        (out / name).write_text(text, encoding="utf-8")


def _readme(request: PhotographRequest, licences: Counter[str]) -> str:
    """Return a page about a folder, with the number of photographs by licence."""
    rows = "\n".join(f"| {name} | {count} |" for name, count in sorted(licences.items()))
    return f"""# {licences.total():,} photographs of COCO 2017 ({request.split})

Captions and boxes are those of COCO (Lin et al., ECCV 2014; Chen et al., arXiv 1504.00325), under CC BY 4.0.
Each photograph has the licence that its owner gave it. `licences.json` names it for each
photograph, with its place on Flickr:

| licence | photographs |
|---|---|
{rows}

Make a dataset of them, and calibrate a model on it:

```sh
phrasebox run captions.jsonl --images images/ --model MODEL --out ../out
phrasebox calibrate ../out --truth truth.json --out ../calibration.json
```
"""


def _is_whole(path: Path, digest: str) -> bool:
    return path.exists() and _sha256(path) == digest


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
