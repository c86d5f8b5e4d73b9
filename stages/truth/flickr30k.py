"""Flickr30k Entities as ground truth: captions with marked phrases, and the boxes that belong to them.

    Sentences/36979.txt     [/EN#137644/people A group of friends] playing [/EN#137645/other cards] .
    Annotations/36979.xml   <size> of the image, and <object>s. Each has one or several <name>s, the numbers of chains
                            (137644), and a <bndbox>, or instead of it <scene> or <nobndbox>

All phrases of an image with the same chain mean the same objects. Phrases of chain 0 name
nothing visible. Boxes are <xmin> <ymin> <xmax> <ymax> as in Pascal VOC: whole pixels from 1,
and the last pixel is inside.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.values import Sides
from phrasebox.stages.phrases.filters import normalise
from phrasebox.stages.truth.coco import number_member, size_member
from phrasebox.stages.truth.ground_truth import GroundTruth, ImagesOnDemand, TruthImage, TruthTarget

SENTENCES: Final = "Sentences"
ANNOTATIONS: Final = "Annotations"

MARKED_PHRASE: Final = re.compile(
    r"\[/EN#(?P<chain>\d+)/(?P<type>[^\s/\]]+)(?:/[^\s\]]*)?\s(?P<words>[^\]]*)\]"
)
NOT_VISUAL: Final = "0"
"""The chain of phrases that name nothing visible."""

_Object = tuple[frozenset[str], Box]  # Chains, and the box that they share


def read_flickr30k(folder: Path) -> GroundTruth:
    """Return the ground truth of a folder with `Sentences/` and `Annotations/`; the images are ID.jpg.

    A target is a phrase of one caption, and its objects are all boxes of its chain. Boxes are
    not joined: each of them matches the phrase. A normalised phrase that is twice in a caption
    is one target with the boxes of both chains. Phrases of chains without boxes, phrases
    without letters and digits, and annotations without sentences are left out. Captions are
    without marks: words and punctuation with single spaces between them.

    Groups: type (the phrase's first type, as "people"), number (singular, plural) and size (of
    the mean box: small, medium, large by COCO's limits).

    Files are read when their image is looked up: the whole of Flickr30k would take 15 s. Raise
    InputError if there are no sentences.
    """
    paths = sorted(path for path in (folder / SENTENCES).glob("*.txt") if not path.name.startswith("."))
    if not paths:
        raise InputError(f"{folder / SENTENCES}: expected files ID.txt with captions, found none")
    return GroundTruth(images=ImagesOnDemand({f"{path.stem}.jpg": path for path in paths}, _image))


def _image(sentences: Path) -> TruthImage:
    annotations = sentences.parent.parent / ANNOTATIONS / f"{sentences.stem}.xml"
    (width_px, height_px), objects = _annotations(annotations)
    chains_with_box = {chain for chains, _ in objects for chain in chains} - {NOT_VISUAL}
    targets: list[TruthTarget] = []
    for caption, line in read_captions(sentences):
        chains_of: dict[str, set[str]] = defaultdict(set)
        type_of: dict[str, str] = {}
        for match in MARKED_PHRASE.finditer(line):
            phrase = normalise(match["words"])
            chain = match["chain"]
            if phrase and chain in chains_with_box:
                chains_of[phrase].add(chain)
                type_of.setdefault(phrase, match["type"])
        for phrase, kind in type_of.items():
            boxes = tuple(box for names, box in objects if names & chains_of[phrase])
            groups = {
                "type": kind,
                "number": number_member(len(boxes)),
                "size": size_member(None, boxes),
            }
            targets.append(
                TruthTarget(
                    phrase=phrase, boxes_xywh_px=boxes, match="phrase", caption=caption, groups=groups
                )
            )
    return TruthImage(
        file_name=f"{sentences.stem}.jpg",
        width_px=width_px,
        height_px=height_px,
        targets=tuple(targets),
    )


def read_captions(sentences: Path) -> Iterator[tuple[str, str]]:
    """Yield the captions of an image without marks, and the lines with marks (`MARKED_PHRASE`).

    Raise InputError if the file cannot be read, or for a mark without an end.
    """
    for number, line in enumerate(_text(sentences).split("\n"), start=1):
        caption = " ".join(MARKED_PHRASE.sub(lambda match: match["words"], line).split())
        if "[/EN#" in caption:
            raise InputError(
                f"{sentences}: line {number}: expected [/EN#CHAIN/TYPE words] around every phrase, "
                f"got {caption[:80]!r}"
            )
        yield caption, line


def _annotations(path: Path) -> tuple[Sides, list[_Object]]:
    """Width and height of the image, and the objects with a box that has an area."""
    text = _text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(
            f"{path}: files with a document type are rejected, because it could expand without limit"
        )
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  no DTD, see above
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path} is not an XML file: {error}") from error
    size = root.find("size")
    if size is None:
        raise InputError(f"{path}: expected the <size> of the image")
    width_px, height_px = (_pixels(path, size, tag) for tag in ("width", "height"))
    objects: list[_Object] = []
    for element in root.iterfind("object"):
        chains = frozenset((name.text or "").strip() for name in element.iterfind("name"))
        if not chains or "" in chains:
            raise InputError(f"{path}: expected a <name> with a chain's number in every <object>")
        bounds = element.find("bndbox")
        if bounds is None:
            continue
        x0, y0, x1, y1 = (_pixels(path, bounds, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
        if x1 >= x0 and y1 >= y0:
            box = (float(x0 - 1), float(y0 - 1), float(x1 - x0 + 1), float(y1 - y0 + 1))
            objects.append((chains, box))
    return (width_px, height_px), objects


def _pixels(path: Path, element: ElementTree.Element, tag: str) -> int:
    text = (element.findtext(tag) or "").strip()
    if not re.fullmatch(r"-?[0-9]{1,6}", text):
        raise InputError(
            f"{path}: expected a whole number of pixels in <{element.tag}> <{tag}>, got {text[:40]!r}"
        )
    return int(text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
