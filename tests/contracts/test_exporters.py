"""What every entry of EXPORTERS promises. A new exporter is tested as soon as it is in the table and in READ_BACK."""

import gc
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phrasebox.pipeline.dataset.corrected import (
    CORRECTED_BOXES,
    DELETED_REGIONS,
    REPLACED_MASKS,
    UNKNOWN_REGIONS,
)
from phrasebox.pipeline.dataset.marks import append_marks
from phrasebox.pipeline.dataset.reviews import RegionKey, Review, append_review
from phrasebox.pipeline.export import EXPORTERS
from phrasebox.pipeline.export.base import Exporter
from phrasebox.pipeline.export.export import WITH_ERROR, WITHOUT_REGIONS
from phrasebox.pipeline.export.files import MARK
from phrasebox.testing import check_exporter
from tests.build.datasets import Json, copy_of, rows_of
from tests.build.files import read_json
from tests.build.records import encoded
from tests.pipeline.export.datasets import demo_fingerprint, exported, write_dataset
from tests.pipeline.export.read_back import READ_BACK, RegionTuple
from tests.synthetic import write_synthetic

formats = pytest.mark.parametrize("name", EXPORTERS)

ROWS = 16
WITH_REGIONS = 12
REGIONS = 17
"""Of the dataset."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images in it. Only to be read."""
    folder = write_dataset(tmp_path_factory.mktemp("export") / "dataset")
    append_marks(folder, {"ring": "good", "plain": "bad"})
    return folder


def expected(name: str, rows: list[Json]) -> Counter[tuple[RegionTuple, ...]]:
    """The regions of each row, as the format's reader should find them."""
    read = READ_BACK[name]

    def region_of(row: Json, region: Json) -> RegionTuple:
        x, y, w, h = region["bbox"]
        words = row["captions"][region["caption_index"]][slice(*region["span"])]
        label = {"words": words, "phrase": region["phrase"], "head": region["head"]}[read.label]
        return (x, y, x + w, y + h), label, int(region["area"]) if read.has_area else None

    return Counter(tuple(sorted(region_of(row, region) for region in row["annotations"])) for row in rows)


def read_regions(name: str, out: Path, split: str = "train") -> Counter[tuple[RegionTuple, ...]]:
    return Counter(tuple(sorted(regions)) for regions in READ_BACK[name].samples(out, split))


def chosen(dataset: Path, wanted: Any = lambda region: True) -> list[Json]:
    """Rows with their chosen regions; no row that has none."""
    rows = [{**row, "annotations": list(filter(wanted, row["annotations"]))} for row in rows_of(dataset)]
    return [row for row in rows if row["annotations"]]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@formats
def test_regions_boxes_labels_and_masks_are_the_datasets(name: str, dataset: Path, tmp_path: Path) -> None:
    """Names of samples and files with `..`, roots, slashes, dots and other alphabets lead out of no target."""
    out, report = exported(name, dataset, tmp_path / "a" / "b" / "out")
    rows = chosen(dataset)
    assert read_regions(name, out) == expected(name, rows)
    assert (len(rows), sum(len(row["annotations"]) for row in rows)) == (WITH_REGIONS, REGIONS)
    assert report.samples == {"train": WITH_REGIONS}
    assert report.regions == {"train": REGIONS}
    assert report.left_out == {WITH_ERROR: 2, WITHOUT_REGIONS: 2}
    assert report.rows == ROWS == report.samples.total() + report.left_out.total()
    written = files(out)
    assert files(tmp_path).keys() == {f"a/b/out/{path}" for path in written}
    assert not Path("/tmp/phrasebox-escape.png").exists()
    assert all(path.isascii() and ".." not in path for path in written)


@formats
def test_a_choice_of_regions_and_none(name: str, dataset: Path, tmp_path: Path) -> None:
    """The second export takes the place of the first."""
    where = "head = 'dog' OR area < 90"
    out, report = exported(name, dataset, tmp_path / "out", min_score=0.3, where=where)
    rows = chosen(
        dataset,
        lambda region: region["score"] >= 0.299 and (region["head"] == "dog" or region["area"] < 90),
    )
    assert read_regions(name, out) == expected(name, rows)
    assert 0 < report.regions.total() == sum(len(row["annotations"]) for row in rows) < REGIONS
    mark = read_json(out / MARK)
    assert (mark["format"], mark["where"], mark["counts"]["rows"]) == (name, where, ROWS)
    _, report = exported(name, dataset, out, min_score=1.0, split="train=0.5,val=0.5", overwrite=True)
    assert report.samples == {"train": 0, "val": 0}
    assert read_regions(name, out, "train") == read_regions(name, out, "val") == Counter()


NOTES = (DELETED_REGIONS, CORRECTED_BOXES, REPLACED_MASKS, UNKNOWN_REGIONS)


