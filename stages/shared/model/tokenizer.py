"""The tokenizer that a model was trained with, and which characters of a caption its tokens stand for.

CLIP's own is open_clip's. Others, as that of a SigLIP, are read by transformers, from the folder of a checkpoint or
from the repository that open_clip names.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import open_clip

from stages.contract.errors import ConfigError, WeightsError, one_line
from stages.shared.model.checkpoints.state import read_json

if TYPE_CHECKING:
    from stages.shared.model.recognise import Described

_FILES: Final = ("tokenizer.json", "spiece.model", "tokenizer.model")  # that hold a vocabulary, the preferred first

_LOWER_ONLY: Final = ("Gemma", "Siglip2")
"""Beginnings of `tokenizer_class` in `tokenizer_config.json` of models that were trained on texts with punctuation."""

_OPTIONS: Final = {"bpe_path": str, "clean": str, "strip_sep_token": bool, "language": str}
"""Options that a model file may give under `tokenizer_kwargs`, and their types. open_clip hands everything else on to
`transformers`, where some options run code that is downloaded."""


def tokenizer_of(described: Described) -> Any:
    """Return the tokenizer of a model, texts -> int64 (texts, context). Raise WeightsError without a vocabulary."""
    text = described.architecture["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    length, named = text.get("context_length", 77), text.get("hf_tokenizer_name")
    source = named if described.tokenizer is None else str(described.tokenizer.parent)
    what = source or described.name
    try:
        if described.folder is None:
            return open_clip.get_tokenizer(described.name)
        if source:
            return open_clip.tokenizer.HFTokenizer(
                source,
                context_length=length,
                tokenizer_mode=text.get("tokenizer_mode"),
                trust_remote_code=False,  # without a word transformers would ask at the terminal
                **options,
            )
    except Exception as error:  # of transformers, which reads vocabularies that are not CLIP's
        needs = "" if find_spec("transformers") else ": pip install transformers"
        raise WeightsError(f"{described.key}: could not get the tokenizer {what}{needs} ({one_line(error)})") from error
    vocabulary = vocabulary_of(described)
    if vocabulary is not None:
        options["bpe_path"] = str(vocabulary)
    return open_clip.tokenizer.SimpleTokenizer(context_length=length, **options)


def vocabulary_of(described: Described) -> Path | None:
    """Return the file of the vocabulary that a model brings, if it brings one. Raise WeightsError if it is missing."""
    options = described.architecture["text_cfg"].get("tokenizer_kwargs") or {}
    if described.tokenizer is not None or described.folder is None or "bpe_path" not in options:
        return described.tokenizer
    path = described.folder / str(options["bpe_path"])
    if not path.is_file():
        raise WeightsError(f"model.config: no vocabulary file {path}")
    return path


def takes_texts_of_siglip(text: Mapping[str, Any]) -> bool:
    """Return whether open_clip's `text_cfg` is a SigLIP's; other vocabularies begin a text with tokens of their own."""
    clean = (text.get("tokenizer_kwargs") or {}).get("clean")
    return clean in ("canonicalize", "lower") and text.get("pool_type") == "last" and "hf_model_name" not in text


def check_options(path: Path, options: Any) -> None:
    """Raise ConfigError for options of a tokenizer that are not on the list, or have another type."""
    if not isinstance(options, dict):
        raise ConfigError(f"model.config: {path}: tokenizer_kwargs must hold keys")
    if "trust_remote_code" in options:
        raise ConfigError(
            f"model.config: {path} asks for trust_remote_code, which runs code from a repository on Hugging Face: "
            "phrasebox never does that"
        )
    for key, value in options.items():
        wanted = _OPTIONS.get(key)
        if wanted is None or not isinstance(value, wanted):
            allowed = ", ".join(f"{name} ({kind.__name__})" for name, kind in _OPTIONS.items())
            raise ConfigError(f"model.config: {path}: tokenizer_kwargs may hold {allowed}, not {key}: {value!r}")


def tokenizer_file(folder: Path) -> Path | None:
    """Return the file in a checkpoint's folder that holds its vocabulary."""
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def cleaning(file: Path) -> str:
    """Return how texts are cleaned: "canonicalize" drops capitals and punctuation, "lower" capitals."""
    kind = str(read_json(file.parent / "tokenizer_config.json").get("tokenizer_class") or "")
    return "lower" if kind.startswith(_LOWER_ONLY) else "canonicalize"


