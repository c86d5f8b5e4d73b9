"""What a worker keeps in memory of a model: the bytes of all tensors that can be reached from it."""

import gc
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phrasebox.stages.explain.grad_eclip import GradEclipConfig
from phrasebox.stages.explain.stage import ExplainStage, ExplainStageConfig
from phrasebox.stages.model import text_encoder
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import from_open_clip
from tests.closeness import assert_close
from tests.factories import SPEC, tiny_clip
from tests.stages.explain.models import tokenizer
from tests.stages.explain.test_stage import make_record
from tests.stages.model.saved import save_model


def tensors_of(root: Any) -> dict[int, int]:
    """Address -> bytes of the memory of every tensor that can be reached from an object; one that is shared is one."""
    sizes: dict[int, int] = {}
    visited: set[int] = set()
    queue: list[Any] = [root]
    while queue:
        item = queue.pop()
        if id(item) in visited or isinstance(item, (types.ModuleType, type, types.CodeType)):
            continue
        visited.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, types.FunctionType):  # not its globals, which reach everything
            queue += [cell.cell_contents for cell in item.__closure__ or ()]
        else:
            queue += gc.get_referents(item)
    return sizes


def bytes_of(*roots: Any) -> int:
    sizes: dict[int, int] = {}
    for root in roots:
        sizes |= tensors_of(root)
    return sum(sizes.values())


def weights(*modules: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def test_a_worker_keeps_every_weight_once(tmp_path: Path) -> None:
    model, config = save_model(tmp_path)
    stage = ExplainStage(
        ExplainStageConfig(model=config, description=describe(config), explainer=GradEclipConfig(blocks=1))
    )
    stage.setup()
    assert bytes_of(stage) == pytest.approx(weights(model), abs=30_000), "and the causal mask"
    stage.process([make_record(0)])
    stage.teardown()


def test_texts_do_not_keep_the_image_tower() -> None:
    model = tiny_clip()
    clip = from_open_clip(model, tokenizer, SPEC)
    assert not tensors_of([clip.encode_text]).keys() & tensors_of(list(model.visual.parameters())).keys()
    assert model.visual is not None, "the model itself keeps it"
    expected = model.encode_text(tokenizer(["a red car"]))
    assert_close(clip.encode_text(["a red car"]), expected)


def test_sixteen_bits_are_all_that_is_kept_of_the_trunk_and_of_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_encoder, "LEAST_WIDTH_IN_16_BITS", 32)
    model = tiny_clip()
    whole = weights(model.visual)
    clip = from_open_clip(model, tokenizer, SPEC, precision=torch.bfloat16)
    assert bytes_of(clip.tower) == pytest.approx(whole / 2, rel=0.02)
    assert bytes_of(clip) == pytest.approx(weights(model) / 2, rel=0.02)
