"""The records of a run's first images, kept in its folder until they are rows: a stopped run computes none again.

All of them decide together how the run goes on, so none is a row before the last one is computed.
A file OUT/.phrasebox/first-images/STEPS/NNNNN.parquet holds a batch of records behind the model,
with their signals. STEPS stands for what a resumed run may decide otherwise than the run before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phrasebox.pipeline.output.shards import keys_of
from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.contract.tables import RECORD_SCHEMA, records_to_table, table_to_records
from phrasebox.stages.contract.values import Floats32, Integers, Json
from phrasebox.stages.files.storage import AnyPath, found_in, replacing
from phrasebox.stages.scores.presence import ImageSignals, TextSignals

OnProgress = Callable[[int, int], None]
"""Called with the number of the first images that are computed, and with that of all."""

_KINDS: Final = ("phrases", "foreign", "captions")  # of texts
_TEXT_ARRAYS: Final = tuple(part.name for part in fields(TextSignals))
_NUMBERS: Final = pa.list_(pa.float32())
_TEXTS: Final = pa.struct([(name, _NUMBERS) for name in _TEXT_ARRAYS])
_SCHEMA: Final = RECORD_SCHEMA.append(
    pa.field("signals", pa.struct([("embedding", _NUMBERS), *((kind, _TEXTS) for kind in _KINDS)]))
).append(pa.field("foreign", pa.list_(pa.string())))


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstImage:
    """One of the first images behind the model.

    Attributes:
        record: Its record.
        signals: Its signals; None where it has no heat maps, or where regions come from elsewhere.
        foreign: The phrases of other images that it was compared with.
    """

    record: Record
    signals: ImageSignals | None = None
    foreign: tuple[str, ...] = ()


@dataclass(slots=True)
class FirstImages:
    """Those that are computed, in one of the ways in which a run looks at its first images.

    Attributes:
        folder: The folder of their files; None keeps none.
    """

    folder: AnyPath | None = None
    _images: dict[int, FirstImage] = field(default_factory=dict)
    _files: int = 0

    @classmethod
    def of(cls, place: AnyPath | None, *steps: str | None) -> FirstImages:
        """Return those that are kept in a place for steps.

        A file does not count if it cannot be read, or if another version wrote it in another form.
        """
        if place is None:
            return cls()
        folder = place / blake2b(json.dumps(steps).encode(), digest_size=8).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        images = cls(folder)
        for path in found_in(folder, "*.parquet"):
            images._files = int(path.name.partition(".")[0]) + 1
            with suppress(pa.ArrowException, OSError):
                for image in _images_of(pq.read_table(pa.BufferReader(path.read_bytes()))):
                    images._images[image.record.sample.key] = image
        return images

    def find(self, record: Record, foreign: Sequence[str] = ()) -> FirstImage | None:
        """Return the image of a parsed record, if it was computed with the same captions and foreign phrases."""
        image = self._images.get(record.sample.key)
        if image is None or image.foreign != tuple(foreign):
            return None
        return image if _without_content(image.record.sample) == _without_content(record.sample) else None

    def add(self, images: Sequence[FirstImage]) -> None:
        """Keep images. Raise OSError."""
        if self.folder is not None:
            with replacing(self.folder / f"{self._files:05d}.parquet") as temporary:
                pq.write_table(_to_table(images), temporary, compression="zstd", compression_level=1)
            self._files += 1
        for image in images:
            self._images[image.record.sample.key] = image


def kept_keys(place: AnyPath) -> Integers:
    """Return the keys of the samples whose records are kept in a place, sorted."""
    keys = [np.empty(0, np.int64)]
    for path in (path for folder in found_in(place, "*") for path in found_in(folder, "*.parquet")):
        with suppress(pa.ArrowException, OSError):
            samples = pq.read_table(pa.BufferReader(path.read_bytes()), columns=["sample"])["sample"]
            keys.append(keys_of(pc.struct_field(samples, "sample_id").to_pylist()))
    return np.unique(np.concatenate(keys))


def _without_content(sample: Sample) -> Sample:
    """Return a sample without its encoded image, which a stage may have read or dropped."""
    return replace(sample, image=replace(sample.image, content=None))


def _to_table(images: Sequence[FirstImage]) -> Any:
    table = records_to_table([image.record for image in images])
    signals = [None if image.signals is None else _values_of(image.signals) for image in images]
    foreign = [list(image.foreign) for image in images]
    for name, values in (("signals", signals), ("foreign", foreign)):
        table = table.append_column(name, pa.array(values, _SCHEMA.field(name).type))
    return table


def _images_of(table: Any) -> list[FirstImage]:
    if not table.schema.equals(_SCHEMA):
        return []
    records = table_to_records(table.select(RECORD_SCHEMA.names))
    parts = zip(records, table["signals"], table["foreign"].to_pylist(), strict=True)
    return [
        FirstImage(record=record, signals=_signals_of(values), foreign=tuple(foreign))
        for record, values, foreign in parts
    ]


def _values_of(signals: ImageSignals) -> Json:
    """Return the arrays of signals, flat."""

    def values_of(texts: TextSignals) -> Json:
        return {name: getattr(texts, name).ravel() for name in _TEXT_ARRAYS}

    return {
        "embedding": signals.embedding,
        **{kind: values_of(getattr(signals, kind)) for kind in _KINDS},
    }


def _signals_of(scalar: Any) -> ImageSignals | None:
    """Invert `_values_of`, from an Arrow scalar."""
    if not scalar.is_valid:
        return None
    embedding = _array_of(scalar["embedding"])

    def texts_of(values: Any) -> TextSignals:
        arrays = {name: _array_of(values[name]) for name in _TEXT_ARRAYS}
        arrays["embeddings"] = arrays["embeddings"].reshape(-1, len(embedding))
        return TextSignals(**arrays)

    return ImageSignals(embedding=embedding, **{kind: texts_of(scalar[kind]) for kind in _KINDS})


def _array_of(numbers: Any) -> Floats32:
    array: Floats32 = numbers.values.to_numpy(zero_copy_only=False)
    return array
