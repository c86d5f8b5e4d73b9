"""Mixed-grounding JSON for MDETR, GLIP and YOLO-World: an image entry for each caption.

By objects (`per="group"`), there is one entry for each image; its `caption` holds all captions.

MDETR's `datasets/coco.py` and `mixed.py`, GLIP's `MixedDataset`, YOLO-World's
`YOLOv5MixedGroundingDataset`. Boxes are [x, y, w, h] px, `tokens_positive` are [start, end)
characters of the entry's `caption`. YOLO-World makes the class text of a region from the words of
its spans. By `data_source`, the mixed datasets choose between their two image folders: "coco"
means the first, anything else the second.
"""

from __future__ import annotations

from pipeline.export.base import (
    BEYOND_TOKENS,
    WITHIN_A_PIXEL,
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    WithImages,
    is_beyond_tokens,
    polygons_of,
)
from pipeline.export.coco import CocoFile, coco_annotation
from stages.contract.records import stable_id


class MdetrConfig(FormatConfig):
    """Settings of `mdetr`."""

    images: WithImages = False


class Mdetr(Exporter):
    """Mixed grounding."""

    summary = "SPLIT.json with an entry for each image and caption, for MDETR, GLIP and YOLO-World"
    masks = "polygons within a pixel, which MDETR's masks want, holes filled; exact as RLE in a field `rle`"
    next_step = (
        'MDETR and GLIP: put "{out}/{split}.json" and "{images}" into their configuration. Ultralytics: '
        'WorldTrainerFromScratch with grounding_data=[dict(img_path="{images}", json_file="{out}/{split}.json")], but '
        "not after --per group, since it joins all phrases of an object into one class"
    )
    needs_words = True
    config_type = MdetrConfig
    image_folder = "images/{split}"

    def __init__(self, config: MdetrConfig, job: ExportJob) -> None:
        super().__init__(config, job)
        self._files = self.for_splits(lambda split: CocoFile(job.folder, f"{split}.json"))

    def add(self, sample: ChosenSample) -> None:
        """Write one sample: an entry for each of its texts."""
        row = sample.row
        file = self._files[sample.split]
        file_name = self.image_name(sample)
        # A caption without regions beside one with regions would be a picture without objects.
        for index, caption, regions in sample.texts():
            image_id = stable_id(f"{row['sample_id']}\ncaption {index}")
            targets = sorted({tuple(map(tuple, spans)) for _, spans in regions})  # phrases or objects, in their order
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
                self.notes[BEYOND_TOKENS] += is_beyond_tokens(caption, spans)
                polygons = polygons_of(region, self.notes, WITHIN_A_PIXEL)
                fields = {
                    "segmentation": polygons,
                    "tokens_positive": spans,
                    "rle": region["segmentation"],
                }
                file.annotation(coco_annotation(region, image_id, 1, **fields))
