"""The losses of the recipes: what they compare, and with what. `tests/contracts` has what all recipes promise."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from phrasebox.pipeline.research.finetune.align import Align
from phrasebox.pipeline.research.finetune.config import RECIPES, DataConfig
from phrasebox.pipeline.research.finetune.material import TrainingBatch, TuningData
from phrasebox.pipeline.research.finetune.ranks import RankGroup
from phrasebox.pipeline.research.finetune.recipe import Recipe, Student, contrastive_loss, logits_of
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.module import module_of
from phrasebox.stages.model.tokenizer import tokenizer_of
from tests.closeness import assert_close
from tests.factories import TOWERS

DESCRIPTION = describe(ModelConfig(name="demo"))
SINGLE_RANK = RankGroup()


def taught(kind: str, **settings: Any) -> Recipe[Any]:
    recipe = RECIPES[kind]
    student = Student.of(module_of(DESCRIPTION).float(), tokenizer_of(DESCRIPTION), DESCRIPTION.input)
    return recipe(RECIPES.config({"kind": kind, **settings}), student)


def batch_for(recipe: Recipe[Any], dataset: Path, images: int = 4) -> TrainingBatch:
    data = DataConfig(path=str(dataset))
    material = TuningData(data, side_px=DESCRIPTION.input.size_px, seed=0, batch_size=images)
    return next(material.batches(range(1), 0, 1))


@pytest.mark.slow
def test_true_boxes_cost_less_than_others_in_a_model_that_knows_places(inline_dataset: Path) -> None:
    recipe = taught("align")
    batch = batch_for(recipe, inline_dataset, images=8)
    corner = batch.rois.clone()
    corner[:, 1:] = torch.tensor([0.0, 0.0, 20.0, 20.0])
    terms = [recipe.terms(replace(batch, rois=rois), SINGLE_RANK) for rois in (batch.rois, corner)]
    true_loss, other_loss = (each["regions"][1].item() for each in terms)
    assert true_loss < other_loss - 0.3


def test_a_batch_without_regions_teaches_captions_alone(inline_dataset: Path) -> None:
    recipe = taught("align")
    batch = batch_for(recipe, inline_dataset)
    none = {name: getattr(batch, name)[:0] for name in ("rois", "phrases", "phrase_indices")}
    terms = recipe.terms(replace(batch, **none), SINGLE_RANK)
    assert terms["regions"][1].item() == 0
    assert terms["captions"][1].item() > 0


@pytest.mark.parametrize("places", ["grid", "regions"])
def test_a_place_learns_the_embedding_of_its_own_crop(places: str, inline_dataset: Path) -> None:
    """A student whose features are the teacher's embeddings of the crops has nothing to learn."""
    recipe = taught("clipself", places=places, max_split=3)
    batch = batch_for(recipe, inline_dataset, images=2)
    rois = recipe._rois(batch)
    assert set(rois[:, 0].tolist()) == {0, 1}
    number = len(rois) // 2
    image, left, top, right, bottom = rois[number].tolist()
    side = batch.rgb.shape[1]
    crop = batch.rgb[int(image), int(top) : math.ceil(bottom), int(left) : math.ceil(right)]
    shown = Image.fromarray(crop.numpy()).resize((side, side), Image.Resampling.BICUBIC)
    embeddings = recipe._embed_crops(batch.rgb, rois)
    wanted = recipe.student.tower.encode(torch.from_numpy(np.array(shown))[None])
    assert F.cosine_similarity(embeddings[number : number + 1], wanted).item() > 0.999
    assert recipe.terms(batch, SINGLE_RANK)["crops"][1].item() > 0.01
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Student, "regions", lambda *_: embeddings)
        assert abs(recipe.terms(batch, SINGLE_RANK)["crops"][1].item()) < 1e-5
    assert all(not weight.requires_grad for weight in recipe.student.module.transformer.parameters())
    none = replace(batch, rois=batch.rois[:0], seeds=())
    assert recipe.terms(none, SINGLE_RANK)["crops"][1].item() == 0


