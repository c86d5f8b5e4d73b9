"""Views of a row: outlines by group, captions in parts, and heat maps. Templates make the HTML."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

from phrasebox.pipeline.config.run_config import RunConfig, stored_config
from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.origin import ImageSource, check_named, keys_of_maps
from phrasebox.pipeline.dataset.reviews import RegionKey, Review
from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.pictures import mask_path
from phrasebox.pipeline.run.stage_calls import run_stages
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.stages.contract.errors import ConfigError, InputError, RowFault
from phrasebox.stages.contract.records import HeatMap, ImageRef, Record, Sample
from phrasebox.stages.contract.schema import HEAT_MAP_FIELDS, IMAGE_FIELD, is_said, mapped_record, rle_of
from phrasebox.stages.contract.values import Json

COLOURS: Final = 12  # Number of colours: classes c0 .. c11 of the style sheet.
COLUMNS: Final = (
    "id", "sample_id", "file_name", "width", "height", "captions", "annotations", "phrase_count", "warnings", "error",
    "error_detail", "absent",
)  # fmt: skip
"""Columns of a row that `sample_view` needs."""

LARGEST_SHARE: Final = 0.6  # Of the image: the switch hides larger boxes, which mostly show scenery

MOST_SAMPLES: Final = 64  # Samples with heat maps in the cache: a few kB each
_MOST_LETTERS: Final = 28
_THINNEST_PX: Final = 1.2  # Outline of a region with a score of 0, in pixels of the screen
_THICKEST_PX: Final = 3.6  # With a score of 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionPart:
    """A part of a caption that lies in the same phrases throughout; it is shown as part of the innermost one.

    Attributes:
        text: The words.
        regions: Numbers of the phrase's regions.
        group: Number of the object that the phrase names; None outside all phrases with regions.
        absent: The innermost absent phrase, an entry of the row's `absent`.
        ends: Whether the absent phrase ends here.
    """

    text: str
    regions: tuple[int, ...] = ()
    group: int | None = None
    absent: Json | None = None
    ends: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionView:
    """A region as it is drawn: once, although several captions may name it by the same phrase.

    Attributes:
        number: Place in the row's `annotations` of the first entry for this phrase and this mask.
        annotation: The entry at this place.
        captions: Numbers of the captions with the phrase, one for each entry; empty for a concept
            pool.
        area_share: Share of the image, 0 .. 1.
        box_share: Share of the image that the annotation's box covers, 0 .. 1.
        path: SVG path data of the mask, px.
        box_xywh_px: The corrected box, or else the annotation's.
        correction: "delete" or "box".
        outline_px: Width of the outline on the screen, which grows with the score.
        label: Text at the box, with a long phrase cut.
        group: Number of the object that the phrase names: 0, 1, ... in the order of the captions.
        leads: Whether its phrase has the best score of the group. Only the regions of this phrase
            are drawn for the group.
        is_hit: Whether the search finds this region; None for a search without conditions on
            regions.
    """

    number: int
    annotation: Annotation
    captions: tuple[int, ...]
    area_share: float
    box_share: float
    path: str
    box_xywh_px: Sequence[float]
    correction: str | None
    outline_px: float
    label: str
    group: int
    leads: bool
    is_hit: bool | None

    @property
    def weight(self) -> float:
        """The score, below which the page may hide it; 1 for corrected regions, which always show."""
        return 1.0 if self.correction else float(self.annotation["score"])

    @property
    def is_large(self) -> bool:
        """Whether the page may hide it for its size; corrected regions always show."""
        return not self.correction and self.box_share > LARGEST_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """A sample as a page shows it.

    Attributes:
        number: Number of its row in the dataset.
        row: The row with `COLUMNS`.
        captions: The parts of each caption.
        regions: Large boxes first, since boxes that are drawn later lie on top.
        mark: The mark; "" without one.
    """

    number: int
    row: Row
    captions: list[list[CaptionPart]]
    regions: list[RegionView]
    mark: str

    @property
    def groups(self) -> list[list[RegionView]]:
        """The regions by group, each group with its highest score first."""
        groups: dict[int, list[RegionView]] = {}
        for region in sorted(
            self.regions, key=lambda view: (view.group, -view.annotation["score"], view.number)
        ):
            groups.setdefault(region.group, []).append(region)
        return list(groups.values())

    @property
    def object_count(self) -> int | None:
        """Number of groups; None in datasets without them."""
        groups = {region.annotation["group"] for region in self.regions}
        return len(groups) if groups and None not in groups else None

    @property
    def absent(self) -> list[Json]:
        """The absent phrases, each once."""
        return list({entry["phrase"]: entry for entry in self.row["absent"] or ()}.values())


def sample_view(
    row: Row,
    number: int,
    mark: str | None,
    hit_ids: Collection[int] | None,
    corrections: Mapping[RegionKey, Review] = MappingProxyType({}),
) -> SampleView:
    """Return the view of a row with `COLUMNS`.

    `hit_ids` are ids of annotations that a search finds; None for all.
    """
    annotations = row["annotations"]
    # In datasets without groups each phrase names another object.
    objects = [entry["phrase"] if entry["group"] is None else entry["group"] for entry in annotations]
    groups = {key: number for number, key in enumerate(dict.fromkeys(objects))}
    equal: dict[Any, list[int]] = {}
    for place, entry in enumerate(annotations):
        equal.setdefault((entry["phrase"], *entry["bbox"], entry["segmentation"]["counts"]), []).append(
            place
        )
    by_score = sorted(zip(annotations, objects, strict=True), key=lambda pair: -pair[0]["score"])
    best_phrases = {key: entry["phrase"] for entry, key in reversed(by_score)}
    regions: list[RegionView] = []
    mentions: dict[int, tuple[int, int, Annotation]] = {}
    for places in equal.values():
        first = places[0]
        entries = [annotations[place] for place in places]
        annotation = entries[0]
        phrase = annotation["phrase"]
        correction = corrections.get(RegionKey.of(annotation))
        label = phrase if len(phrase) <= _MOST_LETTERS else phrase[: _MOST_LETTERS - 1].rstrip() + "…"
        region = RegionView(
            number=first,
            annotation=annotation,
            captions=tuple(entry["caption_index"] for entry in entries if is_said(entry)),
            area_share=annotation["area"] / max(1, row["width"] * row["height"]),
            box_share=annotation["bbox"][2] * annotation["bbox"][3] / max(1, row["width"] * row["height"]),
            path=outline_path(annotation),
            box_xywh_px=(correction.box_xywh_px if correction else None) or annotation["bbox"],
            correction=correction.action if correction else None,
            outline_px=_THINNEST_PX + (_THICKEST_PX - _THINNEST_PX) * annotation["score"],
            label=f"{label} {annotation['score']:.2f}",
            group=groups[objects[first]],
            leads=phrase == best_phrases[objects[first]],
            is_hit=None if hit_ids is None else any(entry["id"] in hit_ids for entry in entries),
        )
        regions.append(region)
        mentions |= {place: (first, region.group, annotations[place]) for place in places}
    captions = [
        caption_parts(
            caption,
            [mentions[place] for place, entry in enumerate(annotations) if entry["caption_index"] == index],
            [entry for entry in row["absent"] or () if entry["caption_index"] == index],
        )
        for index, caption in enumerate(row["captions"])
    ]
    regions.sort(key=lambda region: (-region.box_share, region.number))
    return SampleView(number=number, row=row, captions=captions, regions=regions, mark=mark or "")


def caption_parts(
    caption: str, annotations: Sequence[tuple[int, int, Annotation]], absent: Sequence[Json] = ()
) -> list[CaptionPart]:
    """Cut a caption at the borders of its phrases, which may be nested.

    `annotations` are number, group and fields of the caption's regions.
    """

    def length(fields: Json) -> int:
        return int(fields["span"][1] - fields["span"][0])

    def is_around(fields: Json) -> bool:
        return bool(fields["span"][0] <= start and end <= fields["span"][1])

    edges = {0, len(caption)}
    edges.update(*(fields["span"] for fields in (*(fields for *_, fields in annotations), *absent)))
    parts = []
    for start, end in pairwise(sorted(edges)):
        outer_mentions = [mention for mention in annotations if is_around(mention[2])]
        absent_phrase = min(filter(is_around, absent), key=length, default=None)
        ends = absent_phrase is not None and absent_phrase["span"][1] == end
        part = CaptionPart(text=caption[start:end], absent=absent_phrase, ends=ends)
        if outer_mentions:
            _, group, innermost = min(outer_mentions, key=lambda mention: length(mention[2]))
            numbers = [
                number for number, _, fields in outer_mentions if fields["span"] == innermost["span"]
            ]
            part = replace(part, regions=tuple(dict.fromkeys(numbers)), group=group)
        parts.append(part)
    return parts


def outline_path(annotation: Annotation) -> str:
    """Return the mask of an annotation as SVG path data, px; "" if it is damaged."""
    try:
        return mask_path(rle_of(annotation))
    except ValueError:
        return ""  # the box is shown, and `phrasebox validate` names the row


class HeatMaps:
    """The heat maps of rows, one sample at a time.

    They are the dataset's if it stores them. Otherwise, or if `KEY=VALUE` settings replace stored
    ones, they are computed with the dataset's configuration and model, which is loaded for the
    first one. A dataset of another user does not decide what is loaded: see
    `phrasebox.pipeline.dataset.origin`.
    """

    def __init__(self, dataset: Dataset, images: ImageSource, settings: Sequence[str] = ()) -> None:
        self.dataset = dataset
        self.images = images
        self.settings = tuple(settings)
        self.are_stored = dataset.has_heat_maps and not self.settings
        self._stages: Any = None
        self._lock = threading.Lock()
        self._cache: dict[int, dict[str, HeatMap]] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows need for `of`, beside `COLUMNS`."""
        if self.are_stored:
            return tuple(field.name for field in HEAT_MAP_FIELDS)
        return (IMAGE_FIELD.name,) if self.dataset.has_images else ()

    def of(self, row: Row) -> dict[str, HeatMap]:
        """Return the heat maps of a row with `COLUMNS` and `columns`, by phrase.

        Raise PhraseboxError.
        """
        if self.are_stored:
            return {heat_map.text: heat_map for heat_map in mapped_record(row).heat_maps}
        with self._lock:
            if row["id"] not in self._cache:
                self._cache[row["id"]] = self._compute(row)
                if len(self._cache) > MOST_SAMPLES:
                    del self._cache[next(iter(self._cache))]
            return self._cache[row["id"]]

    def _compute(self, row: Row) -> dict[str, HeatMap]:
        if self._stages is None:
            self._stages = self._load()
        try:
            content = self.images.load(row)
        except RowFault as fault:
            raise InputError(fault.error.detail) from fault
        image = ImageRef(file_name=row["file_name"], content=content)
        name = row["sample_id"]
        sample = Sample(sample_id=name, source=name, captions=tuple(row["captions"]), image=image)
        (record,) = run_stages(self._stages, [Record.start(sample)])
        if record.error is not None:
            raise InputError(str(record.error))
        return {heat_map.text: heat_map for heat_map in record.heat_maps}

    def _load(self) -> Any:
        if not self.dataset.run.get("model_fingerprint"):
            raise ConfigError(
                "no heat maps: the boxes of this dataset were given, and no model made them (source.kind=boxes)"
            )
        steps = build_steps(config_to_load(self.dataset, self.settings))
        if steps.fingerprint != self.dataset.run.get("model_fingerprint"):
            raise ConfigError("the dataset was made with other weights than its configuration finds now")
        stages = steps.first_stages
        for stage in stages:
            stage.setup()
        return stages


def config_to_load(dataset: Dataset, settings: Sequence[str] = ()) -> RunConfig:
    """Return the dataset's configuration for computing heat maps, with settings applied.

    Raise PhraseboxError.
    """
    stored = dataset.run.get("config")
    if not isinstance(stored, dict):
        raise InputError("the dataset does not say how it was made")
    check_named(
        dataset,
        keys_of_maps(dataset),
        settings,
        advice=f"type: phrasebox inspect {shlex.quote(str(dataset.path))}",
    )
    # The source of the regions, and the files that it names, do not matter: the explainer makes
    # the heat maps.
    stored = {section: values for section, values in stored.items() if section != "source"}
    overrides = (
        "model.batch_size=1",
        "model.device=auto",
        "regions.calibration=none",
        "regions.refine=none",
        "input.phrases=null",
    )
    return stored_config(stored, [*settings, *overrides])
