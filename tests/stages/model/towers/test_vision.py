import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.towers.vision import VisionTower
from tests.closeness import assert_close
from tests.factories import SPEC, tiny_clip
from tests.stages.explain.models import tokenizer
from tests.stages.model.saved import embedding


def pixels(height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8, generator=generator)


def tower_of(model: nn.Module, precision: torch.dtype | None = None) -> VisionTower:
    tower = from_open_clip(model, tokenizer, SPEC, precision=precision).tower
    assert isinstance(tower, VisionTower)
    return tower


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 56), (64, 64)])
def test_other_sizes_equal_a_model_of_that_size_with_positions_resized_as_the_authors_do(
    height, width
) -> None:
    """open_clip's own model for that input is the reference."""
    model = tiny_clip()
    state = model.state_dict()
    table = state["visual.positional_embedding"]
    grid = table[1:].T.reshape(1, 64, 4, 4)
    grid = F.interpolate(grid, size=(height // 8, width // 8), mode="bicubic", align_corners=False)
    state["visual.positional_embedding"] = torch.cat([table[:1], grid.flatten(2)[0].T])
    other = tiny_clip(image_size=[height, width])
    other.load_state_dict(state)
    expected = embedding(other, pixels(height, width))
    assert_close(tower_of(model).encode(pixels(height, width)), expected)


def test_sides_that_are_no_multiple_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of the 8 px patch, got 36x32"):
        tower_of(tiny_clip()).embed(pixels(32, 36))
