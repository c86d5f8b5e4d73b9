"""A run on Ray with stages that need no model, so that what happens around them can be tested quickly."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow.parquet as pq
from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.manifest import Manifest
from phrasebox.pipeline.output.previous_run import Identity
from phrasebox.pipeline.output.report import Display, Report
from phrasebox.pipeline.run.decisions import Run, RunInput, Session
from phrasebox.pipeline.run.source import OtherSource
from phrasebox.pipeline.run.start import start_engine, start_processes
from phrasebox.pipeline.run.steps import Steps
from phrasebox.stages.contract.errors import PhraseboxError
from phrasebox.stages.contract.records import Phrase, Record, Sample
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.read import Piece, Reader, SkippedRow, make_reader, plan_pieces
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.sources.boxes import BoxSource
from tests.build import datasets
from tests.build.datasets import Json
from tests.build.files import write_lines

ROOT = Path(__file__).parents[2]

LIGHT: Any = SimpleNamespace(fingerprint="light", layout="", described_by="", pretrained=None)
"""What a run knows of a model, as far as it is asked."""


class DeadlyReader:
    """Another reader whose process is killed where a caption is "die here". It notes what it reads in `reads`."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def pieces(self) -> list[Piece]:
        return self.reader.pieces()

    def read(self, piece: Piece) -> Iterator[Sample | SkippedRow]:
        with Path(piece.url).with_name("reads").open("a") as file:
            file.write(f"{piece.start}\n")
        for item in self.reader.read(piece):
            if isinstance(item, Sample) and item.captions == ("die here",):
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


class CaptionStage(Stage):
    """One phrase: the caption's first word. Caption "die" kills the process, "die N" N times in all (kept in files)."""

    name: ClassVar[str] = "phrases"
    precomputed = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def process(self, batch: Sequence[Record]) -> list[Record]:
        return [self._answer(record) for record in batch]

    def _answer(self, record: Record) -> Record:
        word, _, times = record.sample.captions[0].partition(" ")
        if word == "die":
            mark = self.folder / record.sample.sample_id.replace("/", "_")
            deaths = int(mark.read_text()) if mark.exists() else 0
            if not times or deaths < int(times):
                mark.write_text(str(deaths + 1))
                os.kill(os.getpid(), signal.SIGKILL)
        return replace(
            record, phrases=(Phrase(text=word, caption_index=0, start=0, end=len(word), head=word),)
        )


class SleepStage(Stage):
    """Takes its time for each record, as a model does, and leaves it as it is.

    seconds  of one record
    marks    a folder for a file of each worker, which holds its node's id, and the size of each batch
    """

    name: ClassVar[str] = "explain"

    def __init__(self, seconds: float, marks: Path | None = None) -> None:
        self.seconds = seconds
        self.marks = marks

    def setup(self) -> None:
        if self.marks is not None:
            import ray

            self._mark(ray.get_runtime_context().get_node_id())

    def process(self, batch: Sequence[Record]) -> list[Record]:
        time.sleep(self.seconds * len(batch))
        self._mark(str(len(batch)))
        return list(batch)

    def _mark(self, line: str) -> None:
        if self.marks is not None:
            with (self.marks / str(os.getpid())).open("a") as file:
                file.write(line + "\n")


class LastStage(SleepStage):
    """After the model."""

    name: ClassVar[str] = "regions"
    config = RegionsConfig()
    calibration = None


def answers_by_node(marks: Path) -> Counter[str]:
    """What the marks of `SleepStage` tell: the records that workers have answered."""
    answers = Counter[str]()
    for mark in marks.iterdir():
        node, *sizes = mark.read_text().split()
        answers[node] += sum(map(int, sizes))
    return answers


def write_captions(folder: Path, captions: Sequence[str]) -> Path:
    """captions.jsonl with ids c0, c1, ... of images that nobody opens. The first is there, or the run is refused."""
    path = folder / "captions.jsonl"
    (folder / "0.jpg").touch()
    rows = [{"id": f"c{i}", "image": f"{i}.jpg", "caption": caption} for i, caption in enumerate(captions)]
    write_lines(path, rows)
    return path


def light_command(
    captions: Path,
    out: Path,
    *,
    seconds: float = 0.0,
    marks: Path | None = None,
    piece_size: int = 40,
    rows_per_file: int = 16,
    **engine: Any,
) -> list[str]:
    """A process that runs the ray engine over captions with the light stages, from lock to manifest.

    It prints the samples read and the records each stage had, as JSON. A process of its own, since Ray warns of
    itself, and since it is to be killed.
    """
    values = {
        "input": {
            "kind": "jsonl",
            "path": str(captions),
            "image_root": str(captions.parent),
            "piece_size": piece_size,
        },
        "engine": {"kind": "ray", "explain_workers": 1, "object_store_bytes": 100_000_000, **engine},
        "output": {"path": str(out), "rows_per_file": rows_per_file},
    }
    return [
        sys.executable,
        "-m",
        "tests.pipeline.light",
        json.dumps(values),
        str(seconds),
        str(marks or ""),
    ]


