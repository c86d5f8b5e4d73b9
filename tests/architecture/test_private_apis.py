"""Canaries: undocumented parts of libraries that we use, see below and `ray_data`.

A failure here after an update means that the part has to be looked at again, and the version in the table raised.

`stages/shared/model` uses these parts of open_clip 3.3 and torch 2.13. open_clip has an upper bound in pyproject.toml,
since a block that computes something else would give wrong heat maps without an error.

    what                                                              used in           if it changes
    open_clip.transformer: towers, blocks, attention and their        from_open_clip    wrong heat maps
        attributes; that no other attribute changes what they compute
    open_clip.modified_resnet.ModifiedResNet: its stages, `attnpool`  from_open_clip    wrong embeddings
        last; AttentionPool2d's projections and position embedding
    open_clip.timm_model.TimmModel: `trunk`, `head` and its `pool`;   from_timm         wrong embeddings
        timm's attention pools, `patch_embed`, `dynamic_img_size`,
        `strict_img_size`, `_use_cached_embed`, `dynamic_mask`,
        `pool_include_prefix`
    open_clip.CLIP and TextTransformer: token_embedding,              from_open_clip    wrong text embeddings
        positional_embedding, transformer.get_cast_dtype, attn_mask,
        ln_final, text_projection, text_pool_type, cls_emb, eos_id
    open_clip.CLIP(**model_cfg), open_clip.CustomTextCLIP(...),       load              own model files are rejected
        open_clip.model.convert_to_custom_text_state_dict
    open_clip.get_pretrained_cfg: mean, std, interpolation,           recognise, hub    images wrongly normalised,
        quick_gelu, hf_hub                                                              tags cannot be downloaded
    open_clip.tokenizer: SimpleTokenizer(bpe_path, context_length),   tokenizer         another vocabulary
        its encoder and bpe_ranks; HFTokenizer
    open_clip.timm_model.TimmModel: trunk and an empty head           load              SigLIP checkpoints are rejected
"""

import importlib
import inspect
import tomllib
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip import transformer
from open_clip.tokenizer import SimpleTokenizer

from pipeline.engines import RAY_ENVIRONMENT
from tests.factories import tiny_architecture, tiny_clip

ROOT = Path(__file__).parents[2]

VISUAL = {"class_embedding", "positional_embedding", "conv1", "ln_pre", "transformer", "ln_post", "proj"}
BLOCK = {"ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"}


def test_open_clip_s_image_towers_have_the_parts_that_we_take_and_no_others() -> None:
    """That they compute what we compute from these parts is tested in towers/test_vision.py."""
    visual = tiny_clip(ls_init_value=0.1).visual
    parts = {name for name, _ in visual.named_children()} | set(visual._parameters)
    assert parts - {"patch_dropout"} == VISUAL
    assert {"pool_type", "attn_pool", "grid_size", "patch_size", "image_size", "output_dim"} <= vars(
        visual
    ).keys() | {*visual._modules}
    block = visual.transformer.resblocks[0]
    assert type(block) is transformer.ResidualAttentionBlock
    assert {name for name, _ in block.named_children()} == BLOCK
    assert {name for name, _ in block.mlp.named_children()} == {"c_fc", "gelu", "c_proj"}


def test_open_clip_s_text_tower_has_the_parts_that_we_use() -> None:
    """That cut texts are embedded as whole ones is tested in tests/stages/shared/model/test_texts.py."""
    model = tiny_clip()
    assert model.transformer.get_cast_dtype() == torch.float32
    assert model.text_pool_type == "argmax"
    for name in ("token_embedding", "positional_embedding", "attn_mask", "ln_final", "text_projection"):
        assert getattr(model, name) is not None


def test_open_clip_s_causal_text_towers_are_recognised_by_these_names() -> None:
    text = open_clip.transformer.TextTransformer(width=32, heads=2, layers=1, pool_type="eos", eos_id=7)
    assert text.attn_mask.isneginf().tril().sum() == 0, "a token sees itself and those before it"
    assert (text.cls_emb, text.pool_type, text.eos_id, len(text.transformer.resblocks)) == (
        None,
        "eos",
        7,
        1,
    )


