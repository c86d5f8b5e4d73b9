"""An open_clip text tower taken apart into what the importance of words is computed on.

`take_text_apart` refuses, with the reason, every tower in which words do not act through the one row that makes the
embedding, and every tokenizer that does not say which characters its tokens stand for.
"""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from stages.contract.errors import ConfigError
from stages.shared.model.deferred import open_clip
from stages.shared.model.towers.residual import WeightReader, obstacle_of
from stages.shared.model.towers.text import TextTower

NEEDS: Final = (
    "explain.importance=eos needs a transformer with a causal mask whose last row is the embedding, as CLIP's text "
    "towers have it; explain.importance=none leaves word importance out"
)


def check_tokenizer(tokenizer: Any) -> None:
    """Raise ConfigError if it is not known which characters the tokens of a tokenizer stand for."""
    if not isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        raise ConfigError(
            f"a {type(tokenizer).__name__} does not say which characters its tokens stand for; "
            "explain.importance=eos needs CLIP's own kind of tokenizer"
        )
    if tokenizer.reduction_fn is not None:
        raise ConfigError("the tokenizer leaves out tokens by chance; explain.importance=eos needs all of them")


def take_text_apart(model: Any) -> TextTower:
    """Take the text tower of an open_clip model apart; it is only read. Gradients: see `take_apart`.

    Raises:
        ConfigError: the importance of words is not defined on it, and why.
    """
    tower = getattr(model, "text", model)
    if not all(hasattr(tower, name) for name in ("transformer", "token_embedding", "attn_mask", "ln_final")):
        raise ConfigError(f"the text tower is a {type(tower).__name__}. {NEEDS}")
    if tower.attn_mask is None:
        raise ConfigError(f"each token of the text tower sees all others, before and behind it. {NEEDS}")
    if getattr(tower, "cls_emb", None) is not None:
        raise ConfigError(f"the text tower has a class token behind the text. {NEEDS}")
    pool = tower.text_pool_type if hasattr(tower, "text_pool_type") else tower.pool_type
    if pool not in ("argmax", "eos"):
        raise ConfigError(f"the text tower pools by {pool!r}. {NEEDS}")
    blocks = tower.transformer.resblocks
    for block in blocks:
        obstacle = obstacle_of(block)
        if obstacle:
            raise ConfigError(f"the text tower's blocks have {obstacle}. {NEEDS}")
    dtype = tower.transformer.get_cast_dtype()
    weights = WeightReader(None, dtype, "the text tower", NEEDS)
    projection = tower.text_projection
    linear = isinstance(projection, nn.Linear)
    end = tower.text_eos_id if hasattr(tower, "text_eos_id") else tower.eos_id
    return TextTower(
        token_embedding=tower.token_embedding.weight,
        position_embedding=tower.positional_embedding,
        dtype=dtype,
        blocks=tuple(weights.block(block) for block in blocks),
        ln_post=weights.norm(tower.ln_final),
        output=weights.cast(projection.weight.mT if linear else projection),
        output_bias=weights.cast(projection.bias) if linear else None,
        end=None if pool == "argmax" else int(end),
    )
