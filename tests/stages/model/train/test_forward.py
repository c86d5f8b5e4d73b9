"""The training forward pass gives open_clip's own numbers."""

from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from stages.model.train.forward import cut_patches, encode_image, encode_text
from stages.model.train.loop import VOCABULARY_FILE, load_tokenizer
from stages.model.train.model import build_model
from stages.model.train.tokenizer import write_vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder / VOCABULARY_FILE)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def model(tokenizer: SimpleTokenizer) -> CLIP:
    torch.manual_seed(0)
    return build_model(tokenizer, 70).eval()


def test_images_as_open_clip(model: CLIP) -> None:
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True)
        assert torch.allclose(encode_image(model, images), expected, atol=2e-6)


def test_keeping_every_patch_in_any_order_changes_nothing(model: CLIP) -> None:
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(2))
    keep = torch.stack([torch.randperm(49), torch.randperm(49)])
    with torch.no_grad():
        whole = encode_image(model, images)
        assert torch.allclose(encode_image(model, images, keep=keep), whole, atol=2e-6)
        assert not torch.allclose(encode_image(model, images, keep=keep[:, :24]), whole, atol=1e-3)


def test_left_out_patches_are_not_seen(model: CLIP) -> None:
    images = torch.randn(1, 3, 70, 70, generator=torch.Generator().manual_seed(3))
    changed = images.clone()
    changed[:, :, :10, :10] = 5.0
    keep = torch.arange(1, 49).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(encode_image(model, images, keep=keep), encode_image(model, changed, keep=keep))


def test_texts_as_open_clip(model: CLIP, tokenizer: SimpleTokenizer) -> None:
    tokens = tokenizer(["a red car", "two blue fish next to the big yellow house", "zebra"])
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
        assert torch.allclose(encode_text(model, tokens), expected, atol=2e-6)


def test_patches_are_row_major(model: CLIP) -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert cut_patches(image, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
