from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

from pipeline.scenes.scene import make_scene, resize_image
from stages.contract.errors import WeightsError
from stages.shared.model.catalog import CATALOG, WEIGHTS_ROOT, resolve, sha256_of

SCENES = 40


def test_the_embedded_model_is_there_and_small() -> None:
    files = resolve("demo")
    assert files.config.name == "model.json"
    folder = files.config.parent
    assert folder == WEIGHTS_ROOT / "demo"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12_000_000


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_the_model_card_names_the_checksums(name: str) -> None:
    card = (WEIGHTS_ROOT / name / "MODEL_CARD.md").read_text("utf-8")
    assert all(checksum in card for checksum in CATALOG[name].files.values())


def test_the_photograph_model_is_small_and_its_card_has_the_terms() -> None:
    files = resolve("photo")
    assert files.weights.stat().st_size <= 20_000_000
    card = (files.config.parent / "MODEL_CARD.md").read_text("utf-8")
    assert "non-commercial research and education" in card
    assert "No box, mask or point" in card


def test_the_photograph_model_is_loaded_by_open_clip_and_knows_words_and_colours() -> None:
    import stages.shared.model.towers.photo_trunk  # noqa: F401 - it names the trunk to timm

    files = resolve("photo")
    settings = json.loads(files.config.read_text("utf-8"))
    context = settings["model_cfg"]["text_cfg"]["context_length"]
    model = open_clip.CLIP(**settings["model_cfg"]).eval()
    model.load_state_dict(load_file(files.weights))
    tokenizer = SimpleTokenizer(bpe_path=str(files.config.parent / "bpe_vocab.txt.gz"), context_length=context)
    with torch.no_grad():
        texts = F.normalize(model.encode_text(tokenizer(["a dog", "a puppy", "a bicycle", "a bike"])), dim=-1)
    alike = texts @ texts.T
    assert alike[0, 1] > alike[0, 2] + 0.2
    assert alike[2, 3] > alike[1, 3] + 0.2


def test_weights_that_only_the_repository_has_say_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing from the weights 'photo': photo is in phrasebox's repository"):
        resolve("photo", tmp_path)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="expected one of demo, photo, got 'dmeo'"):
        resolve("dmeo")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.json is missing .*reinstall phrasebox"):
        resolve("demo", tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS_ROOT / "demo", tmp_path / "demo")
    assert resolve("demo", tmp_path / ".").weights.is_file()
    with (tmp_path / "demo" / "model.safetensors").open("r+b") as file:
        file.seek(100_000)
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(WeightsError, match=r"model\.safetensors is not the file"):
        resolve("demo", tmp_path / "demo" / "..")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_the_embedded_model_names_things_in_scenes_that_it_never_saw() -> None:
    """It is loaded by stock open_clip and nothing of ours."""
    files = resolve("demo")
    settings = json.loads(files.config.read_text("utf-8"))
    architecture, preprocess = settings["model_cfg"], settings["preprocess_cfg"]
    model = open_clip.CLIP(**architecture).eval()
    model.load_state_dict(load_file(files.weights))
    text_cfg = architecture["text_cfg"]
    tokenizer = SimpleTokenizer(
        bpe_path=str(files.config.parent / text_cfg["tokenizer_kwargs"]["bpe_path"]),
        context_length=text_cfg["context_length"],
    )
    assert tokenizer.vocab_size == text_cfg["vocab_size"]

    scenes = [make_scene(99, k, side_px=360, max_objects=1) for k in range(SCENES)]
    phrases = [f"{scene.objects[0].colour} {scene.objects[0].kind}" for scene in scenes]
    pixels = np.stack([resize_image(scene.image, preprocess["size"]) for scene in scenes])
    images = (pixels / 255.0 - preprocess["mean"]) / preprocess["std"]
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images).float().permute(0, 3, 1, 2), normalize=True)
        text = model.encode_text(tokenizer(phrases), normalize=True)
    similarity = (image @ text.T).numpy()
    own = similarity.diagonal()
    ranks = (similarity > own[:, None]).sum(axis=1)
    assert (ranks == 0).mean() > 0.7
    assert (ranks < 5).mean() > 0.9
