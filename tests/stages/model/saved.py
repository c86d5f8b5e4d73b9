"""Tiny models as files: a model JSON and a checkpoint beside it."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import ModelConfig, ModelDescription
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import load
from phrasebox.stages.model.module import build_module
from tests.build.files import write_json
from tests.factories import SPEC, TOWERS, architecture_of, tiny_architecture, tiny_clip


def save_json(folder: Path, *, quick_gelu: bool = False, wrapped: bool = True, **vision: Any) -> Path:
    """The tiny architecture as open_clip writes it, or bare; returns the file."""
    architecture = {**tiny_architecture(**vision), "quick_gelu": quick_gelu}
    preprocess = {"mean": SPEC.mean, "std": SPEC.std, "interpolation": "bicubic"}
    path = folder / "tiny.json"
    write_json(path, {"model_cfg": architecture, "preprocess_cfg": preprocess} if wrapped else architecture)
    return path


def save_model(folder: Path, **options: Any) -> tuple[nn.Module, ModelConfig]:
    """A tiny model and the configuration that loads it from `folder` on the CPU."""
    vision = {key: value for key, value in options.items() if key not in ("seed", "spread")}
    return _saved(tiny_clip(**options), save_json(folder, **vision))


def save_tower(folder: Path, tower: str) -> tuple[nn.Module, ModelConfig]:
    """A model of `TOWERS` and the configuration that loads it from `folder` on the CPU."""
    make, spec = TOWERS[tower]
    preprocess = {"mean": spec.mean, "std": spec.std, "interpolation": "bicubic"}
    content = {"model_cfg": architecture_of(tower), "preprocess_cfg": preprocess}
    return _saved(make(), write_json(folder / "tiny.json", content))


def _saved(model: nn.Module, path: Path) -> tuple[nn.Module, ModelConfig]:
    """Save the weights beside the model file."""
    weights = path.with_suffix(".safetensors")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    return model, ModelConfig(config=path, weights=weights, device="cpu", precision="fp32", threads=1)


def assert_scales_as(clip: ClipModel, model: Any) -> None:
    """The loaded model has the logit scale and bias of the original, of open_clip or of transformers."""
    bias = getattr(model, "logit_bias", None)
    assert clip.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    assert clip.logit_bias == (None if bias is None else pytest.approx(bias.item(), rel=1e-6))


def load_model(config: ModelConfig) -> ClipModel:
    """The model of a configuration, on its device and in its precision."""
    return load(describe(config), device=config.device, precision=config.precision, threads=config.threads)


def shapes_of(name: str, **options: Any) -> dict[str, Tensor]:
    """Tensors with the shapes of a model of open_clip, each of one number, so that a file of them is small."""
    architecture = {**open_clip.get_model_config(name), **options}
    with torch.device("meta"):
        model = build_module(ModelDescription(name=name, architecture=architecture, input=SPEC))
    return {name: torch.zeros(()).expand(value.shape) for name, value in model.state_dict().items()}


def embedding(model: Any, rgb: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`encode_image` of an open_clip model, from pixels 0 .. 255."""
    mean = torch.tensor(SPEC.mean)[:, None, None]
    std = torch.tensor(SPEC.std)[:, None, None]
    with torch.no_grad():
        output = model.encode_image(((rgb.permute(0, 3, 1, 2).float() / 255 - mean) / std).to(dtype))
    return output[0] if isinstance(output, tuple) else output
