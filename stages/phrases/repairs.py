"""The noun phrases of an English caption: its base phrases, repaired where captions mislead the tagger.

Captions are titles and fragments ("man riding horse"), but taggers are trained on news. Each
repair is a function from candidates to candidates; its docstring gives the reason. `REPAIRS` is
their order. Gains are F1 points (of 100) on exact spans of 5,000 Flickr30k Entities captions (dev,
`keep_parts`), measured by leaving the repair out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from phrasebox.stages.phrases.base_phrases import find_base_phrases
from phrasebox.stages.phrases.caption import NOUN_TAGS, Candidate, Candidates, ParsedCaption
from phrasebox.stages.phrases.filters import WordLists

_DETERMINER_TAGS: Final = frozenset({"DT", "PRP$"})
_ADJECTIVE_TAGS: Final = frozenset({"JJ", "JJR", "JJS", "VBN", "CD"})
_NOT_IN_NOUN: Final = frozenset({"IN", "TO", "RB", "RP"})
_BEFORE_DETERMINER: Final = frozenset(
    {"all", "both", "half", "such", "quite", "many", "what", "not", "one", "each"}
)
_NO_START_TAGS: Final = frozenset(
    {",", "CC", ".", ":", "``", "''", "IN", "-LRB-", "-RRB-", "RP", "TO"}
    | {"HYPH", "POS", "SYM", "_SP", "NFP", "VBZ", "VBP", "VBD", "MD", "UH"}
)
_FULL_STOP_TAGS: Final = frozenset({".", ":", "-LRB-", "-RRB-", "NFP"})
_MANY: Final = frozenset(
    {"few", "couple", "dozen", "hundred", "thousand", "lot", "number", "bunch", "group", "pair"}
)
_SHADE: Final = frozenset({"bright", "dark", "light", "pale", "all"})
_BETWEEN_COLOURS: Final = frozenset({"and", ",", "&"})


Repair = Callable[[ParsedCaption, Candidates, WordLists], Candidates]


def join_hyphenated(
    caption: ParsedCaption,
    candidates: Candidates,
    lists: WordLists,
) -> Candidates:
    """Treat a hyphenated word as one: "mini-trampoline" is not "trampoline", "off-camera" is not a camera. +0.04.

    A hyphenated word with a preposition or an adverb inside is an adverb itself
    ("hand-in-hand") unless something modifies it ("his father-in-law").
    """
    tags = caption.tags
    if "HYPH" not in tags:
        return candidates
    phrases: Candidates = []
    for candidate in candidates:
        first, word_end = caption.hyphen_range(candidate.start)
        end = caption.hyphen_range(candidate.end - 1)[1]
        is_adverb = word_end == end and not _NOT_IN_NOUN.isdisjoint(tags[first : end - 1])
        while phrases and phrases[-1].end > first:  # the part before the hyphen was a phrase of its own
            first = min(first, phrases.pop().start)
        if not is_adverb:
            phrases.append(Candidate(first, end, end - 1))
    return phrases


def split_at_boundaries(
    caption: ParsedCaption,
    candidates: Candidates,
    lists: WordLists,
) -> Candidates:
    """Split where a noun phrase cannot continue, and drop what it cannot begin with. +1.1.

    A full stop, colon or bracket ends a phrase; a determiner begins one ("snow a dog"); a
    participle behind a noun is a verb with its object ("boy | holding | pool cue"); behind
    "noun and" an adjective begins the next phrase ("olive vest | and | black boots").
    """
    phrases: Candidates = []
    for candidate in candidates:
        start = candidate.start
        for index in range(candidate.start + 1, candidate.end):
            skip = _border(caption, index, candidate, lists)
            if skip is not None:
                _add_trimmed(caption, phrases, start, index)
                start = index + skip
        _add_trimmed(caption, phrases, start, candidate.end)
    return phrases


def _border(
    caption: ParsedCaption,
    index: int,
    candidate: Candidate,
    lists: WordLists,
) -> int | None:
    """Return the number of words to leave out between two phrases that meet at `index`; None if none meet."""
    tags = caption.tags
    words = caption.words
    tag = tags[index]
    before = tags[index - 1]
    if tag in _FULL_STOP_TAGS:
        return None if words[index] == "-" else 1
    if tag in _DETERMINER_TAGS:
        continues = words[index - 1] in _BEFORE_DETERMINER or before in {"PDT", "DT"}
        return None if continues else 0
    if before not in NOUN_TAGS or index + 1 >= candidate.end:
        return None
    if tag == "VBG":
        return None if words[index] in lists.thing_in_ing or tags[index + 1] == "HYPH" else 1
    if tag == "CC" and index + 2 < candidate.end:
        return 1 if tags[index + 1] in _ADJECTIVE_TAGS else None
    return None


def _add_trimmed(caption: ParsedCaption, phrases: Candidates, start: int, end: int) -> None:
    while start < end and caption.tags[start] in _NO_START_TAGS:
        start += 1
    last = end
    while last > start and caption.tags[last - 1] not in NOUN_TAGS:
        last -= 1
    if last > start:
        phrases.append(Candidate(start, last, last - 1))
    elif end - start == 1:  # a lone pronoun or number: later rules need to see it
        phrases.append(Candidate(start, end, end - 1))


def cut_verbs(
    caption: ParsedCaption,
    candidates: Candidates,
    lists: WordLists,
) -> Candidates:
    """Cut off the verb that was taken for the last noun of its subject: "a man in a red hat | talks". +1.5."""
    phrases: Candidates = []
    for start, end, head in candidates:
        last = end
        if end - start >= 2 and _ends_in_verb(caption, start, end, lists):
            last -= 1
            while last > start and caption.tags[last - 1] not in NOUN_TAGS | {"JJ"}:
                last -= 1
        if last > start:
            phrases.append(Candidate(start, last, min(head, last - 1)))
    return phrases


def _ends_in_verb(caption: ParsedCaption, start: int, end: int, lists: WordLists) -> bool:
    tags = caption.tags
    words = caption.words
    tag = tags[end - 1]
    before = tags[end - 2]
    if tag not in NOUN_TAGS or before not in NOUN_TAGS | {"JJ", "VBN"}:
        return False
    if words[end - 1].endswith("ing"):
        return words[end - 1] not in lists.thing_in_ing
    is_single = words[start] in {"a", "an", "another", "one"} and not (
        tags[start + 1] in {"CD", "CC"} or words[start + 1] in _MANY or "CC" in tags[start:end]
    )
    if tag == "NNS" and words[end - 1].endswith("s"):
        if is_single and before not in {"NNS", "VBN"} and words[end - 1] not in lists.clothing_in_pairs:
            return True  # "a ... talks" is not a noun phrase: the numbers disagree
        return before != "VBN" and caption.lemma(end - 1) in lists.verb
    if is_single and not (start and words[start - 1] == "and"):  # "a boy and a dog play"
        return False
    # "two dogs wrestle": in a caption that has no other verb
    return tag == "NN" and not caption.has_verb and caption.lemma(end - 1) in lists.verb


def join_colours(caption: ParsedCaption, candidates: Candidates, lists: WordLists) -> Candidates:
    """Join the colours of one noun: "a tan | and white dog", "a blue | and orange pillow". +0.01 on Flickr8k."""
    words = caption.words
    if lists.colour.isdisjoint(words):
        return candidates
    phrases: Candidates = []
    for start, end, head in candidates:
        before = phrases[-1] if phrases else None
        if (
            before is not None
            and before.end + 1 == start
            and words[before.end] in _BETWEEN_COLOURS
            and words[before.head] in lists.colour
            and words[start] in lists.colour
        ):
            phrases[-1] = Candidate(before.start, end, head)
        else:
            phrases.append(Candidate(start, end, head))
    return phrases


def add_colours(caption: ParsedCaption, candidates: Candidates, lists: WordLists) -> Candidates:
    """Treat a colour that is worn as clothing: "a man in black", "dressed in red and white". +0.1.

    Other lone colours name nothing: "a dog with | brown | on its face".
    """
    words = caption.words
    tags = caption.tags
    if lists.colour.isdisjoint(words):
        return candidates
    colour_words = lists.colour | _SHADE | _BETWEEN_COLOURS
    phrases = [
        candidate
        for candidate in candidates
        if words[candidate.head] not in lists.colour
        or caption.is_worn(candidate.start)
        or words[candidate.start - 1 : candidate.start] == ["of"]
        or not colour_words.issuperset(words[candidate.start : candidate.end])
    ]
    owner = _owners(caption, phrases)
    end = 1
    for index in range(1, len(words)):
        has_shade = words[index - 1] in _SHADE and index >= 2
        start = index - has_shade
        is_colour = words[index] in lists.colour and owner[index] < 0
        if index < end or not is_colour or not caption.is_worn(start):
            continue
        end = index + 1
        while end + 1 < len(words) and words[end] in _BETWEEN_COLOURS and words[end + 1] in lists.colour:
            end += 2
        overlaps = any(owner[position] >= 0 for position in range(start, min(end + 1, len(words))))
        if not overlaps and (end == len(words) or tags[end] not in NOUN_TAGS | _ADJECTIVE_TAGS):
            phrases.append(Candidate(start, end, end - 1))
    phrases.sort()
    return phrases


def add_numbers(
    caption: ParsedCaption,
    candidates: Candidates,
    lists: WordLists,
) -> Candidates:
    """Add the number behind its noun: "the number 8", "table 11". +0.1."""
    tags = caption.tags
    if "CD" not in tags:
        return candidates
    owner = _owners(caption, candidates)

    def has_number(end: int) -> bool:
        return end < len(tags) and tags[end] == "CD" and owner[end] < 0 and caption.words[end] != "one"

    return [
        Candidate(start, end + 1 if head == end - 1 and has_number(end) else end, head)
        for start, end, head in candidates
    ]


REPAIRS: Final[tuple[Repair, ...]] = (
    join_hyphenated,
    split_at_boundaries,
    cut_verbs,
    join_colours,
    add_colours,
    add_numbers,
)
"""The order matters: boundaries split phrases, and verbs are cut from the parts."""


def repair_noun_phrases(caption: ParsedCaption, lists: WordLists) -> Candidates:
    """Return the base phrases after all repairs, in order, without overlap."""
    candidates = find_base_phrases(caption)
    for repair in REPAIRS:
        candidates = repair(caption, candidates, lists)
    return candidates


def _owners(caption: ParsedCaption, candidates: Sequence[Candidate]) -> list[int]:
    """Return for each token the index of its candidate, or -1."""
    owner = [-1] * len(caption.tags)
    for number, candidate in enumerate(candidates):
        owner[candidate.start : candidate.end] = [number] * (candidate.end - candidate.start)
    return owner
