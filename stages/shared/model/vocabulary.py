"""The vocabularies of checkpoints: which file holds it, and what a model file may say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import open_clip

from stages.contract.errors import ConfigError, WeightsError
from stages.contract.values import Json
from stages.shared.model.checkpoints.state import read_json

_FILES: Final = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
)  # that hold a vocabulary, the preferred first

_LOWER_ONLY: Final = ("Gemma", "Siglip2")
"""Beginnings of `tokenizer_class` in `tokenizer_config.json` of models that were trained on
texts with punctuation."""

_OPTIONS: Final = ("bpe_path", "clean", "strip_sep_token", "language")
"""Options that a model file may give under `tokenizer_kwargs`. open_clip hands everything else
on to `transformers`, where some options run code that is downloaded."""


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
