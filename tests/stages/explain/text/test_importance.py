from __future__ import annotations

import copy
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.explain.config import ExplainerConfig
from stages.explain.text.importance import WordImportance
from stages.shared.model.clip import ClipModel
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC
from tests.stages.explain.text.towers import sharp_text_clip

CAPTIONS = ["two dogs run on the wet grass", "a car", "an xylophonist, asleep", ""]
tokenizer = open_clip.get_tokenizer("ViT-B-32")


def config(**settings: Any) -> ExplainerConfig:
    return ExplainerConfig(kind="", **{f"importance_{name}": value for name, value in settings.items()})


def clip_of(model: nn.Module) -> ClipModel:
    return from_open_clip(model, tokenizer, SPEC)


def images(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 48, dtype=dtype, generator=torch.Generator().manual_seed(3))


def by_hooks(model: nn.Module, tokens: Tensor, image: Tensor, blocks: int) -> Tensor:
    """dc/do at the row of the end in the last blocks, times the values, (blocks, T), through open_clip's own forward.

    An attention's answer is W o + b, so that dc/do is its gradient times W.
    """
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(attention: nn.Module, given: Any, named: dict[str, Any], answer: Any) -> None:
        answer[0].retain_grad()
        seen.append((attention, named["query"] if "query" in named else given[0], answer[0]))

    handles = [
        block.attn.register_forward_hook(keep, with_kwargs=True) for block in model.transformer.resblocks[-blocks:]
    ]
    (F.normalize(model.encode_text(tokens), dim=-1) @ image).backward()
    for handle in handles:
        handle.remove()
    end = int(tokens.argmax())
    rows = []
    for attention, given, answer in seen:
        assert answer.grad is not None
        width = given.shape[-1]
        values = F.linear(given, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
        rows.append(values[0] @ (answer.grad[0, end] @ attention.out_proj.weight))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("depth", [0.3, 0.67, 1.0])
@pytest.mark.parametrize("caption", CAPTIONS[:3])
def test_the_gradient_of_one_row_is_the_whole_gradient(caption: str, depth: float) -> None:
    """Against autograd through all tokens of open_clip's own text tower, in float64."""
    model = sharp_text_clip().double()
    [image] = F.normalize(images(1, torch.float64), dim=-1)
    tokens = tokenizer([caption])
    wanted = by_hooks(model, tokens, image, round(3 * depth)).sum(dim=0)
    with torch.no_grad():
        signed, cosine = WordImportance(config(depth=depth, rectify="sum"), clip_of(model)).signed(tokens, image[None])
        own = F.normalize(model.encode_text(tokens), dim=-1) @ image
    end = int(tokens.argmax())
    assert wanted[1:end].abs().max() > 1e-3
    assert torch.allclose(signed[0, :end], wanted[:end], rtol=1e-9, atol=1e-12)
    assert torch.allclose(cosine, own, atol=1e-12)


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


@pytest.mark.parametrize("weight", ["none", "words", "all"])
@pytest.mark.parametrize("heads", ["single", "model"])
@pytest.mark.parametrize("rectify", ["sum", "block"])
def test_every_setting_equals_the_formula_written_out(heads: str, weight: str, rectify: str) -> None:
    model = sharp_text_clip(1).double()
    [image] = F.normalize(images(1, torch.float64), dim=-1)
    for caption in CAPTIONS[:2]:
        tokens = tokenizer([caption])
        wanted = slowly(model, tokens, image, 2, single=heads == "single", weight=weight, rectify=rectify)
        found, _ = WordImportance(
            config(depth=0.67, heads=heads, weight=weight, rectify=rectify), clip_of(model)
        ).signed(tokens, image[None])
        end = int(tokens.argmax())
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


def test_a_word_of_several_tokens_has_their_sum() -> None:
    [answer] = WordImportance(config(), clip_of(sharp_text_clip()))(CAPTIONS[2:3], images(1))
    pieces = [place for place, piece in enumerate(answer.pieces) if piece.word == 1]
    assert len(pieces) > 1
    assert answer.words()[1].importance == pytest.approx(float(answer.shares[pieces].sum()))
    assert answer.share_of(3, 5) == pytest.approx(float(answer.shares[pieces[0]])), "part of a word"


def test_what_the_model_does_not_see_is_not_known() -> None:
    caption = "dog " * 100
    [answer] = WordImportance(config(), clip_of(sharp_text_clip()))([caption], images(1))
    assert len(answer.pieces) == 75
    assert answer.share_of(4 * 80, 4 * 80 + 3) is None
    assert answer.share_of(0, len(caption)) is not None


def test_neighbours_and_their_number_change_no_bit() -> None:
    importance = WordImportance(config(), clip_of(sharp_text_clip()))
    captions = [*CAPTIONS, "a very long text " * 9, *(f"{number} birds in a tree" for number in range(12))]
    given = images(len(captions))
    together = importance(captions, given)
    for place in (0, 1, 3, 4, 9, 16):
        [alone] = importance([captions[place]], given[place : place + 1])
        assert alone.shares.tobytes() == together[place].shares.tobytes()
        assert alone.cosine == together[place].cosine
    assert together[5].shares.tobytes() != together[6].shares.tobytes()


def test_the_scale_of_an_image_embedding_does_not_matter() -> None:
    importance = WordImportance(config(), clip_of(sharp_text_clip()))
    one, other = (importance(CAPTIONS[:1], images(1) * scale)[0] for scale in (1, 64))
    assert one.shares.tobytes() == other.shares.tobytes()


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


def test_as_many_images_as_captions() -> None:
    with pytest.raises(ValueError, match="expected an image embedding for each caption, got 1 for 2"):
        WordImportance(config(), clip_of(sharp_text_clip()))(CAPTIONS[:2], images(1))
