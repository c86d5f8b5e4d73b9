"""A run on the inline engine, from captioned images to a dataset that others read."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

import phrasebox.pipeline.run.engines.inline as inline_engine
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.config.text import dump_yaml
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.run.decisions import find_input, resolve
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.run.stage_calls import run_stages
from phrasebox.stages.contract.errors import (
    ROW_ERRORS,
    ConfigError,
    InputError,
    ResourceError,
    ResumeError,
    WeightsError,
)
from phrasebox.stages.contract.records import Record, stable_id
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.explain.stage import ExplainStage
from phrasebox.stages.phrases.filters import normalise
from phrasebox.stages.regions.stage import RegionsStage
from tests.build.datasets import Json, manifest_of, rows_of
from tests.build.files import read_lines
from tests.conftest import SCENES
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import QUIET, called, printed, run_aloud
from tests.pipeline.light import assert_alike
from tests.pipeline.output.light_runs import resolved_by


def config_of(values: Json, out: Path, **output: Any) -> RunConfig:
    return RunConfig.model_validate({**values, "output": {"path": str(out), "rows_per_file": 5, **output}})


def table_of(dataset: Path) -> Any:
    """All rows, by file and row."""
    return pa.concat_tables(pq.read_table(path) for path in sorted((dataset / "data").glob("*.parquet")))


def test_one_row_for_every_sample(inline_dataset: Path, scenes_folder: Path) -> None:
    samples = read_lines(scenes_folder / "captions.jsonl")
    rows = rows_of(inline_dataset)
    for sample, row in zip(samples, rows, strict=True):
        assert (row["sample_id"], row["file_name"]) == (sample["id"], sample["image"])
        assert (row["captions"], row["error"]) == ([sample["caption"]], None)
        assert (row["width"], row["height"]) == (360, 360)
    shards = sorted((inline_dataset / "data").iterdir())
    assert [pq.read_metadata(path).num_rows for path in shards] == [5, 5, 2]
    assert list(validate(inline_dataset)) == []
    manifest = manifest_of(inline_dataset)
    counts = manifest["counts"]
    assert counts["read"] == counts["written"] == counts["annotated"] == SCENES
    assert list(manifest["stages"]) == ["phrases", "prepare", "explain", "regions"]
    assert {stage["records"] for stage in manifest["stages"].values()} == {SCENES}
    assert manifest["model_fingerprint"].startswith("demo:")


def test_phrases_become_regions_that_duckdb_joins_with_their_categories(inline_dataset: Path) -> None:
    """What the scenes' captions name is found as phrases; where it is is the model's business, not this test's."""
    names = {
        row["id"]: row["name"] for row in pq.read_table(inline_dataset / "categories.parquet").to_pylist()
    }
    rows = rows_of(inline_dataset)
    assert all(row["phrase_count"] > 0 for row in rows)
    regions = [(row["captions"], region) for row in rows for region in row["annotations"]]
    for captions, region in regions:
        start, end = region["span"]
        phrase = region["phrase"]
        assert normalise(captions[region["caption_index"]][start:end]) == phrase
        assert names[region["category_id"]] == phrase
        assert region["head"] in phrase or phrase.split()[-1].startswith(region["head"][:3])
        assert 0 < region["area"] <= 360 * 360
    counts = manifest_of(inline_dataset)["counts"]
    assert counts["regions"] == len(regions) >= SCENES
    query = f"""
        with regions as (select unnest(annotations) as a from '{inline_dataset}/data/*.parquet')
        select count(*), count(distinct c.id), min(a.score) >= 0 and max(a.score) <= 1
        from regions join '{inline_dataset}/categories.parquet' c on c.id = a.category_id
    """
    assert duckdb.sql(query).fetchall() == [(counts["regions"], counts["categories"], True)]


