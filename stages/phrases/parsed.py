"""A parsed caption as plain lists.

spaCy makes a Python object of every token that is looked at, which takes longer than finding the phrases. All columns
are therefore read in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

NOUN_TAGS: Final = frozenset({"NN", "NNS", "NNP", "NNPS"})
PLURAL_TAGS: Final = frozenset({"NNS", "NNPS"})

_COLUMNS: Final = ["TAG", "LOWER", "LEMMA", "POS", "DEP", "HEAD", "IDX", "LENGTH"]
_NOMINAL: Final = frozenset({"NOUN", "PROPN", "PRON"})
_PHRASE_DEPS: Final = frozenset(
    {"oprd", "nsubj", "dobj", "nsubjpass", "pcomp", "pobj", "dative", "appos", "attr", "ROOT"}
)
"""Relations in which a noun heads a phrase of its own (ClearNLP labels, spaCy's English pipelines)."""

_NOT_BEHIND_ARTICLE: Final = frozenset({"RB", "RP", "VB", "VBP", "VBD", "IN", "UH", "MD"})
_BEHIND_NOUN: Final = frozenset({"IN", "VBZ", "VBP", "VBD", "VBG", "VBN", "MD", "CC", ",", ".", "TO", "WDT", "WP"})
ARTICLES: Final = frozenset({"a", "an", "the", "his", "her", "their", "its"})
"""Words that always open a phrase. "That" and "this" are missing because they also occur alone."""
_INTERJECTIONS: Final = frozenset(
    {"ah", "aha", "alas", "bye", "hello", "hey", "hi", "no", "oh", "ok", "okay"}
    | {"oops", "ouch", "please", "well", "wow", "yes", "yeah"}
)


class Candidate(NamedTuple):
    """A noun phrase as token positions: half-open `start`, `end`, and the head noun's position."""

    start: int
    end: int
    head: int


@dataclass(frozen=True, slots=True)
class Parsed:
    """The columns of a parsed caption, with one entry per token in every list.

    Attributes:
        tags: Fine part of speech (Penn Treebank), with frequent mistakes corrected.
        words: In lower case.
        parts: Coarse part of speech (Universal).
        relations: Dependency label.
        heads: Position of the token's head; its own position for a root.
        offsets: First character in the text.
        lengths: Characters.
        has_verb: Whether the tagger saw a verb at all.
    """

    tags: list[str]
    words: list[str]
    parts: list[str]
    relations: list[str]
    heads: list[int]
    offsets: list[int]
    lengths: list[int]
    has_verb: bool
    _lemmas: list[int]
    _strings: Any

    @staticmethod
    def of(doc: Any) -> Parsed:
        """Read a spaCy Doc."""
        table = doc.to_array(_COLUMNS)
        tags, words, lemmas, parts, relations, _, offsets, lengths = table.T.tolist()
        heads = table[:, _COLUMNS.index("HEAD")].view("int64").tolist()  # relative, stored as unsigned
        strings = doc.vocab.strings
        names = [strings[word] for word in words]
        corrected = _corrected([strings[tag] for tag in tags], names)
        return Parsed(
            tags=corrected,
            words=names,
            parts=[strings[part] for part in parts],
            relations=[strings[relation] for relation in relations],
            heads=[index + head for index, head in enumerate(heads)],
            offsets=offsets,
            lengths=lengths,
            has_verb=any(tag[:1] == "V" or tag == "MD" for tag in corrected),
            _lemmas=lemmas,
            _strings=strings,
        )

    def lemma(self, index: int) -> str:
        """The lemma in lower case. It includes all parts of a hyphenated word: "t-shirt", "x-ray"."""
        lemma = str(self._strings[self._lemmas[index]]).lower()
        if index < 2 or self.tags[index - 1] != "HYPH":
            return lemma
        return "".join(self.words[self.hyphenated(index)[0] : index]) + lemma

    def hyphenated(self, index: int) -> tuple[int, int]:
        """Half-open token range of the hyphenated word that a token belongs to, or of the token alone."""
        start, end = index, index + 1
        while start > 0 and "HYPH" in self.tags[start - 1 : start + 1]:
            start -= 1
        while end < len(self.tags) and "HYPH" in self.tags[end - 1 : end + 1]:
            end += 1
        return start, end

    def noun_phrases(self) -> list[Candidate]:
        """The parser's own noun phrases, in order, without overlap: a head noun and what depends on it to its left.

        They equal spaCy's `Doc.noun_chunks`.
        """
        found: list[Candidate] = []
        leftmost = self._left_edges()
        end = 0
        for index, part in enumerate(self.parts):
            if part in _NOMINAL and leftmost[index] >= end and self._heads_a_phrase(index):
                found.append(Candidate(leftmost[index], index + 1, index))
                end = index + 1
        return found

    def _heads_a_phrase(self, index: int) -> bool:
        if self.relations[index] != "conj":
            return self.relations[index] in _PHRASE_DEPS
        first = self.heads[index]  # the first of the conjuncts decides
        while self.relations[first] == "conj" and self.heads[first] < first:
            first = self.heads[first]
        return self.relations[first] in _PHRASE_DEPS

    def _left_edges(self) -> list[int]:
        """For each token, the leftmost one that depends on it, directly or not."""
        edges = list(range(len(self.heads)))
        for index, head in enumerate(self.heads):
            above = head
            while index < edges[above]:
                edges[above] = index
                above = self.heads[above]
        return edges


def _corrected(tags: list[str], words: list[str]) -> list[str]:
    """Correct three frequent mistakes of the tagger.

    It takes the first word of "Boy in a red shirt" for an interjection. A word between an article and a preposition, a
    verb or a mark is a noun ("a tattoo on", where it takes "tattoo" for an adverb). A hyphen is not a noun.
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
