"""Importance through the stage, as a run computes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stages.contract.records import Phrase, Pixels, Record, Sample
from stages.explain import EXPLAINERS
from stages.explain.base import Explainer
from stages.explain.stage import ExplainStage, ExplainStageConfig
from stages.explain.text.importance import WordImportance
from stages.explain.text.phrases import without_unimportant
from stages.shared.model.config import ModelConfig
from stages.shared.model.load import load
from tests.stages.shared.model.saved import save_model

CAPTIONS = (
    ("a red car stands beside two green fish", "the sky", "no phrase in here"),
    ("a dog and a cat",),
    ("two green fish under a very tall man with a dog and a boat and a house and the sky",),
)
PHRASES = ("red car", "two green fish", "sky", "dog", "cat", "very tall man", "boat", "house")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return save_model(tmp_path_factory.mktemp("model"))[1].model_copy(update={"batch_size": 4})


def stage_of(model: ModelConfig, *, least: float = 0.0, **settings: Any) -> ExplainStage:
    explainer = EXPLAINERS.config({"importance": "eos", **settings})
    stage = ExplainStage(ExplainStageConfig(model=model, explainer=explainer, min_importance=least))
    stage.setup()
    return stage


@pytest.fixture(scope="module")
def stage(model: ModelConfig) -> Iterator[ExplainStage]:
    stage = stage_of(model)
    yield stage
    stage.teardown()


def record_of(number: int) -> Record:
    captions = CAPTIONS[number % 3]
    phrases = tuple(
        Phrase(text=text, caption_index=index, start=start, end=start + len(text), head=text.split()[-1])
        for index, caption in enumerate(captions)
        for text in PHRASES
        if (start := caption.find(text)) >= 0
    )
    rgb = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sample = Sample(sample_id=str(number), source="test", captions=captions)
    return Record(sample=sample, width_px=32, height_px=32, phrases=phrases, pixels=Pixels(rgb=rgb))


def importances(records: list[Record]) -> list[list[float | None]]:
    return [[phrase.importance for phrase in record.phrases] for record in records]


def test_phrases_have_the_share_of_their_span(stage: ExplainStage, model: ModelConfig) -> None:
    records = [record_of(number) for number in range(3)]
    answers = stage.process(records)
    clip = load(model)
    rgb = np.stack([record.pixels.rgb for record in records if record.pixels is not None])
    with torch.no_grad():
        embeddings = clip.tower.encode(torch.from_numpy(rgb))
    importance = WordImportance(stage.config.explainer, clip)
    for record, answer, embedding in zip(records, answers, embeddings, strict=True):
        captions = record.sample.captions
        wanted = importance(captions, embedding.expand(len(captions), -1))
        assert len(answer.phrases) == len(record.phrases)
        for phrase in answer.phrases:
            expected = wanted[phrase.caption_index].share_of(phrase.start, phrase.end)
            assert phrase.importance == pytest.approx(expected, abs=1e-5)
        assert [replace(phrase, importance=None) for phrase in answer.phrases] == list(record.phrases)
    known = [value for own in importances(answers) for value in own]
    assert any(known)
    assert all(value is not None and 0 <= value <= 1 for value in known)


def test_the_order_and_number_of_records_change_no_bit(stage: ExplainStage) -> None:
    records = [record_of(number) for number in range(9)]
    together = importances(stage.process(records))
    assert importances(stage.process(records[::-1]))[::-1] == together
    assert [importances(stage.process([record]))[0] for record in records] == together


def test_without_it_nothing_is_known(model: ModelConfig) -> None:
    plain = stage_of(model, importance="none")
    (answer,) = plain.process([record_of(0)])
    assert importances([answer]) == [[None] * len(answer.phrases)]


def test_unimportant_phrases_are_left_out_and_counted(stage: ExplainStage, model: ModelConfig) -> None:
    records = [record_of(number) for number in range(6)]
    known = importances(stage.process(records))
    least = float(np.median([value for own in known for value in own if value is not None]))
    answers = stage_of(model, least=least, contrast=0.0).process(records)
    for record, own, answer in zip(records, known, answers, strict=True):
        kept = [phrase for phrase, value in zip(record.phrases, own, strict=True) if value is None or value >= least]
        assert [replace(phrase, importance=None) for phrase in answer.phrases] == kept
        assert answer.unimportant_phrases == len(record.phrases) - len(kept)
        assert [heat_map.text for heat_map in answer.heat_maps] == list(dict.fromkeys(phrase.text for phrase in kept))
    assert 0 < sum(answer.unimportant_phrases for answer in answers) < sum(map(len, known))


def test_a_phrase_left_out_of_one_caption_keeps_its_map_for_another() -> None:
    phrases = tuple(
        Phrase(text="dog", caption_index=index, start=0, end=3, head="dog", importance=share)
        for index, share in enumerate((0.1, 0.5, None))
    )
    answer = without_unimportant(replace(record_of(1), phrases=phrases), 0.2)
    assert [phrase.importance for phrase in answer.phrases] == [0.5, None]
    assert answer.unimportant_phrases == 1


def test_phrases_of_other_images_are_asked_without_it(stage: ExplainStage, model: ModelConfig) -> None:
    """Their spans are not those of the captions."""
    strange = Phrase(text="dog", caption_index=7, start=90, end=93, head="dog")
    record = replace(record_of(0), phrases=(strange,))
    other = stage_of(model, least=0.9).without_importance()
    other.setup()
    (answer,) = other.process([record])
    assert answer.phrases == (strange,)
    assert other.presence is stage.presence


def test_an_explainer_that_tells_no_embedding(
    stage: ExplainStage, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = importances(stage.process([record_of(0), record_of(2)]))
    other = stage_of(model)
    maps = type(other._explainer).maps

    def silent(self: Explainer[Any], rgb: Any, texts: Any) -> Any:
        return replace(maps(self, rgb, texts), embedding=None)

    monkeypatch.setattr(type(other._explainer), "maps", silent)
    for own, expected in zip(importances(other.process([record_of(0), record_of(2)])), wanted, strict=True):
        assert own == pytest.approx(expected, abs=1e-5)