@formats
def test_corrections_of_people_are_taken(name: str, dataset: Path, tmp_path: Path) -> None:
    """A deleted region, a smaller box, and one beside the mask; and a correction of a region that is not there.

    Of regions that are not chosen, none is counted.
    """
    copy = copy_of(dataset, tmp_path)
    boxes = {
        "beach": (9.6, 15.2, 20.0, 10.4),
        "kite": (20.0, 2.0, 500.0, 4.0),
    }  # the latter leaves the image
    corrected = {"beach": ([10.0, 15.0, 20.0, 11.0], 220), "kite": ([20.0, 2.0, 20.0, 4.0], 80)}
    rows = chosen(dataset, lambda region: region["phrase"] != "dog of the man")
    for row in chosen(dataset):
        for region in row["annotations"]:
            key = {**RegionKey.of(region)._asdict(), "reviewer": "ann"}
            if region["phrase"] in boxes:
                append_review(copy, Review(**key, action="box", box_xywh_px=boxes[region["phrase"]]))
            if region["phrase"] == "dog of the man":
                append_review(copy, Review(**key, action="delete"))
                append_review(copy, Review(**{**key, "phrase": "another"}, action="delete"))
            append_review(copy, Review(**key, answer="wrong"))  # an answer deletes nothing
    for region in (region for row in rows for region in row["annotations"] if region["phrase"] in boxes):
        region["bbox"], region["area"] = corrected[region["phrase"]]
        region["score"] = 1.0
    out, report = exported(name, copy, tmp_path / "out")
    assert read_regions(name, out) == expected(name, rows)
    assert [report.notes[note] for note in NOTES] == [1, 1, 1, 1]
    _, report = exported(name, copy, tmp_path / "marked", where="mark = 'good'")
    assert [report.notes[note] for note in NOTES] == [0, 0, 0, 1]
    assert files(copy / "data") == files(dataset / "data")


@formats
def test_it_keeps_the_contract_of_exporters(name: str, dataset: Path) -> None:
    def read_boxes(folder: Path, split: str) -> list[list[tuple[float, ...]]]:
        samples = READ_BACK[name].samples(folder, split)
        return [[(x0, y0, x1 - x0, y1 - y0) for (x0, y0, x1, y1), *_ in regions] for regions in samples]

    check_exporter(EXPORTERS[name], read_boxes, dataset=dataset)


@formats
def test_a_missing_image_is_a_fault_of_its_row(name: str, tmp_path: Path) -> None:
    """Images from a folder in which some are missing, damaged, of another size, or outside."""
    root = tmp_path / "images"
    root.mkdir()
    dataset = write_dataset(tmp_path / "dataset", embed_images=False, image_root=root)
    append_marks(dataset, {"ring": "good"})
    good = {"1.jpg", "3.jpg", "9.jpg"}
    for file_name in good:
        (root / file_name).write_bytes(encoded())
    (root / "10.jpg").write_bytes(encoded()[:20])
    (root / "11.jpg").write_bytes(encoded(orientation=3))
    (root / "14.jpg").write_bytes(encoded("PNG", orientation=1))
    Image.new("RGB", (7, 7)).save(root / "17.jpg")
    out, report = exported(name, dataset, tmp_path / "out")
    assert report.rows == report.samples.total() + report.left_out.total() == ROWS
    if not EXPORTERS[name].takes_images(EXPORTERS[name].config_type()):
        assert report.samples.total() == WITH_REGIONS
        return
    left_out = {reason: count for reason, count in report.left_out.items() if reason.startswith("image: ")}
    assert left_out == {"image: missing_image": 2, "image: bad_location": 2, "image: bad_image": 2}
    assert len(report.faults) == 5
    names = {*good, "11.jpg", "14.jpg"}
    assert read_regions(name, out) == expected(
        name, [row for row in chosen(dataset) if row["file_name"] in names]
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two datasets of the same categories, the second with five times the rows of the first."""
    made = {"fingerprint": demo_fingerprint(), "rows_per_file": 20, "embed_images": True}
    datasets = [
        write_synthetic(tmp_path_factory.mktemp("large") / "dataset", rows, **made) for rows in (50, 250)
    ]
    for dataset in datasets:
        append_marks(dataset, {"nobody": "good"})
    return datasets


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTERS)
def test_memory_does_not_grow_with_the_dataset(name: str, large: list[Path], tmp_path, monkeypatch) -> None:
    """What is kept of regions would show both before the end and at the peak. Each alone also depends on how full a
    buffer is, or on the largest mask. The others share their writers with three formats.
    """
    exporter = EXPORTERS[name]
    settings = {"classes": "head"} if "classes" in exporter.config_type.model_fields else {}
    exported(name, large[0], tmp_path / "warm", settings)  # imports and caches
    held: list[int] = []
    peaks: list[int] = []
    end = exporter.close

    def close(self: Exporter) -> None:
        gc.collect()  # what waits for it is not kept
        held.append(tracemalloc.get_traced_memory()[0])
        end(self)

    monkeypatch.setattr(exporter, "close", close)
    for number, dataset in enumerate(large):
        tracemalloc.start()
        try:
            _, report = exported(name, dataset, tmp_path / f"out{number}", settings)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    more_regions = report.regions.total() * 4 / 5
    assert more_regions > 500
    growth = min(held[1] - held[0], peaks[1] - peaks[0])
    assert growth < 200 * more_regions, "the smallest annotation takes more, so that they are not kept"
