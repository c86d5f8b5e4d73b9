"""People's answers about regions, and corrections of them: `reviews.jsonl` beside the shards.

One JSON object a line, see `append_log`:

    {"version": 1, "annotation_id": 1, "phrase": "a dog", "bbox": [4, 5, 30, 20], "reviewer": "ann",
     "time": "2026-01-31T12:00:00Z", "answer": "right", "seconds": 2.5}
    {..., "action": "box", "box_xywh_px": [6, 5, 28, 20]}
    {..., "answer": "wrong", "action": "box", "box_xywh_px": [6, 5, 28, 20]}

The last kind is an answer with the right box: it is a correction, too, until the same reviewer
answers otherwise.

A region is identified by its `annotation_id`, `phrase` and `bbox` together, so a new dataset in
the same folder inherits reviews of equal regions only. The latest answer of a reviewer counts,
and the latest action of all reviewers; "undone" takes it back.

The way of an answer to a calibration, by modules of `pipeline`:

viewer/static/review.js      The page sends an answer, and with `correct.js` a dragged box.
viewer/app.py                It hands the request to the session of the review.
viewer/review.py             `ReviewSession.store` makes a `Review` of a request, and appends it here.
dataset/reviews.py           `read_reviews` reads all lines; `majority_answers` makes one answer a region of them.
evaluate/reviews/figures.py  `read_reviewed_regions` finds their scores in the shards, and their dragged boxes.
evaluate/reviews/fit.py      `write_reviewed_calibration` fits scores to them, and
evaluate/reviews/boxes.py    boxes to those that people dragged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, model_validator

from phrasebox.pipeline.dataset.append_log import LONGEST_TEXT, LogLine, append_lines, log_files, read_log
from phrasebox.pipeline.dataset.folder import BATCH_ROWS, Dataset
from phrasebox.pipeline.dataset.rows import Annotation
from phrasebox.pipeline.dataset.selection import REGION, regions_in
from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.values import Json
from phrasebox.stages.contract.versions import StoredFormat
from phrasebox.stages.files.storage import AnyPath

REVIEWS_LOG: Final = "reviews"
REVIEWS_FILE: Final = f"{REVIEWS_LOG}.jsonl"
MOST_LETTERS: Final = 64  # of a reviewer's name

Answer = Literal["right", "wrong", "absent", "unsure"]
"""right: the region shows the object of its phrase. wrong: it does not. absent: the object is not
in the image. unsure: the reviewer cannot say."""

Coordinate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Side = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
BoxPx = tuple[Coordinate, Coordinate, Side, Side]  # x, y, w, h
Reviewer = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS, pattern=r"^[^\x00-\x1f\x7f]+$")]


class RegionKey(NamedTuple):
    """The identity of a region in a dataset: all three fields must agree.

    Attributes:
        annotation_id: The id of its annotation.
        phrase: Its phrase.
        bbox: Its box x, y, w, h in px, as the dataset has it.
    """

    annotation_id: int
    phrase: str
    bbox: Box

    @classmethod
    def of(cls, annotation: Annotation) -> RegionKey:
        """Return the key of an entry of `annotations`, which needs `id`, `phrase` and `bbox`."""
        x, y, w, h = annotation["bbox"]
        return cls(annotation["id"], annotation["phrase"], (x, y, w, h))


class Judgement(BaseModel, frozen=True):
    """An answer about a region, or a correction of it; "wrong" may bring the right box along."""

    reviewer: Reviewer
    answer: Answer | Literal["undone"] | None = None
    seconds: float | None = Field(
        None, ge=0, le=86_400, description="From when the region was shown to the answer."
    )
    action: Literal["delete", "box", "undone"] | None = None
    box_xywh_px: BoxPx | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        kinds = (self.answer, self.action)
        if kinds.count(None) != 1 and kinds != ("wrong", "box"):
            raise ValueError("expected an answer, an action, or the answer wrong with the action box")
        if (self.action == "box") != (self.box_xywh_px is not None):
            raise ValueError("expected box_xywh_px with the action box alone")
        return self


class Review(Judgement, LogLine, frozen=True):
    """One line of the file."""

    form: ClassVar[StoredFormat[Json]] = StoredFormat(
        name="version of reviews", current=1, remedy="it has no such version"
    )

    annotation_id: int = Field(ge=1, le=2**53)
    phrase: str = Field(max_length=LONGEST_TEXT)
    bbox: BoxPx

    @property
    def key(self) -> RegionKey:
        """The region."""
        return RegionKey(self.annotation_id, self.phrase, self.bbox)


@dataclass(slots=True)
class Reviews:
    """The answers and corrections that count once all lines are read.

    Attributes:
        answers: Region -> reviewer -> the latest answer.
        corrections: Region -> the latest correction.
        unreadable_lines: Number of lines that cannot be read.
    """

    answers: dict[RegionKey, dict[str, Review]] = field(default_factory=dict)
    corrections: dict[RegionKey, Review] = field(default_factory=dict)
    unreadable_lines: int = 0

    def add(self, review: Review) -> None:
        """Add one line, later than all lines before it."""
        key = review.key
        if review.answer is not None:
            answers = self.answers.setdefault(key, {})
            earlier = answers.pop(review.reviewer, None)
            if earlier is not None and earlier is self.corrections.get(key):
                del self.corrections[key]  # an answer takes its box with it
            if review.answer != "undone":
                answers[review.reviewer] = review
            if not answers:
                del self.answers[key]
        if review.action is not None:
            self.corrections.pop(key, None)
            if review.action != "undone":
                self.corrections[key] = review

    def majority_answers(self) -> dict[RegionKey, Answer]:
        """Return the majority answer of each region with answers."""
        return {key: majority_answer(answers.values()) for key, answers in self.answers.items()}


def majority_answer(reviews: Iterable[Review]) -> Answer:
    """Return the majority of the answers about a region; "unsure" ones do not count.

    A tie of "right" with the others is "unsure", a tie of "wrong" and "absent" is "wrong".
    """
    counts = Counter(review.answer for review in reviews)
    against = counts["wrong"] + counts["absent"]
    if counts["right"] == against:
        return "unsure"
    if counts["right"] > against:
        return "right"
    return "absent" if counts["absent"] > counts["wrong"] else "wrong"


def read_reviews(dataset: AnyPath) -> Reviews:
    """Return the reviews in a dataset's folder.

    Raise InputError for a file that is unreadable, or a link.
    """
    lines, unreadable_lines = read_log(dataset, REVIEWS_LOG, Review)
    reviews = Reviews(unreadable_lines=unreadable_lines)
    for review in lines:
        reviews.add(review)
    return reviews


class ReviewLog:
    """The reviews of a dataset, read again when their files have changed. Threads may share it."""

    def __init__(self, dataset: AnyPath) -> None:
        self.dataset = dataset
        self._cache: tuple[Any, Reviews] = (None, Reviews())

    def current(self) -> Reviews:
        """Return the current reviews, which the caller must not change.

        Raise InputError as `read_reviews`.
        """
        files = log_files(self.dataset, REVIEWS_LOG)
        states = [
            (path, path.lstat().st_size, path.lstat().st_mtime_ns)
            for path in files
            if isinstance(path, Path)
        ]
        if states != self._cache[0] or len(states) < len(files):  # objects are read each time
            self._cache = states, read_reviews(self.dataset)
        return self._cache[1]


class DatasetRegion(NamedTuple):
    """A region of a dataset, located by its key.

    Attributes:
        row: Number of its row in the dataset.
        annotation: Its `id`, `phrase` and `bbox`, and the fields requested of `find_regions`.
    """

    row: int
    annotation: Annotation


def find_regions(
    dataset: Dataset, keys: Collection[RegionKey], fields: Sequence[str]
) -> dict[RegionKey, DatasetRegion]:
    """Return the regions with some keys, with fields of `annotations`.

    Keys of no region are left out.

    All rows are read, but only these fields. Raise InputError for a damaged shard.
    """
    ids = pa.array(sorted({key.annotation_id for key in keys}), pa.int64())
    first = 0
    columns = [REGION + name for name in dict.fromkeys(("id", "phrase", "bbox", *fields))]
    regions_by_key: dict[RegionKey, DatasetRegion] = {}
    for table in dataset.tables(columns, batch_rows=8 * BATCH_ROWS) if keys else ():
        regions, owners = regions_in(table)
        for place in pc.indices_nonzero(pc.is_in(regions.field("id"), ids)).to_pylist():
            annotation = regions[place].as_py()
            if (key := RegionKey.of(annotation)) in keys:
                regions_by_key[key] = DatasetRegion(first + int(owners[place]), annotation)
        first += table.num_rows
    return regions_by_key


def append_review(dataset: AnyPath, review: Review) -> None:
    """Add a line to a dataset's reviews. It is on disk when this returns.

    Raise OSError if it cannot be written.
    """
    append_lines(dataset, REVIEWS_LOG, [review])
