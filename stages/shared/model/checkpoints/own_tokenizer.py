"""The tokenizer that a SigLIP checkpoint brings: `tokenizer.json`, or a sentencepiece model. It is read, never fetched.

A text is cleaned, cut into pieces of the vocabulary, ended by one token and filled up to the full length, as the model
was trained: no token begins it, and nothing is masked (big_vision; `transformers`' SiglipTokenizer).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from stages.contract.errors import ConfigError, WeightsError, one_line
from stages.shared.model.deferred import open_clip

FILES: Final = ("tokenizer.json", "spiece.model", "tokenizer.model")
"""Names of the files that hold a vocabulary, the preferred first."""

SETTINGS: Final = ("special_tokens_map.json", "tokenizer_config.json")
"""Names of the files beside it that say which of its tokens are special; the last decides."""

_LOWER_ONLY: Final = ("Gemma", "Siglip2")
"""Beginnings of `tokenizer_class` in `tokenizer_config.json` of models that were trained on texts with punctuation."""


def takes_texts_of_siglip(text: Mapping[str, Any]) -> bool:
    """Whether open_clip's `text_cfg` is a SigLIP's. Other vocabularies have tokens of their own in front of a text."""
    clean = (text.get("tokenizer_kwargs") or {}).get("clean")
    return clean in ("canonicalize", "lower") and text.get("pool_type") == "last" and "hf_model_name" not in text


def tokenizer_file(folder: Path) -> Path | None:
    """The file in a checkpoint's folder that holds its vocabulary."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def cleaning(file: Path) -> str:
    """How texts are cleaned before they are cut: "canonicalize" drops capitals and punctuation, "lower" capitals."""
    kind = str(_settings(file.parent).get("tokenizer_class") or "")
    return "lower" if kind.startswith(_LOWER_ONLY) else "canonicalize"


class OwnTokenizer:
    """Texts -> int64 (texts, context).

    Attributes:
        eos: number of the token that ends a text.
        pad: number of the token that fills it up.
        fills_left: it is filled up in front, which no released model is, but `tokenizer_config.json` can say so.
    """

    def __init__(self, file: Path, context_length: int, clean: str) -> None:
        """Read a vocabulary.

        Args:
            file: one of `FILES`, with `tokenizer_config.json` or `special_tokens_map.json` beside it, if there are any.
            context_length: tokens of every text.
            clean: what `open_clip.tokenizer.get_clean_fn` takes.

        Raises:
            ConfigError: the package that reads such a file is not installed.
            WeightsError: the file is damaged, or lacks the tokens that end and fill up a text.
        """
        self.context_length = context_length
        self._clean: Callable[[str], str] = open_clip.tokenizer.get_clean_fn(clean)
        reader = _read_json if file.suffix == ".json" else _read_sentencepiece
        try:
            self._cut, number_of = reader(file)
        except (ConfigError, WeightsError):
            raise
        except Exception as error:  # the tokenizers package raises Exception itself
            raise WeightsError(f"model.checkpoint: cannot read the tokenizer {file}: {one_line(error)}") from error
        settings = _settings(file.parent)
        self.eos = self._special(file, settings.get("eos_token"), ("</s>", "<eos>"), number_of)
        self.fills_left = settings.get("padding_side") == "left"
        self.pad = self._special(file, settings.get("pad_token"), ("<pad>", "</s>"), number_of)

    def __call__(self, texts: Sequence[str] | str) -> Tensor:
        """Tokenize; a text that is too long loses its last pieces."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.full((len(texts), self.context_length), self.pad, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            pieces = [*self._cut(self._clean(text))[: self.context_length - 1], self.eos]
            start = self.context_length - len(pieces) if self.fills_left else 0
            row[start : start + len(pieces)] = torch.tensor(pieces)
        return tokens

    @staticmethod
    def _special(file: Path, named: Any, usual: Sequence[str], number_of: Callable[[str], int | None]) -> int:
        text = named.get("content") if isinstance(named, dict) else named
        for token in (text,) if isinstance(text, str) else usual:
            if (number := number_of(token)) is not None:
                return number
        raise WeightsError(f"model.checkpoint: the tokenizer {file} has no token {text or ' or '.join(usual)}")


def _read_json(file: Path) -> tuple[Callable[[str], list[int]], Callable[[str], int | None]]:
    if find_spec("tokenizers") is None:
        raise ConfigError(f"reading the tokenizer {file} takes a package: pip install tokenizers")
    from tokenizers import Tokenizer  # noqa: PLC0415  it is optional

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def cut(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return cut, tokenizer.token_to_id


def _read_sentencepiece(file: Path) -> tuple[Callable[[str], list[int]], Callable[[str], int | None]]:
    if find_spec("sentencepiece") is None:
        raise ConfigError(f"reading the tokenizer {file} takes a package: pip install sentencepiece")
    from sentencepiece import SentencePieceProcessor  # noqa: PLC0415  it is optional

    model = SentencePieceProcessor(model_file=str(file))

    def number_of(token: str) -> int | None:
        number = int(model.piece_to_id(token))
        return number if model.id_to_piece(number) == token else None

    return lambda text: list(model.encode(text)), number_of


def _settings(folder: Path) -> dict[str, Any]:
    """What stands in the files beside a vocabulary about special tokens; empty without such files."""
    found: dict[str, Any] = {}
    for name in SETTINGS:
        try:
            read = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise WeightsError(f"model.checkpoint: cannot read {folder / name}: {one_line(error)}") from error
        found |= read if isinstance(read, dict) else {}
    return found
