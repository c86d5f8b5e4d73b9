"""Segmenters: the masks of transformers' own pipeline, and folders of something else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.model.config import SegmenterConfig
from phrasebox.stages.model.segmenter import KINDS as READ
from phrasebox.stages.model.segmenter import Prompt, load_segmenter, usable_segmenter
from phrasebox.stages.regions.paint import paint
from tests.build.files import read_json, write_json
from tests.messages import expect_error
from tests.stages.model.segmenters import KINDS, save_segmenter

SIZES = ((90, 150), (150, 90), (200, 200))  # height, width
PROMPTS = [
    [Prompt(point_xy_px=(30.0, 40.0), box_xyxy_px=(10.0, 5.0, 80.0, 60.0))] * (number + 1)
    + [Prompt(point_xy_px=(70.5, 60.5), box_xyxy_px=(50.0, 20.0, 85.0, 89.0))]
    for number in range(len(SIZES))
]


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam")
    save_segmenter("sam", folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_transformers_prompt_by_prompt(kind: str, tmp_path, monkeypatch) -> None:
    """Images of several sizes in one batch, more prompts than are decoded together."""
    monkeypatch.setattr("phrasebox.stages.model.segmenter.PROMPTS_AT_ONCE", 4)
    model, processor = save_segmenter(kind, tmp_path)
    segmenter = load_segmenter(SegmenterConfig(model=str(tmp_path)), "cpu")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    inputs_of_images = [segmenter.prepare(rgb) for rgb in images]
    other = segmenter.prepare(images[0][::-1].copy())
    single_masks = [
        segmenter.masks(segmenter.encode([image]), [image], PROMPTS[:1])[0][0]
        for image in (inputs_of_images[0], other)
    ]
    assert not np.allclose(*single_masks, atol=0.1)
    batch_masks = segmenter.masks(segmenter.encode(inputs_of_images), inputs_of_images, PROMPTS)
    load_segmenter.cache_clear()
    areas = []
    for rgb, image, image_prompts, answers in zip(
        images, inputs_of_images, PROMPTS, batch_masks, strict=True
    ):
        for prompt, logits in zip(image_prompts, answers, strict=True):
            point = [[[list(prompt.point_xy_px)]]]
            box = [[list(prompt.box_xyxy_px)]]
            inputs = processor(images=rgb, input_points=point, input_boxes=box, return_tensors="pt")
            given = {k: v for k, v in inputs.items() if k not in ("original_sizes", "reshaped_input_sizes")}
            with torch.no_grad():
                expected = model(**given, multimask_output=True).pred_masks
            scale = float(expected.std())
            assert scale > 1e-3, "masks of noise would prove nothing"
            np.testing.assert_allclose(logits, expected[0, 0].numpy(), atol=1e-3 * scale)
            sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
            drawn = processor.post_process_masks(expected, *sizes)[0][0].numpy()
            for number, mask in enumerate(drawn):
                painted = paint(image.field(logits[number]), rgb.shape[:2])
                ours = np.zeros_like(mask) if painted is None else decode_mask(painted.mask)
                assert (ours != mask).mean() < 2e-3
                areas.append(mask.mean())
    assert 0.02 < np.mean(areas) < 0.98
    halved = load_segmenter(SegmenterConfig(model=str(tmp_path), precision="bf16"), "cpu")
    [[rounded], *_] = halved.masks(
        halved.encode(inputs_of_images[:1]), inputs_of_images[:1], [PROMPTS[0][:1]]
    )
    load_segmenter.cache_clear()
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - batch_masks[0][0]).mean() < 0.3 * rounded.std()


def test_weights_are_identified(sam: Path, tmp_path: Path) -> None:
    save_segmenter("sam", tmp_path, seed=1)
    folders = (sam, shutil.copytree(sam, tmp_path / "copy"), tmp_path)
    first, copy, other = (usable_segmenter(SegmenterConfig(model=str(folder))) for folder in folders)
    assert first == copy != other
    assert usable_segmenter(SegmenterConfig(model="facebook/sam-vit-base")) == "facebook/sam-vit-base"


def change(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    if what == "pickle":
        torch.save({}, folder / "pytorch_model.bin")
        weights.unlink()
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif what in ("clip", "other"):
        config = read_json(folder / "config.json")
        config |= {"model_type": "clip"} if what == "clip" else {"mask_decoder_config": {"hidden_size": 64}}
        write_json(folder / "config.json", config)
    else:
        (folder / what).unlink()


@pytest.mark.parametrize(
    "what", ["pickle", "cut", "other", "clip", "config.json", "preprocessor_config.json"]
)
def test_what_is_no_segmenter_is_rejected(what: str, sam: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sam, tmp_path / "copy")
    change(folder, what)
    config = SegmenterConfig(model=str(folder))
    with expect_error(WeightsError, key="regions.sam.model"):
        load_segmenter(config, "cpu")
    if what not in ("cut", "other"):
        with expect_error(ConfigError, WeightsError, key="regions.sam.model"):
            usable_segmenter(config)


def test_a_segmenter_has_to_be_named_and_its_extra_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (None, "a b/c"):
        with expect_error(ConfigError, key="regions.sam.model"):
            usable_segmenter(SegmenterConfig(model=model))
    monkeypatch.setattr("phrasebox.stages.model.hugging_face.find_spec", lambda _: None)
    with expect_error(ConfigError, key="regions.sam.model"):
        usable_segmenter(SegmenterConfig(model="facebook/sam-vit-base"))


def test_video_models_and_image_models_are_read() -> None:
    """By the names that transformers gives to the checkpoints of each."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES

    assert set(READ) == set(MODEL_FOR_MASK_GENERATION_MAPPING_NAMES)
