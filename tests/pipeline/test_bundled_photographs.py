import json
import re
from typing import Any

import pytest
from PIL import Image

from pipeline.photographs import CAPTIONS, FOLDER, TRUTH
from stages.contract.masks import decode_mask, mask_box_xywh_px
from stages.contract.records import Record, Sample
from stages.phrases.stage import PhrasesConfig, PhrasesStage
from stages.truth import read_truth
from stages.truth.ground_truth import GroundTruth

PICTURES = sorted(path.name for path in FOLDER.glob("*.jpg"))


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    return read_truth(TRUTH)


@pytest.fixture(scope="module")
def captions() -> dict[str, str]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in CAPTIONS.read_text(encoding="utf-8").splitlines()]
    return {row["image"]: row["caption"] for row in rows}


def test_there_are_eight_each_with_a_caption_and_a_truth(truth: GroundTruth, captions: dict[str, str]) -> None:
    assert len(PICTURES) == 8
    assert sorted(captions) == sorted(truth.images) == PICTURES
    assert sum((FOLDER / name).stat().st_size for name in PICTURES) < 400_000


@pytest.mark.parametrize("name", PICTURES)
def test_the_boxes_lie_in_the_picture_and_the_outlines_fill_them(name: str, truth: GroundTruth) -> None:
    image = truth.images[name]
    with Image.open(FOLDER / name) as picture:
        assert picture.size == (image.width_px, image.height_px)
        assert max(picture.size) <= 480
    assert len(image.targets) >= 3
    for target in image.targets:
        for x, y, w, h in target.boxes_xywh_px:
            assert 0 <= x < x + w <= image.width_px
            assert 0 <= y < y + h <= image.height_px
            assert w * h >= 300, target.phrase
        if target.mask is not None and len(target.boxes_xywh_px) == 1:
            assert mask_box_xywh_px(decode_mask(target.mask)) == pytest.approx(target.boxes_xywh_px[0], abs=2)


def test_a_run_finds_every_phrase_in_the_caption(truth: GroundTruth, captions: dict[str, str]) -> None:
    stage = PhrasesStage(PhrasesConfig())
    stage.setup()
    samples = [Sample(sample_id=name, source="", captions=(captions[name],)) for name in PICTURES]
    for name, record in zip(PICTURES, stage.process(list(map(Record.start, samples))), strict=True):
        assert {target.phrase for target in truth.images[name].targets} <= {phrase.text for phrase in record.phrases}


def test_most_things_are_not_in_the_middle(truth: GroundTruth) -> None:
    centred = []
    for image in truth.images.values():
        x, y = image.width_px / 2, image.height_px / 2
        for target in image.targets:
            boxes = target.boxes_xywh_px
            centred.append(any(left <= x < left + w and top <= y < top + h for left, top, w, h in boxes))
    assert len(centred) == 31
    assert sum(centred) <= 13


def test_every_picture_has_an_author_a_licence_and_a_source() -> None:
    text = (FOLDER / "LICENCES.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    named = {row[0].strip("`"): row[1:] for row in rows if len(row) == 5}
    hashes = {row[0].strip("`"): row[1] for row in rows if len(row) == 2}
    assert sorted(named.keys() - {"file", "---"}) == PICTURES
    for name in PICTURES:
        what, author, licence, source = named[name]
        assert what
        assert author
        assert licence in {"public domain", "CC0 1.0", "CC BY 2.0"}
        assert re.search(r"scikit-image 0\.19\.3|scikit-learn 1\.9\.1|Debian package \S+ \S+", source)
        assert re.search(r"`[0-9a-f]{64}`", hashes[name])
