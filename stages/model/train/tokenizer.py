"""Cuts CLIP's byte-pair vocabulary down to the words that scenes use."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from open_clip.tokenizer import SimpleTokenizer, get_pairs

from stages.model.scenes.captions import DETERMINERS
from stages.model.scenes.templates import all_templates
from stages.model.scenes.vocabulary import COLOUR_NAMES, LARGE_WORDS, NUMBER_WORDS, PLURALS, SMALL_WORDS

_QUERY_WORDS: Final = (
    "of",
    "one",
    "photograph",
    "drawing",
    "illustration",
    "scene",
    "it",
    "them",
    "this",
    "that",
    "all",
    "also",
    "close",
)
"""Words that scenes do not use but people put around a phrase; untrained, they at least stay whole."""


def scene_words() -> list[str]:
    """Every word that a caption or a query wording can hold, lower case, sorted."""
    words = {*PLURALS, *PLURALS.values(), *COLOUR_NAMES, *NUMBER_WORDS.values(), *SMALL_WORDS, *LARGE_WORDS}
    words |= {*DETERMINERS, *_QUERY_WORDS, "thing", "things", "object", "objects", "something"}
    for template in all_templates():
        words |= set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", template.lower())))
    return sorted(words)


def cut_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """CLIP's merges that are needed to write the given words, in CLIP's order.

    With only these merges a word among `words` becomes the same pieces as with all of CLIP's: at every step
    the best-ranked pair is one of them.
    """
    full = SimpleTokenizer()
    used: set[tuple[str, str]] = set()
    for word in words:
        pieces = (*word[:-1], word[-1] + "</w>")
        while len(pieces) > 1:
            best = min(get_pairs(pieces), key=lambda pair: full.bpe_ranks.get(pair, float("inf")))
            if best not in full.bpe_ranks:
                break
            used.add(best)
            pieces = _merge(pieces, best)
    return sorted(used, key=lambda pair: int(full.bpe_ranks[pair]))


def _merge(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    k = 0
    while k < len(pieces):
        if pieces[k : k + 2] == pair:
            merged.append(pieces[k] + pieces[k + 1])
            k += 2
        else:
            merged.append(pieces[k])
            k += 1
    return tuple(merged)


def write_vocabulary(path: Path) -> None:
    """Write the cut vocabulary in the form that `open_clip.tokenizer.SimpleTokenizer(bpe_path=...)` reads.

    The bytes are the same on every call. No line ends the file, since the tokenizer would count it as a
    merge.
    """
    lines = [
        "#version: 0.2, cut from CLIP's bpe_simple_vocab_16e6",
        *(" ".join(m) for m in cut_merges(scene_words())),
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))
