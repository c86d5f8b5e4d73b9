"""Which phrases stay where an image has too many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from phrasebox.stages.contract.records import Phrase, Record, Sample
from phrasebox.stages.explain.base import Match
from phrasebox.stages.explain.maps import Maps
from phrasebox.stages.explain.stage import limit_phrases
from phrasebox.stages.phrases.groups import link_phrases
from tests.stages.explain.test_stage import make_record, model, set_up

__all__ = ["model"]

CAPTION = "a dog and a cat. the brown dog sees a bird."
LIKELIHOODS = {"dog": 0.8, "cat": 0.5, "brown dog": 0.9, "bird": 0.1}
"""A dog that two texts name, a cat and a bird; the brown dog is the likeliest, and the bird the least likely."""

PHRASES = tuple(
    Phrase(text=text, caption_index=0, start=start, end=end, head=text.split()[-1])
    for text, start, end in (("dog", 0, 5), ("cat", 10, 15), ("brown dog", 17, 30), ("bird", 36, 42))
)


def crowded(limit: int) -> Record:
    record = replace(make_record(0), phrases=PHRASES, phrase_limit=limit)
    sample = Sample(sample_id="1", source="test", captions=(CAPTION,))
    return replace(record, sample=sample, object_numbers=link_phrases((CAPTION,), PHRASES))


@pytest.mark.parametrize("has_presence", [True, False])
@pytest.mark.parametrize(
    ("limit", "texts"),
    [
        (4, ["dog", "cat", "brown dog", "bird"]),
        (3, ["cat", "brown dog", "bird"]),
        (2, ["cat", "brown dog"]),
        (1, ["brown dog"]),
    ],
)
def test_the_likeliest_text_of_every_object_stays_first(
    limit: int, texts: list[str], has_presence: bool
) -> None:
    matches = {text: Match(1 - p, p) if has_presence else Match(p, None) for text, p in LIKELIHOODS.items()}
    limited = limit_phrases(crowded(limit), matches)
    assert [phrase.text for phrase in limited.phrases] == texts
    assert limited.dropped_phrases == 4 - len(texts)
    assert limited.object_numbers == ()
    unlimited = replace(crowded(limit), object_numbers=())
    assert limit_phrases(unlimited, {}) is unlimited


def test_only_phrases_that_stay_get_maps(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = set_up(model)
    calls: list[int] = []
    compute = stage._explainer.maps

    def maps(rgb: Tensor) -> Maps:
        computed = compute(rgb)

        def heat(texts: Tensor) -> Tensor:
            calls.append(int(texts.any(dim=-1).sum()))
            return computed.heat(texts)

        return replace(computed, heat=heat)

    monkeypatch.setattr(stage._explainer, "maps", maps)
    plain = replace(crowded(2), object_numbers=())
    (full,) = stage.process([plain])
    answers = stage.process([crowded(2), crowded(1), plain])
    assert calls == [4, 2 + 1 + 4]
    (alone,) = stage.process([crowded(2)])
    assert calls[2:] == [2]
    cosine = {heat_map.text: heat_map.similarity for heat_map in full.heat_maps}
    assert [len(answer.heat_maps) for answer in answers] == [2, 1, 4]
    for answer in (*answers[:2], alone):
        texts = [phrase.text for phrase in answer.phrases]
        assert [heat_map.text for heat_map in answer.heat_maps] == texts
        assert answer.dropped_phrases == 4 - len(texts)
        expected = limit_phrases(
            crowded(len(texts)), {text: Match(value, None) for text, value in cosine.items()}
        )
        assert answer.phrases == expected.phrases
        assert answer.caption_scores == pytest.approx(full.caption_scores, abs=1e-5), "of all phrases"


def test_signals_are_those_of_all_texts(model: Any) -> None:
    """Presence is fitted to them: the phrases of an image, also beyond the limit, and the foreign ones apart."""
    stage = set_up(model)
    stage.signals = {}
    stage.foreign = {crowded(1).sample.key: ["a boat", "a tree"]}
    (answer,) = stage.process([crowded(1)])
    signals = stage.signals[crowded(1).sample.key]
    counts = [len(texts.cosines) for texts in (signals.phrases, signals.foreign, signals.captions)]
    assert counts == [4, 2, 1]
    assert len(answer.heat_maps) == 1
    similarity = answer.heat_maps[0].similarity
    assert similarity == pytest.approx(max(signals.phrases.cosines), abs=1e-5)
