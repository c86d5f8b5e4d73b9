"""Whether a model was trained on texts in other languages than English, as far as its description says so."""

from __future__ import annotations

from typing import Final

from phrasebox.stages.contract.values import Json

_MARKS: Final = (
    *("xlm", "mt5", "nllb", "i18n", "siglip2", "siglip-2", "worldwide", "metaclip2", "metaclip_2", "metaclip-2"),
    *("altclip", "chinese", "multilingual", "gemma"),
)  # fmt: skip
"""Parts of the names of models, of their tokenizers and kinds, that were trained on more than English."""


def reads_english_only(architecture: Json, *names: str | None) -> bool:
    """Return whether a model knows English alone: nothing in its description names another language.

    Args:
        architecture: open_clip's model configuration.
        names: Other names of the model, its weights and its kind.

    >>> reads_english_only({"text_cfg": {}}, "ViT-B-32")
    True
    >>> reads_english_only({"text_cfg": {"hf_tokenizer_name": "xlm-roberta-base"}}, "mine")
    False
    """
    text = architecture.get("text_cfg") or {}
    sources = (*names, text.get("hf_tokenizer_name"), text.get("hf_model_name"))
    return not any(mark in str(source).casefold() for source in sources if source for mark in _MARKS)