def ended(wanted: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, by default in the root of the repository."""
    return subprocess.run(wanted, capture_output=True, text=True, check=False, **{"cwd": ROOT, **options})


def light_run(*args: Any, **options: Any) -> Json:
    """Run `light_command` to its end."""
    done = ended(light_command(*args, **options))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def resolved_light(
    reader: Reader, config: RunConfig, model: Stage, last: Stage, deaths: Path = Path()
) -> Run:
    """A run whose captions are cut by `CaptionStage`, which notes deaths in a folder."""
    pieces = plan_pieces(reader)
    stages: Any = {"before": (CaptionStage(deaths),), "regions_stage": last}
    return Run(
        config=config,
        reader=reader,
        input_pieces=pieces,
        pieces=config.input.take_part(pieces),
        source=OtherSource(BoxSource),
        steps=Steps(**stages, model_stage=model, description=LIGHT),
        identity=Identity(model_fingerprint="light", config=config.rows_depend_on()),
    )


def run_on_ray(run: Run, display: Display | None = None) -> Report:
    """Run the engine of a run in this process, from lock to manifest."""
    folder = DatasetFolder(run.config.output.path)
    shown = display or Display(Console(quiet=True))
    session = Session(folder=folder, report=Report(), display=shown)
    with folder.locked(), folder.writing():
        folder.start(replace(folder.claim(run.identity), has_same_input=True))
        found = RunInput(
            config=run.config, reader=run.reader, input_pieces=run.input_pieces, pieces=run.pieces
        )
        with (
            start_processes(found, folder.path, is_new=False) as processes,
            start_engine(run, session, processes) as engine,
        ):
            engine.make_rows(run.steps)
        folder.finish(session.report, Manifest(config=run.config, model={"name": "light"}))
    return session.report


def _main() -> None:
    values, seconds, marks = sys.argv[1:]
    try:
        config = RunConfig.model_validate_json(values)
        model = SleepStage(float(seconds), Path(marks) if marks else None)
        reader = DeadlyReader(make_reader(config.input))
        folder = Path(str(config.input.path)).parent
        report = run_on_ray(resolved_light(reader, config, model, LastStage(0.0), folder))
    except PhraseboxError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(2)
    told = {name: stage.records for name, stage in report.stages.items()}
    sys.stdout.write(json.dumps({"read": report.samples_read, "deaths": report.deaths, **told}))


def rows_of(dataset: Path) -> list[Json]:
    """All rows, by id."""
    return sorted(datasets.rows_of(dataset), key=lambda row: row["id"])


def row_groups_of(dataset: Path) -> list[list[int]]:
    """Rows of each row group, by file."""
    footers = [pq.read_metadata(path) for path in (dataset / "data").glob("*.parquet")]
    return [[footer.row_group(i).num_rows for i in range(footer.num_row_groups)] for footer in footers]


ROUNDED = {"bbox": 1.0, "levels": 2}
"""Field of a region or a heat map -> how far it may be from that of another run; others by 1e-3."""


def assert_alike(rows: Sequence[Json], wanted: Sequence[Json]) -> None:
    """Rows are equal up to rounding: boxes within a pixel, scores within 1e-3, heat within two of 256 levels."""
    for row, other in zip(rows, wanted, strict=True):
        for column, value in row.items():
            assert is_alike(column, value, other[column]), (row["sample_id"], column)


def is_alike(field: str, value: Any, other: Any) -> bool:
    """Whether two values of a row are equal up to rounding."""
    if field in ("segmentation", "area"):  # they follow the box
        return True
    if type(value) is not type(other):
        return False
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(is_alike(key, value[key], other[key]) for key in value)
    if isinstance(value, list) or (field == "levels" and isinstance(value, bytes)):
        pairs = zip(value, other, strict=False)
        return len(value) == len(other) and all(is_alike(field, *pair) for pair in pairs)
    if isinstance(value, float) or field == "levels":
        return abs(value - other) <= ROUNDED.get(field, 1e-3)
    return bool(value == other)


if __name__ == "__main__":
    # Workers know the stages by this module's own name, not as those of a script.
    from tests.pipeline import light

    light._main()
