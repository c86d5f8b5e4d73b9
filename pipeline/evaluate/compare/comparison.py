"""One comparison from beginning to end: contenders on the images of one source."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from pipeline.config import RunConfig, load_config
from pipeline.evaluate.compare.faithfulness import curve_areas, masks_of
from pipeline.evaluate.compare.figures import (
    CURVES,
    SANITY,
    Numbers,
    cosine_agreement,
    differences_of,
    figures_of,
    local_numbers,
    mark,
    numbers_in,
    pair_numbers,
)
from pipeline.evaluate.compare.maps import (
    REFERENCE,
    Contender,
    Field,
    Maps,
    baselines,
    contenders_of,
    rivals_of,
)
from pipeline.evaluate.compare.pictures import ComparedImage, Effort, compared_images
from pipeline.evaluate.compare.sanity import sanity
from pipeline.evaluate.evaluation_set import pixels_of
from pipeline.graph import fetch_weights
from pipeline.photographs import INPUT, MODEL, TRUTH, why_left_out
from pipeline.scenes import write_scenes
from pipeline.terminal import counted, progress_bar
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import stable_id
from stages.explain import EXPLAINERS
from stages.shared.model.clip import ClipModel
from stages.shared.model.load import load, usable_model

SANE_IMAGES: Final = 16  # images of the sanity checks: each takes three more maps of one phrase
USED: Final = ("input", "model", "phrases", "images")  # sections of the configuration that a comparison depends on


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The images of a comparison, with a name for people; the configuration says input, model, phrases and images."""

    name: str
    config: RunConfig
    truth: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The results on one source: rows of plain values for each explainer and baseline, and what they come from.

    `maps` are those of each image, for every label of `rows`; `curves` are `label`, `image` and `curve_areas`.
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
    effort: Effort,
    console: Console,
) -> Iterator[list[Source]]:
    """Yield the user's images, or the bundled ones: drawn scenes, which are deleted afterwards, and eight photographs.

    The photographs take part where the model for photographs is there, or another one is named.

    Raise ConfigError if a setting cannot be used.
    """
    unused = [setting for setting in settings if setting.partition(".")[0] not in USED]
    if unused:
        raise ConfigError(
            f"--set {unused[0]}: only keys of {', '.join(USED)} are used here; an explainer's settings stand behind "
            "its name: --explainers grad_eclip:heads=single"
        )
    named = {} if model is None else {"model.name": model}

    def source(name: str, truth: Path | None, given: Mapping[str, Any]) -> Source:
        return Source(name=name, config=load_config(config, settings, options={**given, **named}), truth=truth)

    if data is not None or config is not None:
        yield [source(data or str(config), truth, {"input.path": data, "input.image_root": images})]
        return
    for option, value in (("--truth", truth), ("--images", images)):
        if value is not None:
            raise ConfigError(f"{option}: it belongs to images of your own: phrasebox compare DATA {option} {value}")
    with tempfile.TemporaryDirectory(prefix="phrasebox-compare-") as path:
        folder = Path(path)
        write_scenes(folder, effort.most, effort.seed)
        drawn = {"kind": "jsonl", "path": str(folder / "captions.jsonl"), "image_root": str(folder / "images")}
        sources = [source("drawn scenes", folder / "truth.json", {"model.name": "demo", "input": drawn})]
        missing = None if model is not None else why_left_out()
        if missing is None:
            sources.append(source("eight photographs", TRUTH, {"model.name": MODEL, "input": INPUT}))
        else:
            console.print(missing, soft_wrap=True)
        yield sources


def check_contenders(source: Source, explainers: str | None) -> tuple[list[Contender], str]:
    """Return the explainers that are compared and the model's name, before any work.

    Raise as `contenders_of`, InputError if no explainer is defined on the model, and WeightsError if the model's files
    are missing or damaged.
    """
    model = usable_model(source.config.model)
    contenders = [] if model.tower is None else contenders_of(explainers, model.tower, model.name)
    if not contenders:
        raise InputError(f"no explainer is defined on {model.name}")
    return contenders, model.name


