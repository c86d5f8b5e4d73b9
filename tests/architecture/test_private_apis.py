"""Canaries: undocumented parts of libraries that we use, see below and `ray_data`.

A failure here after an update means that the part has to be looked at again, and the version in the table raised. The
tests of towers, texts and checkpoints fail where a part of the table is gone or computes something else. Here stands
what they would not notice.

`stages/model` uses these parts of open_clip 3.3 and torch 2.13. open_clip has an upper bound in pyproject.toml,
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

from phrasebox.pipeline.run.engines import RAY_ENVIRONMENT, RAY_VERSION

ROOT = Path(__file__).parents[2]


def test_open_clip_s_tags_say_how_images_are_normalised() -> None:
    found = open_clip.get_pretrained_cfg("ViT-B-16", "openai")
    assert {"mean", "std", "interpolation", "quick_gelu", "hf_hub"} <= found.keys()
    without_repository = [
        pair
        for pair in open_clip.list_pretrained()
        if "/" not in open_clip.get_pretrained_cfg(*pair).get("hf_hub", "")
    ]
    assert without_repository == [], "their weights are not compared with a SHA-256 that the hub states"


def source_of(name: str) -> str:
    return inspect.getsource(importlib.import_module(name))


def test_ray_is_bound_to_the_version_whose_private_parts_were_seen() -> None:
    import ray

    from phrasebox.pipeline.run.engines import ray_data

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["ray"] == ["ray[data]>=2.60,<2.61"]
    assert extras["ray"][0] in extras["dev"]
    assert ray.__version__.startswith(f"{RAY_VERSION}.")
    assert RAY_VERSION == "2.60"
    assert "parts of Ray 2.60 are in use" in str(ray_data.__doc__)


def test_ray_still_warns_of_small_pools_in_these_words() -> None:
    from phrasebox.pipeline.run.engines.ray_data import POOL_WARNING

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
