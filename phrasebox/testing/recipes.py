"""The contract of recipes: finite losses that fall, also on several ranks, and a training that can be stopped."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from phrasebox.pipeline.research.finetune.config import RECIPES, DataConfig, FinetuneConfig
from phrasebox.pipeline.research.finetune.folder import WEIGHTS
from phrasebox.pipeline.research.finetune.loop import finetune
from phrasebox.pipeline.research.finetune.material import TrainingBatch, TuningData
from phrasebox.pipeline.research.finetune.ranks import RankGroup
from phrasebox.pipeline.research.finetune.recipe import Recipe, Student, Terms
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import load
from phrasebox.testing.datasets import make_dataset
from phrasebox.testing.models import demo_model
from phrasebox.testing.requirement import expect_raised, require
from phrasebox.testing.settings import check_settings

IMAGES: Final = 4
"""Images of a step."""

STEPS: Final = 2
"""Steps of a whole training."""

LEARNING_RATE: Final = 1e-4

TAKEN_NAMES: Final = ("learning_rate", "loss", "step")
"""What a line of the log has beside the losses of the recipe."""

_PATIENCE_S: Final = 60.0
"""How long a rank waits for the others."""

_SINGLE_RANK: Final = RankGroup()


def check_recipe(
    recipe: type[Recipe[Any]], settings: Json | None = None, *, dataset: Path | None = None
) -> None:
    """Check all that recipes promise, on the CPU. Raise AssertionError with the promise that does not hold.

    The student is the bundled model `demo`. The package of the recipe is installed: a training finds it by its kind.

    Args:
        recipe: The class.
        settings: Values of its settings other than the defaults, for example those that make it quick.
        dataset: A dataset to learn from, with at least eight images; by default one of twelve synthetic scenes.
    """
    check_settings(recipe.config_type, settings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_dataset(folder / "made") if dataset is None else dataset
        batch = read_batches(source, ranks=1)[0]
        check_losses(recipe, batch, settings)
        check_parameters(recipe, batch, settings)
        check_learning(recipe, batch, settings)
        check_ranks(recipe, batch, read_batches(source, ranks=2), settings)
        check_training(recipe, source, folder / "tuned", settings)


def check_losses(recipe: type[Recipe[Any]], batch: TrainingBatch, settings: Json | None = None) -> None:
    """Check names, weights and values of the losses: finite, the same again, and also without regions or in 16 bits."""
    teaching = _make(recipe, settings)
    pixels = batch.rgb.clone()
    terms = [_terms_after(seed, teaching, batch) for seed in (1, 99)]
    require(terms[0], "a recipe has a loss")
    require(torch.equal(batch.rgb, pixels), "the images of a batch are only read")
    for name, (weight, loss) in terms[0].items():
        require(name not in TAKEN_NAMES, f"a loss is not called {name}: the log has it already")
        require(weight >= 0, f"the weight of a loss is at least 0: {name}")
        require(loss.shape == (), f"a loss is one number: {name}")
    require(
        _values_of(terms[0]) == _values_of(terms[1]),
        "the same batch has the same losses: draws come from TrainingBatch.seeds",
    )
    empty_batch = replace(batch, rois=batch.rois[:0], phrases=[], phrase_indices=batch.phrase_indices[:0])
    for case, shown, is_rounded in (
        ("of a batch", batch, False),
        ("of a batch without regions", empty_batch, False),
        ("in bf16", batch, True),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_rounded):
            answer = teaching.terms(shown, _SINGLE_RANK)
        require(answer.keys() == terms[0].keys(), f"the losses {case} have the same names")
        require(_is_finite(loss for _, loss in answer.values()), f"the losses {case} are finite")
        gradients = _gradients(teaching, answer)
        require(_is_finite(gradients.values()), f"the gradients {case} are finite")


def check_parameters(recipe: type[Recipe[Any]], batch: TrainingBatch, settings: Json | None = None) -> None:
    """Check that the model learns, and what the recipe learns beside it."""
    teaching = _make(recipe, settings)
    extra = teaching.extra_parameters()
    names = [name for name, _ in extra]
    require(len({*names}) == len(names), f"each extra parameter has its own name: {names}")
    again = [id(parameter) for _, parameter in teaching.extra_parameters()]
    require(
        again == [id(parameter) for _, parameter in extra], "extra parameters are the same ones each time"
    )
    model = {id(parameter) for parameter in teaching.student.module.parameters()}
    require(not model & {*again}, "extra parameters are none of the model's, which learn by themselves")
    gradients = _gradients(teaching, teaching.terms(batch, _SINGLE_RANK))
    is_taught = any(gradients[name].any() for name in gradients if name.startswith(_MODEL))
    require(is_taught, "a loss has a gradient in the model")
    for name in names:
        require(_EXTRA + name in gradients, f"a loss has a gradient in the extra parameter {name}")


def check_learning(recipe: type[Recipe[Any]], batch: TrainingBatch, settings: Json | None = None) -> None:
    """Check that the weighted sum of the losses falls when it is followed for three steps."""
    teaching = _make(recipe, settings)
    optimiser = torch.optim.AdamW(_parameters(teaching).values(), lr=LEARNING_RATE)
    sums = []
    for _ in range(4):
        loss = _sum_of(teaching.terms(batch, _SINGLE_RANK))
        sums.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    require(sums[-1] < sums[0], f"the losses fall when they are followed: {sums}")


def check_ranks(
    recipe: type[Recipe[Any]],
    batch: TrainingBatch,
    parts: Sequence[TrainingBatch],
    settings: Json | None = None,
) -> None:
    """Check that ranks with the parts of a batch learn what one rank learns from the whole."""
    whole = _make(recipe, settings)
    terms = whole.terms(batch, _SINGLE_RANK)
    gradients = _gradients(whole, terms)
    exchange = Exchange.among(len(parts))
    teachings = [_make(recipe, settings) for _ in parts]

    def learn(rank: int) -> tuple[Terms, dict[str, Tensor]]:
        try:
            ranks = RankInThread(rank=rank, size=len(parts), exchange=exchange)
            answer = teachings[rank].terms(parts[rank], ranks)
            exchange.swap(rank, "end", None)
        except BaseException:
            exchange.barrier.abort()  # otherwise the other ranks would wait
            raise
        return answer, _gradients(teachings[rank], answer)

    with ThreadPoolExecutor(len(parts)) as pool:
        futures = [pool.submit(learn, rank) for rank in range(len(parts))]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    answers = [future.result() for future in futures]
    for answer, _ in answers:
        is_same = all(
            torch.isclose(answer[name][1], loss, rtol=1e-3, atol=1e-5) for name, (_, loss) in terms.items()
        )
        require(is_same, "each rank computes the losses of the whole batch: RankGroup.gather_rows")
    most = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        parts_of_ranks = [by_name[name] for _, by_name in answers if name in by_name]
        total = torch.stack(parts_of_ranks).sum(dim=0) if parts_of_ranks else torch.zeros_like(gradient)
        is_same = torch.allclose(total, gradient, rtol=1e-2, atol=1e-3 * most)
        require(
            is_same, f"the gradients of all ranks sum to those of one: {name} (RankGroup.with_one_gradient)"
        )


def check_training(
    recipe: type[Recipe[Any]], dataset: Path, folder: Path, settings: Json | None = None
) -> None:
    """Check that a training goes on as if it had not stopped, writes a model, and refuses what teaches nothing."""
    config = recipe.config_type.model_validate(settings or {})
    kind = config.kind
    is_installed = kind in RECIPES and RECIPES[kind] is recipe
    require(is_installed, f"the package is installed, and its entry point {kind} is the recipe")
    values = config.model_dump(mode="json")
    if config.needs_regions:
        with expect_raised("a dataset without regions is an InputError", InputError):
            finetune(_training(values, dataset, folder / "none", where="score < 0"))
        require(not (folder / "none").exists(), "what is refused writes nothing")
    else:
        finetune(_training(values, dataset, folder / "none", where="score < 0"))
    whole = finetune(_training(values, dataset, folder / "whole"))

    def stop(step: int, _: int) -> None:
        raise KeyboardInterrupt

    stopped = _training(values, dataset, folder / "stopped")
    with expect_raised("a training can be stopped after a step", KeyboardInterrupt):
        finetune(stopped, stop)
    resumed = finetune(stopped)
    weights, other_weights = (load_file(one.model / WEIGHTS) for one in (whole, resumed))
    is_same = all(torch.allclose(weights[name], other_weights[name], atol=1e-6) for name in weights)
    require(
        is_same, "a training that was stopped ends with the same weights: a recipe keeps nothing of a step"
    )
    start = demo_model().module.state_dict()
    has_learned = any(not torch.equal(weights[name], start[name].float()) for name in weights)
    require(has_learned, "the model that is written has learned")
    model = load(describe(ModelConfig(checkpoint=whole.model)), device="cpu", precision="fp32")
    require(_is_finite([model.encode_text(["a red car"])]), "a run can load the model that is written")


def read_batches(dataset: Path, ranks: int) -> list[TrainingBatch]:
    """Return the first batch of a dataset in parts, one for each rank."""
    data = DataConfig(path=str(dataset))
    side_px = demo_model().spec.size_px
    material = TuningData(data, side_px=side_px, seed=0, batch_size=IMAGES)
    return [next(material.batches(range(1), rank, ranks)) for rank in range(ranks)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What ranks in threads give each other.

    Attributes:
        barrier: Where they wait for each other.
        values: The way and the value of each rank.
    """

    barrier: Barrier
    values: list[tuple[str, Any]]

    @classmethod
    def among(cls, size: int) -> Exchange:
        """Return the exchange of so many ranks."""
        return cls(barrier=Barrier(size), values=[("", None)] * size)

    def swap(self, rank: int, way: str, value: Any) -> list[Any]:
        """Return the values of all ranks, which give them in the same way."""
        self.values[rank] = (way, value)
        self.barrier.wait(_PATIENCE_S)
        values = [*self.values]
        self.barrier.wait(_PATIENCE_S)
        is_same = all(other_way == way for other_way, _ in values)
        require(is_same, "each rank takes part in each exchange of values, whatever is in its part")
        return [other_value for _, other_value in values]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInThread(RankGroup):
    """A rank of a group of threads, which exchange values as processes do."""

    exchange: Exchange

    def gather_rows(self, rows: Tensor) -> Tensor:
        """See `RankGroup.gather_rows`."""
        parts = self.exchange.swap(self.rank, "rows", rows.detach())
        parts[self.rank] = rows
        return torch.cat(parts)

    def gather_objects(self, value: Any) -> list[Any]:
        """See `RankGroup.gather_objects`."""
        return self.exchange.swap(self.rank, "objects", value)

    def broadcast(self, value: Any) -> Any:
        """See `RankGroup.broadcast`."""
        return self.gather_objects(value)[0]


