"""One comparison from beginning to end: contenders on the images of one source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console

from phrasebox.pipeline.evaluate.estimates import Estimates, plain_values
from phrasebox.pipeline.evaluate.evaluation_set import pixels_of
from phrasebox.pipeline.research.compare.faithfulness import FILLINGS, SHARES, measure_curves
from phrasebox.pipeline.research.compare.figures import (
    CURVES,
    SANITY,
    CosineAgreement,
    Difference,
    MapValues,
    Numbers,
    cosine_agreement,
    differences_of,
    figures_of,
    mark_differences,
    numbers_in,
    pair_numbers,
    place_numbers,
)
from phrasebox.pipeline.research.compare.maps import (
    REFERENCE,
    Contender,
    Contest,
    Cost,
    Maps,
    contenders_of,
    draw_baselines,
    rivals_of,
    undefined_explainers,
)
from phrasebox.pipeline.research.compare.pictures import ComparedImage, Source, read_images
from phrasebox.pipeline.research.compare.sanity import check_sanity
from phrasebox.pipeline.terminal import counted, progress_bar, say
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.values import Floats, Json
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import fetch, load

SANITY_IMAGES: Final = 16  # images of the sanity checks: each takes two more maps of one phrase


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What a contender explains, and at what cost.

    Attributes:
        cost: Time of a batch.
        cosine_agreement: The cosine that it explains beside the model's.
        failed_maps: Number of maps with a fault.
        config: Its settings.
    """

    cost: Cost
    cosine_agreement: CosineAgreement
    failed_maps: int
    config: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """The results of an explainer or a baseline.

    Attributes:
        explainer: Its label.
        figures: Name -> figure of `FIGURES`.
        differences: Differences from `REFERENCE`; empty for itself, or where it does not take part.
        explained: None for a baseline without a model.
    """

    explainer: str
    figures: Estimates
    differences: Mapping[str, Difference]
    explained: Explained | None

    @property
    def baseline(self) -> bool:
        """Whether it is a baseline without a model."""
        return self.explained is None

    def mark(self, name: str) -> str:
        """Return "+" or "-" if the difference of a figure is significant, "" if not."""
        return self.differences[name].mark if name in self.differences else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The numbers of images, phrases, and phrases with a known place."""

    images: int
    phrases: int
    placed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The results on one source.

    Attributes:
        pictures: Name of the source.
        model: Name of the model.
        device: Its device, for people.
        counts: What was compared.
        rows: Results of each explainer and baseline.
        images: The images.
        maps: Maps of each image, for every label of `rows`.
    """

    pictures: str
    model: str
    device: str
    counts: Sizes
    rows: tuple[ComparisonRow, ...]
    images: tuple[ComparedImage, ...]
    maps: tuple[Maps, ...]

    def to_json(self) -> list[Json]:
        """Return a dictionary for each row as values of JSON."""
        names = ("pictures", "model", "device", "counts")
        common = plain_values({name: getattr(self, name) for name in names})
        rows = []
        for row in self.rows:
            values = plain_values(row)
            explained = values.pop("explained") or {}
            rows.append({"baseline": row.baseline, **common, **values, **explained})
        return rows


