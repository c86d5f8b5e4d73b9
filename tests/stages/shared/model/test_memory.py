"""What a worker keeps in memory of a model: the bytes of all tensors that can be reached from it."""

from __future__ import annotations

import gc
import types
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.explain.stage import ExplainStage, ExplainStageConfig
from stages.shared.model.load import from_open_clip
from stages.shared.model.towers.vision import VisionTower, can_pack
from tests.factories import SPEC, TOWERS, tiny_clip
from tests.stages.explain.test_stage import make_record
from tests.stages.shared.model.saved import save_model

tokenizer = open_clip.get_tokenizer("ViT-B-32")


def tensors_of(root: Any) -> dict[int, int]:
    """Address -> bytes of the memory of every tensor that can be reached from an object; one that is shared is one."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    todo: list[Any] = [root]
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, (types.ModuleType, type, types.CodeType)):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            if each.is_mkldnn:
                found[id(each)] = each.numel() * each.element_size()
            elif each.device.type != "meta":
                storage = each.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(each, types.FunctionType):  # not its globals, which reach everything
            todo += [cell.cell_contents for cell in each.__closure__ or ()]
        else:
            todo += gc.get_referents(each)
    return found


def bytes_of(*roots: Any) -> int:
    found: dict[int, int] = {}
    for root in roots:
        found |= tensors_of(root)
    return sum(found.values())


def weights(*modules: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


@pytest.mark.usefixtures("packs")
@pytest.mark.skipif(not can_pack(), reason="needs oneDNN's packed products")
def test_a_worker_keeps_what_it_computes_with(tmp_path) -> None:
    model, config = save_model(tmp_path)
    stage = ExplainStage(ExplainStageConfig(model=config, explainer=GradEclipConfig(blocks=1)))
    stage.setup()
    blocks = list(model.visual.transformer.resblocks)  # type: ignore[union-attr, arg-type, operator]
    linears = [[part.attn.in_proj_weight, part.attn.out_proj.weight, *matrices(part.mlp)] for part in blocks]
    sizes = [sum(weight.numel() * 4 for weight in own) for own in linears]
    # The last block's weights stand there plain and packed, and once more the part of them that makes keys and values.
    wanted = weights(model) + sizes[-1] + linears[-1][0].numel() * 4 * 2 // 3
    assert bytes_of(stage) == pytest.approx(wanted, abs=4000), "everything else once"
    stage.process([make_record(0)])
    stage.teardown()


def matrices(mlp: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in mlp.parameters() if parameter.ndim == 2]


@pytest.mark.parametrize("tower", ["class token", "SigLIP"])
def test_texts_do_not_keep_the_image_tower(tower: str) -> None:
    """Also of a text tower that cannot be taken apart."""
    make, spec = TOWERS[tower]
    model = make()
    if tower == "SigLIP":
        model.text.pool_type = "last"
    clip = from_open_clip(model, tokenizer, spec)
    assert (clip.encode_text.tower is None) == (tower == "SigLIP")  # type: ignore[attr-defined]
    assert (
        not tensors_of([clip.encode_text, clip.text_side]).keys() & tensors_of(list(model.visual.parameters())).keys()
    )
    assert model.visual is not None, "the model itself keeps it"
    wanted = model.encode_text(tokenizer(["a red car"]))
    assert torch.allclose(clip.encode_text(["a red car"]), wanted, atol=1e-5)


def test_sixteen_bits_are_all_that_is_kept_of_the_trunk() -> None:
    model = tiny_clip()
    whole = weights(model.visual)
    clip = from_open_clip(model, tokenizer, SPEC, precision=torch.bfloat16)
    assert bytes_of(clip.tower) == pytest.approx(whole / 2, rel=0.02)
    assert bytes_of(clip) == pytest.approx(weights(model) - whole / 2, rel=0.02)


@pytest.mark.usefixtures("packs")
@pytest.mark.skipif(not can_pack(), reason="needs oneDNN's packed products")
@pytest.mark.parametrize("settings", [{}, {"path": "full"}, {"blocks": 2, "heads": "single"}], ids=str)
def test_maps_have_the_same_bits_without_the_plain_weights(settings: dict[str, Any]) -> None:
    config = GradEclipConfig(**settings)
    record = make_record(0)
    assert record.pixels is not None
    maps = []
    for plain in (None, GradEclip.plain_blocks(config)):
        clip = from_open_clip(tiny_clip(layers=6), tokenizer, SPEC, pack=True, plain_blocks=plain)
        assert isinstance(clip.tower, VisionTower)
        assert (clip.tower.blocks[0].fc.weight.device.type == "meta") == (plain is not None)
        maps.append(GradEclip(config, clip).explain(record.pixels.rgb[None], [["dog", "red car"]])[0])
    for one, other in zip(*maps, strict=True):
        assert (one.values.tobytes(), one.similarity) == (other.values.tobytes(), other.similarity)
