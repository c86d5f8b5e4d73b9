"""People's answers about regions, and their corrections: `reviews.jsonl` beside the shards, which never change.

One JSON object a line, only ever appended, and on disk before `append_review` returns:

    {"annotation_id": 1, "phrase": "a dog", "bbox": [4, 5, 30, 20], "reviewer": "ann",
     "time": "2026-01-31T12:00:00Z", "answer": "right", "seconds": 2.5}
    {..., "action": "box", "box_xywh_px": [6, 5, 28, 20]}

A region is named by its `annotation_id`, `phrase` and `bbox` in the dataset together, so a new dataset in the same
folder inherits only what is the same. The latest answer of a reviewer counts, and the latest action of anybody;
"undone" takes it back. Lines that cannot be read, such as one torn by a crash, are skipped and counted.

Nothing can be appended to a file in object storage, so each process writes one of its own, `reviews-NAME.jsonl`. All
`reviews*.jsonl` are read together: answers from elsewhere count once their file lies there.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import threading
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.dataset.folder import BATCH_ROWS, Dataset
from pipeline.dataset.selection import REGION
from stages.contract.errors import InputError, one_line
from stages.contract.geometry import Box
from stages.shared.storage import AnyPath, ObjectPath, found_in

REVIEWS_FILE: Final = "reviews.jsonl"
FILES: Final = "reviews*.jsonl"
LONGEST_LINE: Final = 16_384  # bytes
MOST_BYTES: Final = 256 << 20  # of a file: about a million answers
MOST_LETTERS: Final = 64  # of a reviewer's name

_SAFELY: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no link to elsewhere, and no pipe that hangs
_LOCK: Final = threading.Lock()
_NAME: Final = uuid.uuid4().hex[:12]  # of this process's objects
_OWN: Final[dict[str, bytes]] = {}  # dataset -> content of this process's object

Answer = Literal["right", "wrong", "absent", "unsure"]
"""right: the region shows what its phrase names. wrong: it does not. absent: nothing in the image is what the phrase
names. unsure: the reviewer cannot say."""

Coordinate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Side = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
BoxPx = tuple[Coordinate, Coordinate, Side, Side]  # x, y, w, h
Reviewer = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS, pattern=r"^[^\x00-\x1f\x7f]+$")]


class RegionKey(NamedTuple):
    """The identity of a region in a dataset: all three fields must agree."""

    annotation_id: int
    phrase: str
    bbox: Box  # x, y, w, h in px, as the dataset has it

    @classmethod
    def of(cls, annotation: Mapping[str, Any]) -> RegionKey:
        """Return the key of an entry of `annotations`, which needs `id`, `phrase` and `bbox`."""
        x, y, w, h = annotation["bbox"]
        return cls(annotation["id"], annotation["phrase"], (x, y, w, h))


class Said(BaseModel):
    """Somebody's answer about a region, or correction of it: either of the two."""

    model_config = ConfigDict(frozen=True)

    reviewer: Reviewer
    answer: Answer | Literal["undone"] | None = None
    seconds: float | None = Field(None, ge=0, le=86_400, description="From when the region was shown to the answer.")
    action: Literal["delete", "box", "undone"] | None = None
    box_xywh_px: BoxPx | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.answer is None) == (self.action is None) or (self.action == "box") != (self.box_xywh_px is not None):
            raise ValueError("expected either an answer or an action, and box_xywh_px with the action box alone")
        return self