def check_vocabulary(folder: Path, size: int) -> None:
    """Raise WeightsError if the vocabulary of a CLIP is not CLIP's own, which is the one that is used."""
    own = open_clip.tokenizer.SimpleTokenizer()
    if size < own.vocab_size:
        raise WeightsError(f"its vocabulary has {size} tokens: expected CLIP's own, with {own.vocab_size}")
    file = folder / "merges.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    else:
        file = folder / "tokenizer.json"
        listed = read_json(file).get("model", {}).get("merges")
        if not listed:
            return
        merges = [tuple(m.split() if isinstance(m, str) else m) for m in listed]
    if merges != list(own.bpe_ranks):
        raise WeightsError(f"{file} is not the vocabulary of CLIP, which is the only one of a CLIP that can be read")


# --- places in a caption: CLIP's tokenizer cleans it (repairs broken characters, resolves HTML entities, joins white
# space, lower case), cuts it into words, and each word into pieces. The pieces of a word are its bytes in order, so
# their places in the cleaned text are known; the cleaned text is then aligned with the caption.

_WORD_END: Final = "</w>"  # behind the last piece of a word

_SLACK_CHARS: Final = 256
_MOST_TIMES_LONGER: Final = 4
"""A caption longer than its cleaned text by more than this is aligned in part. Alignment takes quadratic time,
and a caption of the web may begin with any amount of white space."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a caption, characters [start, end); empty where no character of the caption is known."""

    start: int
    end: int
    word: int  # number of the word that it is a part of, from 0


def pieces_of(tokenizer: Any, caption: str, most: int) -> list[Piece]:
    """Return the tokens of a caption between the first and the last one, in order, `most` at most.

    The tokenizer is open_clip's `SimpleTokenizer`.
    """
    cleaned: str = tokenizer.clean_fn(caption)
    spans: list[tuple[int, int, int]] = []
    for number, match in enumerate(tokenizer.pat.finditer(cleaned)):
        if len(spans) >= most:
            break
        # Of each byte of the word, the character that it belongs to.
        owners = [place for place, letter in enumerate(match.group(), match.start()) for _ in letter.encode()]
        symbols = "".join(tokenizer.byte_encoder[byte] for byte in match.group().encode())
        sizes = [len(piece.removesuffix(_WORD_END)) for piece in tokenizer.bpe(symbols).split(" ")]
        ends = itertools.accumulate(sizes)
        spans += [(owners[end - size], owners[end - 1] + 1, number) for size, end in zip(sizes, ends, strict=True)]
    spans = spans[:most]
    if not spans:
        return []
    places = _aligned(caption, cleaned[: spans[-1][1]])
    return [Piece(*_hull(places[start:end]), word) for start, end, word in spans]


def _hull(places: list[tuple[int, int]]) -> tuple[int, int]:
    return min(start for start, _ in places), max(end for _, end in places)


def _aligned(caption: str, cleaned: str) -> list[tuple[int, int]]:
    """The characters of a caption, [start, end), that each character of its cleaned text came from."""
    low = "".join(small if len(small := letter.lower()) == 1 else letter for letter in caption)
    if low.startswith(cleaned):
        return [(place, place + 1) for place in range(len(cleaned))]
    low = low[: _MOST_TIMES_LONGER * len(cleaned) + _SLACK_CHARS]
    places = [(len(low), len(low))] * len(cleaned)
    for kind, a, b, c, d in SequenceMatcher(None, low, cleaned, autojunk=False).get_opcodes():
        for place in range(c, d):
            places[place] = (a + place - c, a + place - c + 1) if kind == "equal" else (a, b)
    return places
