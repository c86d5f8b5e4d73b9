"""The material of a judgement: a finished dataset, or a sample of captioned images, beside ground truth."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pipeline.config import RunConfig, sets_any, stored_config
from pipeline.dataset.folder import Dataset, open_dataset
from pipeline.dataset.origin import check_named
from pipeline.engines.inline import rows_per_batch, run_stages, set_up
from pipeline.evaluate.matching import ImageMatches, Query, match_images, queries_of
from pipeline.graph import Graph, build_graph, check_files
from pipeline.terminal import progress_bar
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import HeatMap, Phrase, Record, stable_id
from stages.contract.schema import mapped_record
from stages.contract.stage import Stage
from stages.explain.config import ExplainerConfig
from stages.prepare import PrepareConfig, PrepareStage
from stages.read import Reader
from stages.shared.model.config import InputSpec
from stages.truth import read_truth
from stages.truth.ground_truth import GroundTruth, TruthImage

DECIDE_MAPS: Final = ("model", "phrases", "images", "explain")
"""Sections of the configuration that heat maps depend on: a setting in them has the maps computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedDataset:
    """A finished dataset, the ground truth, and which images both have.

    `settings` are KEY=VALUE over the dataset's configuration: for files that moved, for the device, for other values.
    `by` is the column of the dataset that the ground truth knows its images by.
    """

    dataset: Dataset
    settings: Sequence[str]
    truth: GroundTruth
    matched: ImageMatches
    by: Literal["file_name", "sample_id"] = "file_name"

    def asks_for_cut(self) -> JudgedDataset:
        """Return the same with the rule that the run asked for: without a cut it stored the rule that it used instead.

        A setting of the rule stays.
        """
        run = self.dataset.manifest.get("run", {}).get("config", {}).get("regions", {})
        asked = [f"regions.rule={run['rule']}"] if "rule" in run else []
        return replace(self, settings=[*asked, *self.settings])

    @property
    def has_maps(self) -> bool:
        """Whether heat maps are taken from the shards: the dataset holds them, and no setting changes them."""
        return self.dataset.has_heat_maps and not sets_any(self.settings, DECIDE_MAPS)

    def config(self, *, explains: bool = True) -> RunConfig:
        """The dataset's configuration with the settings. explains: whether the explainer's settings are needed."""
        return stored_config(self.dataset.manifest["config"], self.settings, parse_explainer=explains)

    def rows(self, *, maps: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the rows of the images that the ground truth has. maps: with the stored heat maps, if there are any."""
        left_out = {"image"} if maps else {"image", "heat_maps"}
        for row in self.dataset.rows([name for name in self.dataset.columns if name not in left_out]):
            if row[self.by] in self.matched.images:
                yield row

    def image_of(self, row: Mapping[str, Any]) -> TruthImage:
        """Return the ground truth of a row."""
        return self.matched.images[row[self.by]]

    def queries(
        self, row: Mapping[str, Any], phrases: Sequence[Phrase], maps: Mapping[str, HeatMap] = MappingProxyType({})
    ) -> list[Query]:
        """Return the queries of a row; the images have the numbers of the rows."""
        return queries_of(row["id"], row, self.image_of(row), self.truth.categories, phrases, maps)

    def graph(self, *, pixels: bool) -> Graph | None:
        """Build the graph that computes what the dataset does not hold; None if it holds everything.

        pixels: whether the pixels are needed, too; no dataset holds them at the model's size.

        Raise InputError if the dataset's input cannot be read, and ConfigError if a setting cannot be used, if the
        model that would compute the maps is not the dataset's, or if somebody else's dataset names files that the
        settings do not.
        """
        if self.has_maps and not pixels:
            return None
        check_named(self.dataset, settings=self.settings)
        config = self.config()
        check_files(config)
        graph = build_graph(config)
        made_with = self.dataset.manifest["model_fingerprint"]
        if not self.has_maps and graph.fingerprint != made_with:
            raise ConfigError(
                f"{self.dataset.path} was made with other weights ({made_with}) than the configuration finds now "
                f"({graph.fingerprint}); phrasebox eval --no-maps evaluates the regions alone"
            )
        return graph

    def mapped(
        self, graph: Graph | None, console: Console, most: int | None = None
    ) -> Iterator[tuple[dict[str, Any], Record]]:
        """Yield each row, or the first `most`, with a record of its phrases and maps; with pixels if there is a graph.

        Raise InputError if the graph is needed and some of the rows are no longer in the input.
        """
        rows = islice(self.rows(maps=self.has_maps), most)
        if graph is None:
            yield from ((row, mapped_record(row)) for row in rows)
            return
        by_name = {row["sample_id"]: row for row in rows}
        stages = [graph.before[1]] if self.has_maps else [*graph.before, graph.explains]
        for record in from_input(graph.reader, stages, by_name, console):
            row = by_name[record.sample.sample_id]
            if self.has_maps:
                known = mapped_record(row)
                yield row, replace(record, phrases=known.phrases, heat_maps=known.heat_maps)
            else:
                yield row, record


def judged_dataset(
    path: Path, truth_path: Path, settings: Sequence[str] = (), *, resized: bool = False
) -> JudgedDataset:
    """Open a finished dataset and its ground truth.

    Args:
        path: Folder of a finished run.
        truth_path: A file or folder that `stages.truth.read_truth` reads.
        settings: KEY=VALUE over the dataset's configuration.
        resized: Whether the images were resized after the ground truth was drawn: it is scaled to them.

    Raise InputError if one of them cannot be read, or if they have no image in common.
    """
    truth = read_truth(truth_path)
    dataset = open_dataset(path)
    rows = list(dataset.rows(["file_name", "height", "width", "error"]))
    matched = match_images((row["file_name"] for row in rows), truth)
    if resized:
        images = dict(matched.images)
        for row in rows:
            if row["error"] is None and row["file_name"] in images:
                images[row["file_name"]] = images[row["file_name"]].resize((row["height"], row["width"]))
        matched = replace(matched, images=images)
    return JudgedDataset(dataset=dataset, settings=settings, truth=truth, matched=matched)


def from_input(
    reader: Reader,
    stages: Sequence[Stage],
    names: Collection[str],
    console: Console,
    phrases: Mapping[str, Sequence[Phrase]] | None = None,
) -> Iterator[Record]:
    """The records of some samples of the input, by their ids, after some stages; with given phrases, not the captions'.

    Raise InputError if the input lacks some of them.
    """
    missing = set(names)
    samples = reader.samples(reader.shards())

    def wanted() -> Iterator[Record]:
        while missing and (sample := next(samples, None)) is not None:  # nothing is read after the last one
            record = Record.start(sample)
            if (name := record.sample.sample_id) in missing:
                missing.remove(name)
                yield record if phrases is None else replace(record, phrases=tuple(phrases[name]))

    records = wanted()
    done = 0
    with set_up(stages), progress_bar(console, "images", len(names)) as advance:
        while batch := list(islice(records, rows_per_batch(stages[-1]))):
            for record in run_stages(stages, batch, lambda *_: None):
                yield record
                done += 1
                advance(done)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} rows are no longer in the input of the dataset, which is needed because "
            "the dataset holds no heat maps, or for the colours; phrasebox eval --no-maps needs no input"
        )


def phrases_of(entries: Iterable[Mapping[str, Any]]) -> list[Phrase]:
    """The phrases that entries of a row's `annotations`, `absent` or `phrases` name, each once, in their order."""
    found = {
        (each["phrase"], each["caption_index"], *each["span"]): Phrase(
            text=each["phrase"],
            head=each["head"],
            caption_index=each["caption_index"],
            start=each["span"][0],
            end=each["span"][1],
            plural=each.get("plural", False),
        )
        for each in entries
    }
    return list(found.values())


def drawn_places(names: Iterable[tuple[int, str]], most: int | None, seed: int) -> list[int]:
    """Draw a sample of (place, name), which does not depend on the order of the names: the places in order."""
    drawn = sorted((stable_id(f"{seed}:{name}"), place) for place, name in names)
    return sorted(place for _, place in drawn[:most])


def prepare_stage(
    config: RunConfig, spec: InputSpec, explainer: ExplainerConfig | None = None, **more: Any
) -> PrepareStage:
    """Return the stage that resizes images as a run does; without an explainer to the model's own size."""
    canvas = (explainer or ExplainerConfig(kind="")).canvas(spec)
    return PrepareStage(PrepareConfig(**config.images.model_dump(), **canvas, **more))


def pixels_of(record: Record) -> NDArray[np.uint8]:
    """Return the pixels of a prepared record."""
    assert record.pixels is not None, "prepared records have pixels"  # noqa: S101
    return record.pixels.rgb
