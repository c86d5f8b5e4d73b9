"""The stage that fills `Record.phrases` with the noun phrases of the captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.records import (
    NO_PACKAGE,
    NO_PARSER,
    OTHER_LANGUAGE,
    UNREAD_LANGUAGE,
    Phrase,
    Record,
)
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.filters import ReadableCaption, make_readable, normalise
from phrasebox.stages.phrases.groups import link_phrases
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE
from phrasebox.stages.phrases.parsers import Parsers
from phrasebox.stages.phrases.precomputed import PrecomputedPhrases
from phrasebox.stages.phrases.recognition import foreign_language

CANDIDATES: Final = 8  # times the limit of phrases an image, where a later stage chooses among them


class _Caption(NamedTuple):
    """A caption on the way to its phrases.

    Attributes:
        language: The language in which it is parsed, or, if it is left out, the one it is in.
        text: Its text for the parser; None: it is not parsed.
        phrases: Its phrases if they were made before.
        foreign: Its language if that is plainly not the one in which it is parsed.
        is_left_out: Whether it has no phrases because of its language.
        lacks_parser: Whether that is because no parser of its language is installed.
    """

    language: str
    text: ReadableCaption | None = None
    phrases: Sequence[Phrase] = ()
    foreign: str | None = None
    is_left_out: bool = False
    lacks_parser: bool = False


class PhrasesStage(Stage):
    """Captions -> phrases.

    A sample without captions is an error; captions without phrases are not. Captions in
    `precomputed` are not parsed. A parser is loaded with the first other caption of its language.
    With `limits_later` a later stage, which knows the image, applies `config.max_phrases`. With
    `reads_english_only` rows note captions in other languages, which the model does not know.
    """

    name = "phrases"

    def __init__(
        self,
        config: PhrasesConfig,
        precomputed: PrecomputedPhrases | None = None,
        *,
        limits_later: bool = False,
        reads_english_only: bool = False,
    ) -> None:
        self.config = config
        self.precomputed = precomputed
        self.limits_later = limits_later
        self.reads_english_only = reads_english_only
        self._parsers: Parsers | None = None

    def setup(self) -> None:
        """Load the spaCy pipeline. Raise ConfigError if it is not installed or lacks a part."""
        if self.precomputed is None:
            self._load()

    def _load(self) -> Parsers:
        if self._parsers is None:
            self._parsers = Parsers(self.config)
            self._parsers.load()
        return self._parsers

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Fill `phrases` and what limits them; all captions of the batch are parsed together."""
        records = [self._check(record) for record in batch]
        captions = [
            self._read(record.sample.captions) if record.error is None else [] for record in records
        ]
        texts: dict[str, list[str]] = {}
        for caption in chain(*captions):
            if caption.text is not None:
                texts.setdefault(caption.language, []).append(caption.text.text)
        docs = self._load().parse(texts) if texts else {}
        return [
            self._fill(record, read_captions, docs) if record.error is None else record
            for record, read_captions in zip(records, captions, strict=True)
        ]

    def _read(self, captions: Sequence[str]) -> list[_Caption]:
        """Return the captions of a record. Where one is in another language, the selection of languages applies."""
        read_captions = list(map(self._read_caption, captions))
        selection = self.config.languages
        is_mixed = self.config.is_mixed
        if selection is None or not (is_mixed or any(caption.foreign for caption in read_captions)):
            return read_captions
        return [
            caption
            if (language := caption.foreign or caption.language) in selection
            else _Caption(language, foreign=language if is_mixed else caption.foreign, is_left_out=True)
            for caption in read_captions
        ]

    def _read_caption(self, words: str) -> _Caption:
        fixed = self.config.fixed_language
        line = None if self.precomputed is None else self.precomputed.of(words)
        if line is not None:
            language = fixed or line.language or ENGLISH_CODE
            foreign = line.language if line.language != language else None
            return _Caption(language, phrases=line.phrases, foreign=foreign)
        parsers = self._load()
        text = make_readable(words)
        language = parsers.language_of(text.text)
        if not parsers.has_parser(language):
            return _Caption(language, is_left_out=True, lacks_parser=True)
        foreign = foreign_language(text.text, language) if fixed else None
        return _Caption(language, text, foreign=foreign)

    def language(self, caption: str) -> str | None:
        """Return the language of a caption if it is plainly not `phrases.language`, which may be `auto`."""
        text = make_readable(caption).text
        fixed = self.config.fixed_language
        return self._load().language_of(text) if fixed is None else foreign_language(text, fixed)

    def _fill(
        self, record: Record, captions: Sequence[_Caption], docs: Mapping[str, Iterator[Any]]
    ) -> Record:
        """Return the record with the phrases of its captions; those that are parsed come next in `docs`."""
        mentions: list[Phrase] = []
        for index, (words, caption) in enumerate(zip(record.sample.captions, captions, strict=True)):
            phrases = (
                caption.phrases
                if caption.text is None
                else self._phrases_of(words, caption.text, caption.language, next(docs[caption.language]))
            )
            mentions += [replace(phrase, caption_index=index) for phrase in phrases]
        unique_texts = dict.fromkeys(phrase.text for phrase in mentions)
        limit = self.config.max_phrases
        texts = set(islice(unique_texts, limit * CANDIDATES if self.limits_later else limit))
        chosen = tuple(phrase for phrase in mentions if phrase.text in texts)
        return replace(
            record,
            caption_languages=tuple(caption.language for caption in captions),
            phrases=chosen,
            dropped_phrases=len(mentions) - len(chosen),
            phrase_limit=limit,
            object_numbers=link_phrases(record.sample.captions, chosen) if len(texts) > limit else (),
            notes=(*record.notes, *self._notes(captions)),
        )

    def _notes(self, captions: Sequence[_Caption]) -> Iterator[str]:
        """Yield notes about the captions in other languages."""
        numbered = [*enumerate(captions)]
        expected = self.config.fixed_language or " or ".join(self.config.languages or ())
        for is_left_out, fate in ((False, ""), (True, ", left out")):
            entries = [
                f"{index} ({caption.foreign})"
                for index, caption in numbered
                if caption.foreign and caption.is_left_out == is_left_out
            ]
            if entries:
                yield f"{OTHER_LANGUAGE} than {expected}{fate}: {', '.join(entries)}"
        entries = [
            f"{index} ({caption.language}: {self.config.package_of(caption.language) or NO_PACKAGE})"
            for index, caption in numbered
            if caption.lacks_parser
        ]
        if entries:
            yield f"{NO_PARSER}: {', '.join(entries)}"
        entries = [
            f"{index} ({caption.language})"
            for index, caption in numbered
            if not caption.is_left_out and caption.language != ENGLISH_CODE
        ]
        if entries and self.reads_english_only:
            yield f"{UNREAD_LANGUAGE}: {', '.join(entries)}"

    def _check(self, record: Record) -> Record:
        """Return the record, with an error if its captions cannot be used."""
        if record.error is not None:
            return record
        captions = record.sample.captions
        limit = self.config.max_caption_chars
        too_long = next((index for index, caption in enumerate(captions) if len(caption) > limit), None)
        if not any(caption.strip() for caption in captions):
            detail = "all captions are empty" if captions else "the sample has no caption"
            fault = RowError(reason="no_caption", detail=detail)
        elif too_long is not None:
            detail = (
                f"caption {too_long} has {len(captions[too_long])} characters, expected at most {limit}; "
                "phrases.max_caption_chars raises the limit"
            )
            fault = RowError(reason="bad_caption", detail=detail)
        else:
            return record
        source = record.sample.source
        return replace(record, error=fault.at(source) if source else fault)

    def _phrases_of(self, caption: str, text: ReadableCaption, language: str, doc: Any) -> Iterator[Phrase]:
        for phrase in self._load().phrases_of(doc, language):
            start, end = text.span(phrase.start, phrase.end)
            words = normalise(caption[start:end], language)
            is_plain = phrase.head.isascii() and phrase.head.isalpha()
            head = phrase.head if is_plain else normalise(phrase.head, language) or words
            if words:
                yield Phrase(
                    text=words,
                    caption_index=0,
                    start=start,
                    end=end,
                    head=head,
                    plural=phrase.plural,
                    language=language,
                )
