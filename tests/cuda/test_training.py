"""The verbs that measure and teach a model, on the simulated device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.research.finetune.config import FinetuneConfig
from pipeline.research.finetune.loop import finetune
from pipeline.research.score_model.probe import Embedder, ProbeConfig
from tests.cuda.both import both
from tests.cuda.simulated import SimulatedCuda
from tests.factories import TOWERS
from tests.pipeline.research.score_model.test_probe import picture


@pytest.mark.parametrize(
    "tower", [each if each == "class token" else pytest.param(each, marks=pytest.mark.slow) for each in TOWERS]
)
def test_the_probe_embeds_as_on_a_cpu(tower: str, cuda: SimulatedCuda) -> None:
    side = TOWERS[tower][1].size_px
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    pictures = [picture(noise[0], (0, 0, 0.5, 1), (0, 0, 1, 1)), picture(noise[1], (0.25, 0.5, 1, 1))]
    found = []
    for model in both(tower):
        embedder = Embedder(model, ProbeConfig(), batch_images=2)
        parts = embedder.embed_pictures(pictures)
        found.append([getattr(part, name) for part in parts for name in ("image", "roi", "mask", "crop")])
        found[-1] += [embedder.embed_classes(["car", "dog"]), embedder.embed_texts(["a car"])]
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["align", "captions"])
def test_a_training_learns_what_it_learns_on_a_cpu(
    recipe: str, inline_dataset: Path, tmp_path: Path, cuda: SimulatedCuda
) -> None:
    tuned = {}
    for device in ("cpu", "cuda"):
        values: dict[str, Any] = {"data": {"path": str(inline_dataset)}, "model": {"name": "demo", "device": device}}
        values |= {"out": str(tmp_path / device), "batch_size": 4, "learning_rate": 1e-4, "recipe": {"kind": recipe}}
        tuned[device] = finetune(FinetuneConfig.model_validate(values))
    assert tuned["cuda"].losses == pytest.approx(tuned["cpu"].losses, abs=1e-4)
    weights = [load_file(tuned[device].model / "open_clip_model.safetensors") for device in tuned]
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-4
    saved = torch.load(tmp_path / "cuda" / "latest.pt", weights_only=True, map_location="cpu")
    assert saved["step"] == tuned["cuda"].steps
    assert json.loads((tmp_path / "cuda" / "log.jsonl").read_text().splitlines()[-1])["step"] == saved["step"]
