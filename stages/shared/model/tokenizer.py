"""The tokenizer that a model was trained with.

CLIP's own is open_clip's. Others, as that of a SigLIP, are read by transformers, from the
folder of a checkpoint or from the repository that open_clip names.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import open_clip

from stages.contract.errors import WeightsError, one_line
from stages.shared.model.description import ModelDescription


def tokenizer_of(description: ModelDescription) -> Any:
    """Return the tokenizer of a model, texts -> int64 (texts, context). Raise WeightsError without a vocabulary."""
    text = description.architecture["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", 77)
    source = text.get("hf_tokenizer_name")
    if description.vocabulary is not None and "bpe_path" in options:
        options["bpe_path"] = str(description.vocabulary)
    elif description.vocabulary is not None:
        source = str(description.vocabulary.parent)
    try:
        if not source:
            return ClipTokenizer(context_length=length, **options)
        return open_clip.tokenizer.HFTokenizer(
            source,
            context_length=length,
            tokenizer_mode=text.get("tokenizer_mode"),
            trust_remote_code=False,  # if left unset, transformers prompts on the terminal
            **options,
        )
    except Exception as error:  # of transformers, which reads vocabularies that are not CLIP's
        needs = "" if find_spec("transformers") else ": pip install transformers"
        raise WeightsError(
            f"could not get the tokenizer {source or description.vocabulary}{needs} ({one_line(error)})",
            key=description.key,
        ) from error


class ClipTokenizer(open_clip.tokenizer.SimpleTokenizer):  # type: ignore[misc]  # open_clip is untyped
    """CLIP's tokenizer as open_clip has it, which encodes each plain word once.

    A text of lower-case letters and spaces needs none of the cleaning that takes most of its
    time, and its tokens are those of its words. The thread that feeds a GPU tokenizes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Text -> its tokens, without those at the ends."""
        words = text.split(" ")
        if not all(word.isascii() and word.isalpha() and word.islower() for word in words):
            tokens: list[int] = super().encode(text)
            return tokens
        for word in words:
            if word not in self._words:
                self._words[word] = super().encode(word)
        return [token for word in words for token in self._words[word]]