def test_without_scores_of_captions_all_other_columns_are_the_same(
    inline_dataset: Path, scenes_config: Json, tmp_path: Path
) -> None:
    """Those of the first images, whose captions are compared all the same, too."""
    config = config_of(scenes_config, tmp_path / "out", caption_score=False)
    run(config, QUIET)
    assert list(validate(tmp_path / "out")) == []
    columns = {"caption_score": [], "caption_presence": []}
    wanted = [{**row, **columns} for row in rows_of(inline_dataset)]
    assert all(row["caption_score"] for row in rows_of(inline_dataset))
    assert_alike(rows_of(tmp_path / "out"), wanted)


def test_a_dataset_stays_finished_if_more_samples_cannot_be_run(
    scenes_config: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_over(limit: int) -> None:
        source = {**scenes_config["input"], "limit": limit}
        run(config_of({**scenes_config, "input": source}, tmp_path / "out"), QUIET)

    run_over(2)
    before = (tmp_path / "out/dataset.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("phrasebox.pipeline.run.engines.inline.set_up", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_over(3)
    assert (tmp_path / "out/dataset.json").read_bytes() == before
    run_over(3)
    assert len(rows_of(tmp_path / "out")) == 3
    assert list(validate(tmp_path / "out")) == []


def test_the_first_machine_of_a_run_decides_its_precision(scenes_config, tmp_path, monkeypatch) -> None:
    def run_on(instruction: str, limit: int, *, fresh: bool = False, **model: str) -> str:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True}, raising=False)
        source = {**scenes_config["input"], "limit": limit}
        config = config_of(
            {**scenes_config, "input": source, "model": {"name": "demo", **model}}, tmp_path / "out"
        )
        run(config, QUIET, fresh=fresh)
        assert f"the model `demo` in {loaded[-1]}" in (tmp_path / "out/README.md").read_text()
        manifest = manifest_of(tmp_path / "out")
        for part in (manifest, manifest["run"]):
            assert part["config"]["model"]["precision"] == loaded[-1]
        return loaded[-1]

    loaded: list[str] = []
    setup = ExplainStage.setup
    monkeypatch.setattr(
        ExplainStage, "setup", lambda stage: (loaded.append(stage.config.model.precision), setup(stage))
    )
    assert run_on("avx512_bf16", 1) == "bf16"
    assert run_on("avx2", 2) == "bf16", "a machine that resumes obeys"
    assert run_on("avx2", 3, precision="bf16") == "bf16", "the same by name"
    with expect_error(ResumeError, key="output.path"):
        run_on("avx2", 3, precision="fp32")
    assert run_on("avx2", 1, fresh=True) == "fp32"
    assert run_on("avx512_bf16", 2) == "fp32"


class Stopped(Exception):
    """An exception that nobody expects."""


