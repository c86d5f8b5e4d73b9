"""Maps of several scales: how images shrink, how grids meet, and that the mean is one."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from stages.explain.base import Maps
from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.explain.scales import at_scale, mean_of
from stages.shared.model.load import from_open_clip
from tests.factories import TOWERS

tokenizer = open_clip.get_tokenizer("ViT-B-32")


@pytest.mark.parametrize(("scale", "expected"), [(1.0, (64, 96)), (0.5, (32, 48)), (0.4, (32, 32)), (0.01, (16, 16))])
def test_sides_are_rounded_to_the_stride(scale: float, expected: tuple[int, int]) -> None:
    rgb = torch.full((2, 64, 96, 3), 77, dtype=torch.uint8)
    found = at_scale(rgb, scale, 16)
    assert found.shape == (2, *expected, 3)
    assert found.dtype == torch.uint8
    assert (found == 77).all()


def test_an_image_that_keeps_its_size_is_not_touched() -> None:
    rgb = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    assert at_scale(rgb, 0.95, 16) is rgb


def maps_of(values: torch.Tensor, **more: torch.Tensor | None) -> Maps:
    """Maps (B, P, rows, columns) as an explainer gives them."""
    return Maps(values=values.flatten(-2), cosines=torch.zeros(values.shape[:2]), **more)


@pytest.mark.parametrize("shift", [0.0, 0.47])
def test_a_grid_is_read_where_its_values_lie(shift: float) -> None:
    """A slope from left to right keeps its heat at every place in the image, but for the edges."""
    wide = (torch.arange(8) + 0.5 + shift) / 8
    narrow = (torch.arange(4) + 0.5 + shift) / 4
    found = mean_of(
        [maps_of(torch.zeros(1, 1, 3, 8)), maps_of(narrow.expand(1, 1, 3, 4) / 1.0)], [(3, 8), (3, 4)], shift
    )
    expected = wide.clamp(narrow[0], narrow[-1]) / narrow[-1] / 2
    assert torch.allclose(found.values.unflatten(-1, (3, 8)), expected.expand(1, 1, 3, 8))


def test_every_scale_counts_alike_and_the_empty_one_adds_nothing() -> None:
    hot, cold = torch.tensor([[[[0.0, 4.0], [2.0, 0.0]]]]), torch.zeros(1, 1, 2, 2)
    faint = torch.tensor([[[[0.2, 0.1], [0.0, 0.0]]]])
    found = mean_of([maps_of(hot), maps_of(faint)], [(2, 2), (2, 2)], 0.0)
    assert torch.allclose(found.values, torch.tensor([[[0.5, 0.75, 0.25, 0.0]]]))
    assert torch.allclose(
        mean_of([maps_of(hot), maps_of(cold)], [(2, 2)] * 2, 0.0).values, torch.tensor([[[0, 0.5, 0.25, 0]]])
    )
    assert not mean_of([maps_of(cold), maps_of(cold)], [(2, 2)] * 2, 0.0).values.any()


def test_cosines_and_embeddings_are_means_and_constant_is_what_all_say() -> None:
    values = torch.ones(2, 1, 2, 2)
    one = Maps(
        values=values.flatten(-2), cosines=torch.tensor([[0.1], [0.2]]), local=torch.tensor([[0.3], [0.5]]),
        embedding=torch.tensor([[2.0, 0.0], [0.0, 5.0]]), constant=torch.tensor([True, True]),
    )  # fmt: skip
    other = Maps(
        values=values.flatten(-2), cosines=torch.tensor([[0.3], [0.2]]), local=torch.tensor([[0.1], [0.5]]),
        embedding=torch.tensor([[0.0, 3.0], [0.0, 1.0]]), constant=torch.tensor([True, False]),
    )  # fmt: skip
    found = mean_of([one, other], [(2, 2)] * 2, 0.0)
    assert torch.allclose(found.cosines, torch.tensor([[0.2], [0.2]]))
    assert found.local is not None
    assert torch.allclose(found.local, torch.tensor([[0.2], [0.5]]))
    assert found.embedding is not None
    assert torch.allclose(found.embedding, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
    assert found.constant is not None
    assert found.constant.tolist() == [True, False]


def test_an_explainer_answers_with_the_mean_of_what_it_sees_at_each_scale() -> None:
    make, spec = TOWERS["class token"]
    clip = from_open_clip(make(), tokenizer, spec)
    side = 8 * spec.patch_px
    rgb = torch.randint(0, 256, (1, side, side, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    plain = GradEclip(GradEclipConfig(affinity="propagation"), clip)
    large = torch.from_numpy(plain.explain(rgb.numpy(), [["dog"]])[0][0].values)
    small = torch.from_numpy(plain.explain(at_scale(rgb, 0.5, spec.patch_px).numpy(), [["dog"]])[0][0].values)
    enlarged = F.interpolate(small[None, None] / small.max(), (8, 8), mode="bilinear")[0, 0]
    (found,) = GradEclip(GradEclipConfig(affinity="propagation", scales=(1.0, 0.5)), clip).explain(
        rgb.numpy(), [["dog"]]
    )[0]
    assert torch.allclose(torch.from_numpy(found.values), (large / large.max() + enlarged) / 2, atol=1e-5)


@pytest.mark.parametrize("scales", [(), (1.0, 1.0), (1.0, 0.5, 0.75), (1.0, 0.0), (9.0, 1.0)])
def test_scales_that_make_no_sense_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        GradEclipConfig(scales=scales)


def test_the_largest_scale_is_what_images_are_resized_to() -> None:
    spec = TOWERS["class token"][1]
    size = spec.size_px
    assert GradEclipConfig(scales=(1.0, 0.5)).canvas(spec)["size_px"] == size
    assert GradEclipConfig(scales=(2.0, 1.0)).canvas(spec)["size_px"] == 2 * size
    assert GradEclipConfig(scales=(1.5, 1.0), image_size=4 * size).canvas(spec)["size_px"] == 6 * size


def test_an_image_that_keeps_its_aspect_is_not_enlarged() -> None:
    assert GradEclipConfig(scales=(1.0, 0.5), image_size="keep").scales == (1.0, 0.5)
    with pytest.raises(ValidationError, match="max_side_px"):
        GradEclipConfig(scales=(1.5, 1.0), image_size="keep")


def test_one_scale_decides_what_it_did() -> None:
    """Calibrations that were fitted before there were scales still hold."""
    assert "scales" not in GradEclipConfig().decides_maps()
    assert GradEclipConfig(scales=(1.0, 0.5)).decides_maps()["scales"] == [1.0, 0.5]
