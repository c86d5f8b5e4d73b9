"""Mixed-grounding JSON for MDETR, GLIP and YOLO-World: an image entry for each caption.

By objects (`per="group"`), there is one entry for each image; its `caption` holds all captions.

MDETR's `datasets/coco.py` and `mixed.py`, GLIP's `MixedDataset`, YOLO-World's
`YOLOv5MixedGroundingDataset`. Boxes are [x, y, w, h] px, `tokens_positive` are [start, end)
characters of the entry's `caption`. By `data_source`, the mixed datasets choose between their two
image folders: "coco" means the first, anything else the second.

YOLO-World and Ultralytics' `GroundingDataset` join the words of all spans of a region to the text
of its class, so they need the span of one phrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from phrasebox.pipeline.dataset.rows import Annotation
from phrasebox.pipeline.export.base import (
    BEYOND_TOKENS,
    OBJECT_PHRASES,
    WITHIN_A_PIXEL,
    ChosenSample,
    Exporter,
    FormatConfig,
    Per,
    WithImages,
    is_beyond_tokens,
    polygons_of,
)
from phrasebox.pipeline.export.coco import CocoFile, coco_annotation
from phrasebox.stages.contract.records import stable_id


class MdetrConfig(FormatConfig):
    """Settings of `mdetr`."""

    trainer: Literal["mdetr", "ultralytics"] = Field(
        "mdetr",
        description="MDETR and GLIP take the spans of all phrases that name an object. Ultralytics and YOLO-World "
        "would join them to one class, so a region gets the span of the phrase that names it best.",
    )
    images: WithImages = False


class Mdetr(Exporter):
    """Mixed grounding."""

    summary = "SPLIT.json with an entry for each image and caption, for MDETR, GLIP and YOLO-World"
    masks = "polygons within a pixel, which MDETR's masks want, holes filled; exact as RLE in a field `rle`"
    next_step = (
        'MDETR and GLIP: put "{out}/{split}.json" and "{images}" into their configuration. Ultralytics, after --set '
        'trainer=ultralytics: WorldTrainerFromScratch with grounding_data=[dict(img_path="{images}", '
        'json_file="{out}/{split}.json")]'
    )
    needs_words = True
    config_type = MdetrConfig
    image_folder = "images/{split}"

    def open_split(self, split: str) -> CocoFile:
        """Return the JSON of a split."""
        return CocoFile(self.job.folder, f"{split}.json")

    @classmethod
    def usual_per(cls, config: MdetrConfig) -> Per:
        """Return the default of `--per`: objects for Ultralytics, which learns classes."""
        return "group" if config.trainer == "ultralytics" else "phrase"

    def add(self, sample: ChosenSample) -> None:
        """Write one sample: an entry for each of its texts."""
        row = sample.row
        file = self.files[sample.split]
        file_name = self.image_name(sample)
        is_for_mdetr = self.config.trainer == "mdetr"
        # A caption without regions beside one with regions would be a picture without objects.
        for index, caption, regions_and_spans in sample.texts():
            regions = [
                (region, spans if is_for_mdetr else _name_span(region, caption, spans))
                for region, spans in regions_and_spans
            ]
            image_id = stable_id(f"{row['sample_id']}\ncaption {index}")
            targets = sorted(
                {tuple(map(tuple, spans)) for _, spans in regions}
            )  # phrases or objects, in their order
            file.image(
                {
                    "id": image_id,
                    "file_name": file_name,
                    "width": row["width"],
                    "height": row["height"],
                    "caption": caption,
                    "dataset_name": "phrasebox",
                    "data_source": "phrasebox",
                    "tokens_negative": [[0, len(caption)]],
                    "tokens_positive_eval": targets,
                    "sentence_id": index,
                    "original_img_id": row["id"],
                }
            )
            for region, spans in regions:
                self.notes[BEYOND_TOKENS] += is_for_mdetr and is_beyond_tokens(caption, spans)
                polygons = polygons_of(region, self.notes, WITHIN_A_PIXEL)
                fields = {
                    "segmentation": polygons,
                    "tokens_positive": spans,
                    "rle": region["segmentation"],
                }
                file.annotation(coco_annotation(region, image_id, 1, **fields))


def _name_span(region: Annotation, caption: str, spans: Sequence[list[int]]) -> list[list[int]]:
    """Return the span of the phrase that names an object, of those of all its phrases.

    It begins behind the determiner, so that "a dog" and "the dog" are one class.
    """
    phrases = region.get(OBJECT_PHRASES, (region,))
    places = [(phrase["caption_index"], phrase["span"]) for phrase in phrases]
    start, end = spans[places.index((region["caption_index"], region["span"]))]
    words_start = end - len(region["phrase"])
    if caption[words_start:end].lower() == region["phrase"]:
        start = words_start
    return [[start, end]]
