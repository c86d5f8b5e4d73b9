import re

import numpy as np
import pytest
from PIL import Image

from phrasebox.pipeline.demo.photographs import CAPTIONS, FOLDER, TRUTH, USUAL_PLACES
from phrasebox.pipeline.evaluate.text_only import TextOnly
from phrasebox.stages.contract.masks import decode_mask, mask_box_xywh_px
from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.files.json_files import read_json_as
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.stage import PhrasesStage
from phrasebox.stages.truth import read_truth
from phrasebox.stages.truth.ground_truth import GroundTruth
from tests.build.datasets import Json
from tests.build.files import read_lines

PICTURES = sorted(path.name for path in FOLDER.glob("*.jpg"))


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    return read_truth(TRUTH)


@pytest.fixture(scope="module")
def captions() -> dict[str, tuple[str, ...]]:
    rows: list[Json] = read_lines(CAPTIONS)
    return {row["image"]: tuple(row.get("captions") or [row["caption"]]) for row in rows}


def test_each_has_captions_and_a_truth_and_all_are_small(
    truth: GroundTruth, captions: dict[str, tuple[str, ...]]
) -> None:
    assert sorted(captions) == sorted(truth.images) == PICTURES
    assert sum(len(texts) == 5 for texts in captions.values()) >= 12
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 600_000


@pytest.mark.parametrize("name", PICTURES)
def test_the_boxes_lie_in_the_picture_and_the_outlines_fill_them(name: str, truth: GroundTruth) -> None:
    image = truth.images[name]
    with Image.open(FOLDER / name) as picture:
        assert picture.size == (image.width_px, image.height_px)
        assert max(picture.size) <= 480
    assert len(image.targets) >= 3
    for target in image.targets:
        boxes = np.array(target.boxes_xywh_px)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= picture.size).all()
        assert (boxes[:, 2:].prod(axis=1) >= 20).all(), target.phrase
        if target.mask is not None and len(boxes) == 1:
            assert mask_box_xywh_px(decode_mask(target.mask)) == pytest.approx(boxes[0], abs=2)


def test_a_run_finds_every_phrase_in_the_caption(
    truth: GroundTruth, captions: dict[str, tuple[str, ...]]
) -> None:
    stage = PhrasesStage(PhrasesConfig())
    stage.setup()
    samples = [Sample(sample_id=name, source="", captions=captions[name]) for name in PICTURES]
    for name, record in zip(PICTURES, stage.process(list(map(Record.start, samples))), strict=True):
        assert {target.phrase for target in truth.images[name].targets} <= {
            phrase.text for phrase in record.phrases
        }


def test_the_usual_places_of_nouns_are_in_the_image() -> None:
    places = read_json_as(USUAL_PLACES, TextOnly).of_head.values()
    assert len(places) > 100
    boxes = np.array([box for place in places for box in (place.box, place.merged)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 1.001).all()


def test_every_picture_has_a_credit_a_licence_and_a_source() -> None:
    text = (FOLDER / "LICENCES.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in text.splitlines()
        if line[:3] == "| `"
    ]
    named = {row[0].strip("`"): row[1:] for row in rows if len(row) == 5}
    hashes = {row[0].strip("`"): row[1] for row in rows if len(row) == 2}
    assert sorted(named) == PICTURES
    from_coco = {name for name, row in named.items() if row[1].isdecimal()}
    assert len(from_coco) >= 12
    for name in from_coco:
        what, _, licence, credit = named[name]
        assert what
        assert licence == "CC BY 2.0"
        assert re.fullmatch(r"<https://flickr\.com/photo\.gne\?id=\d+>", credit)
    for name in named.keys() - from_coco:
        *texts, licence, source = named[name]
        assert all(texts)
        assert licence in {"public domain", "CC0 1.0", "CC BY 2.0"}
        assert re.search(r"scikit-image 0\.19\.3|scikit-learn 1\.9\.1|Debian package \S+ \S+", source)
        assert re.search(r"`[0-9a-f]{64}`", hashes[name])