_MODEL: Final = "model."
_EXTRA: Final = "recipe."


def _make(recipe: type[Recipe[Any]], settings: Json | None) -> Recipe[Any]:
    """Return a recipe with a student of its own."""
    model = demo_model()
    student = Student.of(copy.deepcopy(model.module).float(), model.tokenizer, model.spec)
    return recipe(recipe.config_type.model_validate(settings or {}), student)


def _training(recipe: Json, dataset: Path, out: Path, where: str = "") -> FinetuneConfig:
    data = DataConfig(path=str(dataset), where=where)
    side_px = demo_model().spec.size_px
    material = TuningData(data, side_px=side_px, seed=0, batch_size=IMAGES)
    return FinetuneConfig(
        data=data,
        model=ModelConfig(name="demo", device="cpu", precision="fp32"),
        recipe=RECIPES.config(recipe),
        epochs=STEPS / material.steps_per_epoch,
        batch_size=IMAGES,
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        out=out,
    )


def _parameters(recipe: Recipe[Any]) -> dict[str, nn.Parameter]:
    """Return all that learns, by name."""
    model = recipe.student.module.named_parameters()
    named = {_MODEL + name: parameter for name, parameter in model if parameter.requires_grad}
    return named | {_EXTRA + name: parameter for name, parameter in recipe.extra_parameters()}


def _gradients(recipe: Recipe[Any], terms: Terms) -> dict[str, Tensor]:
    """Return the gradients of the weighted sum of losses, by the names of parameters that it depends on."""
    parameters = _parameters(recipe)
    values = torch.autograd.grad(_sum_of(terms), [*parameters.values()], allow_unused=True)
    return {name: value for name, value in zip(parameters, values, strict=True) if value is not None}


def _sum_of(terms: Terms) -> Tensor:
    total = sum((weight * loss for weight, loss in terms.values()), torch.zeros(()))
    require(total.requires_grad, "some loss depends on what learns, also in a batch without regions")
    return total


def _terms_after(seed: int, recipe: Recipe[Any], batch: TrainingBatch) -> Terms:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return recipe.terms(batch, _SINGLE_RANK)


def _values_of(terms: Mapping[str, tuple[float, Tensor]]) -> dict[str, tuple[float, float]]:
    return {name: (weight, loss.item()) for name, (weight, loss) in terms.items()}


def _is_finite(values: Any) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)
