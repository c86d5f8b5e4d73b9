"""The contract of recipes: each entry of the table learns, from what it says it needs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.finetune import RECIPES
from pipeline.finetune.config import DataConfig
from pipeline.finetune.material import TrainingBatch, TuningData
from pipeline.finetune.ranks import RankGroup
from pipeline.finetune.recipes.align import Align
from pipeline.finetune.recipes.base import Recipe
from pipeline.finetune.recipes.clim import mosaics
from pipeline.finetune.recipes.clipself import grid_boxes
from pipeline.finetune.student import Student
from stages.shared.model.config import ModelConfig
from stages.shared.model.load import from_open_clip, module_of
from stages.shared.model.recognise import recognise
from stages.shared.model.tokenizer import tokenizer_of

DESCRIPTION = recognise(ModelConfig(name="demo"))
ALONE = RankGroup()


def taught(kind: str, **settings: Any) -> Recipe[Any]:
    recipe = RECIPES[kind]
    module = module_of(DESCRIPTION).float()
    tokenizer = tokenizer_of(DESCRIPTION)
    start = from_open_clip(module_of(DESCRIPTION).float(), tokenizer, DESCRIPTION.input) if recipe.needs_start else None
    student = Student.of(module, tokenizer, DESCRIPTION.input)
    return recipe(RECIPES.config({"kind": kind, **settings}), student, start)


def batch_for(recipe: Recipe[Any], dataset: Path, images: int = 4) -> TrainingBatch:
    side = DESCRIPTION.input.size_px * recipe.enlarged
    material = TuningData(DataConfig(path=str(dataset)), side_px=side, seed=0, batch_size=images)
    return next(material.batches(range(1), 0, 1))


@pytest.mark.parametrize("kind", RECIPES)
def test_each_loss_falls_when_it_is_followed(kind: str, inline_dataset: Path) -> None:
    recipe = taught(kind)
    batch = batch_for(recipe, inline_dataset)
    parameters = [*recipe.student.module.visual.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=3e-4)
    losses = []
    for _ in range(4):
        terms = recipe.terms(batch, ALONE)
        loss = sum((weight * term for weight, term in terms.values()), torch.zeros(()))
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(math.isfinite(value) for value in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", RECIPES)
def test_the_same_batch_twice_has_the_same_losses(kind: str, inline_dataset: Path) -> None:
    recipe = taught(kind)
    batch = batch_for(recipe, inline_dataset)
    first, second = (
        {name: (weight, float(term.detach())) for name, (weight, term) in recipe.terms(batch, ALONE).items()}
        for _ in range(2)
    )
    assert first == second
    assert all(value > 0 for _, value in first.values())


def test_true_boxes_cost_less_than_others_in_a_model_that_knows_places(inline_dataset: Path) -> None:
    recipe = taught("align", residual=False)
    batch = batch_for(recipe, inline_dataset, images=8)
    corner = batch.rois.clone()
    corner[:, 1:] = torch.tensor([0.0, 0.0, 20.0, 20.0])
    there, elsewhere = (
        recipe.terms(replace(batch, rois=rois), ALONE)["regions"][1].item() for rois in (batch.rois, corner)
    )
    assert there < elsewhere - 0.3


def test_a_batch_without_regions_teaches_captions_alone(inline_dataset: Path) -> None:
    recipe = taught("align")
    batch = batch_for(recipe, inline_dataset)
    empty = replace(
        batch,
        rois=batch.rois[:0],
        phrases=[],
        phrase_indices=batch.phrase_indices[:0],
        scores=batch.scores[:0],
    )
    terms = recipe.terms(empty, ALONE)
    assert terms["regions"][1].item() == 0
    assert terms["captions"][1].item() > 0


def test_names_of_the_same_place_are_no_negatives_and_equal_phrases_are_one() -> None:
    recipe = taught("align")
    assert isinstance(recipe, Align)
    rois = torch.tensor([[0.0, 0, 0, 10, 10], [0.0, 1, 0, 10, 10], [0.0, 50, 50, 60, 60], [1.0, 0, 0, 10, 10]])
    batch = TrainingBatch(
        rgb=torch.zeros(2, 200, 200, 3, dtype=torch.uint8),
        captions=["a car", "a dog"],
        rois=rois,
        phrases=["car", "red car", "dog"],
        phrase_indices=torch.tensor([0, 1, 2, 0]),
        scores=torch.ones(4),
        seeds=(0, 0, 0),
    )
    embeddings, positive, ignored = recipe._pairs(batch, ALONE)
    assert embeddings.shape == (3, 192)
    assert positive.int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert ignored.int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_scores_weigh_regions(inline_dataset: Path) -> None:
    batch = batch_for(taught("align"), inline_dataset)
    halved = replace(batch, scores=torch.full_like(batch.scores, 0.5))
    plain, weighted = taught("align"), taught("align", weigh_by="score")
    assert weighted.terms(halved, ALONE)["regions"][1].item() == pytest.approx(
        plain.terms(batch, ALONE)["regions"][1].item(), rel=1e-4
    ), "equal scores weigh equally"
    assert weighted.terms(batch, ALONE)["regions"][1].item() != pytest.approx(
        plain.terms(batch, ALONE)["regions"][1].item(), rel=1e-4
    )


def test_a_mosaic_holds_its_images_in_its_cells() -> None:
    rgb = torch.stack([torch.full((20, 20, 3), 10 * (n + 1), dtype=torch.uint8) for n in range(11)])
    canvas, rois = mosaics(rgb, 3)
    assert canvas.shape == (1, 20, 20, 3)
    assert rois.shape == (9, 5)
    for number, (mosaic, left, top, right, bottom) in enumerate(rois.int().tolist()):
        assert mosaic == 0
        assert (canvas[0, top:bottom, left:right] == 10 * (number + 1)).all()
    assert rois[-1].tolist() == [0, 13, 13, 20, 20]
    assert mosaics(rgb[:3], 2)[1].shape == (0, 5)


def test_cells_of_a_grid_are_inside_and_not_too_many() -> None:
    for seed in range(30):
        boxes = grid_boxes(np.random.default_rng(seed), 6, 20)
        assert 1 <= len(boxes) <= 20
        assert (boxes >= 0).all()
        assert (boxes <= 1).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)