@pytest.fixture
def third_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Make runs take four samples at a time, and do something before the third batch of regions."""

    def before_it(act: Callable[[], object]) -> None:
        process = RegionsStage.process
        calls: list[int] = []

        def act_at_the_third(stage: RegionsStage, batch: Sequence[Record]) -> list[Record]:
            calls.append(len(batch))
            if len(calls) == 3:
                act()
            return process(stage, batch)

        monkeypatch.setattr(RegionsStage, "process", act_at_the_third)
        monkeypatch.setattr(inline_engine, "rows_per_call", lambda _: 4)
        monkeypatch.setattr("phrasebox.pipeline.run.warm_up.SAMPLES", 4)
        monkeypatch.setattr("phrasebox.pipeline.run.warm_up.SHARE_SAMPLES", 4)

    return before_it


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_an_interrupted_run_says_that_it_can_be_resumed(
    number: int, code: int, third_batch: Any, scenes_config: Any, tmp_path: Path, request: Any
) -> None:
    config = config_of(scenes_config, tmp_path / "out")
    (tmp_path / "run.yaml").write_text(dump_yaml(config.model_dump(mode="json", exclude_unset=True)))
    former = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background begins by ignoring it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    third_batch(lambda: os.kill(os.getpid(), number))
    answer = called("run", tmp_path / "run.yaml")
    rows = len(rows_of(tmp_path / "out"))
    assert rows > 0
    stopped = f"stopped. {rows} finished rows in {tmp_path / 'out'}; the same command resumes the run.\n"
    assert (answer[0], answer[2]) == (code, stopped)
    resuming = f"resuming the run in {tmp_path / 'out'}, rows so far: {rows} of {SCENES}\n"
    assert resuming in printed("run", tmp_path / "run.yaml")


@pytest.mark.parametrize("failure", [ResourceError, KeyboardInterrupt, Stopped])
def test_a_run_that_fails_keeps_its_rows_lets_the_model_go_and_resumes(
    failure: type[BaseException], third_batch: Any, inline_dataset: Path, scenes_config: Any, tmp_path: Path
) -> None:
    """The same rows as an uninterrupted run, up to rounding, and finished rows are not done again.

    It may go on in smaller batches, as a message about full memory advises.
    """

    def fail() -> None:
        raise failure("no longer")

    config = config_of(scenes_config, tmp_path / "out", rows_per_file=500)
    smaller = {
        **scenes_config,
        "input": {**scenes_config["input"], "piece_size": 5},
        "model": {**scenes_config["model"], "batch_size": 3},
    }
    resolved = resolve(find_input(config), "auto", lambda _: None)
    third_batch(fail)
    with resolved_by(lambda *_: resolved), pytest.raises(failure, match="no longer"):
        run(config, QUIET)
    assert not hasattr(resolved.steps.model_stage, "_explainer")
    assert resolved.steps.before[1]._pool is None
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == ["00000.parquet"]
    assert len(rows_of(tmp_path / "out")) == 8
    dataset, text = run_aloud(config_of(smaller, tmp_path / "out", rows_per_file=500))
    assert f"resuming the run in {dataset}" in text
    assert list(validate(dataset)) == []
    again = table_of(dataset)
    whole = table_of(inline_dataset)
    assert again.schema.remove_metadata().equals(whole.schema.remove_metadata())
    assert again.schema.field("id").metadata == whole.schema.field("id").metadata
    assert_alike(again.to_pylist(), whole.to_pylist())
    manifest = manifest_of(dataset)
    assert manifest["stages"]["explain"]["records"] == SCENES - 8
    assert {**manifest["counts"], "files": 3} == manifest_of(inline_dataset)["counts"]


class Keeps(Stage):
    """Answers its records but for the first few."""

    name = "keeps"

    def __init__(self, lost: int = 0) -> None:
        self.lost = lost

    def process(self, batch: Sequence[Record]) -> list[Record]:
        return list(batch)[self.lost :]


def test_every_stage_is_timed_and_one_that_loses_records_is_caught() -> None:
    with pytest.raises(RuntimeError, match="stage keeps answered 1 of 2 records"):
        run_stages([Keeps(1)], [None, None], lambda *_: None)  # type: ignore[list-item]
    told: list[Any] = []
    assert run_stages([Keeps(), Keeps()], [], lambda *event: told.append(event)) == []
    assert [event[:2] for event in told] == [("keeps", 0), ("keeps", 0)]
    assert all(event[2] >= 0 for event in told)


@pytest.fixture(scope="module")
def bad_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run over good rows and others: its folder, and what it printed. The corpus has every kind of them."""
    folder = tmp_path_factory.mktemp("bad")
    images = folder / "images"
    images.mkdir()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(images / "red.jpg")
    (images / "text.jpg").write_text("not an image")
    rows: list[Any] = [
        {"id": "good", "image": "red.jpg", "caption": "a red car"},
        "{broken",
        *({"id": name, "image": f"{name}.jpg", "caption": "a red car"} for name in ("gone", "text")),
        {"id": "mute", "image": "red.jpg", "caption": " \n"},
        {"id": "good", "image": "red.jpg", "caption": "the same id again"},
        {"id": "nothing", "image": "red.jpg", "caption": "beautiful!"},
        {"image": "red.jpg", "captions": ["two green fish", "so nice"]},
    ]
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n\n")
    source = {"kind": "jsonl", "path": str(folder / "captions.jsonl"), "image_root": str(images)}
    values = {"input": source, "model": {"name": "demo"}, "engine": {"kind": "inline"}}
    config = config_of(values, folder / "out [1] :smile:", embed_images=True)
    printed = StringIO()
    return run(config, Console(file=printed, width=120, markup=False, emoji=False)), printed.getvalue()