class Review(Said):
    """One line of the file."""

    annotation_id: int = Field(ge=1, le=2**53)
    phrase: str = Field(max_length=LONGEST_LINE // 8)
    bbox: BoxPx
    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def key(self) -> RegionKey:
        """The region."""
        return RegionKey(self.annotation_id, self.phrase, self.bbox)


@dataclass(slots=True)
class Reviews:
    """The answers and corrections that count once all lines are read."""

    answers: dict[RegionKey, dict[str, Review]] = field(default_factory=dict)  # by reviewer
    corrections: dict[RegionKey, Review] = field(default_factory=dict)
    skipped: int = 0  # lines that cannot be read

    def add(self, review: Review) -> None:
        """Take one more line into account."""
        if review.action is not None:
            self.corrections.pop(review.key, None)
            if review.action != "undone":
                self.corrections[review.key] = review
            return
        answers = self.answers.setdefault(review.key, {})
        answers.pop(review.reviewer, None)
        if review.answer != "undone":
            answers[review.reviewer] = review
        if not answers:
            del self.answers[review.key]

    def merged(self) -> dict[RegionKey, Answer]:
        """Return one answer for each region that has any."""
        return {key: merged_answer(answers.values()) for key, answers in self.answers.items()}


def merged_answer(reviews: Iterable[Review]) -> Answer:
    """Return the majority of the answers about a region; "unsure" ones do not count.

    A tie of "right" with the others is "unsure", a tie of "wrong" and "absent" is "wrong".
    """
    said = Counter(review.answer for review in reviews)
    against = said["wrong"] + said["absent"]
    if said["right"] == against:
        return "unsure"
    if said["right"] > against:
        return "right"
    return "absent" if said["absent"] > said["wrong"] else "wrong"


def read_reviews(dataset: AnyPath) -> Reviews:
    """Return the reviews in a dataset's folder. Raise InputError for a file that is unreadable, or a link."""
    reviews = Reviews()
    lines = []
    try:
        for path in found_in(dataset, FILES):
            latest = datetime.min.replace(tzinfo=UTC)
            for line in lines_of(path):
                try:
                    review = Review.model_validate_json(line)
                except ValidationError:
                    reviews.skipped += 1
                    continue
                latest = max(latest, review.time)  # clocks are set back, so the lines of a file keep their order
                lines.append((latest, review))
    except OSError as error:
        raise InputError(f"the reviews of {dataset} cannot be read: {one_line(error)}") from error
    for _, review in sorted(lines, key=lambda one: one[0]):
        reviews.add(review)
    return reviews


class ReviewLog:
    """The reviews of a dataset, read again when their files have changed. Threads may share it."""

    def __init__(self, dataset: AnyPath) -> None:
        self.dataset = dataset
        self._read: tuple[Any, Reviews] = (None, Reviews())

    def current(self) -> Reviews:
        """Return what counts now, which is not to be changed. Raise InputError as `read_reviews`."""
        files = found_in(self.dataset, FILES)
        seen = [(path, path.lstat().st_size, path.lstat().st_mtime_ns) for path in files if isinstance(path, Path)]
        if seen != self._read[0] or len(seen) < len(files):  # objects are read each time
            self._read = seen, read_reviews(self.dataset)
        return self._read[1]


class FoundRegion(NamedTuple):
    """A region of a dataset that a key names."""

    row: int  # number of its row in the dataset
    annotation: dict[str, Any]  # its `id`, `phrase` and `bbox`, and the fields that `find_regions` was given


def find_regions(
    dataset: Dataset, keys: Collection[RegionKey], fields: Sequence[str] = ("score",)
) -> dict[RegionKey, FoundRegion]:
    """Return the regions of a dataset that keys name, with fields of `annotations`; the others are not in it.

    All rows are read, but only these fields. Raise InputError for a damaged shard.
    """
    wanted = pa.array(sorted({key.annotation_id for key in keys}), pa.int64())
    first = 0
    columns = [REGION + name for name in dict.fromkeys(("id", "phrase", "bbox", *fields))]
    found: dict[RegionKey, FoundRegion] = {}
    for table in dataset.tables(columns, batch_rows=8 * BATCH_ROWS) if keys else ():
        annotations = table["annotations"].combine_chunks()
        regions = annotations.flatten()
        owners = pc.list_parent_indices(annotations)
        for place in pc.indices_nonzero(pc.is_in(regions.field("id"), wanted)).to_pylist():
            if (key := RegionKey.of(one := regions[place].as_py())) in keys:
                found[key] = FoundRegion(first + owners[place].as_py(), one)
        first += table.num_rows
    return found


def append_review(dataset: AnyPath, review: Review) -> None:
    """Add a line to a dataset's reviews. It is on disk when this returns. Raise OSError if it cannot be written."""
    line = review.model_dump_json(exclude_none=True).encode() + b"\n"
    if isinstance(dataset, ObjectPath):
        with _LOCK:
            key = str(dataset)
            content = _OWN.get(key, b"") + line
            (dataset / f"reviews-{_NAME}.jsonl").write_bytes(content)
            _OWN[key] = content
        return
    path = dataset / REVIEWS_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _SAFELY, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        _check_regular(file)
        fcntl.flock(file, fcntl.LOCK_EX)  # several servers may write
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            line = b"\n" + line  # behind a line that a crash has torn
        while line:
            line = line[file.write(line) :]
        os.fsync(descriptor)
    folder = os.open(dataset, os.O_RDONLY)
    os.fsync(folder)  # the file may be new
    os.close(folder)


def lines_of(path: AnyPath) -> Iterator[bytes]:
    """Yield the lines that are not empty. One that is too long comes in parts, none of which can be read."""
    if isinstance(path, ObjectPath):
        file: IO[bytes] = io.BytesIO(path.open().read(MOST_BYTES + 1))
    else:
        file = os.fdopen(os.open(path, os.O_RDONLY | _SAFELY), "rb")
    with file:
        if isinstance(path, Path):
            _check_regular(file)
        for line in iter(lambda: file.readline(LONGEST_LINE), b""):
            if file.tell() > MOST_BYTES:
                raise InputError(f"{path} is larger than {MOST_BYTES >> 20} MB")
            if line.strip():
                yield line


def _check_regular(file: IO[bytes]) -> None:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise OSError("not a regular file")
