"""Whether a model of no known family was trained on texts in other languages than English, as far as names say so.

Weights that are known have a family, which names their languages, see `families.py`.
"""

from __future__ import annotations

import re
from typing import Final

from phrasebox.stages.contract.values import Json

_MARKS: Final = (
    *("xlm", "mt5", "nllb", "i18n", r"siglip-?2(?!\d)", "worldwide", "metaclip[-_]?2"),
    *("altclip", "chinese", "multilingual", "gemma"),
)  # SigLIP-256 is a SigLIP of images of 256 px
"""Patterns in the names of models, of their tokenizers and kinds, that were trained on more than English."""


def names_english_only(architecture: Json, *names: str | None) -> bool:
    """Return whether nothing in the description of a model names another language than English.

    Args:
        architecture: open_clip's model configuration.
        names: Other names of the model, its weights and its kind.

    >>> names_english_only({"text_cfg": {}}, "ViT-B-32")
    True
    >>> names_english_only({"text_cfg": {"hf_tokenizer_name": "xlm-roberta-base"}}, "mine")
    False
    """
    text = architecture.get("text_cfg") or {}
    sources = (*names, text.get("hf_tokenizer_name"), text.get("hf_model_name"))
    return not any(
        re.search(mark, str(source).casefold()) for source in sources if source for mark in _MARKS
    )
