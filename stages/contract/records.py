"""What travels between the stages, in memory.

A reader makes `Sample`s; a `Record` carries one sample through all stages and is filled on the way
(`phrases`, then `pixels`, `heat_maps`, `regions` and `absent`). Every field has its neutral value before its
stage has run, and a record with an `error` passes through the remaining stages untouched.
Records are immutable: a stage answers with `dataclasses.replace`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.contract.errors import RowError


def stable_id(text: str) -> int:
    """Hash of `text` in 1 .. 2^53 - 1, the same on every machine and in every version.

    Below 2^53 because JSON readers and COCOeval hold ids in doubles, above 0 because COCOeval
    reads 0 as "no match".
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2**53 - 1) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """Where an encoded image is: in a file, in a part of a file, or here.

    Attributes:
        file_name: The image's name as the dataset shows it, relative to the image root or the tar.
        url: Path or file-system URL of the file that holds it; None if the image came inline, or there is none.
        offset: First byte within that file.
        size: Bytes within that file; -1 means up to its end.
        content: The encoded image if the reader has it.
    """

    file_name: str = ""
    url: str | None = None
    offset: int = 0
    size: int = -1
    content: bytes | None = None


NO_IMAGE: Final = ImageRef()
"""The image of a sample that names none."""


OTHER_LANGUAGE: Final = "captions in another language"
"""How the note begins that names them, which is counted by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One captioned image as the reader found it.

    Attributes:
        sample_id: Unique in the input; given by the user, or derived from the place in the input.
        source: The place, for people: "captions.jsonl:17", "00003.tar/000031234".
        captions: The user's texts, untouched.
        image: Where the image is.
        error: A fault of the input row.
    """

    sample_id: str
    source: str
    captions: tuple[str, ...] = ()
    image: ImageRef = NO_IMAGE
    error: RowError | None = None

    @property
    def id(self) -> int:
        """Image id of the dataset: `stable_id(sample_id)`."""
        return stable_id(self.sample_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A noun phrase of a caption.

    Attributes:
        text: Normalised: case folded, one space between words, no leading determiner or possessive.
        caption_index: Which caption of the sample.
        start: First character of the phrase in the caption.
        end: The character after its last: `captions[caption_index][start:end]` are the words. A concept that no
            caption says, of a source of regions with a pool, has the empty span [0, 0) of caption 0.
        head: Lemma of the head noun, in lower case.
        plural: Whether the phrase names several things ("two dogs").
        importance: The share of its caption's importance for the image that falls on its words, 0 .. 1; see
            `stages.explain.importance`. None where nobody asked, or where the model does not see the words.
    """

    text: str
    caption_index: int
    start: int
    end: int
    head: str
    plural: bool = False
    importance: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end and self.is_said:
            raise ValueError(f"expected 0 <= start < end, got {self.start}, {self.end}")
        if not self.text:
            raise ValueError("expected a non-empty phrase text")

    @property
    def is_said(self) -> bool:
        """Whether a caption says it."""
        return (self.caption_index, self.start, self.end) != (0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """The image as the model sees it before normalisation.

    Attributes:
        rgb: uint8 (H, W, 3), the whole image resized to the model's input.
    """

    rgb: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or self.rgb.dtype != np.uint8:
            raise ValueError(f"expected uint8 (H, W, 3), got {self.rgb.dtype} {self.rgb.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Where an explainer saw one phrase in one image. A sample has one for each unique text of its phrases.

    Attributes:
        text: The phrase's normalised text.
        values: float32 (grid_h, grid_w), >= 0, not normalised; covers the whole image.
        similarity: Cosine of image and phrase, -1 .. 1; for Grad-ECLIP the value that was differentiated.
        fault: "" or why the map is all zeros: "constant", "empty" or "non_finite".
        shift_cells: How far right of and below the centres of their cells the values lie, in cells. Not 0 for
            convolutions, see `geometry.resize_shifted`.
        presence: Probability that the phrase is in the image, 0 .. 1, if as many are absent as where it was fitted;
            None without a calibration that tells it.
    """

    text: str
    values: NDArray[np.float32]
    similarity: float
    fault: str = ""
    shift_cells: float = 0.0
    presence: float | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != np.float32:
            raise ValueError(f"expected float32 (grid_h, grid_w), got {self.values.dtype} {self.values.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rle:
    """A mask in COCO's compressed run-length form: `size_hw` pixels, `counts` as ASCII text."""

    size_hw: tuple[int, int]
    counts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of the image that a phrase names.

    Attributes:
        phrase_index: Index into the record's `phrases`.
        box_xywh_px: Half-open box of the mask, in pixels of the EXIF-rotated original image.
        mask: Of the size of that image.
        area_px: Pixels of the mask.
        score: 0 .. 1, of a calibration, else one of `SCORES`, see `stages.regions.score`.
        similarity: That of the heat map.
        presence: Probability that the phrase is in the image, 0 .. 1; None without a calibration that tells it.
        group: Number of the thing within the image, >= 0: regions of phrases that name the same thing have the same
            number. None where nobody asked.
    """

    phrase_index: int
    box_xywh_px: tuple[float, float, float, float]
    mask: Rle
    area_px: int
    score: float
    similarity: float
    presence: float | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A phrase that was judged not to be in the image, and therefore has no region.

    Attributes:
        phrase_index: Index into the record's `phrases`.
        presence: Probability that the phrase is in the image, 0 .. 1.
        similarity: That of the heat map.
    """

    phrase_index: int
    presence: float
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sample on its way through the stages.

    Attributes:
        width_px: Of the image after EXIF rotation; 0 until the image was opened.
        height_px: Likewise.
        dropped_phrases: Phrases found in the captions but left out by the limit per image.
        unimportant_phrases: Phrases left out because their importance is below `phrases.min_importance`.
        absent: Phrases without a region because they were judged not to be in the image.
        notes: What a reader of the row should know beside that, for its warnings.
    """

    sample: Sample
    width_px: int = 0
    height_px: int = 0
    phrases: tuple[Phrase, ...] = ()
    dropped_phrases: int = 0
    unimportant_phrases: int = 0
    pixels: Pixels | None = None
    heat_maps: tuple[HeatMap, ...] = ()
    regions: tuple[Region, ...] = ()
    absent: tuple[Absent, ...] = ()
    notes: tuple[str, ...] = ()
    error: RowError | None = None

    @staticmethod
    def start(sample: Sample) -> Record:
        """The record of a sample that no stage has seen yet.

        Text that is not valid Unicode (lone surrogates, from JSON escapes) cannot be stored: the
        escapes are written out, and a caption with them is an error.
        """
        stored = replace(
            sample,
            sample_id=_storable(sample.sample_id),
            source=_storable(sample.source),
            captions=tuple(_storable(caption) for caption in sample.captions),
            image=replace(sample.image, file_name=_storable(sample.image.file_name)),
        )
        error = sample.error
        if error is None and stored.captions != sample.captions:
            error = RowError(
                reason="bad_caption", detail=f"{sample.source}: the caption holds lone surrogates, not text"
            )
        return Record(sample=stored, error=error)


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
