"""English. Its word lists are `words.txt` and `nouns.txt`."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from phrasebox.stages.files.word_lists import sections_of
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE, Grammar, words

_SEVERAL: Final = words("two three four five six seven eight nine ten eleven twelve many several few")


def _text(name: str) -> str:
    return files("phrasebox.stages.phrases").joinpath(name).read_text(encoding="utf-8")


ENGLISH: Final = Grammar(
    code=ENGLISH_CODE,
    method="repairs",
    # Articles, demonstratives, quantifiers without a number, and possessive pronouns. Numbers say how many.
    determiners=words(
        "a an the this that these those some any each every another both all such"
        " my your his her its our their whose"
    ),
    definite=words("the this that these those both"),
    indefinite=words("a an another some several many few"),
    appositive=words("a an"),
    several=_SEVERAL,
    counts_of=_SEVERAL | words("one some most all both each none half"),
    single_counts=words("one each half"),
    of=words("of"),
    verbal_ending="ing",
    wearing=words("in wearing wears wear"),
    lists=sections_of(_text("words.txt")),
    nouns=_text("nouns.txt"),
)