def compare_explainers(
    source: Source, explainers: str | None, console: Console, *, curve_images: int
) -> Comparison:
    """Compare explainers (see `contenders_of`) on a source; insertion and deletion on `curve_images` of its images.

    Raise as `contenders_of`; InputError if no explainer is defined on the model, if input or
    ground truth cannot be read or if there is nothing to ask; and WeightsError if the model's
    files are missing or damaged.
    """
    settings = source.config.model
    description = describe(settings)
    name = description.name
    contenders = contenders_of(explainers, description.tower, name)
    if not contenders:
        raise InputError(f"no explainer is defined on {name}")
    fetch(description, lambda text: say(console, text))
    model = load(
        description, device=settings.device, precision=settings.precision, threads=settings.threads
    )
    images = read_images(source, model.input, console)
    say(
        console,
        f"{source.name}: {len(contenders)} of the explainers of {name} on {counted(len(images), 'image')}, "
        f"{model.device_name}",
    )
    if explainers is not None and explainers.strip() == "all":
        for sentence in undefined_explainers(description.tower, name):
            say(console, sentence)
    contest = Contest(model, settings, source.config.images, contenders, console)
    explainer_maps, cosines = contest.compute_maps(images)
    baseline_maps = draw_baselines(images, model)
    maps = [
        {**image_maps, **baseline}
        for image_maps, baseline in zip(explainer_maps, baseline_maps, strict=True)
    ]
    rivals = rivals_of(images)
    curves = _measure_curves(model, images[:curve_images], maps, rivals, console)
    sanity_images = images[:SANITY_IMAGES]
    checks = check_sanity(contest, sanity_images, explainer_maps) if len(sanity_images) > 1 else {}
    explained = _explained_by_label(contenders, explainer_maps, cosines, contest.costs(images, rivals))
    return Comparison(
        pictures=source.name,
        model=name,
        device=model.device_name,
        counts=Sizes(
            images=len(images),
            phrases=sum(len(image.questions) for image in images),
            placed=sum(question.query is not None for image in images for question in image.questions),
        ),
        rows=tuple(_rows(explained, images, maps, curves, checks)),
        images=tuple(images),
        maps=tuple(maps),
    )


def _explained_by_label(
    contenders: Sequence[Contender],
    maps: Sequence[Maps],
    cosines: Sequence[Floats],
    costs: Mapping[str, Cost],
) -> dict[str, Explained]:
    explained = {}
    for contender in contenders:
        label_maps = [image_maps[contender.label] for image_maps in maps]
        explained[contender.label] = Explained(
            cost=costs[contender.label],
            cosine_agreement=cosine_agreement(label_maps, cosines),
            failed_maps=sum(bool(heat_map.fault) for heat_maps in label_maps for heat_map in heat_maps),
            config=contender.config.model_dump(mode="json"),
        )
    return explained


def _measure_curves(
    model: ClipModel,
    images: Sequence[ComparedImage],
    maps: Sequence[Maps],
    rivals: Sequence[str],
    console: Console,
) -> MapValues:
    areas: dict[int, dict[str, dict[str, float]]] = {}
    if not images:
        return areas
    passes = len(maps[0]) * len(FILLINGS) * (len(SHARES) - 2) + 2 * len(FILLINGS)
    say(
        console,
        f"insertion and deletion take {passes} forward passes for each of {counted(len(images), 'image')}",
    )
    with progress_bar(console, "insertion and deletion, images", len(images)) as advance:
        for count, (image, image_maps) in enumerate(zip(images, maps, strict=False), start=1):
            text = image.questions[0].phrase.text
            texts = [text, *(rival for rival in rivals if rival != text)]
            heats = {label: heat_maps[0] for label, heat_maps in image_maps.items()}
            areas[image.number] = measure_curves(model, pixels_of(image.record), heats, texts)
            advance(count)
    return areas


def _rows(
    explained: Mapping[str, Explained],
    images: Sequence[ComparedImage],
    maps: Sequence[Maps],
    curves: MapValues,
    checks: MapValues,
) -> list[ComparisonRow]:
    """Return the rows with their figures, and with the differences from `REFERENCE` if it takes part."""
    numbers: dict[str, list[Numbers]] = {}
    for label in maps[0]:
        numbers[label] = [place_numbers(images, maps, label), numbers_in(curves, label, CURVES)]
        if label in explained:
            numbers[label] += [numbers_in(checks, label, SANITY), pair_numbers(images, maps, label)]
    compared_labels = [label for label in numbers if label != REFERENCE and REFERENCE in numbers]
    differences = mark_differences(
        [
            differences_of(numbers[label], numbers[REFERENCE][: len(numbers[label])])
            for label in compared_labels
        ]
    )
    differences_by_label = dict(zip(compared_labels, differences, strict=True))
    return [
        ComparisonRow(
            explainer=label,
            figures=figures_of(parts),
            differences=differences_by_label.get(label, {}),
            explained=explained.get(label),
        )
        for label, parts in numbers.items()
    ]
