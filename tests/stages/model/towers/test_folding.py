"""Batch norms that become a part of convolutions."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.module import module_of
from phrasebox.stages.model.towers.folding import folded_copy
from tests.closeness import assert_close
from tests.factories import RESNET_SPEC, spread_batch_norms, tiny_resnet
from tests.stages.explain.models import tokenizer
from tests.stages.model.saved import load_model

FP32 = torch.float32


def norms_of(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "efficientnetv2_rw_t", "mobilenetv2_100", "efficientnet_b0"]
)
def test_a_network_of_timm_without_its_norms_computes_the_same(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = (
            timm.create_model(name, pretrained=False).eval().double()
        )  # random layers blow rounding up
        with torch.no_grad():
            spread_batch_norms(network)
        pixels = torch.randn(2, 3, 64, 96).double()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    folded = folded_copy(network, torch.float64)
    assert norms_of(network) > 0
    assert norms_of(folded) == 0
    with torch.no_grad():
        assert_close(folded(pixels), network(pixels))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items()), (
        "it is only read"
    )


def test_a_resnet_of_clip_without_its_norms_computes_the_same() -> None:
    model = tiny_resnet()
    folded = folded_copy(model.visual, FP32)
    assert norms_of(folded) == 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pixels = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        assert_close(folded(pixels), model.visual(pixels), 1e-4)


def test_the_photograph_model_has_none_when_it_is_loaded() -> None:
    config = ModelConfig(name="photo", device="cpu", precision="fp32")
    clip = load_model(config)
    module = module_of(describe(config))
    assert norms_of(module) == 64
    assert norms_of(clip.tower.trunk.body) == 0
    rgb = torch.randint(
        0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        assert_close(clip.tower.encode(rgb), module.encode_image(clip.tower.normalise(rgb)), 1e-4)


class Between(nn.Module):
    """A convolution and a norm with something between them that is no child."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.convolution(x).relu())
        return y


@pytest.mark.parametrize(
    "network",
    [
        Between(),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)),
    ],
    ids=["unknown class", "statistics of the batch", "behind an activation", "before a convolution"],
)
def test_other_norms_stay(network: nn.Module) -> None:
    network = network.eval()
    pixels = torch.ones(1, 3, 2, 2) * torch.tensor([1.0, 2.0])
    folded = folded_copy(network, FP32)
    assert norms_of(folded) == 1
    assert torch.equal(folded(pixels), network(pixels))


def test_norms_without_weights_are_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)).eval()
    with torch.no_grad():
        network[1].running_var.fill_(4.0)
        network[1].running_mean.fill_(0.5)
        folded = folded_copy(network, FP32)
        assert norms_of(folded) == 0
        assert_close(folded(torch.ones(1, 3, 2, 2)), network(torch.ones(1, 3, 2, 2)))


def test_a_model_in_memory_keeps_its_norms_and_shares_its_weights() -> None:
    """Its owner may train it on. A second model would be as large again."""
    model = tiny_resnet()
    assert norms_of(from_open_clip(model, tokenizer, RESNET_SPEC).tower.trunk.body) == norms_of(
        model.visual
    )
