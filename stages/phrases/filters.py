"""The words of a caption, the normalised text of a phrase, and the word lists, without a parser."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from phrasebox.stages.phrases.languages import grammar_of
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE, Grammar, Words

_INVISIBLE: Final = "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff"
_CONTROL: Final = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffc\ufffd"
_IMAGE_FILE: Final = r"(?:jpe?g|png|gif|webp|tiff?|bmp|heic|svg|raw|cr2|nef|dng|mp4|mov|avi|pdf)"
_TAG: Final = (
    r"<box>[^<>]{0,500}</box>|<\|box_start\|>[^<>]{0,500}<\|box_end\|>|<\|[^<>|]{1,50}\|>"
    r"|</?[a-zA-Z][^<>]{0,500}>|<!--.{0,500}?-->"
)
"""HTML, and the special tokens of vision-language models with the places between them."""
_EMPHASIS: Final = r"\*+|`+|(?<!\w)__+(?=\w)|(?<=\w)__+(?!\w)"

_NOT_WORDS: Final = re.compile(
    r"(?P<gone></?(?:br|div|h[1-6]|li|ol|p|t[dr]|ul)\b[^<>]{0,500}>|https?://\S+|www\.\w\S*|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}\.[\w.]+|(?<!\w)@\w+"
    rf"|(?<![\w()-])[\w()-]{{1,100}}\.{_IMAGE_FILE}\b"
    r"|\b(?:img|dsc[nf]?|pict|mvi|vid|pxl|gopr|dji|cimg|hpim|imgp|scan)[-_ ]?\d{3,}\w*\b"
    r"|(?<!\S)\S{101,})"
    rf"|(?P<tag>{_TAG})"
    rf"|(?P<emphasis>{_EMPHASIS}|^(?:\#{{1,6}}|\d{{1,2}}[.)])[ \t]+)"
    r"|(?P<entity>&(?:[a-zA-Z]{2,10}|#[0-9]{1,6}|#[xX][0-9a-fA-F]{1,5});)"
    r"|(?P<hashtag>(?<![\w&])#(?=[^\W\d]))"
    rf"|(?P<invisible>[{_INVISIBLE}]+)"
    rf"|(?P<control>[{_CONTROL}]+)"
    r"|(?P<separator>(?<=\s)[-\u2013\u2014]+(?=\s)|[|\u2022\u00b7\u00bb\u00ab\u203b]+"
    r"|[\u2190-\u21ff\u2300-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]+)"
    r"|(?P<newline>[ \t]*[\n\r\u2028\u2029\x0b\x0c\x85][\s]*(?:\#{1,6}[ \t]+|\d{1,2}[.)][ \t]+)?)"
    r"|(?P<space>[^\S ]+\s*| {2,}|^ +)",
    re.IGNORECASE | re.DOTALL,
)
_UNUSUAL: Final = re.compile(r"[^a-zA-Z ,.']|\.\w|  |^ |\S{101}")
"""Matches every caption that `_NOT_WORDS` matches, and few others; the search takes a fifteenth of the time."""
_CAPITAL_WORD: Final = re.compile(r"\b[A-Z]")
_LONG_WORD: Final = re.compile(r"[^\W\d_]{4,}")
_TAGS: Final = re.compile(f"{_TAG}|{_EMPHASIS}", re.DOTALL)
_DROPPED_FROM_TEXT: Final = re.compile(rf"[{_INVISIBLE}]+")
_BLANK_IN_TEXT: Final = re.compile(rf"[{_CONTROL}]+")
_DETACHED_SUFFIX: Final = re.compile(" (?=(?:'s|\u2019s|n't|')(?: |$))")
_EDGE_MARKS: Final = " \t\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb()[]{}<>.,;:!?*_~|/\\=+#\u2013\u2014-"


@dataclass(frozen=True, slots=True)
class ReadableCaption:
    """A caption as the parser gets it, with the way back.

    Attributes:
        text: One space between words, without mark-up, addresses and file names; titles are in
            lower case.
        places: The place in the caption of each character of the text, [start, end); None if
            the places are the same.
    """

    text: str
    places: tuple[tuple[int, int], ...] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the offsets in the caption of a non-empty range of `text`, both half open."""
        return (start, end) if self.places is None else (self.places[start][0], self.places[end - 1][1])


def make_readable(caption: str) -> ReadableCaption:
    """Return the words of a caption, any string, for the parser.

    - Removed: HTML tags within a line, special tokens of vision-language models and the boxes
      between them, marks and list numbers of Markdown, control and invisible characters, lone
      surrogates.
    - HTML entities become their character.
    - Separators, emoji and "#" become commas, because the words on either side do not belong
      together.
    - Web addresses, e-mail addresses, @names, image file names, camera tags ("IMG_1234") and
      HTML tags that end a line become full stops: a phrase that reached over them would hold
      them. So do strings of more than 100 characters without a space: spaCy's tokenizer takes
      quadratic time on them.
    - A line break ends a sentence unless the next line continues in lower case.
    - Captions Written As Titles or IN CAPITALS become lower case: a parser takes every
      capitalised word for a name.

    >>> make_readable("<b>A red car</b> &amp; #sunset").text
    'A red car & , sunset'
    """
    has_marks = _UNUSUAL.search(caption) and _NOT_WORDS.search(caption)
    text, places = _replace_marks(caption) if has_marks else (caption, None)
    if _is_title(text):
        text = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    return ReadableCaption(text, places)


