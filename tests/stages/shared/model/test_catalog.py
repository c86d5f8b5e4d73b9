import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor

import stages.shared.model.towers.photo_trunk  # noqa: F401 - it names the trunk to timm
from pipeline.scenes.scene import make_scene
from stages.contract.errors import WeightsError
from stages.shared.model.catalog import CATALOG, WEIGHTS_ROOT, find_weights
from tests.build.datasets import Json
from tests.build.files import read_json
from tests.messages import expect_error

SCENES = 24


@pytest.mark.parametrize(("name", "most_bytes"), [("demo", 12_000_000), ("photo", 20_000_000)])
def test_a_bundled_model_is_small_and_its_card_names_the_checksums(name: str, most_bytes: int) -> None:
    folder = find_weights(name)
    assert folder == WEIGHTS_ROOT / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < most_bytes
    card = (folder / "MODEL_CARD.md").read_text("utf-8")
    assert all(checksum in card for checksum in CATALOG[name].files.values())
    if name == "photo":
        assert "non-commercial research and education" in card
        assert "No box, mask or point" in card


@pytest.mark.parametrize(
    "name",
    [
        "photo",
        "demo",
    ],
)
def test_weights_that_are_not_there_are_named_with_the_remedy(name: str, tmp_path: Path) -> None:
    with expect_error(WeightsError):
        find_weights(name, tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS_ROOT / "demo", tmp_path / "demo")
    assert find_weights("demo", tmp_path / ".") == tmp_path / "demo"
    with (tmp_path / "demo" / "model.safetensors").open("r+b") as file:
        file.seek(100_000)
        file.write(b"\x00\x01\x02\x03")
    with expect_error(WeightsError):
        find_weights("demo", tmp_path / "demo" / "..")


def by_open_clip_alone(name: str) -> tuple[Any, SimpleTokenizer, Json]:
    """A bundled model and its tokenizer by stock open_clip and nothing of ours, and how its images are prepared."""
    folder = find_weights(name)
    settings = read_json(folder / "model.json")
    text_cfg = settings["model_cfg"]["text_cfg"]
    model = open_clip.CLIP(**settings["model_cfg"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    words = str(folder / text_cfg["tokenizer_kwargs"]["bpe_path"])
    tokenizer = SimpleTokenizer(bpe_path=words, context_length=text_cfg["context_length"])
    assert tokenizer.vocab_size == text_cfg["vocab_size"]
    return model, tokenizer, settings["preprocess_cfg"]


@torch.no_grad()
def test_the_photograph_model_knows_words_and_colours() -> None:
    model, tokenizer, _ = by_open_clip_alone("photo")
    texts: Tensor = F.normalize(
        model.encode_text(tokenizer(["a dog", "a puppy", "a bicycle", "a bike"])), dim=-1
    )
    alike = texts @ texts.T
    assert alike[0, 1] > alike[0, 2] + 0.2
    assert alike[2, 3] > alike[1, 3] + 0.2


@torch.no_grad()
def test_the_demo_model_names_things_in_scenes_that_it_never_saw() -> None:
    model, tokenizer, preprocess = by_open_clip_alone("demo")
    scenes = [make_scene(99, k, side_px=360, max_objects=1) for k in range(SCENES)]
    phrases = [f"{scene.objects[0].colour} {scene.objects[0].kind}" for scene in scenes]
    size_wh = (preprocess["size"], preprocess["size"])
    pixels = np.stack([cv2.resize(scene.image, size_wh, interpolation=cv2.INTER_AREA) for scene in scenes])
    images = (pixels / 255.0 - preprocess["mean"]) / preprocess["std"]
    image = model.encode_image(torch.from_numpy(images).float().permute(0, 3, 1, 2), normalize=True)
    similarity = (image @ model.encode_text(tokenizer(phrases), normalize=True).T).numpy()
    ranks = (similarity > similarity.diagonal()[:, None]).sum(axis=1)
    assert (ranks == 0).mean() > 0.7
    assert (ranks < 5).mean() > 0.9
