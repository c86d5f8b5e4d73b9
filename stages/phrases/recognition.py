"""The language of a caption, by py3langid's model of bytes."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any, Final

from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE

LANGUAGES: Final = (
    "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he", "hi", "hr", "hu", "id",
    "it", "ja", "kn", "ko", "lt", "lv", "ml", "mr", "nb", "nl", "pa", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv",
    "ta", "te", "th", "tr", "uk", "ur", "vi", "zh",
)  # fmt: skip
"""Codes of the languages that are distinguished, as spaCy has them.

The model knows some 90 more, for which it takes English captions: a kimono is Hausa, a
skateboard Frisian. Captions in these count as a language like theirs."""

_NAME_IN_MODEL: Final = {"nb": "no"}
"""Code -> the model's code, where it is another one."""

_NO_LANGUAGE: Final = "zxx"  # the model's code for codes and file names

_MARGIN: Final = 15.0
"""Least lead of another language, in nats.

Then none of 48,421 English captions of Flickr8k and COCO is taken for another language (45 with
no margin), and all of 128 captions in 28 other languages are found."""

_ENGLISH_LEAD: Final = 3.0
"""What English gets beforehand where several languages are parsed, in nats. With it 10 of 35,465
English captions are taken for another language (40 without)."""


@cache
def identifier(more: frozenset[str] = frozenset()) -> Any:
    """Return the model for `LANGUAGES` and more codes, those that it knows. It takes half a second, and 90 MB."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 - only a worker that parses needs it

    model = LanguageIdentifier.from_model_file(MODEL_FILE)
    codes = {_NAME_IN_MODEL.get(code, code) for code in (*LANGUAGES, *more)} & {*map(str, model.nb_classes)}
    model.set_languages((*sorted(codes), _NO_LANGUAGE))
    model.nb_ptc = model.nb_ptc.astype("float32", order="C")  # rows in one piece: 0.7 of the time
    return model


def foreign_language(text: str, parser_language: str) -> str | None:
    """Return the ISO 639 code of the language of readable text if it is plainly not the parser's, else None.

    It takes 0.03 ms a caption. `parser_language` is spaCy's code, such as "en".
    """
    name = _NAME_IN_MODEL.get(parser_language, parser_language)
    if parser_language not in LANGUAGES or identifier().classify(text)[0] in (name, _NO_LANGUAGE):
        return None
    ranking: list[tuple[str, float]] = identifier().rank(text)
    language, score = ranking[0]
    return _code_of(language) if score - dict(ranking)[name] > _MARGIN else None


def recognise_language(text: str, parsed: Collection[str]) -> str:
    """Return the code of the language of readable text.

    A text that is not plainly in another language is in one of `parsed`, those that have a parser: the
    likeliest of them. "en" has to be among them. It is the language of texts without words, too.
    """
    model = identifier(frozenset(parsed) - {*LANGUAGES})
    ranking: list[tuple[str, float]] = model.rank(text)
    if ranking[0][0] == _NO_LANGUAGE:
        return ENGLISH_CODE
    scores = {_code_of(name): score for name, score in ranking}
    scores[ENGLISH_CODE] += _ENGLISH_LEAD
    likeliest = max((code for code in scores if code in parsed), key=lambda code: scores[code])
    language = max(scores, key=lambda code: scores[code])
    is_plain = scores[language] - scores[likeliest] > _MARGIN
    return language if is_plain and language != _NO_LANGUAGE else likeliest


def _code_of(name: str) -> str:
    return next((code for code, other in _NAME_IN_MODEL.items() if other == name), name)
