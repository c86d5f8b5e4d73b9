"""One comparison from beginning to end: contenders on the images of one source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.evaluate.compare.contenders import REFERENCE, Contender, contenders_of
from pipeline.evaluate.compare.figures import (
    CURVES,
    SANITY,
    Numbers,
    cosine_agreement,
    differences_of,
    figures_of,
    local_numbers,
    map_correlations,
    numbers_in,
    pair_numbers,
)
from pipeline.evaluate.compare.maps import Field, Maps, baselines, rivals_of
from pipeline.evaluate.compare.pictures import ComparedImage, Sampling, compared_images
from pipeline.graph import fetch_weights
from stages.contract.errors import InputError
from stages.contract.records import Record
from stages.explain import EXPLAINERS

if TYPE_CHECKING:
    from stages.shared.model.config import TowerKind

SANE_IMAGES: Final = 16
"""Images of the sanity checks: each takes three more maps of one phrase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is compared on.

    Attributes:
        name: For people.
        config: Input and model, and the settings of phrases and images.
        truth: A file or folder that `pipeline.evaluate.read_truth` reads, or None.
    """

    name: str
    config: RunConfig
    truth: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is looked at: images, phrases of each, images of insertion and deletion, and the seed of all chance."""

    most: int
    phrases: int
    faithful: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came out.

    Attributes:
        name: Of the source.
        rows: An object for each explainer, and for each baseline; plain values.
        images: The sample.
        maps: Of each image, for every label that `rows` has.
        curves: Areas under the curves, as `Field.curves` gives them.
    """

    name: str
    rows: tuple[dict[str, Any], ...]
    images: tuple[ComparedImage, ...]
    maps: tuple[Maps, ...]
    curves: tuple[Mapping[str, Any], ...]


def refuse_unknown(configs: Sequence[RunConfig], explainers: str | None) -> None:
    """Refuse explainers and models that cannot be used, before any work. Raises ConfigError or WeightsError."""
    for config in configs:
        tower, name = _tower(config)
        contenders_of(explainers, tower, name)


def _tower(config: RunConfig) -> tuple[TowerKind, str]:
    # torch and open_clip take seconds to import.
    from stages.shared.model.load import usable_model  # noqa: PLC0415

    described = usable_model(config.model)
    assert described.tower is not None  # noqa: S101
    return described.tower, described.name


def compared(
    source: Source, explainers: str | None, effort: Effort, console: Console, *, resized: bool = False
) -> Comparison:
    """Compare explainers on the images of a source.

    Args:
        source: Images, truth and model.
        explainers: See `contenders_of`.
        effort: How much is looked at.
        console: Shows the progress.
        resized: Whether the images were resized after the truth was drawn.

    Raises:
        ConfigError: An explainer or a setting cannot be used.
        InputError: The input or the truth cannot be read, or there is nothing to ask.
        WeightsError: The model's files are missing or damaged.
    """
    from stages.shared.model.load import load  # noqa: PLC0415

    tower, name = _tower(source.config)
    contenders = contenders_of(explainers, tower, name)
    if not contenders:
        raise InputError(f"no explainer is defined on {name}")
    fetch_weights(source.config.model, lambda text: console.print(text, soft_wrap=True))
    model = load(source.config.model)
    sampling = Sampling(most=effort.most, phrases=effort.phrases, seed=effort.seed)
    images = compared_images(source.config, model.input, source.truth, sampling, console, resized=resized)
    console.print(
        f"{source.name}: {len(contenders)} of the explainers of {name} on {len(images):,} images, {model.device_name}",
        soft_wrap=True,
    )
    field = Field(model, source.config, contenders, console)
    mapped = field.mapped(images)
    placement = model.tower.placement

    def grid_hw(record: Record) -> tuple[int, int]:
        assert record.pixels is not None  # noqa: S101
        return placement.grid_hw(*record.pixels.rgb.shape[:2])

    known = baselines(images, grid_hw, effort.seed)
    maps = [{**own, **base} for own, base in zip(mapped.maps, known, strict=True)]
    rivals = rivals_of(images, effort.seed)
    faithful = images[: effort.faithful]
    curves = field.curves(faithful, maps[: len(faithful)], rivals, 1, effort.seed)
    sane = images[:SANE_IMAGES]
    sanity = field.sanity(sane, mapped.maps[: len(sane)], effort.seed) if len(sane) > 1 else []
    costs = field.costs(images, rivals)
    labels = [contender.label for contender in contenders]
    correlations = map_correlations(maps, labels)
    parts: dict[str, list[Numbers]] = {}
    best: dict[str, dict[str, float]] = {}
    for label in [*labels, *known[0]]:
        local, best[label] = local_numbers(images, maps, label)
        parts[label] = [local, numbers_in(curves, label, CURVES)]
        if label in labels:
            parts[label] += [numbers_in(sanity, label, SANITY), pair_numbers(images, maps, label)]
    shared = {
        "pictures": source.name,
        "model": name,
        "device": model.device_name,
        "counts": {
            "images": len(images),
            "phrases": sum(len(image.questions) for image in images),
            "placed": sum(question.query is not None for image in images for question in image.questions),
            "curves": len(faithful),
            "sanity": len(sane) if sanity else 0,
        },
        "seed": effort.seed,
    }
    rows: list[dict[str, Any]] = []
    for label, own in parts.items():
        contender = next((each for each in contenders if each.label == label), None)
        reference = parts.get(REFERENCE)
        row: dict[str, Any] = {
            "explainer": label,
            "baseline": contender is None,
            **shared,
            "figures": figures_of(own),
            "differences": (
                differences_of(own, reference[: len(own)]) if reference is not None and label != REFERENCE else None
            ),
            "thresholds": best[label],
        }
        if contender is not None:
            row |= {
                "cost": costs[label],
                "cosine_agreement": cosine_agreement(mapped, label),
                "map_correlation": correlations[label],
                "failed_maps": sum(bool(heat_map.fault) for each in mapped.maps for heat_map in each[label]),
                "config": contender.config.model_dump(mode="json"),
                "follows_phrases": _follows_phrases(contender),
            }
        rows.append(row)
    return Comparison(name=source.name, rows=tuple(rows), images=tuple(images), maps=tuple(maps), curves=tuple(curves))


def _follows_phrases(contender: Contender) -> bool:
    return EXPLAINERS[contender.config.kind].follows_phrases
