"""Grad-ECLIP against its paper's equations in float64, in 16 bits, and where nothing can be explained."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from phrasebox.stages.explain.grad_eclip import GradEclip, GradEclipConfig
from tests.closeness import assert_close
from tests.factories import tiny_clip
from tests.stages.explain.models import clip_of, image, make_explainer, tokenizer
from tests.stages.explain.reference import grad_eclip

PHRASES = ["red car", "two green fish", "a man with a hat on the very far left side of the street"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("heads", ["single", "model"])
@pytest.mark.parametrize("similarity", ["projected", "raw"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_maps_are_those_of_the_float64_reference(heads, similarity, blocks) -> None:
    """They agree relative to the largest value of any of them; a single map may well be empty."""
    config = GradEclipConfig(affinity="none", heads=heads, similarity=similarity, blocks=blocks)
    model = tiny_clip(ls_init_value=0.5, quick_gelu=blocks == 1)
    double = copy.deepcopy(model).double()
    clip = clip_of(model)
    [maps] = GradEclip(config, clip).explain(image(), [PHRASES])
    with torch.no_grad():
        texts = nn.functional.normalize(double.encode_text(tokenizer(PHRASES)), dim=-1)
    (pixels,) = clip.tower.normalise(torch.from_numpy(image()))
    answers = [grad_eclip(double, pixels, text, config) for text in texts]
    peak = max(float(answer.heat.max()) for answer in answers)
    assert peak > 0
    for heat_map, answer in zip(maps, answers, strict=True):
        assert np.abs(heat_map.values.reshape(-1) - answer.heat.numpy()).max() < 1e-6 * peak
        assert heat_map.similarity == pytest.approx(answer.cosine, abs=1e-6)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_sixteen_bits_agree_roughly(precision) -> None:
    model = tiny_clip()
    exact = make_explainer("grad_eclip", model, blocks=4).explain(image(), [PHRASES])[0]
    low = make_explainer("grad_eclip", clip_of(model, precision=precision), blocks=4)
    for a, b in zip(low.explain(image(), [PHRASES])[0], exact, strict=True):
        assert np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1] > 0.98
        assert a.similarity == pytest.approx(b.similarity, abs=0.02)


@pytest.mark.parametrize("fault", ["constant", "not_finite"])
def test_what_cannot_be_explained_gives_zeros_and_says_so(fault: str) -> None:
    model = tiny_clip()
    with torch.no_grad():
        if fault == "constant":
            model.visual.transformer.resblocks[-1].attn.in_proj_weight[64:128].zero_()
        else:
            model.visual.proj[0, 0] = float("nan")
    [[heat_map]] = make_explainer("grad_eclip", model).explain(image(), [["dog"]])
    assert heat_map.fault == fault
    assert (heat_map.similarity == 0.0) == (fault == "not_finite")
    assert not heat_map.values.any()


def test_templates_average_unit_embeddings() -> None:
    model = tiny_clip()
    explainer = make_explainer("grad_eclip", model, templates=("a photo of a {}", "{}"))
    with torch.no_grad():
        rows = nn.functional.normalize(model.encode_text(tokenizer(["a photo of a dog", "dog"])), dim=-1)
    expected = nn.functional.normalize(rows.mean(dim=0), dim=-1)
    assert_close(explainer.texts(["dog"])[0], expected)
    imagenet = make_explainer("grad_eclip", explainer.model, templates="openai_imagenet")
    assert len(imagenet.texts.templates) == 80
