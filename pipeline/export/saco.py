"""SA-Co JSON for SAM 3's evaluator: an entry for each pair of an image and a phrase.

The format is that of facebookresearch/sam3 `scripts/eval/gold/README.md`,
`sam3/eval/cgf1_eval.py` and `SAM3_EVAL_API_FROM_JSON_NP`. An entry with annotations has a phrase
in the image, an entry without one of the row's `absent` phrases. Boxes are [x, y, w, h] and
areas, as shares 0 .. 1 of the image's sides and area; masks are compressed run lengths in pixels;
the only category, 1, has no meaning.

SAM 3's training loader `COCO_FROM_JSON` takes the phrase from the category and boxes in pixels:
it reads `coco`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, Literal

from pydantic import Field

from phrasebox.pipeline.dataset.marks import read_marks
from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.export.base import (
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    WithImages,
    shorten_float,
)
from phrasebox.pipeline.export.coco import CocoFile, coco_annotation
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.records import stable_id
from phrasebox.stages.contract.values import Json

NEGATIVES: Final = "pairs of an image and a phrase that is not in it"
UNREVIEWED_PAIRS: Final = (
    "pairs that the evaluator leaves out: nobody marked their image good (phrasebox inspect); "
    "exhaustive=all has them"
)
UNSCORED_FILE: Final = "{}.json cannot be scored, because nobody marked an image of its pairs good"
NO_NEGATIVES: Final = (
    "{}.json gives every model a cgF1 of 0, because no pair has an absent phrase; a run finds "
    "absent phrases with a higher regions.absent_share or regions.min_presence"
)
SAID_TWICE: Final = "regions that a phrase has once although several captions say it"


class SacoConfig(FormatConfig):
    """Settings of `saco`."""

    exhaustive: Literal["reviewed", "all"] = Field(
        "reviewed",
        description="Pairs that say that every instance and every pixel of the phrase is annotated: those of the "
        "samples that somebody marked good, without which the export is rejected, or all, which "
        "nobody has certified. The evaluator leaves out the others. A region of a plural phrase "
        "may hold several instances.",
    )
    images: WithImages = False


class Saco(Exporter):
    """SA-Co pairs."""

    summary = (
        "SPLIT.json with an entry for each image and phrase, absent phrases too, for SAM 3's cgF1 evaluator"
    )
    masks = "exact as RLE"
    next_step = (
        "SAM 3: python scripts/eval/standalone_cgf1.py --pred_file PREDICTIONS.json "
        '--gt_files "{out}/{split}.json"'
    )
    keeps_empty = False  # an image without a phrase makes no pair
    takes_groups = False  # its entries are phrases
    config_type = SacoConfig
    image_folder = "images/{split}"

    def __init__(self, config: SacoConfig, job: ExportJob) -> None:
        super().__init__(config, job)
        self._marks = read_marks(job.dataset.path)
        if config.exhaustive == "reviewed" and "good" not in self._marks.values():
            raise ConfigError(
                "nobody has marked an image of this dataset good, and SAM 3's evaluator fails "
                "where no image is: mark some (phrasebox inspect), or declare all pairs "
                "complete: --set exhaustive=all",
                key="exhaustive",
            )
        self._pairs: Counter[tuple[str, int]] = Counter()  # by split and `is_instance_exhaustive`
        self._negatives: Counter[str] = Counter()  # those that are exhaustive, by split

    def open_split(self, split: str) -> CocoFile:
        """Return the JSON of a split."""
        return CocoFile(self.job.folder, f"{split}.json")

    @classmethod
    def holds(cls, config: Any, row: Row) -> bool:
        """Return whether the row has absent phrases."""
        return bool(row["absent"])

    def add(self, sample: ChosenSample) -> None:
        """Write one sample: an entry for each of its phrases."""
        file = self.files[sample.split]
        file_name = self.image_name(sample)
        row = sample.row
        present: dict[str, list[Annotation]] = {}
        written_regions = self.written_regions(sample)
        self.notes[SAID_TWICE] += len(sample.regions) - len(written_regions)
        for region in written_regions:
            present.setdefault(region["phrase"], []).append(region)
        width = row["width"]
        height = row["height"]
        for regions in present.values():
            pair = self._pair(sample, file_name, regions[0])
            file.image(pair)
            for region in regions:
                x, y, w, h = region["bbox"]
                box = [x / width, y / height, w / width, h / height]
                area = region["area"] / (width * height)
                file.annotation(
                    coco_annotation(region, pair["id"], 1, bbox=box, area=area, source="phrasebox")
                )
        absent = {entry["phrase"]: entry for entry in row["absent"] if entry["phrase"] not in present}
        for entry in absent.values():
            pair = self._pair(sample, file_name, entry)
            file.image(pair)
            self.notes[NEGATIVES] += 1
            self._negatives[sample.split] += pair["is_instance_exhaustive"]

    def written_regions(self, sample: ChosenSample) -> list[Annotation]:
        """Return the chosen regions, equal masks of one phrase in several captions once."""
        distinct: dict[tuple[str, str], Annotation] = {}
        for region in sample.regions:
            distinct.setdefault((region["phrase"], region["segmentation"]["counts"]), region)
        return [*distinct.values()]

    def close(self) -> None:
        """Complete the files, and note those that score every model alike."""
        super().close()
        for split in self.job.splits:
            scored_pairs = self._pairs[split, 1]
            if not scored_pairs:
                self.notes[UNSCORED_FILE.format(split)] += self._pairs[split, 0]
            elif not self._negatives[split]:
                self.notes[NO_NEGATIVES.format(split)] += scored_pairs

    def _pair(self, sample: ChosenSample, file_name: str, phrase: Json) -> Json:
        """Return an entry of `images`. `phrase` is an annotation or an entry of `absent`."""
        row = sample.row
        text = phrase["phrase"]
        presence = phrase["presence"]
        is_exhaustive = self.config.exhaustive == "all" or self._marks.get(row["sample_id"]) == "good"
        self.notes[UNREVIEWED_PAIRS] += not is_exhaustive
        self._pairs[sample.split, int(is_exhaustive)] += 1
        return {
            "id": stable_id(f"{row['sample_id']}\nphrase {text}"),
            "file_name": file_name,
            "text_input": text,
            "width": row["width"],
            "height": row["height"],
            "queried_category": str(stable_id(text)),  # the same number for a phrase in all images
            "is_instance_exhaustive": int(is_exhaustive),
            "is_pixel_exhaustive": int(is_exhaustive),
            "original_img_id": row["id"],
            "sample_id": row["sample_id"],
            "head": phrase["head"],
            "presence": None if presence is None else shorten_float(presence),
        }
