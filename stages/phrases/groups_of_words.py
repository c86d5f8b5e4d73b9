"""The noun phrases of languages with tables, by parts of speech: "une jeune femme", "zwei braune Hunde".

Small parsers of other languages than English attach the words of captions wrongly, and end noun
chunks at the wrong places. Their parts of speech are right more often, and the tables correct
frequent mistakes: "Un cuisinier | coupe", where the tagger takes the verb for a noun.
"""

from __future__ import annotations

from typing import Final

from phrasebox.stages.phrases.caption import NOUN_TAGS, Candidate, Candidates, ParsedCaption
from phrasebox.stages.phrases.filters import WordLists

_DETERMINER_TAGS: Final = frozenset({"DT", "PRP$", "CD"})
_HEADS_BEHIND_DETERMINER: Final = NOUN_TAGS | {"JJ", "FW", "VB", "VBN", "DT"}
"""Tags of heads: taggers take a rare noun for an adjective or a verb."""
_ADJECTIVE_TAGS: Final = frozenset({"JJ", "VBN"})
_BETWEEN_ADJECTIVES: Final = frozenset({"CC", ","})


def find_groups(caption: ParsedCaption, lists: WordLists) -> Candidates:
    """Return the noun phrases of a caption in order, without overlap.

    A noun without a determiner directly behind a noun phrase is a verb more often than a phrase.
    """
    groups: Candidates = []
    index = 0
    while index < len(caption.words):
        group = _group_at(caption, index, lists, groups[-1].end if groups else -1)
        if group is None:
            index += 1
        else:
            groups.append(group)
            index = group.end
    return groups


def _group_at(caption: ParsedCaption, start: int, lists: WordLists, previous_end: int) -> Candidate | None:
    """Return the noun phrase that begins at a token; None if none does."""
    tags = caption.tags
    count = len(tags)
    if start and "HYPH" in tags[start - 1 : start + 1]:
        return None
    noun = start
    while noun < count and _is_determiner(caption, noun, is_first=noun == start):
        noun += 1
    has_determiner = noun > start
    noun = _skip_adjectives(caption, noun, lists)
    if noun >= count or not _is_head(caption, noun, lists, has_determiner=has_determiner):
        return None
    is_adjacent = noun == start == previous_end
    if is_adjacent and not _is_name(caption, start) and caption.grammar.has_adjectives_behind:
        return None
    end = noun + 1
    if not caption.grammar.has_adjectives_behind:
        while end < count and tags[end] in NOUN_TAGS:  # "Tennis Spieler"
            end += 1
        noun = end - 1
    while end + 1 < count and tags[end] == "HYPH":
        end += 2
        noun = end - 1
    is_colour = caption.words[noun] in lists.colour
    end = _end_of_adjectives(caption, end, lists)
    if is_colour and caption.words[end - 1] in lists.colour:
        noun = end - 1  # "vêtu de noir et blanc"
    if end < count and tags[end] == "CD" and caption.words[end].isdecimal():
        end += 1  # "le numéro 8"
    return Candidate(start, end, noun)


def _is_determiner(caption: ParsedCaption, index: int, *, is_first: bool) -> bool:
    grammar = caption.grammar
    word = caption.words[index]
    if caption.tags[index] == "CD" or word in grammar.several:
        return True
    if caption.tags[index] in _DETERMINER_TAGS:
        return is_first or word in grammar.determiners  # "un lac", where the tagger takes both for articles
    # A preposition that is part of a determiner begins no phrase: "des" for "de les".
    return word in grammar.determiners and caption.tags[index] == "IN" and word not in grammar.of


def _skip_adjectives(caption: ParsedCaption, index: int, lists: WordLists) -> int:
    """Return the place of the noun behind the adjectives that begin at a token, or the token's own."""
    noun = index
    while noun + 1 < len(caption.words) and _stands_before_noun(caption, noun, lists):
        noun += 1
    return noun