REASONS = {
    **dict.fromkeys(["good", "nothing", "captions.jsonl:8"]),
    "captions.jsonl:2": "bad_row",
    "gone": "missing_image",
    "text": "bad_image",
    "mute": "no_caption",
}


def test_bad_rows_are_rows_with_their_reason(bad_run: tuple[Path, str]) -> None:
    dataset, _ = bad_run
    assert list(validate(dataset)) == []
    rows = rows_of(dataset)
    assert len(rows) == 8
    [twice] = [row for row in rows if row["sample_id"] not in REASONS]
    assert twice["error"] == "duplicate_id"
    assert twice["error_detail"].startswith("captions.jsonl:6: an earlier sample has the id 'good'")
    for row in rows:
        reason = REASONS.get(row["sample_id"], "duplicate_id")
        assert row["error"] == reason, row
        if reason not in (None, "no_caption"):
            assert "captions.jsonl:" in row["error_detail"]
        assert (row["width"] > 0) == (row["error"] is None)
        image = {"bytes": (dataset.parent / "images" / "red.jpg").read_bytes(), "path": "red.jpg"}
        assert row["image"] == (image if row["error"] is None else None)
        assert row["id"] == stable_id(row["sample_id"])
    counts = manifest_of(dataset)["counts"]
    assert (counts["read"], counts["failed"], counts["without_phrases"]) == (8, 5, 1)
    assert set(counts["failed_by_reason"]) <= set(ROW_ERRORS)


def test_the_summary_reports_what_failed(bad_run: tuple[Path, str]) -> None:
    dataset, text = bad_run
    assert "out [1] :smile:" in text
    cells = [line.split("│") for line in text.splitlines() if line.count("│") > 2]
    told = {cell[1].strip(): cell[2].strip() for cell in cells}
    wanted = {
        "samples read": "8",
        "rows written": "8",
        "failed": "5",
        "bad_image": "1",
        "duplicate_id": "1",
    }
    assert wanted.items() <= told.items()
    config = RunConfig.model_validate(manifest_of(dataset)["config"])
    again = run_aloud(
        config.model_copy(update={"output": config.output.model_copy(update={"path": dataset})})
    )
    assert "Rows with an error: 5; delete their shards to have them done again." in again[1]


@pytest.mark.parametrize(
    ("section", "error", "key"),
    [
        ({"input": {"kind": "jsonl", "path": "none.jsonl"}}, InputError, "input.path"),
        ({"model": {"name": "ViT-B-17", "pretrained": "openai"}}, ConfigError, "model.name"),
        ({"model": {"config": "none.json", "weights": "none.pt"}}, WeightsError, "model.config"),
        ({"model": {"name": "coca_base", "weights": __file__}}, ConfigError, "model.name"),
        ({"phrases": {"spacy_models": {"en": "xx_none"}}}, ConfigError, "phrases.spacy_models"),
        ({"explain": {"blocks": 99}}, ConfigError, "explain.blocks"),
    ],
    ids=["input", "name", "model", "architecture", "parser", "blocks"],
)
def test_what_cannot_be_run_is_rejected_before_any_row(
    section, error, key, scenes_config, tmp_path
) -> None:
    with expect_error(error, key=key):
        run(config_of({**scenes_config, **section}, tmp_path / "out"), QUIET)
    assert list(tmp_path.iterdir()) == []