@pytest.mark.parametrize("tower", ["class token", "ResNet", "SigLIP"])
def test_a_teacher_is_a_tower_of_its_own_that_does_not_learn(tower: str) -> None:
    make, spec = TOWERS[tower]
    student = Student.of(make().float(), None, spec)
    recipe = RECIPES["clipself"](RECIPES.config({"kind": "clipself"}), student)
    rgb = torch.randint(
        0, 256, (2, spec.size_px, spec.size_px, 3), generator=torch.Generator().manual_seed(0)
    )
    batch = TrainingBatch(
        rgb=rgb.to(torch.uint8),
        captions=[],
        rois=torch.zeros(0, 5),
        phrases=[],
        phrase_indices=torch.zeros(0, dtype=torch.int64),
        seeds=[1, 2],
    )
    embeddings = recipe._embed_crops(batch.rgb, recipe._rois(batch))
    recipe.terms(batch, SINGLE_RANK)["crops"][1].backward()
    learning = [weight for weight in student.module.visual.parameters() if weight.grad is not None]
    assert learning
    with torch.no_grad():
        for weight in learning:
            weight.add_(0.1)
    assert torch.equal(recipe._embed_crops(batch.rgb, recipe._rois(batch)), embeddings)


def test_names_of_the_same_place_are_no_negatives_and_equal_phrases_are_one() -> None:
    recipe = taught("align")
    assert isinstance(recipe, Align)
    rois = torch.tensor(
        [[0.0, 0, 0, 10, 10], [0.0, 1, 0, 10, 10], [0.0, 50, 50, 60, 60], [1.0, 0, 0, 10, 10]]
    )
    batch = TrainingBatch(
        rgb=torch.zeros(2, 200, 200, 3, dtype=torch.uint8),
        captions=["a car", "a dog"],
        rois=rois,
        phrases=["car", "red car", "dog"],
        phrase_indices=torch.tensor([0, 1, 2, 0]),
    )
    embeddings, positive, ignored = recipe._pairs(batch, SINGLE_RANK)
    assert embeddings.shape == (3, 192)
    assert positive.int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert ignored.int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_pairs_on_the_diagonal_give_clips_loss() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)) * 3
    target = torch.arange(5)
    wanted = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert_close(contrastive_loss(logits, torch.eye(5, dtype=torch.bool)), wanted)


def test_other_positives_and_ignored_pairs_are_no_negatives() -> None:
    logits = torch.tensor([[2.0, 1.0, 5.0, 0.0]])
    positive = torch.tensor([[True, True, False, False]])
    ignored = torch.tensor([[False, False, True, False]])
    rows = (math.log1p(math.exp(0.0 - 2.0)) + math.log1p(math.exp(0.0 - 1.0))) / 2
    # A column of one region has no negatives at all.
    assert_close(contrastive_loss(logits, positive, ignored), rows / 2)


def test_rows_without_negatives_or_positives_have_finite_gradients() -> None:
    logits = torch.randn(2, 2, requires_grad=True)
    everything = torch.ones(2, 2, dtype=torch.bool)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    for positive, ignored in ((everything, None), (nothing, None), (nothing, everything)):
        loss = contrastive_loss(logits, positive, ignored)
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()
    assert float(contrastive_loss(torch.zeros(0, 3), nothing[:0, :1].expand(0, 3))) == 0


def test_logits_keep_their_digits_under_autocast() -> None:
    units = F.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(3)), dim=-1)
    wanted = 100 * units @ units.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(logits_of(torch.tensor(100.0), units, units), wanted)
        assert not torch.allclose((100 * units @ units.T).float(), wanted, atol=0.01), (
            "which it would not otherwise"
        )


def test_texts_that_fill_the_context_are_remembered() -> None:
    student = taught("captions").student
    long = "a red cup on a table and " * 40
    student.texts(["a dog", long])
    student.texts([long, ""])
    assert student.full_texts == {long}
