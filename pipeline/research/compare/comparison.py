"""One comparison from beginning to end: contenders on the images of one source."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from pipeline.config import RunConfig, load_config
from pipeline.evaluate.evaluation_set import pixels_of
from pipeline.graph import fetch_weights
from pipeline.photographs import INPUT, MODEL, TRUTH, why_left_out
from pipeline.research.compare.faithfulness import count_masks, measure_curves
from pipeline.research.compare.figures import (
    CURVES,
    SANITY,
    Numbers,
    cosine_agreement,
    differences_of,
    figures_of,
    mark_differences,
    numbers_in,
    pair_numbers,
    place_numbers,
)
from pipeline.research.compare.maps import (
    REFERENCE,
    Contender,
    Contest,
    Maps,
    contenders_of,
    draw_baselines,
    rivals_of,
)
from pipeline.research.compare.pictures import ComparedImage, SampleSize, read_images
from pipeline.research.compare.sanity import check_sanity
from pipeline.scenes import write_scenes
from pipeline.terminal import counted, progress_bar
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import stable_id
from stages.explain import EXPLAINERS
from stages.shared.model.clip import ClipModel
from stages.shared.model.load import load, usable_model

SANITY_IMAGES: Final = 16  # images of the sanity checks: each takes three more maps of one phrase
USED_SECTIONS: Final = (
    "input",
    "model",
    "phrases",
    "images",
)  # sections of the configuration that a comparison depends on


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The images of a comparison, with a name for people; `config` has input, model, phrases and images."""

    name: str
    config: RunConfig
    truth: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The results on one source.

    Attributes:
        name: Name of the source.
        rows: Plain values of each explainer and baseline.
        images: The images.
        maps: Maps of each image, for every label of `rows`.
        curves: `label`, `image` and the areas of `measure_curves`.
    """

    name: str
    rows: tuple[dict[str, Any], ...]
    images: tuple[ComparedImage, ...]
    maps: tuple[Maps, ...]
    curves: tuple[Mapping[str, Any], ...]


@contextmanager
def sources_of(
    data: str | None,
    truth: Path | None,
    model: str | None,
    images: str | None,
    config: Path | None,
    settings: Sequence[str],
    sample_size: SampleSize,
    console: Console,
) -> Iterator[list[Source]]:
    """Yield the user's images, or the bundled ones: synthetic scenes, deleted afterwards, and eight photographs.

    The photographs take part if the model for photographs is installed or if another model is named.

    Raise ConfigError if a setting cannot be used.
    """
    unknown = [setting for setting in settings if setting.partition(".")[0] not in USED_SECTIONS]
    if unknown:
        raise ConfigError(
            f"--set {unknown[0]}: only keys of {', '.join(USED_SECTIONS)} are used here; an explainer's settings stand "
            "behind its name: --explainers grad_eclip:heads=single"
        )
    model_setting = {} if model is None else {"model.name": model}

    def source(name: str, truth: Path | None, values: Mapping[str, Any]) -> Source:
        source_config = load_config(config, settings, options={**values, **model_setting})
        return Source(name=name, config=source_config, truth=truth)

    if data is not None or config is not None:
        yield [source(data or str(config), truth, {"input.path": data, "input.image_root": images})]
        return
    for option, value in (("--truth", truth), ("--images", images)):
        if value is not None:
            raise ConfigError(f"{option}: it belongs to images of your own: phrasebox compare DATA {option} {value}")
    with tempfile.TemporaryDirectory(prefix="phrasebox-compare-") as path:
        folder = Path(path)
        write_scenes(folder, sample_size.images, sample_size.seed)
        scene_input = {"kind": "jsonl", "path": str(folder / "captions.jsonl"), "image_root": str(folder / "images")}
        sources = [source("drawn scenes", folder / "truth.json", {"model.name": "demo", "input": scene_input})]
        reason = None if model is not None else why_left_out()
        if reason is None:
            sources.append(source("eight photographs", TRUTH, {"model.name": MODEL, "input": INPUT}))
        else:
            console.print(reason, soft_wrap=True)
        yield sources


def check_contenders(source: Source, explainers: str | None) -> tuple[list[Contender], str]:
    """Return the explainers to compare and the model's name, before any work.

    Raise as `contenders_of`, InputError if no explainer is defined on the model, and WeightsError if the model's files
    are missing or damaged.
    """
    model = usable_model(source.config.model)
    contenders = [] if model.tower is None else contenders_of(explainers, model.tower, model.name)
    if not contenders:
        raise InputError(f"no explainer is defined on {model.name}")
    return contenders, model.name


def compare_explainers(
    source: Source, explainers: str | None, sample_size: SampleSize, console: Console, *, resized: bool = False
) -> Comparison:
    """Compare explainers (see `contenders_of`) on the images of a source.

    resized: whether the images were resized after the ground truth was drawn.

    Raise as `check_contenders`, and InputError if input or ground truth cannot be read or there is nothing to ask.
    """
    contenders, name = check_contenders(source, explainers)
    fetch_weights(source.config.model, lambda text: console.print(text, soft_wrap=True))
    model = load(source.config.model)
    images = read_images(source.config, model.input, source.truth, sample_size, console, resized=resized)
    console.print(
        f"{source.name}: {len(contenders)} of the explainers of {name} on {counted(len(images), 'image')}, "
        f"{model.device_name}",
        soft_wrap=True,
    )
    contest = Contest(model, source.config, contenders, console)
    explainer_maps, cosines = contest.compute_maps(images)
    seed = sample_size.seed
    baseline_maps = draw_baselines(images, model, seed)
    maps = [{**image_maps, **baseline} for image_maps, baseline in zip(explainer_maps, baseline_maps, strict=True)]
    rivals = rivals_of(images, seed)
    curve_images = images[: sample_size.curve_images]
    curves = _measure_curves(model, curve_images, maps, rivals, seed, console)
    sanity_images = images[:SANITY_IMAGES]
    checks = check_sanity(contest, sanity_images, explainer_maps, seed) if len(sanity_images) > 1 else []
    common = {
        "pictures": source.name,
        "model": name,
        "device": model.device_name,
        "logit_scale": model.logit_scale,
        "logit_bias": model.logit_bias,
        "counts": {
            "images": len(images),
            "phrases": sum(len(image.questions) for image in images),
            "placed": sum(question.query is not None for image in images for question in image.questions),
            "curves": len(curve_images),
            "sanity": len(sanity_images) if checks else 0,
        },
        "seed": seed,
    }
    rows = _rows(common, contenders, images, maps, curves, checks)
    costs = contest.costs(images, rivals)
    for row, contender in zip(rows, contenders, strict=False):  # baselines come last
        label = contender.label
        row |= {
            "cost": costs[label],
            "cosine_agreement": cosine_agreement([image_maps[label] for image_maps in explainer_maps], cosines),
            "failed_maps": sum(bool(heat_map.fault) for image_maps in explainer_maps for heat_map in image_maps[label]),
            "config": contender.config.model_dump(mode="json"),
            "follows_phrases": EXPLAINERS[contender.config.kind].follows_phrases,
        }
    return Comparison(name=source.name, rows=tuple(rows), images=tuple(images), maps=tuple(maps), curves=tuple(curves))


def _measure_curves(
    model: ClipModel,
    images: Sequence[ComparedImage],
    maps: Sequence[Maps],
    rivals: Sequence[str],
    seed: int,
    console: Console,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    masks = count_masks(len(maps[0]))
    with progress_bar(console, "insertion and deletion, masked images", masks * len(images)) as advance:
        for image, image_maps in zip(images, maps, strict=False):

            def advance_from(count: int, start: int = masks * image.number) -> None:
                advance(start + count)

            text = image.questions[0].phrase.text
            texts = [text, *(rival for rival in rivals if rival != text)]
            heats = {label: heat_maps[0] for label, heat_maps in image_maps.items()}
            areas = measure_curves(
                model,
                pixels_of(image.record),
                heats,
                texts,
                stable_id(f"{seed}:{image.number}"),
                advance_from,
            )
            rows += [{"label": label, "image": image.number, **values} for label, values in areas.items()]
    return rows


def _rows(
    common: Mapping[str, Any],
    contenders: Sequence[Contender],
    images: Sequence[ComparedImage],
    maps: Sequence[Maps],
    curves: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return the rows with their figures, and with the differences from `REFERENCE` if it takes part."""
    labels = {contender.label for contender in contenders}
    parts: dict[str, list[Numbers]] = {}
    thresholds: dict[str, dict[str, float]] = {}
    for label in maps[0]:
        places, thresholds[label] = place_numbers(images, maps, label)
        parts[label] = [places, numbers_in(curves, label, CURVES)]
        if label in labels:
            parts[label] += [numbers_in(checks, label, SANITY), pair_numbers(images, maps, label)]
    reference = parts.get(REFERENCE)
    rows = [
        {
            "explainer": label,
            "baseline": label not in labels,
            **common,
            "figures": figures_of(numbers),
            "differences": (
                None if reference is None or label == REFERENCE else differences_of(numbers, reference[: len(numbers)])
            ),
            "thresholds": thresholds[label],
        }
        for label, numbers in parts.items()
    ]
    mark_differences(rows)
    return rows
