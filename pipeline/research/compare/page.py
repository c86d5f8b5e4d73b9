"""The page of `phrasebox compare`: heat maps of one phrase by all explainers side by side, in one file.

It needs neither network nor server: it includes pictures, style and script. The template escapes
texts, and a content security policy lets no script run but the page's own.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np

from phrasebox.pipeline.config.paths import write_file
from phrasebox.pipeline.evaluate.evaluation_set import pixels_of
from phrasebox.pipeline.evaluate.matching import ImageHeat
from phrasebox.pipeline.evaluate.metrics import value_of
from phrasebox.pipeline.pictures import heat_map_png, jpeg_of
from phrasebox.pipeline.research.compare.comparison import Comparison
from phrasebox.pipeline.research.compare.figures import FIGURES, correlation
from phrasebox.pipeline.research.compare.pictures import ComparedImage
from phrasebox.pipeline.research.compare.tables import sizes_of
from phrasebox.pipeline.viewer.pages import TEMPLATES
from phrasebox.stages.contract.geometry import Box, scaled_sides
from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.contract.values import Floats32

MOST_PICTURES: Final = (
    60  # Images on the page, the first ones of each sample; some 30 kB each and 3 kB a map
)
PHOTO_SIDE_PX: Final = 320
MAP_SIDE_PX: Final = 48


def write_page(comparison: Comparison, out: Path) -> None:
    """Write the page of a comparison. Raise ConfigError if the file cannot be written."""
    folder = Path(__file__).parent
    script, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    columns = [name for name in FIGURES if any(name in row.figures for row in comparison.rows)]
    text = TEMPLATES.from_string((folder / "page.html").read_text(encoding="utf-8")).render(
        comparison=comparison,
        questions=picture_questions(comparison),
        columns=columns,
        sizes=sizes_of(comparison.rows, columns),
        script=script,
        style=style,
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        docs=FIGURES,
    )
    write_file("html", out, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A heat map of the page.

    Attributes:
        label: Label of the explainer.
        heat: Data URL of the map.
        x, y: Place of its peak, in percent of the image's sides.
        verdict: "hit" or "missed"; "" if the place of the object is not known.
        note: A figure or a fault below it.
    """

    label: str
    heat: str
    x: float
    y: float
    verdict: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureQuestion:
    """The first question of an image, with a map by every explainer.

    Attributes:
        name: Id of the sample.
        phrase: Text of the phrase.
        caption: The text before, within and after the phrase.
        photo: Data URL of the image.
        aspect: Width by height of the image.
        boxes: True boxes (x, y, w, h), in percent of the image's sides.
        tiles: The maps.
        disagreement: How much the maps differ, 0 .. 2.
    """

    name: str
    phrase: str
    caption: tuple[str, str, str]
    photo: str
    aspect: float
    boxes: list[Box]
    tiles: list[Tile]
    disagreement: float

    @property
    def hits(self) -> int:
        """The number of maps with a peak on the object; -1 if its place is not known."""
        return sum(tile.verdict == "hit" for tile in self.tiles) if self.boxes else -1


def picture_questions(comparison: Comparison) -> list[PictureQuestion]:
    """Return the first question of the first images."""
    labels = [row.explainer for row in comparison.rows if not row.baseline]
    questions = []
    for image, maps in zip(comparison.images[:MOST_PICTURES], comparison.maps, strict=False):
        question = image.questions[0]
        height, width = image.size_hw
        phrase = question.phrase
        caption = image.record.sample.captions[phrase.caption_index]
        boxes = () if question.query is None else question.query.true_target.boxes_xywh_px
        questions.append(
            PictureQuestion(
                name=image.record.sample.sample_id,
                phrase=phrase.text,
                caption=(
                    caption[: phrase.start],
                    caption[phrase.start : phrase.end],
                    caption[phrase.end :],
                ),
                photo=_photo(image),
                aspect=width / height,
                boxes=[
                    (100 * x / width, 100 * y / height, 100 * w / width, 100 * h / height)
                    for x, y, w, h in boxes
                ],
                tiles=[_tile(image, label, maps[label][0]) for label in labels],
                disagreement=_disagreement([maps[label][0].values for label in labels]),
            )
        )
    return questions


def _tile(image: ComparedImage, label: str, heat_map: HeatMap) -> Tile:
    query = image.questions[0].query
    heat = ImageHeat(heat_map, image.size_hw)
    verdict = ""
    note = ""
    if heat_map.fault:
        note = f"no map: {heat_map.fault}"
    elif query is not None:
        judged_query = replace(query, heat=heat)
        verdict = "hit" if value_of("pointing", judged_query) else "missed"
        note = f"energy {value_of('energy', judged_query):.2f}"
    return Tile(
        label=label,
        heat=_data_url("image/png", heat_map_png(heat_map.values, MAP_SIDE_PX, heat_map.shift_cells)),
        x=100 * (heat.peak[1] + 0.5) / image.size_hw[1],
        y=100 * (heat.peak[0] + 0.5) / image.size_hw[0],
        verdict=verdict,
        note=note,
    )


def _disagreement(maps: Sequence[Floats32]) -> float:
    """How much several maps differ: 1 less their mean correlation in pairs, 0 .. 2; 0 for one map."""
    pairs = [correlation(a, b) for a, b in combinations(maps, 2)]
    return 1.0 - float(np.mean(pairs)) if pairs else 0.0


def _photo(image: ComparedImage) -> str:
    height, width = image.size_hw
    size_wh = scaled_sides((width, height), PHOTO_SIDE_PX / max(height, width))
    return _data_url("image/jpeg", jpeg_of(np.ascontiguousarray(pixels_of(image.record)), size_wh))


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
