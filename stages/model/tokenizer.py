"""The tokenizer that a model was trained with, and the vocabularies of checkpoints.

CLIP's own is open_clip's. Others, as that of a SigLIP, are read by transformers, from the
folder of a checkpoint or from the repository that open_clip names.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from torch import Tensor

from phrasebox.stages.contract.errors import ConfigError, WeightsError, one_line
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.checkpoints.state import read_json
from phrasebox.stages.model.config import ModelDescription, about
from phrasebox.stages.model.dual_encoder import NO_TOKEN

_FILES: Final = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)  # that hold a vocabulary, the preferred first

_SETTINGS: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files beside a vocabulary that change the tokens of a text, where they exist."""

_LOWER_ONLY: Final = ("Gemma", "Siglip2")
"""Beginnings of `tokenizer_class` in `tokenizer_config.json` of models that were trained on
texts with punctuation."""

_MOST_WORDS: Final = 100_000  # whose tokens are kept, some 20 MB

_OPTIONS: Final = ("bpe_path", "clean", "strip_sep_token", "language")
"""Options that a model file may give under `tokenizer_kwargs`. open_clip hands everything else
on to `transformers`, where some options run code that is downloaded."""


def tokenizer_of(description: ModelDescription) -> Any:
    """Return the tokenizer of a model, texts -> int64 (texts, context). Raise WeightsError without a vocabulary."""
    if description.dual_encoder is not None:
        with about(description.key):
            return _tokenizer_of_dual_encoder(description)
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


class FolderTokenizer:
    """The tokenizer of a folder of transformers, for a dual encoder: texts -> int64 (texts, tokens).

    `text` is the `text_cfg` of `architecture_of_dual_encoder`. Tokens that fill a text up are
    `NO_TOKEN`, and there are as many as the longest text needs. Where they count in the
    embedding, they are tokens, and as many as the context has.
    """

    def __init__(self, tokenizer: Any, text: Json) -> None:
        self.context_length: int = text["context_length"]
        self._tokenizer = tokenizer
        self._counts_padding: bool = text["counts_padding"]
        self._lower_case: bool = text["lower_case"]
        if not self._counts_padding:
            tokenizer.padding_side = "right"  # so that it can be cut off

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens; longer texts are cut."""
        encoded = self._tokenizer(
            [text.lower() for text in texts] if self._lower_case else list(texts),
            padding="max_length" if self._counts_padding else "longest",
            max_length=self.context_length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        tokens: Tensor = encoded["input_ids"].long()
        if self._counts_padding:
            return tokens
        if not tokens.shape[1]:  # empty texts, where a tokenizer sets no marks around them
            return torch.full((len(tokens), 1), NO_TOKEN)
        return tokens.where(encoded["attention_mask"] > 0, NO_TOKEN)


def _tokenizer_of_dual_encoder(description: ModelDescription) -> FolderTokenizer:
    """Read the tokenizer beside the weights. Raise WeightsError if it is damaged, or another model's."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - it takes seconds, see `dual_encoder`

    text = description.architecture["text_cfg"]
    if description.vocabulary is None:
        raise WeightsError(f"{description.name} has no vocabulary")
    folder = description.vocabulary.parent
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        folder_tokenizer = FolderTokenizer(tokenizer, text)
        tokens = folder_tokenizer(["a", "a b"])
    except Exception as error:  # of transformers, tokenizers and sentencepiece, which raise many kinds
        raise WeightsError(f"could not read the tokenizer in {folder}: {one_line(error)}") from error
    if len(tokenizer) > text["vocab_size"]:
        raise WeightsError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, and the model's vocabulary {text['vocab_size']}"
        )
    end = text.get("end_token")
    if end is not None and not bool((tokens == end).any(dim=1).all()):
        raise WeightsError(
            f"the tokenizer in {folder} does not end texts with token {end}, as config.json says (eos_token_id)"
        )
    return folder_tokenizer


