"""Tiny checkpoints of `transformers`."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.stages.model.hugging_face import (
    save_images,
    save_sentencepiece,
    transformers_clip,
    transformers_siglip,
)


@pytest.fixture(scope="session")
def clip() -> Any:
    return transformers_clip()


@pytest.fixture
def clip_folder(clip: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "my-clip"
    clip.save_pretrained(folder)
    save_images(folder)
    return folder


@pytest.fixture(scope="session")
def siglip_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with a SigLIP and its sentencepiece model; the model; and transformers' tokenizer. Only to be read."""
    folder = tmp_path_factory.mktemp("siglip") / "my-siglip"
    model = transformers_siglip()
    model.save_pretrained(folder)
    save_images(folder, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return folder, model, save_sentencepiece(folder)


@pytest.fixture
def siglip_folder(siglip_source: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(siglip_source[0], tmp_path / "my-siglip"))
