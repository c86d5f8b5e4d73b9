"""What the rules for phrases know of a language, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Words = frozenset[str]

Method = Literal["chunks", "groups", "repairs"]
"""How the noun phrases of a language are found: spaCy's own noun chunks, by its parser; groups of parts of speech
(`phrasebox.stages.phrases.groups_of_words`); or base phrases with the repairs for English."""


def words(text: str) -> Words:
    """Return the words of a text.

    >>> sorted(words("un une"))
    ['un', 'une']
    """
    return frozenset(text.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """The tables of one language, all in lower case. An empty table rules nothing.

    Attributes:
        code: spaCy's code of the language, such as "fr".
        method: How its noun phrases are found.
        determiners: Words that the text of a phrase does not begin with.
        elisions: Determiners that are joined to the next word: "l'".
        definite: Words that begin a phrase which may name an object again: "the".
        indefinite: Words that begin a phrase which names a new object: "a".
        appositive: Indefinite articles: "the teacher, a tall woman".
        several: Numbers and quantifiers, from two on.
        counts_of: Words that count the words behind "of": "two of the dogs".
        single_counts: Those of them after which one object is meant: "one of the dogs".
        of: Words between noun phrases that become one: "the roof of a house".
        by: Words behind a participle that begin what it is about: "une salle éclairée par des bougies".
        genitives: Articles of a noun phrase that belongs to the one before it: "das Dach eines Hauses".
        joins_bare: Words that join a noun without an article: "un sac à dos".
        joined_to_none: Nouns that these words do not join: "un homme à vélo".
        joins_materials: Words that join a material: "un banc en bois".
        materials: The materials.
        before_nouns: Adjectives that stand before their noun, where most stand behind it.
        adjectives: Adjectives that taggers take for nouns: "barbu".
        has_adjectives_behind: Whether adjectives stand behind their noun.
        made: Nouns of the list "frame" that are objects behind a verb: "prend des photos".
        for_: Words that stand for such a verb: "pose pour une photo".
        postures: Participles that say what somebody does, and end a phrase: "un homme assis".
        verbs: Finite verbs that taggers take for a noun or an adjective: "coupe".
        verbal_ending: The ending of words that name an action: "ing".
        wearing: Words before what somebody wears: "in", "wearing".
        dressed: Participles between somebody and "of" with what is worn: "vêtu de noir".
        lists: Sections of word lists -> their lemmas, see `phrasebox.stages.phrases.filters.WordLists`.
        nouns: What nouns name, in the form of `nouns.txt`, with its paths.
    """

    code: str
    method: Method = "chunks"
    determiners: Words = frozenset()
    elisions: tuple[str, ...] = ()
    definite: Words = frozenset()
    indefinite: Words = frozenset()
    appositive: Words = frozenset()
    several: Words = frozenset()
    counts_of: Words = frozenset()
    single_counts: Words = frozenset()
    of: Words = frozenset()
    by: Words = frozenset()
    genitives: Words = frozenset()
    joins_bare: Words = frozenset()
    joined_to_none: Words = frozenset()
    joins_materials: Words = frozenset()
    materials: Words = frozenset()
    before_nouns: Words = frozenset()
    adjectives: Words = frozenset()
    has_adjectives_behind: bool = False
    made: Words = frozenset()
    for_: Words = frozenset()
    postures: Words = frozenset()
    verbs: Words = frozenset()
    verbal_ending: str = ""
    wearing: Words = frozenset()
    dressed: Words = frozenset()
    lists: dict[str, Words] = field(default_factory=dict)
    nouns: str = ""


ENGLISH_CODE: Final = "en"
"""The language of captions where nothing else is said."""