class ClipTokenizer(open_clip.tokenizer.SimpleTokenizer):  # type: ignore[misc]  # open_clip is untyped
    """CLIP's tokenizer as open_clip has it, which encodes each word once.

    In a text of printable ASCII without entities of HTML, what open_clip does to a word depends on
    no other word. Its cleaning of whole texts takes most of its time. The thread that feeds a GPU tokenizes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._words: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Texts -> their tokens, int64 (texts, context), cut at the context and filled up with zeros."""
        if self.reduction_fn is not None:
            tokens: Tensor = super().__call__(list(texts), context_length)
            return tokens
        length = context_length or self.context_length
        rows = np.zeros((len(texts), length), np.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            row[: len(numbers)] = numbers
        return torch.from_numpy(rows)

    def encode(self, text: str) -> list[int]:
        """Text -> its tokens, without those at the ends."""
        if not text.isascii() or not text.isprintable() or "&" in text:
            tokens: list[int] = super().encode(text)
            return tokens
        if len(self._words) > _MOST_WORDS:
            self._words.clear()
        words = text.split()
        for word in words:
            if word not in self._words:
                self._words[word] = super().encode(word)
        return [token for word in words for token in self._words[word]]


def named_vocabulary(folder: Path, text: Json) -> Path | None:
    """Return the vocabulary file that open_clip's `text_cfg` names; None without one.

    Raise ConfigError for options of a tokenizer that are not on the list, WeightsError if the
    file is missing.
    """
    options = text.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or options.keys() - _OPTIONS:
        raise ConfigError(f"tokenizer_kwargs may hold {', '.join(_OPTIONS)}, got {options!r}")
    if "bpe_path" not in options:
        return None
    path = folder / str(options["bpe_path"])
    if not path.is_file():
        raise WeightsError(f"no vocabulary file {path}")
    return path


def vocabulary_in(folder: Path) -> Path:
    """Return the file in a folder that holds the vocabulary of a dual encoder. Raise WeightsError without one."""
    vocabulary = siglip_vocabulary(folder)
    if vocabulary is None:
        raise WeightsError(f"none of {', '.join(_FILES)} in {folder}: save the model's tokenizer there too")
    return vocabulary


def settings_of_tokenizer(folder: Path) -> list[Path]:
    """Return the files beside a vocabulary that change the tokens of a text."""
    return [folder / name for name in _SETTINGS if (folder / name).is_file()]


def siglip_vocabulary(folder: Path) -> Path | None:
    """Return the file in a checkpoint's folder that holds the vocabulary of a SigLIP."""
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def takes_texts_of_siglip(text: Json) -> bool:
    """Return whether open_clip's `text_cfg` is a SigLIP's; other vocabularies begin a text with tokens of their own."""
    clean = (text.get("tokenizer_kwargs") or {}).get("clean")
    return (
        clean in ("canonicalize", "lower")
        and text.get("pool_type") == "last"
        and "hf_model_name" not in text
    )


def cleaning(file: Path) -> str:
    """Return the cleaning of texts: "canonicalize" drops capitals and punctuation, "lower" capitals."""
    kind = str(read_json(file.parent / "tokenizer_config.json").get("tokenizer_class") or "")
    return "lower" if kind.startswith(_LOWER_ONLY) else "canonicalize"


def check_vocabulary(folder: Path, size: int) -> None:
    """Raise WeightsError if the vocabulary of a CLIP checkpoint is not CLIP's own, which replaces it."""
    clip_tokenizer = open_clip.tokenizer.SimpleTokenizer()
    if size < clip_tokenizer.vocab_size:
        raise WeightsError(
            f"its vocabulary has {size} tokens: expected CLIP's own, with {clip_tokenizer.vocab_size}"
        )
    file = folder / "merges.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        entries = [line for line in lines if line.strip() and not line.startswith("#version")]
    else:
        file = folder / "tokenizer.json"
        entries = read_json(file).get("model", {}).get("merges", [])
    merges = [tuple(entry.split() if isinstance(entry, str) else entry) for entry in entries]
    if merges and merges != list(clip_tokenizer.bpe_ranks):
        raise WeightsError(
            f"{file} is not the vocabulary of CLIP, which is the only one of a CLIP that can be read"
        )
