"""Partition SHAP: the values that `shap` gives, and the sum that they must have."""

import pytest
import torch
import torch.nn.functional as F

from phrasebox.stages.explainers import shapley
from phrasebox.stages.explainers.masked import baseline_image, masked_embeddings
from phrasebox.stages.explainers.shapley import halve, owen_values
from tests.closeness import assert_close
from tests.stages.explain.models import image, make_explainer
from tests.stages.explainers.games import RecordedGame, linear_game, tangled_game


def test_on_a_model_the_map_sums_to_what_the_image_gains_over_the_baseline() -> None:
    explainer = make_explainer("partition_shap", max_evaluations=16)
    rgb = torch.from_numpy(image(seed=0))
    texts = F.normalize(torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(0)), dim=-1)
    heat = explainer.maps(rgb).heat(texts)
    against = explainer.maps(rgb).heat(-texts)
    masks = torch.tensor([1.0, 0])[:, None, None]
    mean = baseline_image(explainer.model.tower, rgb[0])
    ends = masked_embeddings(explainer.model.tower, rgb[0], masks, mean)
    # What is cut off a map is what the opposite phrase keeps.
    gain = texts[0] @ (ends[0] - ends[1])
    assert_close((heat - against).sum(dim=-1)[0], gain, 1e-4)
    assert gain.abs().max() > 0.05


SHAP_SAYS = [-0.027608645488, 0.032140716219, 0.29101546733, 0.110425985757, 0.361668628819, 0.069013485899]
"""What `shap.explainers.Partition` of shap 0.51.0 gives for the sine of the sum of the shown of 1 .. 6, on 2 x 3 cells
in the same halves. It is written down, because shap brings 250 MB."""


def test_full_depth_gives_what_shap_gives() -> None:
    numbers = torch.arange(1.0, 7, dtype=torch.float64)[:, None]
    image = RecordedGame(lambda shares: torch.sin(shares @ numbers), (2, 3))
    assert_close(owen_values(image, 10_000).flatten(), SHAP_SAYS, 1e-10)


@pytest.mark.parametrize("most", [4, 9, 40, 200])
def test_the_values_sum_to_the_gain_however_early_it_ends(most: int) -> None:
    image = RecordedGame(tangled_game(20), (4, 5))
    values = owen_values(image, most)
    whole, nothing = (
        image.game(torch.full((1, 20), share, dtype=torch.float64))[0] for share in (1.0, 0.0)
    )
    assert_close(values.sum(dim=0), whole - nothing, 1e-9)
    assert image.mask_count <= most
    assert len({tuple(row) for row in values.tolist()}) > 1


@pytest.mark.parametrize("grid_hw", [(1, 1), (1, 3), (4, 5)])
def test_cells_that_do_not_interact_get_what_they_add(grid_hw: tuple[int, int]) -> None:
    game, parts = linear_game(grid_hw[0] * grid_hw[1])
    assert_close(owen_values(RecordedGame(game, grid_hw), 10_000), parts, 1e-9)


def test_the_half_where_more_happens_is_cut_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapley, "CUTS_PER_STEP", 1)
    parts = torch.zeros(16, 1, dtype=torch.float64)
    parts[3] = 10
    parts[0] = 1
    image = RecordedGame(lambda shares: shares @ parts, (4, 4))
    values = owen_values(image, 1 + 2 * 15).reshape(4, 4)
    assert values[0, 3] == pytest.approx(10)
    assert_close(values[:2, :2], torch.full((2, 2), 0.25), 1e-9)


def test_a_rectangle_is_cut_across_its_longer_side() -> None:
    assert halve((slice(0, 3), slice(0, 2))) == ((slice(0, 1), slice(0, 2)), (slice(1, 3), slice(0, 2)))
    assert halve((slice(1, 2), slice(1, 4))) == ((slice(1, 2), slice(1, 2)), (slice(1, 2), slice(2, 4)))
