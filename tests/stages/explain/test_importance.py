"""Importance: the formula against autograd through open_clip's own text tower, and through the stage as in a run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.contract.records import Phrase, Pixels, Record, Sample
from stages.explain import EXPLAINERS
from stages.explain.base import Explainer
from stages.explain.config import ExplainerConfig
from stages.explain.importance import WordImportance
from stages.explain.stage import ExplainStage, ExplainStageConfig, without_unimportant
from stages.shared.model.config import ModelConfig
from stages.shared.model.load import load
from tests.stages.explain.models import clip_of, sharp_text_clip, tokenizer
from tests.stages.shared.model.saved import save_model

CAPTIONS = ["two dogs run on the wet grass", "a car", "an xylophonist, asleep", ""]


def config(**settings: Any) -> ExplainerConfig:
    return ExplainerConfig(kind="", **{f"importance_{name}": value for name, value in settings.items()})


def images(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 48, dtype=dtype, generator=torch.Generator().manual_seed(3))


def slowly(
    model: nn.Module, tokens: Tensor, image: Tensor, blocks: int, *, single: bool, weight: str, rectify: str
) -> Tensor:
    """Signed importance of every token of the context, (T,): explicit loops, autograd over the complete computation."""
    x = model.token_embedding(tokens[0]) + model.positional_embedding
    length, width = x.shape
    end = int(tokens.argmax())
    layers = model.transformer.resblocks
    kept = []
    for number, block in enumerate(layers):
        explained = number >= len(layers) - blocks
        heads = 1 if single and explained else block.attn.num_heads
        z = block.ln_1(x)
        q, k, v = F.linear(z, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
        outputs = []
        for part in range(heads):
            own = slice(part * width // heads, (part + 1) * width // heads)
            logits = q[:, own] @ k[:, own].T / (width / heads) ** 0.5
            seen = torch.ones(length, length, dtype=torch.bool).tril()
            outputs.append(logits.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ v[:, own])
        o = torch.cat(outputs, dim=-1)
        if explained:
            kept.append((q.detach()[end], k.detach(), v.detach(), o))
        x = x + block.attn.out_proj(o)
        x = x + block.mlp(block.ln_2(x))
    cosine = F.normalize(model.ln_final(x)[end] @ model.text_projection, dim=-1) @ image
    gradients = torch.autograd.grad(cosine, [o for *_, o in kept])
    total = torch.zeros(length, dtype=x.dtype)
    for gradient, (query, k, v, _) in zip(gradients, kept, strict=True):
        s = torch.stack([query @ key / (query.norm() * key.norm()) for key in k])
        over = {"none": s, "all": s, "words": s[1:end]}[weight]
        factor = torch.ones(length) if weight == "none" else (s - over.min()) / (over.max() - over.min())
        signed = factor * (v @ gradient[end])
        total = total + (signed.clamp(min=0) if rectify == "block" else signed)
    return total.detach()


@pytest.mark.parametrize(("depth", "blocks"), [(0.3, 1), (0.67, 2)])
@pytest.mark.parametrize("weight", ["none", "words", "all"])
@pytest.mark.parametrize("heads", ["single", "model"])
@pytest.mark.parametrize("rectify", ["sum", "block"])
def test_every_setting_equals_the_whole_gradient(
    heads: str, weight: str, rectify: str, depth: float, blocks: int
) -> None:
    model = sharp_text_clip(1).double()
    [image] = F.normalize(images(1, torch.float64), dim=-1)
    settings = config(depth=depth, heads=heads, weight=weight, rectify=rectify)
    for caption in CAPTIONS[:3]:
        tokens = tokenizer([caption])
        wanted = slowly(model, tokens, image, blocks, single=heads == "single", weight=weight, rectify=rectify)
        with torch.no_grad():
            found, _ = WordImportance(settings, clip_of(model)).signed(tokens, image[None])
        end = int(tokens.argmax())
        assert rectify == "block" or wanted[1:end].abs().max() > 1e-3
        assert torch.allclose(found[0, 1:end], wanted[1:end], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", ["none", "words", "all"])
def test_shares(weight: str) -> None:
    importance = WordImportance(config(weight=weight), clip_of(sharp_text_clip()))
    answers = importance(CAPTIONS, images(4))
    for caption, answer in zip(CAPTIONS, answers, strict=True):
        assert answer.shares.dtype == np.float32
        assert (answer.shares >= 0).all()
        assert answer.shares.sum() == pytest.approx(1.0, abs=1e-6) or not answer.shares.any()
        words = answer.words()
        assert [caption[word.start : word.end] for word in words] == caption.replace(",", " ,").split()
        assert sum(word.importance for word in words) == pytest.approx(float(answer.shares.sum()), abs=1e-6)
        for word in words:
            assert answer.share_of(word.start, word.end) == pytest.approx(word.importance)
    assert answers[0].share_of(0, len(CAPTIONS[0])) == pytest.approx(1.0, abs=1e-6)
    assert answers[0].shares.any()
    assert answers[3].share_of(0, 1) is None


def test_a_word_has_the_sum_of_its_tokens_as_far_as_the_model_sees_them() -> None:
    importance = WordImportance(config(), clip_of(sharp_text_clip()))
    long = "dog " * 100
    answer, cut = importance([CAPTIONS[2], long], images(2))
    pieces = [place for place, piece in enumerate(answer.pieces) if piece.word == 1]
    assert len(pieces) > 1
    assert answer.words()[1].importance == pytest.approx(float(answer.shares[pieces].sum()))
    assert answer.share_of(3, 5) == pytest.approx(float(answer.shares[pieces[0]])), "part of a word"
    assert len(cut.pieces) == 75
    assert cut.share_of(4 * 80, 4 * 80 + 3) is None
    assert cut.share_of(0, len(long)) is not None


def test_neighbours_their_number_and_the_scale_of_an_embedding_do_not_matter() -> None:
    importance = WordImportance(config(), clip_of(sharp_text_clip()))
    captions = [*CAPTIONS, "a very long text " * 9, *(f"{number} birds in a tree" for number in range(12))]
    given = images(len(captions))
    together = importance(captions, given)
    for place in (0, 1, 3, 4, 9, 16):
        [alone] = importance([captions[place]], 64 * given[place : place + 1])
        assert np.allclose(alone.shares, together[place].shares, atol=1e-4)
        assert alone.cosine == pytest.approx(together[place].cosine, abs=1e-5)
    assert not np.allclose(together[5].shares, together[6].shares, atol=1e-3)


def test_the_cosine_is_the_models_own() -> None:
    clip = clip_of(sharp_text_clip())
    given = images(3)
    wanted = (F.normalize(clip.encode_text(CAPTIONS[:3]), dim=-1) * F.normalize(given, dim=-1)).sum(dim=-1)
    found = [answer.cosine for answer in WordImportance(config(), clip)(CAPTIONS[:3], given)]
    assert found == pytest.approx(wanted.tolist(), abs=1e-6)
    single = [answer.cosine for answer in WordImportance(config(heads="single"), clip)(CAPTIONS[:3], given)]
    assert single != pytest.approx(wanted.tolist(), abs=1e-3), "one head computes another model"


def test_nothing_positive() -> None:
    """An image against the text's own direction: what spoke for it speaks against it, and a share of nothing is 0."""
    importance = WordImportance(config(rectify="sum", depth=0.3), clip_of(sharp_text_clip()))
    given = images(30)
    for_it = importance(["dog"] * 30, given)
    against = importance(["dog"] * 30, -given)
    assert all(one.shares.tolist() != other.shares.tolist() for one, other in zip(for_it, against, strict=True))
    assert {float(answer.shares.sum()) for answer in (*for_it, *against)} == {0.0, 1.0}


