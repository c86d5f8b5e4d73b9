"""What is evaluated: a finished dataset beside ground truth, and its records with their heat maps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig, sets_any, stored_config, stored_finished_config
from phrasebox.pipeline.dataset.folder import Dataset, open_dataset
from phrasebox.pipeline.dataset.origin import check_named
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.evaluate.matching import ImageMatches, Query, match_images, queries_of
from phrasebox.pipeline.run.stage_calls import rows_per_batch, run_stages, set_up, take_batch
from phrasebox.pipeline.run.steps import (
    AnySteps,
    HeatMapSteps,
    SourceSteps,
    build_detector_steps,
    build_steps,
    check_files,
)
from phrasebox.pipeline.terminal import progress_bar
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.records import HeatMap, Phrase, Record
from phrasebox.stages.contract.schema import mapped_record
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.contract.values import Json, Rgb
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.files.storage import AnyPath
from phrasebox.stages.model.config import InputSpec
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE
from phrasebox.stages.prepare import ImagesConfig, PrepareConfig, PrepareStage
from phrasebox.stages.read import Reader, make_reader
from phrasebox.stages.truth import read_truth
from phrasebox.stages.truth.ground_truth import GroundTruth, TruthImage

DECIDE_MAPS: Final = ("model", "phrases", "images", "explain")
"""Sections of the configuration that heat maps depend on: if a setting changes them, the maps are
computed again."""

StepsT = TypeVar("StepsT", bound=AnySteps)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """A finished dataset, its ground truth, and the images that both have.

    Attributes:
        dataset: The finished dataset.
        settings: KEY=VALUE over the dataset's configuration: for files that moved, for the
            device, for other values.
        truth: The ground truth.
        truth_path: Its file or folder; that of the dataset if reviews say what is true.
        matches: Images of the dataset in the ground truth.
        by: Column of the dataset with the names by which the ground truth knows its images.
    """

    dataset: Dataset
    settings: Sequence[str]
    truth: GroundTruth
    truth_path: AnyPath
    matches: ImageMatches
    by: Literal["file_name", "sample_id"] = "file_name"

    def with_requested_cut(self) -> EvaluationSet:
        """Return the same set with the rule and the exponent of the user's request; settings that change them stay.

        A run without a cut of a calibration stores those that it used instead.
        """
        regions = self.dataset.manifest.get("run", {}).get("config", {}).get("regions", {})
        requested = [f"regions.{key}={regions[key]}" for key in ("rule", "exponent") if key in regions]
        return replace(self, settings=[*requested, *self.settings])

    @property
    def is_of_heat_maps(self) -> bool:
        """Whether regions are cut from heat maps."""
        return self.finished_config().source.makes_heat_maps

    @property
    def has_maps(self) -> bool:
        """Whether heat maps come from the shards: the dataset holds them, and no setting changes them."""
        return self.dataset.has_heat_maps and not sets_any(self.settings, DECIDE_MAPS)

    def config(self) -> RunConfig:
        """Return the dataset's configuration with the settings."""
        return stored_config(self.dataset.manifest["config"], self.settings)

    def finished_config(self) -> RunConfig:
        """Return the same for code that computes no heat maps, see `stored_finished_config`."""
        return stored_finished_config(self.dataset.manifest["config"], self.settings)

    def rows(self, unread: Collection[str] = ("image", "heat_maps")) -> Iterator[Json]:
        """Yield the rows of the images that the ground truth has, without the columns `unread`."""
        for row in self.dataset.rows([name for name in self.dataset.columns if name not in unread]):
            if row[self.by] in self.matches.images:
                yield row

    def image_of(self, row: Row) -> TruthImage:
        """Return the ground truth of a row."""
        return self.matches.images[row[self.by]]

    def queries(
        self, row: Row, phrases: Sequence[Phrase], maps: Mapping[str, HeatMap] = MappingProxyType({})
    ) -> list[Query]:
        """Return the queries of a row; the images have the numbers of the rows."""
        return queries_of(row["id"], row, self.image_of(row), self.truth.categories, phrases, maps)

    @property
    def reader(self) -> Reader:
        """The reader of the dataset's input."""
        return make_reader(self.config().input)

    def steps(self, *, pixels: bool) -> HeatMapSteps | None:
        """Build the steps that compute what the dataset does not hold; None if it holds everything.

        pixels: whether the pixels are needed, too; no dataset holds them at the model's size.

        Raise as `full_steps`.
        """
        return None if self.has_maps and not pixels else self.full_steps()

    def full_steps(self) -> HeatMapSteps:
        """Build the steps of the dataset's configuration.

        Raise InputError if the dataset's input cannot be read, and ConfigError if a setting
        cannot be used, if the model is not the dataset's, or if somebody else's dataset names
        files that the settings do not.
        """
        return self._build(build_steps)

    def source_steps(self) -> SourceSteps:
        """Build the steps of another source that looks for phrases. Raise as `full_steps`, `build_detector_steps`."""
        return self._build(build_detector_steps)

    def _build(self, build: Callable[[RunConfig], StepsT]) -> StepsT:
        check_named(self.dataset, settings=self.settings)
        config = self.config()
        check_files(config)
        steps = build(config)
        fingerprint = self.dataset.manifest["model_fingerprint"]
        if steps.fingerprint != fingerprint:
            raise ConfigError(
                f"{self.dataset.path} was made with other weights ({fingerprint}) than the configuration finds now "
                f"({steps.fingerprint}); phrasebox eval --no-maps evaluates the regions alone"
            )
        return steps

    def rows_with_maps(self, steps: AnySteps | None, console: Console) -> Iterator[tuple[Json, Record]]:
        """Yield each row with a record of its phrases and maps; with pixels if there are steps.

        The records of a source have its regions instead of maps.

        Raise InputError if the steps are needed and some of the rows are no longer in the input.
        """
        rows = self.rows(["image"] if self.has_maps else ("image", "heat_maps"))
        if steps is None:
            yield from ((row, mapped_record(row)) for row in rows)
            return
        rows_by_id = {row["sample_id"]: row for row in rows}
        stages = (steps.prepare_stage,) if self.has_maps else steps.first_stages
        for record in process_input(self.reader, stages, dict.fromkeys(rows_by_id), console):
            row = rows_by_id[record.sample.sample_id]
            if self.has_maps:
                stored_record = mapped_record(row)
                yield row, replace(record, phrases=stored_record.phrases, heat_maps=stored_record.heat_maps)
            else:
                yield row, record

    def sound_rows(self, steps: AnySteps | None, console: Console) -> list[tuple[Row, Record]]:
        """Return the `rows_with_maps` whose record has no error."""
        return [
            (row, record) for row, record in self.rows_with_maps(steps, console) if record.error is None
        ]