def _stands_before_noun(caption: ParsedCaption, index: int, lists: WordLists) -> bool:
    grammar = caption.grammar
    tag, after = caption.tags[index : index + 2]
    word, next_word = caption.words[index : index + 2]
    if not grammar.has_adjectives_behind:
        if tag in ("RB", "CC", ","):  # "ein sehr kleiner, weißer Hund"
            follows = index > 0 and (tag == "RB" or caption.tags[index - 1] in _ADJECTIVE_TAGS)
            return follows and after in _ADJECTIVE_TAGS
        return tag in _ADJECTIVE_TAGS and after in {*NOUN_TAGS, *_ADJECTIVE_TAGS, "CC", ",", "RB"}
    may_be_noun = after in NOUN_TAGS | _ADJECTIVE_TAGS and next_word not in grammar.postures
    if word in grammar.before_nouns:
        return may_be_noun and next_word not in lists.colour
    if tag == "RB" and index > 0:
        return next_word in grammar.before_nouns
    is_no_noun = next_word in lists.colour | grammar.before_nouns | grammar.verbs
    return tag == "JJ" and after in NOUN_TAGS and may_be_noun and not is_no_noun


def _is_head(caption: ParsedCaption, index: int, lists: WordLists, *, has_determiner: bool) -> bool:
    tag = caption.tags[index]
    word = caption.words[index]
    if not any(letter.isalnum() for letter in word):
        return False
    before = caption.tags[index - 1] if index else "."
    if not has_determiner and before == "PRP":
        return False  # "une statue se | dresse"
    if not has_determiner and index and before != "IN" and word in caption.grammar.verbs:
        return False  # "un homme tranquillement | coupe du bois"
    if word in lists.colour and not has_determiner:
        is_object = word in lists.object_like_colour and tag in NOUN_TAGS  # "un bouquet de roses"
        return caption.is_worn(index) or is_object
    if tag == "JJ" and before == "IN":
        # "un groupe de touristes", where the tagger takes the noun for an adjective
        return not _ends_phrase(caption, index)
    return tag in (_HEADS_BEHIND_DETERMINER if has_determiner else NOUN_TAGS)


def _is_name(caption: ParsedCaption, index: int) -> bool:
    return caption.tags[index] in ("NNP", "NNPS") and str(caption.doc[index].text)[:1].isupper()


def _ends_phrase(caption: ParsedCaption, index: int) -> bool:
    """Return whether a word behind a noun is no part of its phrase, whatever its part of speech."""
    word = caption.words[index]
    return word in caption.grammar.verbs or word in caption.grammar.postures


def _end_of_adjectives(caption: ParsedCaption, end: int, lists: WordLists) -> int:
    """Return where the adjectives behind a noun end, which are looked for from `end` on."""
    if not caption.grammar.has_adjectives_behind:
        return end
    tags = caption.tags
    count = len(tags)
    while end < count:
        last = end
        if last + 1 < count and tags[last] == "RB":  # "une femme très âgée"
            last += 1
        elif last + 1 < count and tags[last] in _BETWEEN_ADJECTIVES:  # "un chien noir et blanc"
            last += 1
            joins = caption.words[last] in lists.colour and caption.words[end - 1] in lists.colour
            if not joins:
                return end
        if not _is_adjective_behind(caption, last, lists):
            return end
        end = last + 1
    return end


def _is_adjective_behind(caption: ParsedCaption, index: int, lists: WordLists) -> bool:
    tag = caption.tags[index]
    word = caption.words[index]
    if word in lists.colour:
        return True
    if _ends_phrase(caption, index):
        return False
    if word in caption.grammar.adjectives:
        return True
    after = caption.tags[index + 1] if index + 1 < len(caption.tags) else "."
    if after in _DETERMINER_TAGS:  # "un pompier | éteint un feu"
        return False
    if word in caption.grammar.before_nouns:  # "une chaise haute"
        return after not in NOUN_TAGS
    if tag == "VBN":  # "une pente enneigée", but "une table | couverte de fleurs"
        return after != "IN" or caption.words[index + 1] not in caption.grammar.of | caption.grammar.by
    return tag == "JJ" or _is_name(caption, index)  # "la tour Eiffel"
