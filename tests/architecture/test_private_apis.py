"""Canaries: undocumented parts of libraries that we use, see the table in `stages/model/__init__.py`.

A failure here after an update means that the part has to be looked at again, and the version in the table raised.
"""

from __future__ import annotations

import inspect

import open_clip
import pytest
import torch
from open_clip import transformer
from open_clip.tokenizer import SimpleTokenizer, get_pairs

from tests.factories import tiny_architecture, tiny_clip

VISUAL = {"class_embedding", "positional_embedding", "conv1", "ln_pre", "transformer", "ln_post", "proj"}
BLOCKS = {
    transformer.ResidualAttentionBlock: {"ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"},
    transformer.CustomResidualAttentionBlock: {"ln_1", "attn", "ln_attn", "ls_1", "ln_2", "mlp", "ls_2"},
}


@pytest.mark.parametrize("block_type", ["default", "custom"])
def test_open_clip_s_image_towers_have_the_parts_that_we_take_and_no_others(block_type: str) -> None:
    """That they compute what we compute from these parts is tested in tests/stages/model/test_vision.py."""
    visual = tiny_clip(block_type=block_type, ls_init_value=0.1).visual
    parts = {name for name, _ in visual.named_children()} | set(visual._parameters)
    assert parts - {"patch_dropout"} == VISUAL
    assert {"pool_type", "attn_pool", "grid_size", "patch_size", "image_size", "output_dim"} <= vars(visual).keys() | {
        *visual._modules
    }
    block = visual.transformer.resblocks[0]
    assert {name for name, _ in block.named_children()} == BLOCKS[type(block)]
    assert {name for name, _ in block.mlp.named_children()} - {"ln"} == {"c_fc", "gelu", "c_proj"}


def test_open_clip_s_attention_has_the_options_that_we_refuse_and_no_others() -> None:
    known = {"self", "dim", "num_heads", "qkv_bias", "attn_drop", "proj_drop"}
    refused = {"qk_norm", "scaled_cosine", "scale_heads", "inner_norm", "logit_scale_max", "norm_layer"}
    assert set(inspect.signature(transformer.Attention.__init__).parameters) == known | refused


def test_open_clip_s_text_tower_has_the_parts_that_we_use() -> None:
    """That cut texts are embedded as whole ones is tested in tests/stages/model/test_clip.py."""
    model = tiny_clip()
    assert model.transformer.get_cast_dtype() == torch.float32
    assert model.text_pool_type == "argmax"
    for name in ("token_embedding", "positional_embedding", "attn_mask", "ln_final", "text_projection"):
        assert getattr(model, name) is not None


def test_open_clip_builds_from_model_files_and_converts_their_weights() -> None:
    plain, custom = tiny_clip(), open_clip.CustomTextCLIP(**tiny_architecture())
    converted = open_clip.model.convert_to_custom_text_state_dict(plain.state_dict())
    assert custom.load_state_dict(converted).missing_keys == []


def test_open_clip_s_tags_say_how_images_are_normalised() -> None:
    found = open_clip.get_pretrained_cfg("ViT-B-16", "openai")
    assert {"mean", "std", "interpolation", "quick_gelu"} <= found.keys()


def test_open_clip_s_tokenizers_take_our_options() -> None:
    assert {"bpe_path", "context_length"} <= inspect.signature(SimpleTokenizer.__init__).parameters.keys()
    tokenizer = SimpleTokenizer(context_length=8)
    assert tokenizer.encoder["<end_of_text>"] == 49407
    assert tokenizer.bpe_ranks["i", "n"] == 0
    assert get_pairs(("r", "e", "d</w>")) == {("r", "e"), ("e", "d</w>")}
    options = inspect.signature(open_clip.tokenizer.HFTokenizer.__init__).parameters
    assert {"tokenizer_name", "context_length", "clean", "strip_sep_token", "language", "tokenizer_mode"} <= set(
        options
    )


def test_torch_packs_linear_weights() -> None:
    """Where it no longer does, `can_pack` answers no, and runs on CPUs get 10 to 20 % slower."""
    from stages.model.packed import can_pack

    assert can_pack() or not torch.backends.mkldnn.is_available()


def test_torch_averages_weights_in_place() -> None:
    average = [torch.zeros(2)]
    torch._foreach_lerp_(average, [torch.ones(2)], 0.25)
    assert average[0].tolist() == [0.25, 0.25]
