"""Quality against human mark-up, exact spans: a guard against getting worse, on captions written for it."""

from collections.abc import Callable, Iterable

import spacy

from benchmarks.photos.phrases import Span, without_determiner
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.filters import word_lists
from phrasebox.stages.phrases.languages.en import ENGLISH
from phrasebox.stages.phrases.noun_phrases import extract
from tests.stages.phrases.marked import f1_of, read_marked

MARKED = [*read_marked("entities.txt", r"\[/EN#(?P<number>\d+)/\S+ (?P<words>[^\]]*)\]")]


def test_phrases_agree_with_the_mark_up_better_than_plain_noun_chunks(nlp):
    captions = [caption for caption, _ in MARKED]
    docs = list(nlp.pipe(captions))
    (package,) = PhrasesConfig().packages
    parsed = dict(zip(captions, spacy.load(package, exclude=["ner"]).pipe(captions), strict=True))
    visual = [{span for span, number in objects.items() if number != "0"} for _, objects in MARKED]

    def score(spans: Callable[..., Iterable[Span]]) -> float:
        pairs = zip(MARKED, docs, strict=True)
        return f1_of(
            visual,
            [{without_determiner(caption, span) for span in spans(doc)} for (caption, _), doc in pairs],
        )

    def score_of_ours(*, keep_parts: bool) -> float:
        lists = word_lists()
        return score(
            lambda doc: (
                (each.start, each.end) for each in extract(doc, lists, ENGLISH, keep_parts=keep_parts)
            )
        )

    chunks = score(
        lambda doc: ((chunk.start_char, chunk.end_char) for chunk in parsed[doc.text].noun_chunks)
    )
    assert score_of_ours(keep_parts=True) >= max(0.93, chunks + 0.08)
    assert score_of_ours(keep_parts=False) >= 0.91
