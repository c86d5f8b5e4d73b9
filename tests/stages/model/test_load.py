import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.explain.grad_eclip import GradEclip, GradEclipConfig
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.module import WithoutRandomNumbers, module_of
from phrasebox.stages.model.towers.from_open_clip import build_image_tower
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.closeness import assert_close
from tests.factories import SPEC, tiny_clip
from tests.messages import expect_error
from tests.stages.explain.models import tokenizer
from tests.stages.model.saved import (
    assert_scales_as,
    embedding,
    load_model,
    save_json,
    save_model,
    save_tower,
    shapes_of,
)

RGB = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_is(clip: Any, model: nn.Module) -> None:
    """The loaded model computes what the original computes, for images and texts."""
    assert_close(clip.tower.encode(RGB), embedding(model, RGB))
    with torch.no_grad():
        texts = model.encode_text(tokenizer(["a red car", "two dogs"]))
    assert_close(clip.encode_text(["a red car", "two dogs"]), texts)
    assert_scales_as(clip, model)


def test_config_and_safetensors(tmp_path: Path) -> None:
    model, config = save_model(tmp_path, ls_init_value=0.1)
    clip = load_model(config)
    assert_is(clip, model)
    assert (clip.name, clip.embed_dim, clip.input) == ("tiny", 48, SPEC)
    assert str(clip.device) == "cpu"
    save_json(tmp_path, wrapped=False, ls_init_value=0.1)
    assert_is(load_model(config), model)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_models_encode_as_open_clip_does_and_can_be_explained(
    precision: torch.dtype,
) -> None:
    """open_clip leaves layer norms and embeddings in float32."""
    model = tiny_clip(precision=precision)
    clip = from_open_clip(model, tokenizer, SPEC)
    ours = clip.tower.encode(RGB)
    theirs = embedding(model, RGB, precision)
    assert ours.dtype == theirs.dtype == precision
    step = (
        torch.finfo(precision).eps * theirs.abs().max()
    )  # both round to `precision` after each of ~50 operations
    assert (ours - theirs).abs().max() <= 8 * step
    reference = from_open_clip(tiny_clip(), tokenizer, SPEC)
    [maps], [exact] = (
        GradEclip(GradEclipConfig(), c).explain(RGB.numpy()[:1], [["a red car"]]) for c in (clip, reference)
    )
    assert np.abs(maps[0].values - exact[0].values).max() < 0.1 * exact[0].values.max()
    assert maps[0].similarity == pytest.approx(exact[0].similarity, abs=0.02)


def test_openai_layout(tmp_path: Path) -> None:
    """The state dict of OpenAI's files: 16 bits, three more tensors, and QuickGELU, which the model file lacks."""
    _, config = save_model(tmp_path)
    model = tiny_clip(quick_gelu=True)
    model.logit_scale.data.fill_(math.log(100))
    model.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    state = {key: value.half() for key, value in model.state_dict().items()}
    extra = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    torch.save(
        {**state, **{key: torch.tensor(number) for key, number in extra.items()}}, tmp_path / "openai.pt"
    )
    other = config.model_copy(update={"weights": tmp_path / "openai.pt"})
    clip = load_model(other)
    assert_is(clip, model)
    assert not torch.allclose(clip.tower.encode(RGB), load_model(config).tower.encode(RGB), atol=1e-3)
    assert describe(other).layout == "OpenAI's CLIP"


def test_weights_are_refused_before_any_work(tmp_path: Path) -> None:
    model, config = save_model(tmp_path, layers=3)
    assert describe(config).layout == "open_clip"
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "tiny.safetensors").read_bytes()[:5000])
    state = model.state_dict()
    torch.save({**state, "logit_scale": torch.ones(3)}, tmp_path / "odd.pt")
    torch.save(
        {"a": torch.ones(1), **{k: v for k, v in state.items() if "ln_1" not in k}}, tmp_path / "other.pt"
    )
    for file in ("cut.safetensors", "odd.pt", "other.pt"):
        with expect_error(WeightsError, key="model.weights"):
            describe(config.model_copy(update={"weights": tmp_path / file}))
    save_json(tmp_path, layers=4)
    with expect_error(WeightsError, key="model.weights"):
        load_model(config)


