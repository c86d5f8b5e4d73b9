"""Captions that are plainly in another language than the one they are parsed as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stages.contract.records import OTHER_LANGUAGE
from stages.phrases.filters import readable

LANGUAGES: Final = (
    "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he", "hi", "hr", "hu", "id",
    "it", "ja", "kn", "ko", "lt", "lv", "ml", "mr", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv",
    "ta", "te", "th", "tr", "uk", "ur", "vi", "zh",
)  # fmt: skip
"""ISO 639 codes of the languages that are distinguished. The model knows some 90 more, for which it takes English
captions: a kimono is Hausa, a skateboard Frisian. Captions in these count as a language like theirs."""

_NO_LANGUAGE: Final = "zxx"
"""The model's code for codes and file names."""

_MARGIN: Final = 15.0
"""Nats by which another language must be the likelier one. Then none of 48,421 English captions of Flickr8k and COCO is
taken for another language (45 with no margin), and all of 128 captions in 28 other languages are found."""


class Languages:
    """Finds the captions whose language is not the parser's. It takes 0.1 ms a caption, and 80 MB of memory.

    Args:
        parsed: Code of the parser's language, as spaCy has it, such as "en".
        kept: Codes of the languages whose captions are kept; None keeps all.
    """

    def __init__(self, parsed: str, kept: Sequence[str] | None) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 - only a worker that parses needs it

        self._parsed, self._kept = parsed, kept
        self._identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE)
        self._identifier.set_languages((*LANGUAGES, _NO_LANGUAGE))

    def other(self, caption: str) -> str | None:
        """ISO 639 code of the language of a caption if it is plainly not the parser's, else None."""
        text = readable(caption).text
        if self._parsed not in LANGUAGES or self._identifier.classify(text)[0] in (self._parsed, _NO_LANGUAGE):
            return None
        ranked: list[tuple[str, float]] = self._identifier.rank(text)
        language, score = ranked[0]
        return language if score - dict(ranked)[self._parsed] > _MARGIN else None

    def sorted_out(self, captions: Sequence[str]) -> tuple[list[str], list[str]]:
        """The captions with an empty one for each that is not kept, and what a reader of the row should know."""
        found = {index: language for index, caption in enumerate(captions) if (language := self.other(caption))}
        kept = [self._kept is None or found.get(index, self._parsed) in self._kept for index in range(len(captions))]
        notes = []
        for stays, what in ((True, ""), (False, ", left out")):
            listed = ", ".join(f"{index} ({language})" for index, language in found.items() if kept[index] == stays)
            if listed:
                notes.append(f"{OTHER_LANGUAGE} than {self._parsed}{what}: {listed}")
        return [caption if stays else "" for caption, stays in zip(captions, kept, strict=True)], notes