def _replace_marks(caption: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    letters: list[str] = []
    places: list[tuple[int, int]] = []

    def put(letter: str, start: int, end: int) -> None:
        if letter != " " or (letters and letters[-1] != " "):
            letters.append(letter)
            places.append((start, end))

    last = 0
    for match in _NOT_WORDS.finditer(caption):
        for index in range(last, match.start()):
            put(caption[index], index, index + 1)
        last = match.end()
        # A text cannot begin with the end of a sentence.
        for letter in (
            _substitute(match, caption) if letters or match.lastgroup not in ("gone", "newline") else ""
        ):
            put(letter, match.start(), last)
    for index in range(last, len(caption)):
        put(caption[index], index, index + 1)
    return "".join(letters), tuple(places)


def _substitute(match: re.Match[str], caption: str) -> str:
    kind = match.lastgroup
    if kind == "entity":
        character = html.unescape(match.group())
        return character if len(character) == 1 and character.isprintable() else " "
    if kind == "gone":
        return " . "
    if kind == "newline":
        before = caption[: match.start()].rstrip()[-1:]
        after = caption[match.end() : match.end() + 1]
        return " " if after.islower() or not after or before in ".!?,;:" else " . "
    return {"invisible": "", "emphasis": "", "separator": " , ", "hashtag": " , "}.get(kind or "", " ")


def _is_title(text: str) -> bool:
    """Return whether a text is in capitals, or has at least three longer words and nearly all start with a capital."""
    if len(_CAPITAL_WORD.findall(text)) < 2:
        return False
    if text.isupper():
        return True
    words = _LONG_WORD.findall(text)
    return len(words) >= 3 and sum(word[0].isupper() for word in words) >= 0.8 * len(words)


def tidy_words(words: str) -> str:
    """Return words with one space between them, without control and invisible characters; "" if nothing is left."""
    return " ".join(_BLANK_IN_TEXT.sub(" ", _DROPPED_FROM_TEXT.sub("", words)).split())


def normalise(words: str, language: str = ENGLISH_CODE) -> str:
    """Return the text of a phrase from its words in the caption; "" if no letter or digit is left.

    The text is case folded, with one space between words and "man 's" joined to "man's". HTML
    entities are resolved; HTML tags, control and invisible characters, quotes and punctuation
    at the edges, and the language's leading determiners and possessive pronouns are dropped. A
    possessor that is a noun stays, because it says which one: "the dog's bowl" -> "dog's bowl".

    language: spaCy's code of the caption's language. One without a grammar has no determiners.

    >>> normalise("The  Old man 's  HAT.")
    "old man's hat"
    >>> normalise("L'eau", "fr")
    'eau'
    """
    text = tidy_words(_TAGS.sub(" ", html.unescape(words))).casefold()
    text = _DETACHED_SUFFIX.sub("", text).strip(_EDGE_MARKS)
    grammar = grammar_of(language)
    while (start := _end_of_determiner(text, grammar)) and text[start:].strip():
        text = text[start:].lstrip(_EDGE_MARKS)
    return text if any(character.isalnum() for character in text) else ""


def _end_of_determiner(text: str, grammar: Grammar) -> int:
    """Return where the text goes on behind its first determiner; 0 if it begins with none."""
    first, space, _ = text.partition(" ")
    if space and first in grammar.determiners:
        return len(first) + 1
    return next((len(elision) for elision in grammar.elisions if text.startswith(elision)), 0)


def is_code(word: str) -> bool:
    """Return whether a word is a number or code ("2019", "x-100"): no letters, or digits and no three letters."""
    if not any(character.isalpha() for character in word):
        return True
    return any(character.isdigit() for character in word) and re.search(r"[^\W\d_]{3}", word) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class WordLists:
    """The word lists of a language; `words.txt` gives the purposes of the sections, and the English ones.

    All entries are lower-case lemmas. `drop` has entries of the form "head" or "preposition
    head". A language may leave sections empty.
    """

    drop: Words = frozenset()
    bare: Words = frozenset()
    frame: Words = frozenset()
    quantity: Words = frozenset()
    colour: Words = frozenset()
    clothing_in_pairs: Words = frozenset()
    thing_in_ing: Words = frozenset()
    object_like_colour: Words = frozenset()
    verb: Words = frozenset()


def word_lists(
    add: Iterable[str] = (), keep: Iterable[str] = (), *, language: str = ENGLISH_CODE
) -> WordLists:
    """Return the word lists of a language, with `add` added to `drop` and then `keep` removed from it."""
    sections = {name.replace("-", "_"): entries for name, entries in grammar_of(language).lists.items()}
    added = frozenset(entry.casefold() for entry in add)
    drop = (sections.get("drop", frozenset()) | added) - {entry.casefold() for entry in keep}
    return WordLists(**{**sections, "drop": drop})