def compared(
    source: Source, explainers: str | None, effort: Effort, console: Console, *, resized: bool = False
) -> Comparison:
    """Compare explainers (see `contenders_of`) on the images of a source.

    resized: whether the images were resized after the ground truth was drawn.

    Raise as `check_contenders`, and InputError if input or ground truth cannot be read or nothing can be asked.
    """
    contenders, name = check_contenders(source, explainers)
    fetch_weights(source.config.model, lambda text: console.print(text, soft_wrap=True))
    model = load(source.config.model)
    images = compared_images(source.config, model.input, source.truth, effort, console, resized=resized)
    console.print(
        f"{source.name}: {len(contenders)} of the explainers of {name} on {counted(len(images), 'image')}, "
        f"{model.device_name}",
        soft_wrap=True,
    )
    field = Field(model, source.config, contenders, console)
    mapped, cosines = field.mapped(images)
    maps = [{**own, **base} for own, base in zip(mapped, baselines(images, model, effort.seed), strict=True)]
    rivals = rivals_of(images, effort.seed)
    curves = _curves(model, images[: effort.faithful], maps, rivals, effort.seed, console)
    sane = images[:SANE_IMAGES]
    checks = sanity(field, sane, mapped, effort.seed) if len(sane) > 1 else []
    shared = {
        "pictures": source.name,
        "model": name,
        "device": model.device_name,
        "logit_scale": model.logit_scale,
        "logit_bias": model.logit_bias,
        "counts": {
            "images": len(images),
            "phrases": sum(len(image.questions) for image in images),
            "placed": sum(question.query is not None for image in images for question in image.questions),
            "curves": len(images[: effort.faithful]),
            "sanity": len(sane) if checks else 0,
        },
        "seed": effort.seed,
    }
    rows = _rows(shared, contenders, images, maps, curves, checks)
    costs = field.costs(images, rivals)
    for row, contender in zip(rows, contenders, strict=False):  # baselines come last
        label = contender.label
        row |= {
            "cost": costs[label],
            "cosine_agreement": cosine_agreement([own[label] for own in mapped], cosines),
            "failed_maps": sum(bool(heat_map.fault) for each in mapped for heat_map in each[label]),
            "config": contender.config.model_dump(mode="json"),
            "follows_phrases": EXPLAINERS[contender.config.kind].follows_phrases,
        }
    return Comparison(name=source.name, rows=tuple(rows), images=tuple(images), maps=tuple(maps), curves=tuple(curves))


def _curves(
    model: ClipModel,
    images: Sequence[ComparedImage],
    maps: Sequence[Maps],
    rivals: Sequence[str],
    seed: int,
    console: Console,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    masks = masks_of(len(maps[0]))
    with progress_bar(console, "insertion and deletion, masked images", masks * len(images)) as advance:
        for image, own in zip(images, maps, strict=False):
            text = image.questions[0].phrase.text
            texts = [text, *(rival for rival in rivals if rival != text)]
            heats = {label: each[0] for label, each in own.items()}
            areas = curve_areas(
                model,
                pixels_of(image.record),
                heats,
                texts,
                stable_id(f"{seed}:{image.number}"),
                partial(_advance_from, masks * image.number, advance),
            )
            rows += [{"label": label, "image": image.number, **found} for label, found in areas.items()]
    return rows


def _advance_from(before: int, advance: Callable[[int], None], done: int) -> None:
    advance(before + done)


def _rows(
    shared: Mapping[str, Any],
    contenders: Sequence[Contender],
    images: Sequence[ComparedImage],
    maps: Sequence[Maps],
    curves: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The rows with their figures, and with the differences from `REFERENCE` if it takes part."""
    labels = {contender.label for contender in contenders}
    parts: dict[str, list[Numbers]] = {}
    best: dict[str, dict[str, float]] = {}
    for label in maps[0]:
        local, best[label] = local_numbers(images, maps, label)
        parts[label] = [local, numbers_in(curves, label, CURVES)]
        if label in labels:
            parts[label] += [numbers_in(checks, label, SANITY), pair_numbers(images, maps, label)]
    reference = parts.get(REFERENCE)
    rows = [
        {
            "explainer": label,
            "baseline": label not in labels,
            **shared,
            "figures": figures_of(own),
            "differences": (
                None if reference is None or label == REFERENCE else differences_of(own, reference[: len(own)])
            ),
            "thresholds": best[label],
        }
        for label, own in parts.items()
    ]
    mark(rows)
    return rows
