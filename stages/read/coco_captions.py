"""COCO captions: one JSON with `images` and `annotations`; a row has all captions of its image.

    {"images": [{"id": 9, "file_name": "000000000009.jpg"}],
     "annotations": [{"id": 1, "image_id": 9, "caption": "a bowl of broccoli"}]}

Karpathy's splits (`dataset_flickr30k.json`) are read, too; their images hold the captions as
`sentences`.

Captions keep the order of the annotations. Every entry of the file is a row or a caption: an
image without captions is a row without captions, and a caption of an unknown image is a bad row
"annotation:ID". Images are usually in another folder than the JSON: set `image_root`.

A JSON cannot be read in parts. So planning loads it whole, which takes about 6 times its size
in memory, and each piece carries its rows, compressed: about 0.1 MB for 1,000 images with five
captions.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from phrasebox.stages.contract.errors import InputError, Reason, RowFault
from phrasebox.stages.contract.records import Sample, stable_key
from phrasebox.stages.contract.values import Json
from phrasebox.stages.read.base import InputRow, Piece, Reader
from phrasebox.stages.read.find import SourceFile, find_files
from phrasebox.stages.read.plan import CarriedInput, carried_rows, mark_repeats, plan_rows, unique_samples
from phrasebox.stages.read.rows import FieldsConfig, RowParser, bad_row, json_object, shorten, usable_id
from phrasebox.stages.read.streams import enough_memory, read_whole


class CocoCaptionsInput(CarriedInput):
    """Keys of `input` for `kind: coco_captions`."""

    kind: Literal["coco_captions"] = "coco_captions"
    image_root: str | None = Field(
        None,
        description="Folder of the images, which paths may not leave; by default the folder of the JSON.",
    )


CarriedRow = tuple[str, Json, Reason | None, str]
"""Place; `id`, `file_name` and `captions`; reason and detail of the fault, None and "" if there is none."""


class CocoCaptionsReader(Reader):
    """Reads `kind: coco_captions`. The image ids are the sample ids."""

    config_type = CocoCaptionsInput
    suffixes = (".json", ".json.gz")

    def __init__(self, config: CocoCaptionsInput) -> None:
        self.config = config
        fields = FieldsConfig(
            image="file_name",
            caption="captions",
            id="id",
            image_root=config.image_root,
        )
        self.rows = RowParser.of(fields)

    def pieces(self) -> list[Piece]:
        """Plan the input; the pieces carry their rows."""
        files = find_files(self.config.path, self.suffixes)
        self.rows.check_image_root()
        pieces: list[Piece] = []
        keys = array("q")
        for file in files:
            with enough_memory(file.url):
                rows = _rows_of(file)
                keys.extend(stable_key(self.rows.id_of(row, place)) for place, row, _, _ in rows)
                pieces += plan_rows(file.url, file.name, rows, self.config.piece_size)
        return mark_repeats(pieces, keys)

    def read(self, piece: Piece) -> Iterator[InputRow]:
        """Yield the samples of a piece."""
        return unique_samples((self._sample(row, piece) for row in carried_rows(piece)), piece)

    def _sample(self, carried_row: CarriedRow, piece: Piece) -> Sample:
        place, row, reason, detail = carried_row
        if reason is not None:
            return bad_row(place, RowFault(reason, detail), self.rows.id_of(row, place))
        return self.rows.sample(row, place=place, piece=piece)


def _rows_of(file: SourceFile) -> list[CarriedRow]:
    """The images of a file in order, then the annotations without an image."""
    images, annotations = _load(file)
    rows: list[CarriedRow] = []
    captions_of: dict[str, list[str]] = {}
    for index, image in enumerate(images):
        place = f"{file.name}:images[{index}]"
        if not isinstance(image, dict):
            rows.append((place, {}, "bad_row", "expected an object"))
            continue
        row = {"id": image.get("id"), "file_name": image.get("file_name")}
        image_id = usable_id(image, ("id",))
        if image_id is None:
            rows.append((place, row, "bad_row", "the image has no id of text or a whole number"))
            continue
        if image_id not in captions_of:
            place = f"{file.name}:image {image_id}"
        row["captions"] = captions_of.setdefault(image_id, [])
        rows.append((place, row, None, ""))
    for index, annotation in enumerate(annotations):
        fault = _add_caption(annotation, captions_of)
        if fault is not None:
            annotation_id = usable_id(annotation, ("id",)) if isinstance(annotation, dict) else None
            row = {} if annotation_id is None else {"id": f"annotation:{annotation_id}"}
            rows.append((f"{file.name}:annotations[{index}]", row, *fault))
    return rows


def _add_caption(annotation: Any, captions_of: Mapping[str, list[str]]) -> tuple[Reason, str] | None:
    """Add the caption of an annotation to those of its image. Return reason and detail of its fault, None without."""
    if not isinstance(annotation, dict):
        return "bad_row", "expected an object"
    captions = captions_of.get(usable_id(annotation, ("image_id",)) or "")
    caption = annotation.get("caption")
    if captions is None:
        return "bad_row", f"no image has the id {shorten(str(annotation.get('image_id')))}"
    if not isinstance(caption, str):
        return "bad_caption", f"the caption is {shorten(json.dumps(caption))}, expected text"
    captions.append(caption)
    return None


def _load(file: SourceFile) -> tuple[list[Any], list[Any]]:
    """The lists `images` and `annotations`.

    Raise InputError if the file is not COCO captions.
    """
    try:
        content = json_object(read_whole(file.url))
    except RowFault as fault:
        expected = "a JSON file of an object with 'images' and 'annotations'"
        raise InputError(f"{file.url} is not {expected}: {fault.error.detail}") from fault
    images = content.get("images")
    annotations = content.get("annotations")
    if annotations is None and isinstance(images, list):
        images, annotations = _split_karpathy(images)
    if not isinstance(images, list) or not isinstance(annotations, list):
        present = ", ".join(shorten(key, 40) for key in list(content)[:20]) or "none"
        raise InputError(
            f"{file.url}: expected the lists 'images' and 'annotations', found the keys {present}"
        )
    objects = [entry for entry in annotations if isinstance(entry, dict)]
    if objects and not any("caption" in entry for entry in objects):
        present = ", ".join(shorten(key, 40) for key in list(objects[0])[:20])
        raise InputError(
            f"{file.url}: no annotation has a 'caption' (found {present}): is it an instances file?"
        )
    return images, annotations


def _split_karpathy(images: list[Any]) -> tuple[list[Any], list[Any] | None]:
    """Images of Karpathy's splits -> images and annotations of COCO; None for the latter if there are no sentences."""
    entries = []
    annotations = []
    for number, image in enumerate(images):
        sentences = image.get("sentences") if isinstance(image, dict) else None
        if not isinstance(sentences, list):
            entries.append(image)
            continue
        image_id = image.get("cocoid", image.get("imgid", number))
        path = [part for part in map(image.get, ("filepath", "filename")) if isinstance(part, str)]
        entries.append({"id": image_id, "file_name": "/".join(path) or None})
        captions = [
            sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences
        ]
        annotations += [{"image_id": image_id, "caption": caption} for caption in captions]
    return entries, annotations or None
