import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from tests.factories import SPEC, tiny_clip
from tests.stages.explain.models import clip_of, make_explainer, tokenizer
from tests.stages.explain.reference import Answer, grad_eclip

PHRASES = ["red car", "two green fish", "a man with a hat on the very far left side of the street"]


def pixels(height: int = 32, width: int = 32, count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@functools.cache
def model_pair(**options) -> tuple[nn.Module, nn.Module]:
    """The same tiny model in float32 and in float64."""
    model = tiny_clip(**options)
    return model, copy.deepcopy(model).double()


def expected(double: nn.Module, rgb: np.ndarray, phrase: str, config: GradEclipConfig) -> Answer:
    x = torch.from_numpy(rgb).double().permute(2, 0, 1) / 255
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (SPEC.mean, SPEC.std))
    with torch.no_grad():
        text = double.encode_text(tokenizer([phrase]))[0]
    return grad_eclip(double, (x - mean) / std, text / text.norm(), config)


def assert_same(actual: list[np.ndarray], reference: list[torch.Tensor], tolerance: float = 1e-6) -> None:
    """Maps agree relative to the largest value of any of them; a single map may well be empty."""
    peak = max(float(heat.max()) for heat in reference)
    assert peak > 0
    for a, b in zip(actual, reference, strict=True):
        assert np.abs(a.reshape(-1) - b.numpy()).max() / peak < tolerance


CASES = itertools.product(("single", "model"), ("projected", "raw"), (1, 3))
SIZES = itertools.cycle([(32, 32), (24, 56), (24, 56), (32, 32)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("heads", "similarity", "blocks", "size"),
    [(*case, size) for case, size in zip(CASES, SIZES, strict=False)],
)
def test_full_path_equals_the_float64_reference(heads, similarity, blocks, size) -> None:
    config = GradEclipConfig(
        path="full", affinity="none", heads=heads, similarity=similarity, blocks=blocks
    )
    model, double = model_pair(ls_init_value=0.5)
    rgb = pixels(*size)
    [maps] = GradEclip(config, clip_of(model)).explain(rgb, [PHRASES])
    answers = [expected(double, rgb[0], phrase, config) for phrase in PHRASES]
    values = [heat_map.values for heat_map in maps]
    assert {heat.shape for heat in values} == {(size[0] // 8, size[1] // 8)}
    assert_same(values, [answer.heat for answer in answers])
    # The identity: the same map from gradients of the attention weights.
    assert_same(values, [answer.attention_form for answer in answers])
    for heat_map, answer in zip(maps, answers, strict=True):
        assert heat_map.similarity == pytest.approx(answer.cosine, abs=1e-6)


@pytest.mark.parametrize(
    ("heads", "quick_gelu", "bits"), [("single", True, 64), ("model", False, 64), ("model", False, 32)]
)
def test_class_path_is_exact_for_the_last_block(heads, quick_gelu, bits, request) -> None:
    if bits == 64:
        request.getfixturevalue("float64")
    model, double = model_pair(quick_gelu=quick_gelu)
    config = GradEclipConfig(heads=heads, affinity="none")
    [maps] = GradEclip(config, clip_of(model)).explain(pixels(), [PHRASES])
    answers = [expected(double, pixels()[0], phrase, config) for phrase in PHRASES]
    values = [heat_map.values for heat_map in maps]
    heats = [answer.heat for answer in answers]
    assert_same(values, heats, 1e-6 if bits == 64 else 1e-5)


@pytest.mark.usefixtures("float64")
def test_class_path_over_blocks_is_the_gradient_with_patches_held() -> None:
    """With several blocks the class path equals autograd through a network whose patch tokens are constants."""
    model = tiny_clip()
    clip = clip_of(model)
    config = GradEclipConfig(blocks=3, affinity="none")
    rgb = pixels()
    [[heat_map]] = GradEclip(config, clip).explain(rgb, [PHRASES[:1]])
    double = copy.deepcopy(model).double()
    x = torch.from_numpy(rgb).double().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (SPEC.mean, SPEC.std))
    with torch.no_grad():
        tokens = double.visual._embeds((x - mean) / std)
        inputs = []
        for block in double.visual.transformer.resblocks:
            inputs.append(tokens)
            tokens = block(tokens)
        text = double.encode_text(tokenizer(PHRASES[:1]))[0]
    outputs = []
    values = []
    weights = []
    token = inputs[1][0, 0]
    for block, held in zip(list(double.visual.transformer.resblocks)[1:], inputs[1:], strict=True):
        z = block.ln_1(torch.cat([token[None], held[0, 1:]]))
        d = z.shape[1]
        w = block.attn.in_proj_weight
        b = block.attn.in_proj_bias
        q = z[0] @ w[:d].T + b[:d]
        k = z @ w[d : 2 * d].T + b[d : 2 * d]
        v = z @ w[2 * d :].T + b[2 * d :]
        rows = []
        for h in range(4):
            part = slice(16 * h, 16 * h + 16)
            a = torch.softmax(k[:, part] @ q[part] / 4, dim=0)
            rows.append(a @ v[:, part])
        o = torch.cat(rows)
        outputs.append(o)
        values.append(v[1:].detach())
        likeness = nn.functional.cosine_similarity(q[None], k[1:]).detach()
        weights.append((likeness - likeness.min()) / (likeness.max() - likeness.min()))
        y = token + o @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        token = y + block.mlp(block.ln_2(y))
    e = double.visual.ln_post(token) @ double.visual.proj
    gradients = torch.autograd.grad((e / e.norm()) @ (text / text.norm()), outputs)
    heat = torch.zeros(16, dtype=torch.float64)
    for weight, v, g in zip(weights, values, gradients, strict=True):
        heat += (weight * (v @ g)).clamp(min=0)
    assert_same([heat_map.values], [heat])


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_sixteen_bits_agree_roughly(precision) -> None:
    model = tiny_clip()
    rgb = pixels()
    exact = make_explainer("grad_eclip", model, blocks=4).explain(rgb, [PHRASES])[0]
    low = make_explainer("grad_eclip", clip_of(model, precision=precision), blocks=4)
    for a, b in zip(low.explain(rgb, [PHRASES])[0], exact, strict=True):
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
    [[heat_map]] = make_explainer("grad_eclip", model, blocks=1).explain(pixels(), [["dog"]])
    assert heat_map.fault == fault
    assert (heat_map.similarity == 0.0) == (fault == "not_finite")
    assert not heat_map.values.any()


def test_templates_average_unit_embeddings() -> None:
    model = tiny_clip()
    explainer = make_explainer("grad_eclip", model, templates=("a photo of a {}", "{}"))
    with torch.no_grad():
        rows = nn.functional.normalize(model.encode_text(tokenizer(["a photo of a dog", "dog"])), dim=-1)
    expected = nn.functional.normalize(rows.mean(dim=0), dim=-1)
    assert torch.allclose(explainer.texts(["dog"])[0], expected, atol=1e-6)
    assert (
        len(make_explainer("grad_eclip", explainer.model, templates="openai_imagenet").texts.templates)
        == 80
    )
