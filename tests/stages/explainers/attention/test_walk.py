"""The walk over a transformer's blocks, against open_clip's own forward pass and autograd in float64."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.contract.errors import ConfigError
from stages.explainers.attention.walk import Walk, gradients_at, starts_of
from stages.shared.model.clip import ClipModel
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC, TOWERS, tiny_clip
from tests.stages.explainers.attention.captured import capture

tokenizer = open_clip.get_tokenizer("ViT-B-32")


def clip_of(**vision: object) -> ClipModel:
    return from_open_clip(tiny_clip(**vision), tokenizer, SPEC)


def image(rows: int = 4, columns: int = 4) -> Tensor:
    rgb = np.random.default_rng(4).integers(0, 256, (1, 8 * rows, 8 * columns, 3), dtype=np.uint8)
    return torch.from_numpy(rgb)


def texts_of(clip: ClipModel) -> Tensor:
    texts = F.normalize(torch.randn(1, 8, clip.embed_dim, generator=torch.Generator().manual_seed(1)), dim=-1)
    texts[:, 3:] = 0
    return texts


@pytest.mark.parametrize(("blocks", "first"), [("all", 0), (2, 2)])
@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.5}], ids=["plain", "layer scale"])
def test_attention_tokens_and_gradients_are_open_clip_s_own(
    blocks: object, first: int, vision: dict[str, object]
) -> None:
    model = tiny_clip(**vision)
    clip = from_open_clip(model, tokenizer, SPEC)
    rgb, texts = image(), texts_of(clip)
    captured = capture(
        model,
        clip.tower.normalised(rgb)[0],
        *(f"transformer.resblocks.{n}.ln_1" for n in range(4)),
        *(f"transformer.resblocks.{n}" for n in range(4)),
    )
    normed, outputs = captured.seen[0::2], captured.seen[1::2]
    walked = Walk(clip, blocks)(rgb)  # type: ignore[arg-type]
    starts, cosines = starts_of(walked.embedding, texts, 8)
    for name, ours, theirs in [
        ("attention", walked.attention, captured.attention),
        ("normed", walked.normed, normed),
        ("outputs", walked.outputs, outputs),
    ]:
        assert len(ours) == 4 - first
        for own, other in zip(ours, theirs[first:], strict=True):
            assert np.allclose(own.detach(), other.detach(), atol=2e-5), name
        found = list(gradients_at(walked.embedding, ours, starts))
        assert len(found) == 8
        for phrase in range(3):
            wanted = captured.gradients(texts[0, phrase], theirs[first:])
            # What enters the last block's other rows has no part in the embedding.
            for own, other in zip(found[phrase], wanted, strict=True):
                assert np.allclose(own, other, atol=2e-4 * float(other.abs().max())), name
        assert not any(gradient.any() for gradient in found[5]), "a row of zeros only fills up"
    for phrase in range(3):
        assert float(cosines[0, phrase]) == pytest.approx(captured.cosine(texts[0, phrase]).item(), abs=1e-5)


def test_inputs_are_the_outputs_of_the_block_before() -> None:
    clip = clip_of()
    walked = Walk(clip, "all")(image())
    tokens = clip.tower.embed(image())
    assert torch.equal(walked.inputs[0], tokens)
    for before, after in zip(walked.outputs[:-1], walked.inputs[1:], strict=True):
        assert before is after


@pytest.mark.parametrize("kept", [0, 2, 3])
def test_the_kept_tokens_are_those_before_their_block(kept: int) -> None:
    clip = clip_of()
    wanted, _ = clip.tower.tokens_before(image(3, 5), kept)  # type: ignore[attr-defined]
    early = Walk(clip, 2, kept)(image(3, 5)).early
    assert early is not None
    assert not early.requires_grad
    assert torch.allclose(early, wanted[:, 1:], atol=1e-5)


def test_it_works_where_gradients_are_off_and_in_half_precision() -> None:
    make, spec = TOWERS["class token"]
    half = from_open_clip(make(precision=torch.bfloat16), tokenizer, spec)
    with torch.no_grad():
        walked = Walk(half, 2)(image())
        (gradient,) = next(iter(gradients_at(walked.embedding, walked.attention[:1], walked.embedding.detach())))
    assert walked.attention[0].dtype == torch.float32
    assert gradient.isfinite().all()
    assert gradient.any()


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"explain\.layer: .* has 4 blocks, not 5"):
        Walk(clip_of(), 5, setting="layer")
