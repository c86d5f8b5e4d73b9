"""What the contrastive explainers take away, by the papers' own formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from stages.explainers.relevance.clrp import Clrp, ClrpConfig
from stages.explainers.relevance.contrastive import ContrastiveExplainer
from stages.explainers.relevance.lrp import Lrp, LrpConfig
from stages.explainers.relevance.sg_lrp import SgLrp, SgLrpConfig
from stages.shared.model.clip import ClipModel
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC, tiny_clip

tokenizer = open_clip.get_tokenizer("ViT-B-32")
RGB = np.random.default_rng(3).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
SIGNED = torch.tensor([[0.3, -0.1, 0.05], [0.1, 0.2, -0.08], [-0.3, 0.2, 0.25]], dtype=torch.float64)
COSINES = SIGNED.sum(dim=1)


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return from_open_clip(tiny_clip(layers=2, width=16, head_width=8), tokenizer, SPEC)


def made(model: ClipModel, kind: type[ContrastiveExplainer[Any]], **settings: Any) -> ContrastiveExplainer[Any]:
    return kind(kind.config_type(**settings), model)


@pytest.mark.parametrize("kind", [Clrp, SgLrp])
def test_two_phrases_swapped_swap_the_sign(model: ClipModel, kind: type[ContrastiveExplainer[Any]]) -> None:
    """For a score of one: r_1 - r_2 and r_2 - r_1."""
    explainer = made(model, kind, totals="equal")
    first, second = explainer.contrasted(SIGNED[:2], COSINES[:2])
    assert torch.allclose(first / COSINES[0], -second / COSINES[1])
    assert torch.allclose(explainer.contrasted(SIGNED[:2].flip(0), COSINES[:2].flip(0)), torch.stack([second, first]))
    first, second = made(model, kind).contrasted(SIGNED[:2], COSINES[:2])
    assert torch.allclose(first, -second)
    assert first.tolist() == pytest.approx([0.2, -0.3, 0.13])


def test_clrp_is_the_papers_first_dual(model: ClipModel) -> None:
    """All other classes start with the same relevance, which is the target's in total."""
    found = made(model, Clrp, totals="equal").contrasted(SIGNED, COSINES)
    for target in range(3):
        dual = torch.zeros(3, dtype=torch.float64)
        for other in range(3):
            if other != target:
                dual += COSINES[target] / 2 * SIGNED[other] / COSINES[other]
        assert torch.allclose(found[target], SIGNED[target] - dual)
    assert torch.allclose(found.sum(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-12)


def test_sg_lrp_starts_at_the_gradient_of_the_softmax(model: ClipModel) -> None:
    """R_k starts at dy_k / dz_k = y_k (1 - y_k) and R_n at dy_k / dz_n = -y_k y_n, each spread as a score of one is."""
    scale = 7.0
    found = made(model, SgLrp, totals="equal", logit_scale=scale).contrasted(SIGNED, COSINES)
    z = (scale * COSINES).requires_grad_()
    y = z.softmax(dim=0)
    for target in range(3):
        (starts,) = torch.autograd.grad(y[target], z, retain_graph=True)
        paper = sum(
            start * relevance / cosine for start, relevance, cosine in zip(starts, SIGNED, COSINES, strict=True)
        )
        factor = y[target].detach() * (1 - y[target].detach()) / COSINES[target]
        assert torch.allclose(found[target] * factor, torch.as_tensor(paper))


def test_sg_lrp_of_a_sharp_softmax_takes_the_likeliest_other_and_of_a_flat_one_is_clrp(model: ClipModel) -> None:
    sharp = made(model, SgLrp, logit_scale=1000.0).contrasted(SIGNED, COSINES)
    assert torch.allclose(sharp[0], SIGNED[0] - SIGNED[1], atol=1e-9)
    flat = made(model, SgLrp, logit_scale=1e-9).contrasted(SIGNED, COSINES)
    assert torch.allclose(flat, made(model, Clrp).contrasted(SIGNED, COSINES), atol=1e-9)


@pytest.mark.parametrize("kind", [Clrp, SgLrp])
def test_texts_whose_relevance_lies_elsewhere_leave_lrp(
    model: ClipModel, kind: type[ContrastiveExplainer[Any]]
) -> None:
    apart = torch.diag(torch.tensor([0.3, 0.2, 0.25]))
    for totals in ("own", "equal"):
        found = made(model, kind, totals=totals).contrasted(apart, apart.sum(dim=1)).relu()
        assert torch.equal(found, apart)


def test_a_cosine_of_zero_is_not_divided_by(model: ClipModel) -> None:
    signed = torch.tensor([[0.2, 0.1], [0.1, -0.1]])
    found = made(model, Clrp, totals="equal").contrasted(signed, signed.sum(dim=1))
    assert found.isfinite().all()
    assert found[0].tolist() == pytest.approx([0.2 - 300 * 0.1, 0.1 + 300 * 0.1], rel=1e-4)


@pytest.mark.parametrize("kind", [Clrp, SgLrp])
def test_a_phrase_alone_is_contrasted_with_the_background(
    model: ClipModel, kind: type[ContrastiveExplainer[Any]]
) -> None:
    lrp = Lrp(LrpConfig(), model)
    relevance = lrp.propagation(torch.from_numpy(RGB[:1]), lrp.texts(["dog", "", "a photo"])[None]).signed[0]
    for background, taken in (((), 0 * relevance[1]), (("",), relevance[1])):
        map_ = made(model, kind, background=background).explain(RGB[:1], [["dog"]])[0][0]
        wanted = (relevance[0] - taken).relu().unflatten(0, (3, 3)).numpy()
        assert wanted.any()
        assert np.allclose(map_.values, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [Clrp, SgLrp])
def test_only_the_images_own_phrases_count(model: ClipModel, kind: type[ContrastiveExplainer[Any]]) -> None:
    """A neighbour with more phrases than one step changes the padding, and no bit of the others."""
    explainer = made(model, kind, phrases_per_step=2)
    alone = explainer.explain(RGB, [["dog", "red car"], ["fish"]])
    beside = explainer.explain(RGB, [["dog", "red car"], ["fish", "boat", "tree", "sea", "sky"]])
    for one, other in zip(alone[0], beside[0], strict=True):
        assert one.values.tobytes() == other.values.tobytes()
    assert not np.array_equal(alone[1][0].values, beside[1][0].values)


@pytest.mark.parametrize("config", [ClrpConfig(), SgLrpConfig(logit_scale=20.0)])
def test_what_is_explained_is_the_difference_of_the_cosines(model: ClipModel, config: ClrpConfig | SgLrpConfig) -> None:
    """LRP of the text that is the difference of the phrase and the others."""
    explainer: ContrastiveExplainer[Any] = Clrp(config, model) if config.kind == "clrp" else SgLrp(config, model)
    texts = explainer.texts(["dog", "red car", ""])
    rgb = torch.from_numpy(RGB[:1])
    cosines: Tensor = explainer.propagation(rgb, texts[None]).cosines[0]
    difference = texts[0] - explainer.shares(cosines[1:]) @ texts[1:]
    wanted = explainer.propagation(rgb, difference[None, None]).signed[0, 0].relu()
    found = explainer.maps(rgb, texts[None, :2]).values[0, 0]
    assert torch.allclose(found, wanted, atol=1e-6)
