"""The values that travel between the stages, in memory.

A reader makes `Sample`s; a `Record` carries one sample through all stages and is filled on the
way (`phrases`, then `pixels`, `heat_maps`, `regions` and `absent`). Every field has its neutral
value before its stage has run, and a record with an `error` passes through the remaining stages
untouched. Records are immutable: a stage answers with `dataclasses.replace`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.values import Integers, Plane, Rgb, Sides

ID_BITS: Final = 53  # JSON readers and COCOeval hold ids in doubles

_MOST_ATTEMPTS: Final = 32


def stable_id(text: str, attempt: int = 0) -> int:
    """Return a hash of `text` in 1 .. 2^53 - 1, the same on every machine and in every version.

    COCOeval reads 0 as "no match". Of 10^8 texts two share a hash with a probability of 0.4:
    one of them then gets the hash of the first `attempt` that is free, see
    `phrasebox.pipeline.output.ids`.
    """
    return _digest(f"{text}\n#{attempt}" if attempt else text) % ((1 << ID_BITS) - 1) + 1


def stable_key(text: str) -> int:
    """Return a hash of `text` that fits int64.

    Two of 10^8 texts share one with a probability of 0.0003.
    """
    return _digest(text) - 2**63


def _digest(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(),
        "big",
    )


def is_id_of(number: int, text: str) -> bool:
    """Return whether `number` is the id of a text by one of its attempts."""
    return any(number == stable_id(text, attempt) for attempt in range(_MOST_ATTEMPTS))


def is_among(value: int, ordered: Integers) -> bool:
    """Return whether a number is one of sorted numbers."""
    index = int(ordered.searchsorted(value))
    return index < len(ordered) and int(ordered[index]) == value


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """The place of an encoded image: a file, a part of a file, or `content`.

    Attributes:
        file_name: The image's name as the dataset shows it, relative to the image root or the
            tar.
        url: Path or file-system URL of the file that holds it; None if it is inline, or there
            is none.
        offset: First byte within that file.
        size: Bytes within that file; -1 means up to its end.
        content: The encoded image if the reader has it.
    """

    file_name: str = ""
    url: str | None = None
    offset: int = 0
    size: int = -1
    content: bytes | None = None


NO_IMAGE: Final = ImageRef()  # The image of a sample that names none

OTHER_LANGUAGE: Final = (
    "captions in another language"  # Beginning of the note about them; statistics count it
)
NO_PARSER: Final = "captions left out, because no parser of their language is installed"
"""Beginning of the note about them; "0 (de: de_core_news_sm)" follows, and statistics count it."""
NO_PACKAGE: Final = "none"  # in that note, of a language for which spaCy publishes no parser
UNREAD_LANGUAGE: Final = "captions in a language that the model does not read"
"""Beginning of the note about them; statistics count it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One captioned image of the input.

    Attributes:
        sample_id: Unique in the input; the user's, or derived from the place in the input.
        source: The place, for people: "captions.jsonl:17", "00003.tar/000031234".
        captions: The user's texts, untouched.
        image: The place of the image.
        error: A fault of the input row.
    """

    sample_id: str
    source: str
    captions: tuple[str, ...] = ()
    image: ImageRef = NO_IMAGE
    error: RowError | None = None

    @property
    def id(self) -> int:
        """The image id in the dataset, unless another sample has it, too: see `stable_id`."""
        return stable_id(self.sample_id)

    @property
    def key(self) -> int:
        """The number that tells a run whether the sample has a row."""
        return stable_key(self.sample_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A noun phrase of a caption.

    Attributes:
        text: Normalised: case folded, one space between words, no leading determiner or
            possessive.
        caption_index, start, end: `captions[caption_index][start:end]` are the words. A concept
            of a pool that no caption says has the empty span [0, 0) of caption 0.
        head: Lemma of the head noun, in lower case; "clothing" for a colour that is worn.
        plural: Whether the phrase names several objects ("two dogs").
        language: Code of the language in which its caption was parsed, such as "en".
    """

    text: str
    caption_index: int
    start: int
    end: int
    head: str
    plural: bool = False
    language: str = "en"

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end and self.is_said:
            raise ValueError(f"expected 0 <= start < end, got {self.start}, {self.end}")
        if not self.text:
            raise ValueError("expected a non-empty phrase text")

    @property
    def is_said(self) -> bool:
        """Whether a caption says the phrase."""
        return (self.caption_index, self.start, self.end) != (0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """The whole image resized to the model's input, before normalisation: uint8 (H, W, 3)."""

    rgb: Rgb


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """The heat map of one phrase in one image.

    A sample has one for each unique text of its phrases.

    Attributes:
        text: The phrase's normalised text.
        values: float32 (grid_h, grid_w), >= 0, not normalised; covers the whole image.
        similarity: Cosine of image and phrase, -1 .. 1; Grad-ECLIP's gradients are those of
            this value.
        fault: "" or the reason why the map is all zeros: "constant", "empty" or "not_finite".
        shift_cells: Distance of the values from the centres of their cells, to the right and
            down; not 0 for convolutions, see `geometry.resize_shifted`.
        presence: Probability that the phrase is in the image, 0 .. 1, if as many phrases are
            absent as in the fit; None without a calibration of presence.
    """

    text: str
    values: Plane
    similarity: float
    fault: str = ""
    shift_cells: float = 0.0
    presence: float | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != np.float32:
            raise ValueError(
                f"expected float32 (grid_h, grid_w), got {self.values.dtype} {self.values.shape}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rle:
    """A mask in COCO's compressed run-length form: `size_hw` pixels, `counts` as ASCII text."""

    size_hw: Sides
    counts: str


GIVEN: Final = "given"
"""`Region.box_of` of a box that came with the input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of the image that a phrase names.

    Attributes:
        phrase_index: Index into the record's `phrases`.
        box_xywh_px: Half-open box, in pixels of the EXIF-rotated image.
        mask: The pixels of the object.
        area_px: Their number.
        score: 0 .. 1, of a calibration, else one that ranks, see `phrasebox.stages.scores.score`.
        similarity: That of the heat map.
        presence: That of the heat map, corrected by the captions and by other phrases of the
            same object, see `phrasebox.stages.regions.maker`.
        group: Number of the object within the image, the same for phrases that name one object.
        refined: The method of the outline: "none" for the contour of the heat, "grabcut" or
            "sam".
        fallback: The reason for the contour of the heat if `regions.refine` names another
            method.
        box_of: "mask" if the box is that of the mask, "learned" if a calibration has learned
            another one, "given" if it came with the input.
    """

    phrase_index: int
    box_xywh_px: tuple[float, float, float, float]
    mask: Rle
    area_px: int
    score: float
    similarity: float
    presence: float | None = None
    group: int | None = None
    refined: str = "none"
    fallback: str | None = None
    box_of: str = "mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A phrase judged not to be in the image: its index in the record's `phrases`, and its presence, and the
    similarity of its heat map."""

    phrase_index: int
    presence: float
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sample on its way through the stages.

    Attributes:
        sample: The input.
        width_px, height_px: Size of the image after EXIF rotation; 0 until the image was
            opened.
        caption_languages: For each caption the code of the language in which it was parsed, or, of
            one that is left out, of the language it is in. Empty until the captions were parsed.
        phrases: The phrases of the captions.
        dropped_phrases: Number of phrases over the limit per image.
        phrase_limit: Most unique texts of phrases that get regions; 0 for all.
        object_numbers: For each phrase the number of the object that it names, if a later stage
            has to choose among the phrases; else empty.
        pixels: The model's input.
        heat_maps: One for each unique text of the phrases.
        caption_scores: For each caption the mean of its cosine with the image and of those of
            its phrases, -1 .. 1; None for one without words. Empty without heat maps.
        caption_presences: For each caption what `HeatMap.presence` is for a phrase.
        regions: In the order of the phrases, those of one phrase best first.
        absent: The phrases judged not to be in the image.
        notes: Further warnings of the row.
        error: The fault of the sample.
    """

    sample: Sample
    width_px: int = 0
    height_px: int = 0
    caption_languages: tuple[str, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    dropped_phrases: int = 0
    phrase_limit: int = 0
    object_numbers: tuple[int, ...] = ()
    pixels: Pixels | None = None
    heat_maps: tuple[HeatMap, ...] = ()
    caption_scores: tuple[float | None, ...] = ()
    caption_presences: tuple[float | None, ...] = ()
    regions: tuple[Region, ...] = ()
    absent: tuple[Absent, ...] = ()
    notes: tuple[str, ...] = ()
    error: RowError | None = None

    @staticmethod
    def start(sample: Sample) -> Record:
        """Return the record of a sample before the first stage.

        Lone surrogates (from JSON escapes) cannot be stored: they are written out, and in a
        caption they are an error.
        """
        stored = replace(
            sample,
            sample_id=storable(sample.sample_id),
            source=storable(sample.source),
            captions=tuple(storable(caption) for caption in sample.captions),
            image=replace(sample.image, file_name=storable(sample.image.file_name)),
        )
        error = sample.error
        if error is None and stored.captions != sample.captions:
            detail = f"{sample.source}: the caption holds lone surrogates, not text"
            error = RowError(reason="bad_caption", detail=detail)
        url = sample.image.url
        if url is not None and storable(url) != url:
            stored = replace(stored, image=replace(stored.image, url=None))
            detail = f"{stored.source}: the file's name is not UTF-8: rename it"
            error = error or RowError(reason="bad_location", detail=detail)
        return Record(sample=stored, error=error)


def storable(text: str) -> str:
    r"""Return the text with lone surrogates, which no table can store, written as `\udc80`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