def test_the_model_is_only_read() -> None:
    model = sharp_text_clip().train()
    before, flags = copy.deepcopy(model.state_dict()), [parameter.requires_grad for parameter in model.parameters()]
    WordImportance(config(), clip_of(model))(CAPTIONS, images(4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


# Through the stage


OWN_CAPTIONS = (
    ("a red car stands beside two green fish", "the sky", "no phrase in here"),
    ("a dog and a cat",),
    ("two green fish under a very tall man with a dog and a boat and a house and the sky",),
)
OWN_PHRASES = ("red car", "two green fish", "sky", "dog", "cat", "very tall man", "boat", "house")


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
    captions = OWN_CAPTIONS[number % 3]
    phrases = tuple(
        Phrase(text=text, caption_index=index, start=start, end=start + len(text), head=text.split()[-1])
        for index, caption in enumerate(captions)
        for text in OWN_PHRASES
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


def test_the_order_and_number_of_records_do_not_matter(stage: ExplainStage, model: ModelConfig) -> None:
    records = [record_of(number) for number in range(9)]
    together = importances(stage.process(records))
    turned = importances(stage.process(records[::-1]))[::-1]
    alone = [importances(stage.process([record]))[0] for record in records]
    for own, other, single in zip(together, turned, alone, strict=True):
        assert own == pytest.approx(other, abs=1e-4)
        assert own == pytest.approx(single, abs=1e-4)
    (answer,) = stage_of(model, importance="none").process([record_of(0)])
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
    twice = tuple(replace(records[1].phrases[0], importance=share) for share in (0.1, 0.5, None))
    kept = without_unimportant(replace(answers[1], phrases=twice), 0.2)
    assert [phrase.importance for phrase in kept.phrases] == [0.5, None], "its map stays for the other mention"


def test_phrases_of_other_images_are_asked_without_it(model: ModelConfig) -> None:
    """Their spans are not those of the captions."""
    strange = Phrase(text="dog", caption_index=7, start=90, end=93, head="dog")
    other = stage_of(model, least=0.9).without_importance()
    other.setup()
    (answer,) = other.process([replace(record_of(0), phrases=(strange,))])
    assert answer.phrases == (strange,)


def test_an_explainer_that_returns_no_embedding(
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
