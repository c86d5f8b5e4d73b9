"""What every entry of EXPLAINERS promises: through the configuration and the stage, as a run takes it, and by itself.

A new explainer is tested as soon as it is in the table.
"""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from pipeline.config import load_config, stored_config
from stages.contract.records import Phrase, Pixels, Record, Sample
from stages.explain import EXPLAINERS, explainer_type
from stages.explain.base import Explainer
from stages.explain.stage import ExplainStage, ExplainStageConfig
from stages.model.load import from_open_clip
from tests.factories import SPEC, tiny_clip
from tests.stages.model.saved import save_model

PHRASES = [["red car", "dog", "two green fish"], [], ["dog"]]
tokenizer = open_clip.get_tokenizer("ViT-B-32")

kinds = pytest.mark.parametrize("kind", EXPLAINERS)


def pixels(height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (len(PHRASES), height, width, 3), dtype=np.uint8)


def explainer_of(kind: str, model: nn.Module, **settings: Any) -> Explainer[Any]:
    explainer = explainer_type(kind)
    return explainer(explainer.config_type(**settings), from_open_clip(model, tokenizer, SPEC))


def state_of(model: nn.Module) -> list[Any]:
    """All that an explainer could leave behind."""
    hooks = [name for name, value in vars(nn.Module()).items() if "hooks" in name and isinstance(value, dict)]
    modules = [
        (
            name,
            module.training,
            getattr(module.forward, "__func__", module.forward),
            "forward" in vars(module),
            *(len(vars(module)[h]) for h in hooks),
        )
        for name, module in model.named_modules()
    ]
    parameters = [
        (name, id(p), p.requires_grad, p.grad, p.dtype, p.device, p._version) for name, p in model.named_parameters()
    ]
    return [modules, parameters, [(name, id(b), b._version) for name, b in model.named_buffers()]]


def make_model() -> nn.Module:
    """In training mode, half of the parameters frozen: nothing that an explainer would want."""
    model = tiny_clip().train()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    return model


@kinds
def test_the_kind_is_the_key(kind: str) -> None:
    assert explainer_type(kind).config_type().kind == kind


@kinds
def test_a_run_takes_it(kind: str, tmp_path: Path) -> None:
    """From a configuration through the graph's own stage to maps, and back from what `dataset.json` stores."""
    keys = ["input.kind=jsonl", "input.path=a.jsonl", f"explain.kind={kind}", "model.batch_size=2"]
    config = load_config(None, keys)
    assert stored_config(json.loads(config.model_dump_json())) == config
    stage_config = ExplainStageConfig(model=save_model(tmp_path)[1], explainer=config.explain)
    stage = pickle.loads(pickle.dumps(ExplainStage(stage_config)))
    stage.setup()
    phrases = tuple(Phrase(text=text, caption_index=0, start=0, end=3, head="dog") for text in PHRASES[0])
    rgb = pixels()[0]
    answers = stage.process(
        [
            Record(sample=Sample(sample_id=name, source="test"), phrases=phrases, pixels=Pixels(rgb=rgb))
            for name in ("a", "b", "c")
        ]
    )
    stage.teardown()
    for answer in answers:
        assert [heat_map.text for heat_map in answer.heat_maps] == PHRASES[0]
        assert all(heat_map.values.shape == (4, 4) for heat_map in answer.heat_maps)
    assert config.explain.canvas(SPEC)["patch_px"] == SPEC.patch_px
    assert config.explain.decides_maps()["kind"] == kind


@kinds
def test_no_setting_is_left_to_be_resolved(kind: str) -> None:
    """A dataset says which settings made it: nothing but a setting that may be none is stored as null."""
    config_type = explainer_type(kind).config_type
    stored = config_type().model_dump(mode="json")
    for name, value in stored.items():
        assert value is not None or config_type.model_fields[name].default is None, name
    assert config_type.model_validate(stored) == config_type()


