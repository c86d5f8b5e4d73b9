"""Regions of a detector with random weights: which boxes of which phrase, and a GPU that is full."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phrasebox.stages.contract.errors import ResourceError
from phrasebox.stages.contract.masks import rle_area_px
from phrasebox.stages.contract.records import ImageRef, Phrase, Pixels, Record, Sample
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.sources.detector import DetectorSource, DetectorSourceConfig
from tests.messages import expect_error
from tests.stages.model.detectors import save_detector

PHRASES = (
    Phrase(text="red car", caption_index=0, start=2, end=9, head="car"),
    Phrase(text="two dogs", caption_index=0, start=14, end=22, head="dog", plural=True),
    Phrase(text="red car", caption_index=1, start=0, end=7, head="car"),
)


def record(name: str, height: int = 90, width: int = 150) -> Record:
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    captions = ("a red car and two dogs", "red car")
    sample = Sample(sample_id=name, source=name, captions=captions, image=ImageRef(file_name=name))
    return Record(
        sample=sample, width_px=2 * width, height_px=2 * height, phrases=PHRASES, pixels=Pixels(rgb=rgb)
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A detector of boxes and one of masks, in files."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("owlv2", "sam3")}
    for kind, folder in folders.items():
        save_detector(kind, folder)
    return folders


@pytest.fixture(params=["owlv2", "sam3"])
def source(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[DetectorSource]:
    """A source that is set up, for two images at a time."""
    config = DetectorSourceConfig(
        detector=str(folders[request.param]), min_score=0.05, max_regions_plural=3
    )
    source = DetectorSource(config, ModelConfig(batch_size=2))
    source.setup()
    yield source
    source.teardown()


def test_a_singular_has_one_region_a_plural_several_and_a_repeated_phrase_the_same(
    source: DetectorSource,
) -> None:
    [answer] = source.process([record("a.jpg")])
    of_phrase = [
        [region for region in answer.regions if region.phrase_index == index] for index in range(3)
    ]
    assert [len(regions) for regions in of_phrase] == [1, 3, 1]
    assert replace(of_phrase[0][0], phrase_index=2) == of_phrase[2][0]
    scores = [region.score for region in of_phrase[1]]
    assert scores == sorted(scores, reverse=True)
    assert all(0.05 <= region.score <= 1 for region in answer.regions)


def test_masks_are_those_of_the_detector_or_its_boxes(
    source: DetectorSource, folders: dict[str, Path]
) -> None:
    [answer] = source.process([record("a.jpg")])
    fills = [rle_area_px(r.mask) == r.box_xywh_px[2] * r.box_xywh_px[3] for r in answer.regions]
    assert all(fills) == (source.config.detector == str(folders["owlv2"]))


def test_a_full_gpu_halves_the_batch_and_one_image_too_many_is_an_error(
    source: DetectorSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record("a.jpg"), record("b.jpg", 150, 90)]
    expected = [source.process([one])[0] for one in records]
    detect = source._detector.detect
    most = 1

    def detect_if_it_fits(images: Any, *arguments: Any) -> Any:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return detect(images, *arguments)

    monkeypatch.setattr(source._detector, "detect", detect_if_it_fits)
    assert source.process(records) == expected
    assert source.forward_batch_size() == 1
    most = 0
    with expect_error(ResourceError):
        source.process(records)
