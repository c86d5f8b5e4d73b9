"""The values that travel between the stages, in memory.

A reader makes `Sample`s; a `Record` carries one sample through all stages and is filled on the way (`phrases`, then
`pixels`, `heat_maps`, `regions` and `absent`). Every field has its neutral value before its stage has run, and a record
with an `error` passes through the remaining stages untouched. Records are immutable: a stage answers with
`dataclasses.replace`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.contract.errors import RowError

ID_BITS: Final = 53  # JSON readers and COCOeval hold ids in doubles

_MOST_ATTEMPTS: Final = 32


def stable_id(text: str, attempt: int = 0) -> int:
    """Return a hash of `text` in 1 .. 2^53 - 1, the same on every machine and in every version.

    COCOeval reads 0 as "no match". Of 10^8 texts two share a hash with a probability of 0.4: one of them then gets the
    hash of the first `attempt` that is free, see `pipeline.output.ids`.
    """
    return _digest(f"{text}\n#{attempt}" if attempt else text) % ((1 << ID_BITS) - 1) + 1


def stable_key(text: str) -> int:
    """Return a hash of `text` that fits int64. Two of 10^8 texts share one with a probability of 0.0003."""
    return _digest(text) - 2**63


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def is_id_of(number: int, text: str) -> bool:
    """Return whether `number` is the id of a text by one of its attempts."""
    return any(number == stable_id(text, attempt) for attempt in range(_MOST_ATTEMPTS))


def is_among(value: int, ordered: NDArray[np.int64]) -> bool:
    """Return whether a number is one of sorted numbers."""
    index = int(ordered.searchsorted(value))
    return index < len(ordered) and int(ordered[index]) == value


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """The place of an encoded image: a file, a part of a file, or `content`."""

    file_name: str = ""  # the image's name as the dataset shows it, relative to the image root or the tar
    url: str | None = None  # path or file-system URL of the file that holds it; None if inline, or there is none
    offset: int = 0  # first byte within that file
    size: int = -1  # bytes within that file; -1 means up to its end
    content: bytes | None = None  # the encoded image if the reader has it


NO_IMAGE: Final = ImageRef()  # The image of a sample that names none

OTHER_LANGUAGE: Final = "captions in another language"  # Beginning of the note by which they are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One captioned image as the reader found it."""

    sample_id: str  # unique in the input; given by the user, or derived from the place in the input
    source: str  # the place, for people: "captions.jsonl:17", "00003.tar/000031234"
    captions: tuple[str, ...] = ()  # the user's texts, untouched
    image: ImageRef = NO_IMAGE
    error: RowError | None = None  # a fault of the input row

    @property
    def id(self) -> int:
        """Image id of the dataset, unless another sample has it, too: see `stable_id`."""
        return stable_id(self.sample_id)

    @property
    def key(self) -> int:
        """A number by which a run knows whether the sample has a row."""
        return stable_key(self.sample_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A noun phrase of a caption.

    Attributes:
        start, end: `captions[caption_index][start:end]` are the words. A concept of a pool that no caption says has the
            empty span [0, 0) of caption 0.
    """

    text: str  # normalised: case folded, one space between words, no leading determiner or possessive
    caption_index: int
    start: int
    end: int
    head: str  # lemma of the head noun, in lower case
    plural: bool = False  # whether the phrase names several things ("two dogs")

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end and self.is_said:
            raise ValueError(f"expected 0 <= start < end, got {self.start}, {self.end}")
        if not self.text:
            raise ValueError("expected a non-empty phrase text")

    @property
    def is_said(self) -> bool:
        """True if a caption says the phrase."""
        return (self.caption_index, self.start, self.end) != (0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """The whole image resized to the model's input, before normalisation: uint8 (H, W, 3)."""

    rgb: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or self.rgb.dtype != np.uint8:
            raise ValueError(f"expected uint8 (H, W, 3), got {self.rgb.dtype} {self.rgb.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """The heat map of one phrase in one image. A sample has one for each unique text of its phrases.

    Attributes:
        shift_cells: How far right of and below the centres of their cells the values lie; not 0 for convolutions, see
            `geometry.resize_shifted`.
        presence: Probability that the phrase is in the image, 0 .. 1, if as many are absent as where it was fitted;
            None without a calibration of presence.
    """

    text: str  # the phrase's normalised text
    values: NDArray[np.float32]  # float32 (grid_h, grid_w), >= 0, not normalised; covers the whole image
    similarity: float  # cosine of image and phrase, -1 .. 1; for Grad-ECLIP the value that was differentiated.
    fault: str = ""  # "" or the reason why the map is all zeros: "constant", "empty" or "non_finite"
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
    """A part of the image that a phrase names."""

    phrase_index: int  # index into the record's `phrases`
    box_xywh_px: tuple[float, float, float, float]  # half-open box of the mask, in pixels of the EXIF-rotated image
    mask: Rle
    area_px: int
    score: float  # 0 .. 1, of a calibration, else one of `SCORES`, see `stages.regions.score`.
    similarity: float  # of the heat map, as presence
    presence: float | None = None
    group: int | None = None  # number of the thing within the image, the same for phrases that name one thing
    refined: str = "none"  # what drew the outline: "none" for the contour of the heat, "grabcut" or "sam"
    fallback: str | None = None  # why it is the contour although `regions.refine` asked for more


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A phrase judged not to be in the image; its index in the record's `phrases`, and values of its heat map."""

    phrase_index: int
    presence: float
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sample on its way through the stages."""

    sample: Sample
    width_px: int = 0  # size of the image after EXIF rotation; 0 until the image was opened
    height_px: int = 0
    phrases: tuple[Phrase, ...] = ()
    dropped_phrases: int = 0  # number of phrases over the limit per image
    pixels: Pixels | None = None
    heat_maps: tuple[HeatMap, ...] = ()
    regions: tuple[Region, ...] = ()
    absent: tuple[Absent, ...] = ()
    notes: tuple[str, ...] = ()  # more for the row's warnings
    error: RowError | None = None

    @staticmethod
    def start(sample: Sample) -> Record:
        """Return the record of a sample that no stage has seen yet.

        Lone surrogates (from JSON escapes) cannot be stored: they are written out, and in a caption they are an error.
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
            error = RowError(
                reason="bad_caption", detail=f"{sample.source}: the caption holds lone surrogates, not text"
            )
        url = sample.image.url
        if url is not None and storable(url) != url:
            stored = replace(stored, image=replace(stored.image, url=None))
            error = error or RowError(
                reason="bad_location", detail=f"{stored.source}: the file's name is not UTF-8: rename it"
            )
        return Record(sample=stored, error=error)


def storable(text: str) -> str:
    r"""Return the text with lone surrogates, which no table can store, written as `\udc80`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