@kinds
def test_settings_are_closed(kind: str) -> None:
    config_type = explainer_type(kind).config_type
    assert config_type.model_config["extra"] == "forbid"
    assert config_type.model_config["frozen"]


@kinds
def test_shapes_order_and_range(kind: str) -> None:
    for height, width in ((32, 32), (24, 56)):
        answers = explainer_of(kind, tiny_clip()).explain(pixels(height, width), PHRASES)
        assert [[heat_map.text for heat_map in maps] for maps in answers] == PHRASES
        for heat_map in (heat_map for maps in answers for heat_map in maps):
            assert heat_map.values.shape == (height // 8, width // 8)
            assert heat_map.values.dtype == np.float32
            assert np.isfinite(heat_map.values).all()
            assert (heat_map.values >= 0).all()
            assert heat_map.values.any() != bool(heat_map.fault)
            assert -1 <= heat_map.similarity <= 1
            assert isinstance(heat_map.similarity, float)


@kinds
def test_no_phrases_no_maps(kind: str) -> None:
    assert explainer_of(kind, tiny_clip()).explain(pixels(), [[], [], []]) == [[], [], []]


@kinds
def test_the_same_input_gives_the_same_bytes(kind: str) -> None:
    model, rgb = tiny_clip(), pixels()
    given = rgb.copy()
    explainer = explainer_of(kind, model)
    answers = [explainer.explain(rgb, PHRASES), explainer.explain(rgb, PHRASES)]
    torch.manual_seed(99)  # no global random state
    answers.append(explainer_of(kind, model).explain(rgb, PHRASES))
    marks = [[(m.values.tobytes(), m.similarity, m.fault) for maps in answer for m in maps] for answer in answers]
    assert marks[0] == marks[1] == marks[2]
    assert np.array_equal(rgb, given)


@kinds
def test_an_image_does_not_depend_on_its_neighbours(kind: str) -> None:
    explainer, rgb = explainer_of(kind, tiny_clip()), pixels()
    together = explainer.explain(rgb, PHRASES)
    turned = explainer.explain(rgb[::-1].copy(), PHRASES[::-1])[::-1]
    for one, other in zip(together, turned, strict=True):
        for a, b in zip(one, other, strict=True):
            assert np.array_equal(a.values, b.values)


@kinds
def test_nothing_is_left_on_the_model(kind: str) -> None:
    model = make_model()
    images, before = torch.randn(2, 3, 32, 32), state_of(model)
    weights, outputs = copy.deepcopy(model.state_dict()), model.encode_image(images)
    explainer = explainer_of(kind, model)
    explainer.explain(pixels(), PHRASES)
    del explainer
    assert state_of(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.encode_image(images), outputs)


@kinds
def test_nothing_is_left_on_the_model_after_an_error(kind: str) -> None:
    model = make_model()
    before, outputs = state_of(model), model.encode_text(tokenizer(["dog"]))
    explainer = explainer_of(kind, model)
    with pytest.raises(ValueError, match="multiples of the 8 px patch"):
        explainer.explain(pixels(30, 32), PHRASES)
    with pytest.raises(ValueError, match="as many phrase lists as images"):
        explainer.explain(pixels(), PHRASES[:1])
    assert state_of(model) == before
    assert torch.equal(model.encode_text(tokenizer(["dog"])), outputs)
    assert len(explainer.explain(pixels(), PHRASES)[0]) == 3, "it still works"


@kinds
def test_nothing_is_left_on_a_model_that_raises(kind: str) -> None:
    model = make_model()
    gelu = model.visual.transformer.resblocks[-1].mlp.gelu
    calls = []

    def fail(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        raise RuntimeError("in the middle")

    gelu.forward = fail
    before = state_of(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        explainer_of(kind, model).explain(pixels(), PHRASES)
    assert calls
    assert state_of(model) == before
    assert torch.is_grad_enabled()
