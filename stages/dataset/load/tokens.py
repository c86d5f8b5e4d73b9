"""Phrases as token numbers, each unique phrase tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from pydantic import ValidationError
from torch import Tensor

from stages.contract.errors import ConfigError, WeightsError
from stages.dataset.folder import Dataset
from stages.dataset.load.contents import Tokenize
from stages.model.config import ModelConfig

MAX_PHRASES: Final = 200_000
"""Beyond this the oldest are forgotten: 200,000 phrases of 77 tokens are 120 MB."""


class PhraseTokens:
    """Phrases -> int64 (phrases, context)."""

    def __init__(self, tokenize: Tokenize) -> None:
        self.tokenize = tokenize
        self._rows: dict[str, Tensor] = {}

    def __call__(self, phrases: Sequence[str]) -> Tensor:
        """At least one phrase. Raises ConfigError if the tokenizer gives something else than a row for each."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._rows]
        if new:
            tokens = torch.as_tensor(self.tokenize(new))
            if tokens.ndim != 2 or len(tokens) != len(new) or tokens.is_floating_point():
                shape = tuple(tokens.shape)
                raise ConfigError(
                    f"tokenizer: expected ({len(new)}, context) whole numbers, got {shape} {tokens.dtype}"
                )
            # Rows of their own: a view would keep its whole batch alive.
            self._rows.update(zip(new, (row.clone() for row in tokens.long()), strict=True))
        rows = torch.stack([self._rows[phrase] for phrase in phrases])
        while len(self._rows) > MAX_PHRASES:
            del self._rows[next(iter(self._rows))]
        return rows


def tokenizer_of(dataset: Dataset) -> Tokenize:
    """The tokenizer of the model that made the dataset, by its manifest; no weights are read.

    Raises ConfigError if the manifest's model is not known here.
    """
    from stages.model.describe import load_tokenizer

    what = f"{dataset.path}: the tokenizer of the dataset's model cannot be had"
    try:
        tokenize: Tokenize = load_tokenizer(ModelConfig.model_validate(dataset.manifest.get("config", {}).get("model")))
    except (ConfigError, WeightsError, ValidationError) as error:
        first_line = str(error).partition("\n")[0]
        raise ConfigError(f"{what} ({first_line}): give a function as tokenizer") from error
    return tokenize
