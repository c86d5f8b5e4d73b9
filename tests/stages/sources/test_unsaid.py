"""A phrase that no caption says, all the way from the record to exports, loader and viewer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.export import EXPORTERS
from phrasebox.pipeline.export.export import ExportRequest, export_dataset
from phrasebox.pipeline.load import Contents, RegionDataset
from phrasebox.pipeline.viewer.sample_view import COLUMNS, sample_view
from phrasebox.stages.contract.masks import encode_box, rle_box_xywh_px
from phrasebox.stages.contract.records import Phrase, Region
from phrasebox.stages.sources.source_stage import number_objects
from tests.build.files import read_json
from tests.pipeline.export.datasets import HEIGHT, WIDTH, finished, records


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of the exporters' tests, the first of which is also called what no caption says."""
    rows = records()
    first = rows[0]
    mask = encode_box((1, 2, 9, 8), (HEIGHT, WIDTH))
    unsaid = Phrase(text="old lorry", caption_index=0, start=0, end=0, head="lorry")
    region = Region(
        phrase_index=len(first.phrases),
        box_xywh_px=rle_box_xywh_px(mask),
        mask=mask,
        area_px=48,
        score=0.5,
        similarity=0.25,
        group=9,
    )
    rows[0] = replace(first, phrases=(*first.phrases, unsaid), regions=(*first.regions, region))
    return finished(tmp_path_factory.mktemp("unsaid") / "dataset", rows)


def test_only_the_empty_span_of_the_first_caption_means_it() -> None:
    assert not Phrase(text="x", caption_index=0, start=0, end=0, head="x").is_said
    for index, start, end in ((1, 0, 0), (0, 3, 3), (0, 2, 1)):
        with pytest.raises(ValueError, match="expected 0 <= start < end"):
            Phrase(text="x", caption_index=index, start=start, end=end, head="x")


Read = Callable[[Path], str]

FORMATS: dict[str, Read] = {
    "mdetr": lambda out: (out / "train.json").read_text(),
    "odvg": lambda out: (out / "train.jsonl").read_text(),
    "chat": lambda out: "".join(path.read_text() for path in sorted(out.rglob("*.json*"))),
    "grit": lambda out: str([pq.read_table(path).to_pylist() for path in sorted(out.rglob("*.parquet"))]),
}
"""Formats whose boxes stand in captions -> all that they say of boxes."""


@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_spans_leave_it_out_and_count_it(name: str, dataset: Path, tmp_path: Path) -> None:
    request = ExportRequest(exporter=EXPORTERS[name], out=tmp_path / "out")
    report = export_dataset(open_dataset(dataset), request)
    assert report.notes["regions that no caption says: left out"] == 1
    written = FORMATS[name](tmp_path / "out")
    assert not [text for text in ("lorry", "[0,0]", "[0, 0]") if text in written]


def test_names_loader_and_viewer_have_it_without_a_place(dataset: Path, tmp_path: Path) -> None:
    export_dataset(open_dataset(dataset), ExportRequest(exporter=EXPORTERS["coco"], out=tmp_path / "out"))
    written = read_json(tmp_path / "out" / "annotations" / "instances_train.json")
    assert "old lorry" in {category["name"] for category in written["categories"]}
    sample = RegionDataset(dataset, Contents(images=False))[0]
    assert sample["spans"][sample["phrases"].index("old lorry")].tolist() == [0, 0]
    view = sample_view(next(iter(open_dataset(dataset).rows(COLUMNS))), 0, None, None)
    unsaid = next(region.number for region in view.regions if region.annotation["phrase"] == "old lorry")
    assert all(unsaid not in part.regions for caption in view.captions for part in caption)


def test_it_is_a_thing_of_its_own() -> None:
    from_captions = [
        Phrase(text="dog", caption_index=index, start=2, end=5, head="dog") for index in (0, 1)
    ]
    from_pool = [Phrase(text=text, caption_index=0, start=0, end=0, head=text) for text in ("cat", "car")]
    assert number_objects(("A dog", "A dog"), [*from_captions, *from_pool]) == [0, 0, 1, 2]
