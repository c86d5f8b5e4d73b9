"""Maps of several scales: how images shrink, how grids meet, and that the mean is one."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from phrasebox.stages.explain.grad_eclip import GradEclipConfig
from phrasebox.stages.explain.maps import FAULTS, at_scale, mean_of, replace_faults
from tests.closeness import assert_close
from tests.factories import SPEC
from tests.stages.explain.models import image, make_explainer


@pytest.mark.parametrize(
    ("scale", "expected"), [(1.0, (64, 96)), (0.5, (32, 48)), (0.4, (32, 32)), (0.01, (16, 16))]
)
def test_sides_are_rounded_to_the_stride(scale: float, expected: tuple[int, int]) -> None:
    rgb = torch.full((2, 64, 96, 3), 77, dtype=torch.uint8)
    images = at_scale(rgb, scale, 16)
    assert (images.shape, images.dtype) == ((2, *expected, 3), torch.uint8)
    assert (images == 77).all()
    assert (images is rgb) == (scale == 1)


@pytest.mark.parametrize("shift", [0.0, 0.47])
def test_a_grid_is_read_where_its_values_lie(shift: float) -> None:
    """A slope from left to right keeps its heat at every place in the image, but for the edges."""
    wide = (torch.arange(8) + 0.5 + shift) / 8
    narrow = (torch.arange(4) + 0.5 + shift) / 4
    scales = [torch.zeros(1, 1, 24), narrow.expand(1, 1, 3, 4).flatten(-2)]
    mean = mean_of(scales, [(3, 8), (3, 4)], shift)
    expected = wide.clamp(narrow[0], narrow[-1]) / narrow[-1] / 2
    assert_close(mean.unflatten(-1, (3, 8)), expected.expand(1, 1, 3, 8))


@pytest.mark.parametrize(
    ("first", "second", "mean"),
    [
        ([0.0, 4.0, 2.0, 0.0], [0.2, 0.1, 0.0, 0.0], [0.5, 0.75, 0.25, 0.0]),
        ([0.0, 4.0, 2.0, 0.0], [0.0] * 4, [0, 0.5, 0.25, 0]),
        ([0.0] * 4, [0.0] * 4, [0.0] * 4),
    ],
)
def test_every_scale_counts_alike_and_the_empty_one_adds_nothing(first, second, mean) -> None:
    both = [torch.tensor([[values]]) for values in (first, second)]
    assert mean_of(both, [(2, 2)] * 2, 0.0).flatten().tolist() == pytest.approx(mean)


def test_a_map_is_constant_if_it_is_constant_at_all_scales() -> None:
    constant = [torch.tensor([True, True]), torch.tensor([True, False])]
    maps, faults = replace_faults(torch.zeros(2, 1, 4), torch.ones(2, 1), constant)
    assert [FAULTS[number] for number in faults.flatten()] == ["constant", "empty"]
    assert not maps.any()


def test_an_explainer_answers_with_the_mean_of_its_maps_at_each_scale() -> None:
    rgb = torch.from_numpy(image(rows=8, columns=8))
    plain = make_explainer("grad_eclip", affinity="propagation")
    large = torch.from_numpy(plain.explain(rgb.numpy(), [["dog"]])[0][0].values)
    small = torch.from_numpy(
        plain.explain(at_scale(rgb, 0.5, SPEC.patch_px).numpy(), [["dog"]])[0][0].values
    )
    enlarged = F.interpolate(small[None, None] / small.max(), (8, 8), mode="bilinear")[0, 0]
    both = make_explainer("grad_eclip", affinity="propagation", scales=(1.0, 0.5))
    (heat_map,) = both.explain(rgb.numpy(), [["dog"]])[0]
    assert_close(heat_map.values, (large / large.max() + enlarged) / 2)


def test_scales_fall_and_images_are_resized_to_the_largest() -> None:
    for scales in ((), (1.0, 1.0), (1.0, 0.5, 0.75), (1.0, 0.0), (9.0, 1.0)):
        with pytest.raises(ValidationError, match="scales"):
            GradEclipConfig(scales=scales)
    with pytest.raises(ValidationError, match="max_side_px"):
        GradEclipConfig(scales=(1.5, 1.0), image_size="keep")
    for scales, image_size, expected in [
        ((1.0, 0.5), "model", 1),
        ((2.0, 1.0), "model", 2),
        ((1.5, 1.0), 128, 6),
    ]:
        config = GradEclipConfig(scales=scales, image_size=image_size)  # type: ignore[arg-type]
        assert config.canvas(SPEC)["size_px"] == expected * SPEC.size_px
    assert GradEclipConfig(scales=(1.0, 0.5), image_size="keep").scales == (1.0, 0.5)
