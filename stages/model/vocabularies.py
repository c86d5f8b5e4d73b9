"""How long texts may be, and how much memory the words of a model take: from open_clip's configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from phrasebox.stages.contract.values import Json, Sides

FLOAT_BYTES: Final = 4  # of a number of a text tower, which is computed in float32 on every device

_CLIP: Final = (49_408, 512)  # tokens and width of open_clip's text towers where a configuration is silent

_TRANSFORMERS: Final[dict[str, Sides]] = {
    "roberta-base": (50_265, 768),
    "xlm-roberta-base": (250_002, 768),
    "xlm-roberta-large": (250_002, 1_024),
    "google/mt5-base": (250_112, 768),
    "google/mt5-xl": (250_112, 2_048),
    "facebook/nllb-200-distilled-600M": (256_206, 1_024),
    "facebook/nllb-200-distilled-1.3B": (256_206, 1_024),
}
"""Text towers of transformers that open_clip names -> tokens and width, from the `config.json` of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The words of a text tower.

    Attributes:
        context: Tokens of the longest text; longer ones are cut.
        tokens: Tokens that the vocabulary has.
        width: Numbers of a token.
    """

    context: int
    tokens: int
    width: int

    @property
    def size_bytes(self) -> int:
        """Memory of the table of all tokens, in every worker."""
        return self.tokens * self.width * FLOAT_BYTES


def vocabulary_of(text: Json) -> Vocabulary | None:
    """Return the vocabulary of open_clip's `text_cfg`; None for a text tower of transformers that is not known.

    >>> vocabulary_of({"context_length": 64, "vocab_size": 256_000, "width": 768}).size_bytes
    786432000
    """
    context = int(text.get("context_length", 77))
    name = text.get("hf_model_name")
    if name is not None:
        if name not in _TRANSFORMERS:
            return None
        tokens, width = _TRANSFORMERS[name]
    else:
        tokens = int(text.get("vocab_size", _CLIP[0]))
        width = int(text.get("width", _CLIP[1]))
    return Vocabulary(context=context, tokens=tokens, width=width)