def test_open_clip_builds_from_model_files_and_converts_their_weights() -> None:
    plain, custom = tiny_clip(), open_clip.CustomTextCLIP(**tiny_architecture())
    converted = open_clip.model.convert_to_custom_text_state_dict(plain.state_dict())
    assert custom.load_state_dict(converted).missing_keys == []


def test_open_clip_s_tags_say_how_images_are_normalised() -> None:
    found = open_clip.get_pretrained_cfg("ViT-B-16", "openai")
    assert {"mean", "std", "interpolation", "quick_gelu", "hf_hub"} <= found.keys()
    without_repository = [
        pair
        for pair in open_clip.list_pretrained()
        if "/" not in open_clip.get_pretrained_cfg(*pair).get("hf_hub", "")
    ]
    assert without_repository == [], "their weights are not compared with a SHA-256 that the hub states"


def test_open_clip_s_tokenizers_take_our_options() -> None:
    assert {"bpe_path", "context_length"} <= inspect.signature(SimpleTokenizer.__init__).parameters.keys()
    tokenizer = SimpleTokenizer(context_length=8)
    assert tokenizer.encoder["<end_of_text>"] == 49407
    assert tokenizer.bpe_ranks["i", "n"] == 0
    options = inspect.signature(open_clip.tokenizer.HFTokenizer.__init__).parameters
    assert {
        "tokenizer_name",
        "context_length",
        "clean",
        "strip_sep_token",
        "language",
        "tokenizer_mode",
    } <= set(options)


def test_open_clip_s_siglip_towers_are_a_trunk_and_an_empty_head() -> None:
    """That they compute what transformers computes is tested in checkpoints/test_checkpoint.py."""
    with torch.device("meta"):
        tower = open_clip.timm_model.TimmModel("vit_base_patch16_siglip_224", 768, pool="map", proj="none")
    assert [name for name, _ in tower.named_children()] == ["trunk", "head"]
    assert len(tower.head) == 0
    assert open_clip.tokenizer.get_clean_fn("canonicalize")("Two  DOGS!") == "two dogs"


def test_timm_s_transformers_have_the_switches_for_images_of_other_sizes() -> None:
    """That they do what we want is tested in towers/test_pooled.py and test_real_towers.py."""
    for name, rotary in (("vit_tiny_patch16_224", False), ("eva02_tiny_patch14_224", True)):
        trunk = timm.create_model(name, num_classes=0)
        assert {"dynamic_img_size", "num_prefix_tokens", "global_pool", "blocks", "norm", "fc_norm"} <= {
            *vars(trunk),
            *trunk._modules,
        }
        assert trunk.patch_embed.strict_img_size is True
        assert {"flatten", "output_fmt", "grid_size", "patch_size"} <= vars(trunk.patch_embed).keys()
        assert not rotary or trunk.rope._use_cached_embed is True
    assert timm.create_model("test_vit", num_classes=0).pool_include_prefix is False
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    assert swin.patch_embed.strict_img_size is True
    assert swin.layers[0].blocks[0].dynamic_mask is False


def source_of(name: str) -> str:
    return inspect.getsource(importlib.import_module(name))


def test_ray_is_bound_to_the_version_whose_private_parts_were_seen() -> None:
    import ray

    from pipeline.engines import ray_data

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "ray[data]>=2.60,<2.61" in wanted
    assert ray.__version__.startswith("2.60.")
    assert "parts of Ray 2.60 are in use" in str(ray_data.__doc__)


def test_ray_still_warns_of_small_pools_in_these_words() -> None:
    from pipeline.engines.ray_data import POOL_WARNING

    assert POOL_WARNING in source_of("ray.data._internal.execution.operators.actor_pool_map_operator")


@pytest.mark.parametrize("name", RAY_ENVIRONMENT)
def test_ray_still_reads_the_environment_variable(name) -> None:
    """Of some the C++ side reads the part behind RAY_; it is in the compiled library."""
    import ray

    root = Path(ray.__file__).parent
    folders = ("_private", "_common", "data/_internal/cluster_autoscaler")
    texts = (path.read_bytes() for folder in folders for path in root.glob(f"{folder}/**/*.py"))
    library = (root / "_raylet.so").read_bytes()
    assert any(name.encode() in text for text in texts) or name.removeprefix("RAY_").encode() in library
