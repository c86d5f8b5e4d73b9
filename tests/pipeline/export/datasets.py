"""A small dataset of the kinds of rows that formats stumble over."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.export import EXPORTERS, ExportRequest, export_dataset
from phrasebox.pipeline.export.base import ExportReport
from phrasebox.stages.contract.records import Absent, ImageRef, Phrase, Record, Sample
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.phrases.filters import normalise
from tests.build.datasets import Json
from tests.build.records import HEIGHT, WIDTH, encoded, mask, region
from tests.stages.write.rows import failed, without_phrases, write_shards
from tests.synthetic import count, write_manifest


class Maker:
    """Makes records; each region has another score, 0.05, 0.1, ..."""

    def __init__(self) -> None:
        self.regions = 0

    def record(
        self,
        sample_id: str,
        captions: str | tuple[str, ...],
        *entries: tuple[Any, ...],
        absent: Sequence[tuple[str, int]] = (),
        **more: Any,
    ) -> Record:
        """entries: words of a phrase, its box or mask, the number of its caption, by default the first with them, and
        fields of its region; absent: words of a phrase, and the number of its caption.
        """
        captions = (captions,) if isinstance(captions, str) else captions
        phrases: list[Phrase] = []

        def index_of(words: str, caption: int | None) -> int:
            if caption is None:
                caption = next(number for number, text in enumerate(captions) if words in text)
            start = captions[caption].index(words)
            head = words.rsplit(maxsplit=1)[-1].lower().removesuffix("s")
            place = {"caption_index": caption, "start": start, "end": start + len(words)}
            phrase = Phrase(text=normalise(words), head=head, **place)
            if phrase not in phrases:
                phrases.append(phrase)
            return phrases.index(phrase)

        regions = []
        for words, place, *rest in entries:
            caption, fields = (*rest, None, None)[:2]
            self.regions += 1
            has_group = bool(self.regions % 2)
            usual = {"presence": 0.9 if has_group else None, "group": self.regions if has_group else None}
            usual |= {"score": self.regions * 0.05, "similarity": 0.21 + self.regions / 1000}
            regions.append(region(index_of(words, caption), place, **usual | (fields or {})))
        missing = [
            Absent(phrase_index=index_of(*phrase), presence=0.125, similarity=0.2) for phrase in absent
        ]
        name = more.pop("file_name", f"{self.regions}.jpg")
        image = ImageRef(file_name=name, content=more.pop("image_bytes", encoded()))
        sample = Sample(sample_id=sample_id, source="test", captions=captions, image=image)
        more |= {"phrases": tuple(phrases), "regions": tuple(regions), "absent": tuple(missing)}
        return Record(sample=sample, width_px=WIDTH, height_px=HEIGHT, **more)

    def grouped(
        self, name: str, captions: tuple[str, ...], *regions: tuple[Any, ...], **absent: Any
    ) -> Record:
        """regions: words of a phrase, the number of its caption, its box, its group, and its score."""
        entries = [
            (words, box, caption, {"group": group, "score": score})
            for words, caption, box, group, score in regions
        ]
        return self.record(name, captions, *entries, file_name=f"{name}.jpg", **absent)


def records() -> list[Record]:
    """Sixteen: twelve with regions, one without, one whose caption names nothing, two with an error."""
    make = Maker().record
    ring = mask((4, 4, 20, 16), holes=((10, 8, 5, 5),))
    outside = "/tmp/phrasebox-escape.png"
    parts = mask((0, 0, 6, 6), (20, 3, 9, 4), (30, 20, 10, 10))
    wave = ("a wave", "the beach and a wave")
    beach = ("the beach", (0, 15, 40, 15))
    fog = "some fog: null # & 'quoted' \"x\""
    return [
        make("plain", "The  Red car beside two dogs", ("The  Red car", (3, 4, 10, 12))),
        make("ring", "a ring, a chain", ("a ring", ring), ("a chain", parts)),
        failed(0),
        make(
            "日本/😀 *?", "Ein müder Löwe 😀 und a café", ("a café", (1, 1, 5, 5)), file_name="ü/ä b?.jpg"
        ),
        make("../../etc/passwd", "a thief", ("a thief", (2, 2, 3, 9)), file_name="../../../escape.jpg"),
        make("a.b.c/d", "a dot", ("a dot", (39, 29, 1, 1)), file_name=outside, image_bytes=encoded("PNG")),
        make("two captions", wave, ("a wave", (0, 10, 40, 5)), beach, ("a wave", (0, 9, 40, 5), 1)),
        make("second caption", ("wow", "a kite"), ("a kite", (7, 7, 7, 7))),
        make("no region", "a ghost"),
        without_phrases(1),
        make("turned", "a lamp", ("a lamp", (5, 0, 4, 30)), image_bytes=encoded(orientation=6)),
        make("whole", fog, ("some fog", (0, 0, 40, 30)), file_name="fog.gif", image_bytes=encoded("GIF")),
        make("dogs", "two dogs", ("two dogs", (0, 0, 9, 9)), ("two dogs", (20, 9, 9, 9))),
        make("same name", "a red car", ("a red car", (8, 8, 8, 8)), file_name="1.jpg"),
        make(
            "nested",
            "the dog of the man",
            ("the dog of the man", (1, 2, 20, 20)),
            ("the man", (25, 2, 9, 20)),
        ),
        failed(1, "bad_image"),
    ]


def records_below_root() -> list[Record]:
    """Those that a dataset of another user may hold: named below the root, and each sample once."""
    sound = [record for record in records() if not record.sample.image.file_name.startswith(("/", ".."))]
    return [*{record.sample.sample_id: record for record in sound}.values()]


def write_dataset(folder: Path, *, embed_images: bool = True, image_root: Path | None = None) -> Path:
    """The records as a finished dataset in shards of five rows."""
    return finished(
        folder, records(), embed_images=embed_images, image_root=image_root, fingerprint=demo_fingerprint()
    )


@cache
def demo_fingerprint() -> str:
    """Of the embedded model, whose texts an export may embed."""
    return describe(ModelConfig(name="demo")).fingerprint


def finished(folder: Path, rows: list[Record], *, embed_images: bool = True, **manifest: Any) -> Path:
    """Records as a finished dataset in shards of five rows."""
    write_shards(rows, folder / "data", ["image"] if embed_images else [], rows_per_file=5)
    write_manifest(folder, count(folder), rows_per_file=5, embed_images=embed_images, **manifest)
    return folder


def exported(
    name: str, dataset: Path, out: Path, settings: Json | None = None, **request: Any
) -> tuple[Path, ExportReport]:
    """The folder of a new export, and its report."""
    exporter = EXPORTERS[name]
    config = exporter.config_type.model_validate(settings or {})
    export_request = ExportRequest(exporter=exporter, out=out, config=config, **request)
    return out, export_dataset(open_dataset(dataset), export_request)
