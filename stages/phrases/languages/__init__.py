"""The languages of captions: grammars as tables, and spaCy's packages.

A new language is a module beside this one, and a place in `GRAMMARS`. One without a grammar works
by spaCy's noun chunks.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from phrasebox.stages.phrases.languages.de import GERMAN
from phrasebox.stages.phrases.languages.en import ENGLISH
from phrasebox.stages.phrases.languages.es import SPANISH
from phrasebox.stages.phrases.languages.fr import FRENCH
from phrasebox.stages.phrases.languages.grammar import Grammar

GRAMMARS: Final = {grammar.code: grammar for grammar in (ENGLISH, FRENCH, GERMAN, SPANISH)}
"""Code of a language -> its grammar."""


@cache
def grammar_of(language: str) -> Grammar:
    """Return the grammar of a language; one without tables where nobody has written any."""
    return GRAMMARS.get(language) or Grammar(code=language)
