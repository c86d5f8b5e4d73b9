"""The contract of readers, the parts of an input (`Shard`), and rows that are left out (`Skipped`).

A reader works in two steps. `shards()` plans on the driver: it finds the files, rejects an input that cannot be read as
a whole, and cuts the rest into parts. `read(shard)` runs on any worker and gives exactly one `Sample` or `Skipped` for
every row of the part, in the order of the input; rows of one image may share a sample (`plan`). The samples do not
depend on where the input was cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stages.contract.errors import ConfigError, InputError, one_line
from stages.contract.records import Sample

IMAGE_EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
"""Extensions of images that are files or members of tars, in the order in which they are looked for."""

PACKED: Final = ("", ".gz", ".bz2", ".xz", ".zst")  # what may follow the suffix of a file of lines

MAX_TEXT_BYTES: Final = 16 * 1024 * 1024  # Larger texts and JSON members are faults


class SourceConfig(BaseModel):
    """The keys that every kind of input has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="A key of `READERS`.")
    path: str | tuple[str, ...] = Field(
        description="A file, a folder (all files of the kind below it), a glob, a numeric range as in "
        "`{00000..00099}.tar`, or a list of these; local or any URL that fsspec or pyarrow opens."
    )
    limit: int | None = Field(
        None, ge=1, description="Read only the first N samples. The same command with a larger limit adds others."
    )
    part: str | None = Field(
        None,
        description="Run over a part of the input: 3/8 takes the third of eight equal parts, each of samples that "
        "follow each other. Tars are not cut, unless there is a limit. Each part is a run with a folder of its own, on "
        "any machine that has the same files in the same place; `phrasebox merge` makes one dataset of all parts.",
    )

    phrases: str | None = Field(
        None,
        description="A local file of captions and their phrases, as `phrasebox phrases INPUT --out FILE` writes it; it "
        "may have been corrected by hand. Captions that it lacks are parsed as without it.",
    )

    @field_validator("part")
    @classmethod
    def _is_one_of(cls, part: str | None) -> str | None:
        number, slash, of = (part or "1/1").partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ValueError("expected a part and the number of all parts, from 1/8 to 8/8")
        return part

    @property
    def extent(self) -> str:
        """Return what of the input is read, for people."""
        return "the input" if self.part is None else f"part {self.part} of the input"

    def take_part(self, shards: Sequence[Shard]) -> Sequence[Shard]:
        """Return the shards of this part, of which the first and the last are cut: parts differ by one sample at most.

        Where a shard does not say how many samples it holds, parts share whole shards: counting would read the input.
        """
        number, parts = (int(text) for text in (self.part or "1/1").split("/"))
        counted = all(shard.samples is not None for shard in shards)
        counts = [(shard.samples or 0) if counted else 1 for shard in shards]
        start, stop = (place * sum(counts) // parts for place in (number - 1, number))
        taken: list[Shard] = []
        for shard, count, end in zip(shards, counts, accumulate(counts), strict=True):
            first = max(start, end - count)
            last = min(stop, end)
            if last - first == count:
                taken.append(shard)
            elif first < last:
                taken.append(replace(shard, skip=first - end + count, samples=last - first, rows=None))
        return taken

    @model_validator(mode="before")
    @classmethod
    def _holds_its_images(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("image_root") and "image_root" not in cls.model_fields:
            raise ConfigError(
                f"images of a {values.get('kind')} input are found in the input itself ({values.get('path')}): leave "
                "it out",
                key="input.image_root",
            )
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of the input that one worker reads at once. Small and picklable."""

    url: str  # absolute location of the file
    name: str  # the path relative to the input's common folder, as sample ids and messages use it
    start: int = 0  # Where the part begins: a byte (jsonl, csv), a row group (parquet), else a row
    stop: int | None = None  # Where it ends, exclusive, in the same unit; None means the end of the file
    first_row: int = 0  # number of the first row, as messages count: lines from 1, Parquet rows from 0
    skip: int = 0  # How many of its first samples are left out, see `CutReader`
    samples: int | None = None  # How many samples it holds behind these; None if that is known only after reading
    rows: int | None = None  # How many rows these are where several may be one sample, else None
    renamed: tuple[tuple[int, str], ...] = ()  # its samples whose id is taken: index from 0 on, and the id instead
    payload: bytes = b""  # more that the kind needs to know (a header, rows from a file that cannot be cut)

    @property
    def renamed_at(self) -> dict[int, str]:
        """The new ids by index."""
        return dict(self.renamed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row of the input that gives no sample because a downloader already gave up on it."""

    reason: str  # a key of `stages.contract.errors.ROW_ERRORS`, under which the row is counted
    source: str  # the place of the row, for people


class Reader(ABC):
    """Reads one kind of input. Instances are cheap, picklable and hold only their configuration.

    Attributes:
        config_type: The kind's keys of `input`, with `kind: Literal["x"]`.
        suffixes: How files of the kind end, in lower case and with the dot.
        suffixes_beside: Suffixes of files that belong to the input, but do not decide its kind.
    """

    config_type: ClassVar[type[SourceConfig]]
    suffixes: ClassVar[tuple[str, ...]]
    suffixes_beside: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def shards(self) -> list[Shard]:
        """Plan the input, on the driver. An input without rows gives an empty list.

        Raises:
            InputError: The input as a whole cannot be read: a file or a column is missing, a glob matches nothing.
        """

    @abstractmethod
    def read(self, shard: Shard) -> Iterator[Sample | Skipped]:
        """Yield the rows of one shard, in order; bad rows are samples with an `error`.

        Raise InputError if the shard's file is gone since the input was planned.
        """

    def samples(self, shards: Iterable[Shard]) -> Iterator[Sample]:
        """Yield all samples of some shards, in order. Raise InputError as `read_shard`."""
        for shard in shards:
            for item in read_shard(self, shard):
                if isinstance(item, Sample):
                    yield item


class CutReader(Reader):
    """Reads shards of another reader that are cut: `skip` and `samples` say which of their samples are wanted.

    With a `limit` the input is its first samples: at most so many, of which some may be `Skipped`.
    """

    def __init__(self, reader: Reader, limit: int | None) -> None:
        self._reader = reader
        self._limit = limit

    def shards(self) -> list[Shard]:
        """Plan the input; with a limit, a shard that does not say how many samples it holds is read to count them."""
        if self._limit is None:
            return self._reader.shards()
        kept: list[Shard] = []
        left = self._limit
        for shard in self._reader.shards():
            if left == 0:
                break
            rows = shard.samples
            if rows is None:
                rows = sum(1 for _ in islice(self._reader.read(shard), left))
            kept.append(replace(shard, samples=rows) if rows <= left else replace(shard, samples=left, rows=None))
            left -= min(rows, left)
        return kept

    def read(self, shard: Shard) -> Iterator[Sample | Skipped]:
        """See `Reader.read`."""
        rows = self._reader.read(shard)
        with closing(rows):  # type: ignore[type-var]  # readers are generators
            yield from islice(rows, shard.skip, None if shard.samples is None else shard.skip + shard.samples)


def read_shard(reader: Reader, shard: Shard) -> Iterator[Sample | Skipped]:
    """Yield the rows of one shard as `Reader.read` does, for runs, which also write.

    Raise InputError if the disk or the network fails: a run would take an OSError for an error of writing, since
    object storage does not say which of the two failed.
    """
    try:
        yield from reader.read(shard)
    except OSError as error:
        raise InputError(f"cannot read {shard.url}: {error.strerror or one_line(error)}") from error
