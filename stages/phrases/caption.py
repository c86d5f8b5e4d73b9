"""A parsed caption as plain lists, and candidates for its phrases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from phrasebox.stages.phrases.languages.grammar import Grammar

NOUN_TAGS: Final = frozenset({"NN", "NNS", "NNP", "NNPS"})
PLURAL_TAGS: Final = frozenset({"NNS", "NNPS"})

_NOT_BEHIND_ARTICLE: Final = frozenset({"RB", "RP", "VB", "VBP", "VBD", "IN", "UH", "MD"})
_BEHIND_NOUN: Final = frozenset(
    {"IN", "VBZ", "VBP", "VBD", "VBG", "VBN", "MD", "CC", ",", ".", "TO", "WDT", "WP"}
)
ARTICLES: Final = frozenset({"a", "an", "the", "his", "her", "their", "its"})
"""Words that always open a phrase.

"That" and "this" are missing because they also occur alone.
"""
_INTERJECTIONS: Final = frozenset(
    {"ah", "aha", "alas", "bye", "hello", "hey", "hi", "no", "oh", "ok", "okay"}
    | {"oops", "ouch", "please", "well", "wow", "yes", "yeah"}
)

_TAG_OF: Final = {
    "ADJ": "JJ", "ADP": "IN", "ADV": "RB", "AUX": "MD", "CCONJ": "CC", "DET": "DT", "INTJ": "UH", "NOUN": "NN",
    "NUM": "CD", "PART": "RP", "PRON": "PRP", "PROPN": "NNP", "PUNCT": ",", "SCONJ": "IN", "SYM": "SYM",
    "VERB": "VB", "X": "FW",
}  # fmt: skip
"""Universal part of speech -> tag of the Penn Treebank."""


class Candidate(NamedTuple):
    """A noun phrase as token positions: half-open `start`, `end`, and the head noun's position."""

    start: int
    end: int
    head: int


Candidates = list[Candidate]


@dataclass(frozen=True, slots=True)
class ParsedCaption:
    """The columns of a parsed caption, with one entry per token in every list.

    Attributes:
        doc: The spaCy Doc.
        grammar: The tables of its language.
        tags: Fine parts of speech (Penn Treebank), in English with frequent mistakes corrected. In
            other languages they are those nearest to the universal parts of speech.
        words: In lower case.
        has_verb: Whether there is a word that the tagger takes for a verb.
    """

    doc: Any
    grammar: Grammar
    tags: list[str]
    words: list[str]
    has_verb: bool

    @staticmethod
    def of(doc: Any, grammar: Grammar) -> ParsedCaption:
        """Read a spaCy Doc."""
        words = [token.lower_ for token in doc]
        tags = (
            _correct_tags([token.tag_ for token in doc], words)
            if grammar.method == "repairs"
            else [_tag_of(token) for token in doc]
        )
        return ParsedCaption(
            doc=doc,
            grammar=grammar,
            tags=tags,
            words=words,
            has_verb=any(tag[:1] == "V" or tag == "MD" for tag in tags),
        )

    def lemma(self, index: int) -> str:
        """Return the lemma in lower case, with all parts of a hyphenated word: "t-shirt", "x-ray"."""
        lemma = str(self.doc[index].lemma_).lower()
        if index < 2 or self.tags[index - 1] != "HYPH":
            return lemma
        return "".join(self.words[self.hyphen_range(index)[0] : index]) + lemma

    def hyphen_range(self, index: int) -> tuple[int, int]:
        """Return the half-open token range of the hyphenated word of a token, or of the token alone."""
        start = index
        end = index + 1
        while start > 0 and "HYPH" in self.tags[start - 1 : start + 1]:
            start -= 1
        while end < len(self.tags) and "HYPH" in self.tags[end - 1 : end + 1]:
            end += 1
        return start, end

    def is_worn(self, start: int) -> bool:
        """Return whether somebody wears what the phrase from this token on names."""
        grammar = self.grammar
        before = self.words[max(0, start - 2) : start]
        return before[-1:] != [] and (
            before[-1] in grammar.wearing
            or (len(before) == 2 and before[-1] in grammar.of and before[0] in grammar.dressed)
        )

    def noun_phrases(self) -> Candidates:
        """Return spaCy's noun chunks, in order, without overlap."""
        return [Candidate(chunk.start, chunk.end, chunk.root.i) for chunk in self.doc.noun_chunks]


def _tag_of(token: Any) -> str:
    """Return the tag of the Penn Treebank for a token of another language than English."""
    if token.text in ("-", "\u2010"):
        return "HYPH"
    tag = _TAG_OF.get(token.pos_, str(token.pos_))
    morph = token.morph.to_dict()
    if tag in ("NN", "NNP"):
        return f"{tag}S" if morph.get("Number") == "Plur" else tag
    if tag == "DT" and morph.get("Poss") == "Yes":
        return "PRP$"
    if tag == "," and token.text[:1] in ".!?:;()[]":
        return "."
    if tag == "VB" and morph.get("VerbForm") == "Part":
        return "VBG" if morph.get("Tense") == "Pres" else "VBN"
    return tag


def _correct_tags(tags: list[str], words: list[str]) -> list[str]:
    """Correct three frequent mistakes of the tagger.

    It takes the first word of "Boy in a red shirt" for an interjection. A word between an
    article and a preposition, a verb or a mark is a noun ("a tattoo on", where it takes
    "tattoo" for an adverb). A hyphen is not a noun.
    """
    for index, tag in enumerate(tags):
        if words[index] == "-" and tag in NOUN_TAGS:
            tags[index] = "HYPH"
        elif tag == "UH":
            if words[index] not in _INTERJECTIONS and words[index].isalpha():
                tags[index] = "NN"
        elif tag in _NOT_BEHIND_ARTICLE and index and words[index - 1] in ARTICLES:
            after = tags[index + 1] if index + 1 < len(tags) else "."
            if after in _BEHIND_NOUN:
                tags[index] = "NN"
    return tags
