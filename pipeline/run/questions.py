"""Phrases that someone asks for, in the place of those of captions: each is judged by itself.

As a caption all of them would be absent together, or all present.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import Final

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.records import Phrase, Record, Sample
from phrasebox.stages.phrases.filters import normalise, tidy_words
from phrasebox.stages.phrases.stage import PhrasesStage

QUESTION_SHARE: Final = 0.5
"""The share of absent phrases that is expected of questions, of which nothing says that the image shows them.

Measured with `photo` on photographs of Flickr8k's dev split, each question by itself: 240 questions
for six objects that 40 photographs do not show, and 1,372 phrases that people marked in 150 photographs.

    share   absent: with a region   present: with a region   box recall
    0.05    88 %                    99 %                     0.405
    0.2     44 %                    96 %                     0.397
    0.5     11 %                    84 %                     0.370
"""


def parse_questions(stage: PhrasesStage, records: Sequence[Record], *, as_typed: bool) -> list[Record]:
    """Return records whose captions are questions, with one phrase for each of them, or an error without any.

    A question is normalised as the phrases of captions are, but never empty. The stage finds head and number in a
    caption of these words. If it finds another phrase, the question names one object.

    stage: It is set up. as_typed: Whether texts are embedded unchanged, and not normalised.
    """
    checked = list(map(_check, records))
    texts = [text for record in checked if record.error is None for text in record.sample.captions]
    samples = [
        Sample(sample_id=str(index), source="", captions=(text,)) for index, text in enumerate(texts)
    ]
    parsed = stage.process([Record.start(sample) for sample in samples])
    phrases = iter([_phrase_of(text, answer, as_typed) for text, answer in zip(texts, parsed, strict=True)])
    return [
        record
        if record.error is not None
        else replace(record, phrases=tuple(islice(phrases, len(record.sample.captions))))
        for record in checked
    ]


def without_captions(record: Record) -> Record:
    """Return a record of questions for the model, which then compares no caption with the image."""
    return replace(record, sample=replace(record.sample, captions=()))


def as_lines(record: Record, questions: Sequence[str]) -> Record:
    """Return a record as if its questions were the lines of one caption.

    Phrases are linked within a caption and between captions: "a man" and "a person" get two answers.
    """
    starts = accumulate((len(text) + 1 for text in questions), initial=0)
    phrases = tuple(
        replace(phrase, start=start + phrase.start, end=start + phrase.end)
        for phrase, start in zip(record.phrases, starts, strict=False)
    )
    return replace(record, sample=replace(record.sample, captions=("\n".join(questions),)), phrases=phrases)


def as_captions(record: Record, questions: Sequence[str]) -> Record:
    """Return a record with regions whose captions are its questions, each of them a phrase as a whole."""
    phrases = tuple(
        replace(phrase, caption_index=index, start=0, end=len(text))
        for index, (phrase, text) in enumerate(zip(record.phrases, questions, strict=False))
    )
    return replace(record, sample=replace(record.sample, captions=tuple(questions)), phrases=phrases)


def _check(record: Record) -> Record:
    """Return a record, with an error if it asks for nothing, or if one of its questions is empty."""
    if record.error is not None:
        return record
    questions = record.sample.captions
    empty = next((index for index, text in enumerate(questions) if not tidy_words(text)), None)
    if questions and empty is None:
        return record
    detail = "the sample has no phrase" if empty is None else f"phrase {empty} is empty"
    return replace(record, error=RowError(reason="no_caption", detail=detail).at(record.sample.source))


def _phrase_of(text: str, answer: Record, as_typed: bool) -> Phrase:
    """Return the phrase of a question, from its text as a caption."""
    (code,) = answer.caption_languages or ("en",)
    words = normalise(text, code) or tidy_words(text)
    whole = Phrase(text=words, caption_index=0, start=0, end=len(text), head=words, language=code)
    phrase = next((phrase for phrase in answer.phrases if phrase.text == words), whole)
    return replace(phrase, text=tidy_words(text) if as_typed else words)