@pytest.mark.parametrize(
    "architecture",
    [
        {"embed_dim": "x", "vision_cfg": 5, "text_cfg": []},
        {
            "embed_dim": 8,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "width": -1, "layers": 1},
            "text_cfg": {},
        },
        {"embed_dim": 8, "vision_cfg": {"image_size": 32, "patch_size": 8, "widht": 64}, "text_cfg": {}},
    ],
    ids=["no keys", "width", "unknown key"],
)
def test_a_model_file_that_makes_no_sense(architecture: Json, tmp_path: Path) -> None:
    _, config = save_model(tmp_path)
    write_json(tmp_path / "tiny.json", {"model_cfg": architecture})
    with expect_error(ConfigError, key="model.config"):
        describe(config)


def test_a_model_is_checked_without_memory_for_it(tmp_path: Path, monkeypatch) -> None:
    """Its files may be in the home folder."""
    devices: set[str] = set()

    def note_devices(visual: torch.nn.Module, *arguments: Any) -> Any:
        devices.update(parameter.device.type for parameter in visual.parameters())
        return build_image_tower(visual, *arguments)

    monkeypatch.setattr("phrasebox.stages.model.describe.build_image_tower", note_devices)
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(shapes_of("ViT-bigG-14"), tmp_path / "weights.pt")
    config = ModelConfig(name="ViT-bigG-14", weights=Path("~/weights.pt"))
    assert describe(config).tower == "class_token"
    assert devices == {"meta"}


def test_text_towers_of_hugging_face_need_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phrasebox.stages.model.module.find_spec", lambda name: None)
    (tmp_path / "weights.pt").touch()
    with expect_error(ConfigError, key="model.name"):
        describe(ModelConfig(name="nllb-clip-base", weights=tmp_path / "weights.pt"))


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "vit_relpos_medium_patch16_cls_224"])
def test_other_towers_of_open_clip_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with expect_error(ConfigError, key="model.name"):
        describe(ModelConfig(name=name, weights=tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    "vision",
    [
        {"image_size": [32, 64]},
        {"patch_size": [8, 16]},
        {"attentional_pool": True},
        {"pool_type": "none"},
        {"qk_norm": True},
        {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "max"},
        {"timm_model_name": "hf-hub:somebody/something", "timm_pool": "map"},
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_tower_options_that_change_the_formula_are_rejected(vision: Json, tmp_path) -> None:
    path = save_json(tmp_path, **vision)
    with expect_error(ConfigError, key="model.config"):
        describe(ModelConfig(config=path, weights=path))


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"ls_init_value": 0.1},
        {"no_ln_pre": True},
        {"patch_dropout": 0.5},
        {"final_ln_after_pool": True},
        {"pool_type": "avg"},
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"norm_kwargs": {"eps": 1e-3}},
        {"act_kwargs": {"approximate": "tanh"}},
        {"output_tokens": True},
    ],
    ids=lambda value: next(iter(value), "plain"),
)
def test_tower_options_that_do_not_are_supported(vision: Json, tmp_path: Path) -> None:
    model, config = save_model(tmp_path, **vision)
    assert describe(config).tower == ("average_pool" if vision.get("pool_type") == "avg" else "class_token")
    clip = from_open_clip(model, tokenizer, SPEC)
    assert_close(clip.tower.encode(RGB), embedding(model, RGB))


@pytest.mark.parametrize("tower", ["class token", "ResNet", "timm, SAME"])
def test_every_number_of_a_loaded_module_is_the_checkpoint_s(tower: str, tmp_path: Path) -> None:
    """It is built without random numbers, which take a second for a ViT-B-32."""
    model, config = save_tower(tmp_path, tower)
    description = describe(config)
    loaded = module_of(description)
    expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_only_random_numbers_are_left_out() -> None:
    with WithoutRandomNumbers():
        norm = nn.BatchNorm2d(3)
        ones = nn.init.ones_(torch.zeros(3))
        zeros = (
            nn.init.normal_(torch.zeros(3)),
            torch.zeros(3).uniform_(),
            nn.init.xavier_normal_(tensor=torch.zeros(3, 3)),
        )
    assert torch.equal(norm.running_var, torch.ones(3))
    assert torch.equal(ones, torch.ones(3))
    assert not any(each.any() for each in zeros)
    assert nn.init.normal_(torch.zeros(3)).any(), "outside of the block they are drawn"
