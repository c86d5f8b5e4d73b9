"""What every entry of RECIPES promises, and that `check_recipe` notices a recipe which does not keep it.

A new recipe is tested once it is in the table.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phrasebox.pipeline.research.finetune.config import RECIPES, CaptionsConfig
from phrasebox.pipeline.research.finetune.material import TrainingBatch
from phrasebox.pipeline.research.finetune.ranks import RankGroup
from phrasebox.pipeline.research.finetune.recipe import Captions, Recipe, Student, Terms
from phrasebox.testing import check_recipe
from phrasebox.testing.recipes import (
    check_learning,
    check_losses,
    check_parameters,
    check_ranks,
    check_training,
    read_batches,
)
from tests.build.cases import cases
from tests.build.datasets import Json

FEW: dict[str, Json] = {"clipself": {"max_split": 2}}
"""What makes a slow recipe quicker."""

SLOW = {"captions", "align", *FEW}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in RECIPES]
)
def test_it_keeps_the_contract_of_recipes(kind: str, inline_dataset: Path) -> None:
    check_recipe(RECIPES[kind], FEW.get(kind), dataset=inline_dataset)


def changed(change: Callable[[torch.Tensor], torch.Tensor], name: str = "captions") -> type[Recipe[Any]]:
    """The recipe `captions` with another loss, or another name of it."""

    class Changed(Captions):
        def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
            ((weight, loss),) = super().terms(batch, ranks).values()
            return {name: (weight, change(loss))}

    return Changed


class WithoutRegions(Captions):
    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        terms = super().terms(batch, ranks)
        return terms if len(batch.rois) else {**terms, "none": terms["captions"]}


class Twice(Captions):
    """A parameter of the model, which the optimiser would have twice."""

    def extra_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [("scale", self.student.module.logit_scale)]


class Unused(Captions):
    def __init__(self, config: CaptionsConfig, student: Student) -> None:
        super().__init__(config, student)
        self.unused = nn.Parameter(torch.zeros(1))

    def extra_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [("unused", self.unused)]


class Alone(Captions):
    """The loss of the part of a rank."""

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        return super().terms(batch, RankGroup())


class LeaderAlone(Captions):
    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        if ranks.is_leader:
            ranks.gather_objects(None)
        return super().terms(batch, ranks)


class ScaleOfEachRank(Captions):
    """A value that is equal on all ranks and has a gradient on each."""

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        terms = super().terms(batch, ranks)
        return {**terms, "scale": (1.0, self.student.module.logit_scale.exp() / 100)}


def learn(recipe: type[Recipe[Any]], dataset: Path) -> None:
    check_learning(recipe, *read_batches(dataset, ranks=1))


def compute(recipe: type[Recipe[Any]], dataset: Path) -> None:
    check_losses(recipe, *read_batches(dataset, ranks=1))


def reach(recipe: type[Recipe[Any]], dataset: Path) -> None:
    check_parameters(recipe, *read_batches(dataset, ranks=1))


def share(recipe: type[Recipe[Any]], dataset: Path) -> None:
    check_ranks(recipe, *read_batches(dataset, ranks=1), read_batches(dataset, ranks=2))


@cases(
    ("check", "recipe", "promise"),
    {
        "name": (compute, changed(lambda loss: loss, "loss"), "the log has it already"),
        "shape": (compute, changed(lambda loss: loss[None]), "a loss is one number"),
        "infinite": (compute, changed(lambda loss: loss / 0), "are finite"),
        "by chance": (compute, changed(lambda loss: loss + torch.rand(())), "the same losses"),
        "names that vary": (compute, WithoutRegions, "without regions have the same names"),
        "no gradient": (reach, changed(torch.Tensor.detach), "some loss depends on what learns"),
        "a parameter twice": (reach, Twice, "none of the model's"),
        "an unused parameter": (reach, Unused, "a gradient in the extra parameter unused"),
        "upwards": (learn, changed(lambda loss: 2 * loss.detach() - loss), "fall when they are followed"),
        "a part alone": (share, Alone, "the losses of the whole batch"),
        "one rank waits": (share, LeaderAlone, "each rank takes part"),
        "a gradient on each rank": (share, ScaleOfEachRank, "sum to those of one"),
        "not installed": (
            lambda recipe, dataset: check_training(recipe, dataset, Path("unused")),
            Alone,
            "entry point captions",
        ),
    },
)
def test_what_breaks_the_contract_is_noticed(
    check: Callable[[type[Recipe[Any]], Path], None],
    recipe: type[Recipe[Any]],
    promise: str,
    inline_dataset: Path,
) -> None:
    with pytest.raises(AssertionError, match=promise):
        check(recipe, inline_dataset)


@pytest.mark.slow
def test_a_recipe_that_counts_its_steps_does_not_go_on_as_it_was(
    inline_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = Captions.terms

    def count(recipe: Any, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        recipe.steps = getattr(recipe, "steps", 0) + 1
        return {
            name: (weight, loss * (-1) ** recipe.steps)
            for name, (weight, loss) in terms(recipe, batch, ranks).items()
        }

    monkeypatch.setattr(Captions, "terms", count)
    with pytest.raises(AssertionError, match="keeps nothing of a step"):
        check_training(Captions, inline_dataset, tmp_path)