def open_evaluation_set(
    path: Path, truth_path: Path, settings: Sequence[str] = (), *, resized: bool = False
) -> EvaluationSet:
    """Open a finished dataset and its ground truth.

    Args:
        path: Folder of a finished run.
        truth_path: A file or folder that `phrasebox.stages.truth.read_truth` reads.
        settings: KEY=VALUE over the dataset's configuration.
        resized: Whether the images were resized after the ground truth was drawn: it is scaled
            to them.

    Raise InputError if one of them cannot be read, or if they have no image in common.
    """
    truth = read_truth(truth_path)
    dataset = open_dataset(path)
    rows = list(dataset.rows(["file_name", "height", "width", "error"]))
    matches = match_images((row["file_name"] for row in rows), truth)
    if resized:
        images = dict(matches.images)
        for row in rows:
            if row["error"] is None and row["file_name"] in images:
                images[row["file_name"]] = images[row["file_name"]].resize((row["height"], row["width"]))
        matches = replace(matches, images=images)
    return EvaluationSet(
        dataset=dataset, settings=settings, truth=truth, truth_path=truth_path, matches=matches
    )


def process_input(
    reader: Reader,
    stages: Sequence[Stage],
    samples: Mapping[str, Sequence[Phrase] | None],
    console: Console,
) -> Iterator[Record]:
    """Yield records of the input after some stages.

    Args:
        reader: Reader of the input.
        stages: The stages.
        samples: Id of each sample -> its phrases; None for the phrases of its captions.
        console: Shows the progress.

    Raise InputError if the input lacks some of the samples.
    """
    missing_ids = set(samples)

    def select_records() -> Iterator[Record]:
        for sample in reader.samples(reader.pieces()) if missing_ids else ():
            record = Record.start(sample)
            if (sample_id := record.sample.sample_id) in missing_ids:
                missing_ids.remove(sample_id)
                phrases = samples[sample_id]
                yield record if phrases is None else replace(record, phrases=tuple(phrases))
            if not missing_ids:  # nothing is read after the last one
                return

    records = select_records()
    count = 0
    with set_up(stages), progress_bar(console, "images", len(samples)) as advance:
        while batch := take_batch(records, rows_per_batch(stages[-1])):
            for record in run_stages(stages, batch):
                yield record
                count += 1
                advance(count)
    if missing_ids:
        raise InputError(
            f"{len(missing_ids)} of {len(samples)} rows are no longer in the input of the dataset, which is needed "
            "because the dataset holds no heat maps, or for the colours; phrasebox eval --no-maps needs no input"
        )


def phrases_of(entries: Iterable[Json], languages: Sequence[str] = ()) -> list[Phrase]:
    """Return the different phrases in entries of a row's `annotations`, `absent` or `phrases`, in their order.

    languages: `caption_language` of the row; English where it is empty.
    """
    phrases = {
        (entry["phrase"], entry["caption_index"], *entry["span"]): Phrase(
            text=entry["phrase"],
            head=entry["head"],
            caption_index=entry["caption_index"],
            start=entry["span"][0],
            end=entry["span"][1],
            plural=entry.get("plural", False),
            language=languages[entry["caption_index"]] if languages else ENGLISH_CODE,
        )
        for entry in entries
    }
    return list(phrases.values())


def prepare_stage(
    images: ImagesConfig, spec: InputSpec, explainer: ExplainerConfig | None = None, **settings: Any
) -> PrepareStage:
    """Return the stage that resizes images as a run does, or to the model's own size without an explainer."""
    canvas = (explainer or ExplainerConfig(kind="")).canvas(spec)
    return PrepareStage(PrepareConfig(images=images, **canvas, **settings))


def pixels_of(record: Record) -> Rgb:
    """Return the pixels of a prepared record."""
    assert record.pixels is not None, "prepared records have pixels"  # noqa: S101
    return record.pixels.rgb
