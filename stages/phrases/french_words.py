"""Corrects the parts of speech of French words by the word lists that a pipeline's lemmatizer brings."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

_MAX_REMEMBERED: Final = 100_000  # words
_KINDS: Final = {"adj": "ADJ", "noun": "NOUN", "verb": "VERB"}
_PARTICIPLES: Final = ("é", "ée", "és", "ées", "i", "ie", "is", "ies", "u", "ue", "us", "ues")
_INFINITIVES: Final = ("er", "ir", "re", "ant")
_OPEN: Final = frozenset({"VERB", "ADJ", "NOUN", "PROPN", "X"})
"""Parts of speech that a word list may correct."""
_CLOSED: Final = frozenset({"ADP", "DET", "ADV", "PRON", "AUX"})
"""Parts of speech that are corrected behind an article, and some behind a preposition: "devant" is a noun, too."""


class FrenchWords:
    """Tags words that the lists know as one part of speech alone: "un homme à | vélo", taken for a verb.

    A word that is a verb and no adjective is no adjective behind a noun: "un homme d'affaires |
    parle". Participles stay what they are.
    """

    def __init__(self, nlp: Any, name: str) -> None:
        lookups = nlp.get_pipe("lemmatizer").lookups
        index, exceptions, rules = (
            lookups.get_table(f"lemma_{table}", {}) for table in ("index", "exc", "rules")
        )
        self._index = {kind: frozenset(index.get(kind, ())) for kind in _KINDS}
        self._exceptions = {kind: exceptions.get(kind, {}) for kind in _KINDS}
        self._rules = {kind: rules.get(kind, ()) for kind in _KINDS}
        self._strings = nlp.vocab.strings
        self._kinds = lru_cache(_MAX_REMEMBERED)(self._kinds_of)

    def __call__(self, doc: Any) -> Any:
        """Correct the parts of speech of a Doc in place, and return it."""
        for index, word in enumerate(doc.to_array("LOWER").tolist()):
            token = doc[index]
            if token.lower_ == "en" and token.pos_ == "PRON" and _goes_on(token, "NOUN"):
                token.pos_ = "ADP"  # "deux chiens en laisse"
                continue
            before = doc[index - 1].pos_ if index else ""
            is_loose = before in ("DET", "NUM") or (before == "ADP" and token.pos_ in ("PRON", "ADV"))
            is_name = token.pos_ == "PROPN" and not token.is_lower
            if is_name or not (token.pos_ in _OPEN or (token.pos_ in _CLOSED and is_loose)):
                continue
            kind = _correction(self._kinds(word), token, doc[index - 1] if index else None)
            if kind is None and token.pos_ == "ADJ" and self._is_present(token.lower_) and before != "DET":
                kind = "VERB"
            if kind in (None, "VERB") and token.pos_ == "VERB":
                if _is_finite(token):
                    token.set_morph("VerbForm=Fin")
            elif kind is not None and kind != token.pos_:
                token.pos_ = kind
                is_plural = kind == "NOUN" and self._strings[word][-1:] in ("s", "x")
                token.set_morph("Number=Plur" if is_plural else "")
        return doc

    def _is_present(self, word: str) -> bool:
        """Return whether a word is the present of a verb in "-er", which the rules lack, and no adjective."""
        infinitive = f"{word.removesuffix('nt')}r"
        is_verb = word.endswith(("e", "ent")) and infinitive in self._index["verb"]
        return is_verb and not self._is_listed(word, "adj")

    def _kinds_of(self, number: int) -> frozenset[str]:
        """Return the parts of speech that the lists know for a word."""
        word = self._strings[number]
        return frozenset(_KINDS[kind] for kind in _KINDS if self._is_listed(word, kind))

    def _is_listed(self, word: str, kind: str) -> bool:
        listed = self._index[kind]
        return (
            word in listed
            or (kind == "noun" and word.removesuffix("s") in listed)
            or word in self._exceptions[kind]
            or any(
                word.endswith(ending) and word.removesuffix(ending) + other in listed
                for ending, other in self._rules[kind]
            )
        )


def _correction(kinds: frozenset[str], token: Any, before: Any) -> str | None:
    """Return the part of speech of a word of these kinds behind another word; None if the tagger's stays."""
    if token.pos_ == "NOUN" and "ADJ" in kinds and before is not None and before.pos_ == "NOUN":
        is_verb = "VERB" in kinds and _goes_on(token, "DET", "ADP", "NUM")
        return "VERB" if is_verb else "ADJ"  # "un homme barbu"
    is_behind_article = before is not None and before.pos_ in ("DET", "NUM")
    if (
        is_behind_article
        and token.pos_ in ("VERB", "ADJ")
        and "NOUN" in kinds
        and not _goes_on(token, "NOUN", "ADJ", "PROPN")
    ):
        return "NOUN"  # "une mariée en robe blanche"
    is_bare = before is not None and before.pos_ == "ADP" and not token.lower_.endswith(_INFINITIVES)
    if is_bare and "NOUN" in kinds and not _goes_on(token, "NOUN", "ADJ", "PROPN"):
        return "NOUN"  # "un enfant en bottes"
    if len(kinds) == 1:
        (kind,) = kinds
        is_participle = kind == "VERB" and token.lower_.endswith(_PARTICIPLES)
        return None if is_participle else kind
    if token.pos_ == "ADJ" and kinds and "ADJ" not in kinds:
        # Verbs of captions are in the third person, which does not end in "s".
        return "VERB" if "VERB" in kinds and not token.lower_.endswith("s") else "NOUN"
    return None


def _is_finite(token: Any) -> bool:
    """Return whether a verb is no participle: "un chien de berger | rassemble", "une femme | écrit à table"."""
    word = token.lower_
    if word.endswith("t") and not word.endswith("ant"):
        return word.endswith("ent") or _goes_on(token, "DET", "ADP", "NUM", "ADV", "PRON", "NOUN")
    return word.endswith("e") and not word.endswith(_PARTICIPLES)


def _goes_on(token: Any, *kinds: str) -> bool:
    """Return whether a word of some parts of speech follows a word."""
    return token.i + 1 < len(token.doc) and token.nbor().pos_ in kinds
