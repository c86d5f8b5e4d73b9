"""Boxes that are there already and the phrases that they answer, on cases counted by hand."""

from pathlib import Path
from typing import Any

from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.records import ImageRef, Phrase, Record, Sample
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.sources.boxes import NO_IMAGE_OF_THAT_NAME, BoxSource, BoxSourceConfig
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.messages import expect_error

CAPTION = "A man walks two dogs past a tall man"
PHRASES = (
    Phrase(text="man", caption_index=0, start=0, end=5, head="man"),
    Phrase(text="two dogs", caption_index=0, start=12, end=20, head="dog", plural=True),
    Phrase(text="tall man", caption_index=0, start=26, end=36, head="man"),
)
IMAGES = [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 20}]
CATEGORIES = [{"id": 1, "name": "man"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}]


def box(category: int, *bbox: float, **keys: Any) -> Json:
    return {"id": 1, "image_id": 7, "category_id": category, "bbox": list(bbox), "iscrowd": 0} | keys


def instances(folder: Path, *objects: Json) -> str:
    annotations = [{**object_, "id": number} for number, object_ in enumerate(objects)]
    content = {"images": IMAGES, "categories": CATEGORIES, "annotations": annotations}
    return str(write_json(folder / "instances.json", content))


def record(file_name: str = "a.jpg", width: int = 40, height: int = 20) -> Record:
    sample = Sample(
        sample_id=file_name, source="x", captions=(CAPTION,), image=ImageRef(file_name=file_name)
    )
    return Record(sample=sample, phrases=PHRASES, width_px=width, height_px=height)


def answer(source_record: Record, **settings: Any) -> Record:
    stage = BoxSource(BoxSourceConfig(**settings), ModelConfig(name="demo"))
    stage.setup()
    (result,) = stage.process([source_record])
    stage.teardown()
    return result


def regions(record: Record) -> list[tuple[str, tuple[float, ...], float]]:
    return [(record.phrases[r.phrase_index].text, r.box_xywh_px, r.score) for r in record.regions]


def test_a_category_is_named_by_text_and_head(tmp_path: Path) -> None:
    truth = instances(tmp_path, box(1, 2.4, 3.6, 10, 5), box(2, 30, 0, 15, 20), box(3, 0, 0, 5, 5))
    assert regions(answer(record(), truth=truth)) == [
        ("man", (2, 4, 10, 5), 1.0),
        ("two dogs", (30, 0, 10, 20), 1.0),  # what leaves the image is cut off
        ("tall man", (2, 4, 10, 5), 1.0),
    ]


def test_each_thing_has_its_box_and_the_part_of_the_mask_in_it(tmp_path: Path) -> None:
    left = [[1, 1, 5, 1, 5, 5, 1, 5]]
    right = [[20, 2, 30, 2, 30, 8]]
    truth = instances(
        tmp_path,
        box(2, 1, 1, 4, 4, segmentation=left),
        box(2, 20, 2, 10, 6, segmentation=right),
        box(1, 0, 0, 9, 9),
    )
    dogs = [region for region in answer(record(), truth=truth).regions if region.phrase_index == 1]
    assert [region.box_xywh_px for region in dogs] == [(1, 1, 4, 4), (21, 2, 9, 6)], "around the mask"
    assert dogs[0].area_px == 16
    assert 20 < dogs[1].area_px < 40, "a triangle"


def test_what_a_detector_found_has_its_score(tmp_path: Path) -> None:
    truth = instances(tmp_path, box(1, 0, 0, 40, 20))
    results = [box(1, 1, 1, 5, 5, score=0.4), box(1, 9, 9, 5, 5, score=0.9), box(1, 0, 0, 2, 2, score=0.1)]
    without_ids = [{k: v for k, v in r.items() if k != "id"} for r in results]
    detections = str(write_json(tmp_path / "results.json", without_ids))
    result = answer(record(), truth=truth, detections=detections, min_score=0.2)
    boxes = [((9, 9, 5, 5), 0.9), ((1, 1, 5, 5), 0.4)]
    assert regions(result) == [
        (phrase, *box_and_score) for phrase in ("man", "tall man") for box_and_score in boxes
    ]


def test_an_image_that_was_resized(tmp_path: Path) -> None:
    truth = instances(tmp_path, box(1, 2, 4, 10, 5))
    with expect_error(InputError):
        answer(record(width=80, height=40), truth=truth)
    result = answer(record(width=80, height=40), truth=truth, resized=True)
    assert regions(result)[0] == ("man", (4, 8, 20, 10), 1.0)


def test_names_that_resemble_the_truth_and_an_image_without_truth_that_says_so_in_its_row(
    tmp_path: Path,
) -> None:
    truth = instances(tmp_path, box(1, 2, 4, 10, 5))
    for name in ("a.jpg", "train/a.jpg", "a.png", "train/a.webp"):
        assert answer(record(name), truth=truth).regions, name
    result = answer(record("b.jpg"), truth=truth)
    assert result.regions == ()
    assert result.notes == (NO_IMAGE_OF_THAT_NAME,)


def test_what_cannot_be_read_is_told_before_any_work(tmp_path: Path) -> None:
    def check(**settings: Any) -> None:
        BoxSource(BoxSourceConfig(**settings), ModelConfig(name="demo")).check()

    with expect_error(InputError):
        check(truth=tmp_path / "none.json")
    with expect_error(ConfigError, key="source.truth"):
        check(truth=tmp_path, detections=tmp_path / "results.json")
    damaged = str(write_json(tmp_path / "results.json", [box(1, 1, 1, 2, 2, score=7)]))
    with expect_error(InputError):
        check(truth=instances(tmp_path, box(1, 2, 4, 10, 5)), detections=damaged)
