"""The tokenizer that a model was trained with.

CLIP's own is open_clip's. Others, as that of a SigLIP, are read by transformers, from the folder of a checkpoint or
from the repository that open_clip names.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import open_clip

from stages.contract.errors import ConfigError, WeightsError, one_line
from stages.shared.model.checkpoints.state import read_json

if TYPE_CHECKING:
    from stages.shared.model.recognise import ModelDescription

_FILES: Final = ("tokenizer.json", "spiece.model", "tokenizer.model")  # that hold a vocabulary, the preferred first

_LOWER_ONLY: Final = ("Gemma", "Siglip2")
"""Beginnings of `tokenizer_class` in `tokenizer_config.json` of models that were trained on texts with punctuation."""

_OPTIONS: Final = {"bpe_path": str, "clean": str, "strip_sep_token": bool, "language": str}
"""Options that a model file may give under `tokenizer_kwargs`, and their types. open_clip hands everything else on to
`transformers`, where some options run code that is downloaded."""


def tokenizer_of(description: ModelDescription) -> Any:
    """Return the tokenizer of a model, texts -> int64 (texts, context). Raise WeightsError without a vocabulary."""
    text = description.architecture["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", 77)
    repository = text.get("hf_tokenizer_name")
    source = repository if description.tokenizer is None else str(description.tokenizer.parent)
    try:
        if description.folder is None and source:
            return open_clip.get_tokenizer(description.name)
        if source:
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
            f"could not get the tokenizer {source or description.name}{needs} ({one_line(error)})", key=description.key
        ) from error
    vocabulary = vocabulary_of(description)
    if vocabulary is not None:
        options["bpe_path"] = str(vocabulary)
    return ClipTokenizer(context_length=length, **options)


class ClipTokenizer(open_clip.tokenizer.SimpleTokenizer):  # type: ignore[misc]  # open_clip is untyped
    """CLIP's tokenizer as open_clip has it, which encodes each plain word once.

    A text of lower-case letters and spaces needs none of the cleaning that takes most of its time, and its tokens are
    those of its words. The thread that feeds a GPU tokenizes.
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


def vocabulary_of(description: ModelDescription) -> Path | None:
    """Return the vocabulary file of a model; None for CLIP's own. Raise WeightsError if the file is missing."""
    options = description.architecture["text_cfg"].get("tokenizer_kwargs") or {}
    if description.tokenizer is not None or description.folder is None or "bpe_path" not in options:
        return description.tokenizer
    path = description.folder / str(options["bpe_path"])
    if not path.is_file():
        raise WeightsError(f"no vocabulary file {path}", key="model.config")
    return path


def takes_texts_of_siglip(text: Mapping[str, Any]) -> bool:
    """Return whether open_clip's `text_cfg` is a SigLIP's; other vocabularies begin a text with tokens of their own."""
    clean = (text.get("tokenizer_kwargs") or {}).get("clean")
    return clean in ("canonicalize", "lower") and text.get("pool_type") == "last" and "hf_model_name" not in text


def check_options(path: Path, options: Any) -> None:
    """Raise ConfigError for options of a tokenizer that are not on the list, or have another type."""
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: tokenizer_kwargs must hold keys", key="model.config")
    if "trust_remote_code" in options:
        raise ConfigError(
            f"{path} asks for trust_remote_code, which runs code from a repository on Hugging Face: "
            "phrasebox never does that",
            key="model.config",
        )
    for key, value in options.items():
        option_type = _OPTIONS.get(key)
        if option_type is None or not isinstance(value, option_type):
            allowed = ", ".join(f"{name} ({kind.__name__})" for name, kind in _OPTIONS.items())
            raise ConfigError(f"{path}: tokenizer_kwargs may hold {allowed}, not {key}: {value!r}", key="model.config")


def tokenizer_file(folder: Path) -> Path | None:
    """Return the file in a checkpoint's folder that holds its vocabulary."""
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def cleaning(file: Path) -> str:
    """Return the cleaning of texts: "canonicalize" drops capitals and punctuation, "lower" capitals."""
    kind = str(read_json(file.parent / "tokenizer_config.json").get("tokenizer_class") or "")
    return "lower" if kind.startswith(_LOWER_ONLY) else "canonicalize"


def check_vocabulary(folder: Path, size: int) -> None:
    """Raise WeightsError if the vocabulary of a CLIP checkpoint is not CLIP's own, which replaces it."""
    clip_tokenizer = open_clip.tokenizer.SimpleTokenizer()
    if size < clip_tokenizer.vocab_size:
        raise WeightsError(f"its vocabulary has {size} tokens: expected CLIP's own, with {clip_tokenizer.vocab_size}")
    file = folder / "merges.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    else:
        file = folder / "tokenizer.json"
        entries = read_json(file).get("model", {}).get("merges")
        if not entries:
            return
        merges = [tuple(entry.split() if isinstance(entry, str) else entry) for entry in entries]
    if merges != list(clip_tokenizer.bpe_ranks):
        raise WeightsError(f"{file} is not the vocabulary of CLIP, which is the only one of a CLIP that can be read")
