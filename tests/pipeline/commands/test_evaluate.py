"""`phrasebox eval` on datasets whose figures are known: the truth itself, the truth of other images, nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from phrasebox.pipeline.calibrate import presence as presence_fit
from phrasebox.pipeline.calibrate import truth_fit
from phrasebox.pipeline.calibrate.truth_fit import write_calibration
from phrasebox.pipeline.commands.tables import print_evaluation
from phrasebox.pipeline.dataset import open_dataset
from phrasebox.pipeline.dataset.signature import sign
from phrasebox.pipeline.evaluate.evaluation import Evaluation, evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.evaluate.metrics import METRICS, WITHOUT_TEXT
from phrasebox.pipeline.export import EXPORTERS, ExportRequest, export_dataset
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.schema import DATASET_SCHEMA
from phrasebox.stages.explain.grad_eclip import GradEclip
from tests.build.cases import cases
from tests.build.datasets import Json, manifest_of
from tests.build.files import read_json, read_lines, write_json
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import QUIET, config_of

AGAIN = ["model.device=cpu"]
"""A setting of the model: heat maps are computed again."""


@pytest.fixture(scope="module")
def truth(scenes_folder: Path) -> Path:
    return scenes_folder / "truth.json"


@pytest.fixture(scope="module")
def whole(inline_dataset: Path, truth: Path) -> Evaluation:
    """The evaluation of a run over drawn scenes."""
    return evaluate_dataset(open_evaluation_set(inline_dataset, truth), QUIET)


def table_of(evaluation: Evaluation) -> str:
    printed = Console(record=True, width=120, file=StringIO())
    print_evaluation(evaluation, printed)
    return printed.export_text()


def changed(dataset: Path, folder: Path, is_own: bool = False, **values: Any) -> Path:
    """A copy of a dataset whose manifest has other values."""
    copy = Path(shutil.copytree(dataset, folder / "dataset"))
    manifest = manifest_of(copy) | values
    write_json(copy / "dataset.json", sign(manifest) if is_own else manifest)
    return copy


def test_absent_phrases_take_one_forward_pass_of_each_image(
    inline_dataset: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[int] = []
    maps = GradEclip.maps

    def counted(explainer: GradEclip, rgb: Any) -> Any:
        images.append(len(rgb))
        return maps(explainer, rgb)

    monkeypatch.setattr(GradEclip, "maps", counted)
    evaluate_dataset(open_evaluation_set(inline_dataset, truth), QUIET, ["absent"])
    assert sum(images) == 12


def test_tasks_that_people_corrected_in_label_studio_are_ground_truth(
    inline_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken as they are, every region is right; then of each second image, somebody moves the boxes away."""
    exporter = EXPORTERS["label-studio"]
    export_dataset(open_dataset(inline_dataset), ExportRequest(exporter=exporter, out=tmp_path / "tasks"))
    tasks = read_json(tmp_path / "tasks" / "train.json")
    accepted = [{**task, "annotations": [{"result": task["predictions"][0]["result"]}]} for task in tasks]
    write_json(tmp_path / "accepted.json", accepted)
    evaluation = evaluate_dataset(
        open_evaluation_set(inline_dataset, tmp_path / "accepted.json"), QUIET, []
    )
    figures = evaluation.figures
    assert figures.counts.targets_not_among_phrases == 0
    assert figures.counts.targets >= len(tasks)
    for name in ("box_recall", "box_iou"):
        assert figures.metrics[name].low == pytest.approx(1.0)
    assert figures.scores["score"].value == 0.0
    assert figures.thresholds[0].precision.low == 1.0
    assert evaluation.verdict.startswith("Verdict: use the regions: of the regions 100%")
    for result in (result for task in accepted[::2] for result in task["annotations"][0]["result"]):
        result["value"] |= {"x": 0, "y": 0, "width": 2, "height": 2}
    write_json(tmp_path / "moved.json", accepted)
    moved = evaluate_dataset(
        open_evaluation_set(inline_dataset, tmp_path / "moved.json"), QUIET, []
    ).figures
    assert 0.2 < moved.metrics["box_recall"].value < 0.8
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 5)
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 1)
    file = tmp_path / "c.json"
    moved_set = open_evaluation_set(inline_dataset, tmp_path / "moved.json")
    assert write_calibration(moved_set, file, QUIET).regions > 5


def test_all_figures_of_a_run(whole: Evaluation, inline_dataset: Path, truth: Path) -> None:
    metrics = whole.figures.metrics
    assert set(metrics) == set(METRICS) | {f"{name}_above_text" for name in WITHOUT_TEXT}
    targets = whole.figures.counts.targets
    centre = metrics["centre"].value
    for name, figure in metrics.items():
        least = -1.0 if name.endswith("_above_text") else 0.0
        assert least <= figure.low <= figure.value <= figure.high <= 1.0
        off_centre = "off_centre" in name
        assert figure.n == (pytest.approx(targets * (1 - centre)) if off_centre else targets)
    assert metrics["pointing"].value > 0.5
    assert metrics["centre"].value < 0.3
    assert set(whole.figures.groups) == {"number", "size", "objects", "combination"}
    for members in whole.figures.groups.values():
        assert sum(metrics["box_iou"].n for metrics in members.values()) == targets
    assert set(whole.figures.scores) == {"score", "similarity", "mean_heat"}
    unfiltered = whole.figures.thresholds[0]
    assert unfiltered.share == 1.0
    hits = sum(figure.n * figure.value for figure in unfiltered.sizes.values() if figure.n)
    assert hits == pytest.approx(unfiltered.precision.n * unfiltered.precision.value)
    assert sum(whole.figures.true_sizes.values()) == pytest.approx(1.0)
    values = whole.to_json()
    json.dumps(values, allow_nan=False)
    assert values["metrics"]["pointing"]["value"] == metrics["pointing"].value
    # As texts: from Python 3.13 on, records with NaN are unequal.
    assert repr(evaluate_dataset(open_evaluation_set(inline_dataset, truth), QUIET)) == repr(whole)
    table = table_of(whole)
    assert f"{metrics['pointing'].value:.3f}" in table
    assert "true boxes" in table
    assert table.splitlines()[-1] == whole.verdict
    assert table.index("above text alone") < table.index("all phrases"), (
        "what text alone answers comes first"
    )


def test_a_truth_of_another_extension_is_used_and_images_that_are_left_out_are_told(
    whole, inline_dataset, truth, tmp_path
) -> None:
    other = read_json(truth)
    for image in other["images"]:
        image["file_name"] = Path(image["file_name"]).with_suffix(".webp").name
    write_json(tmp_path / "truth.json", other)
    evaluation = evaluate_dataset(open_evaluation_set(inline_dataset, tmp_path / "truth.json"), QUIET)
    assert repr(evaluation.figures) == repr(whole.figures)
    text = table_of(replace(evaluation, matched={"images": 1, "ambiguous": 2}))
    assert "2 images were left out: the ground truth has several names like theirs" in text


def test_rows_that_the_input_has_no_more_are_rejected_and_one_that_it_has_twice_is_asked_once(
    whole: Evaluation, inline_dataset: Path, scenes_folder: Path, truth: Path, tmp_path: Path
) -> None:
    lines = (scenes_folder / "captions.jsonl").read_text().splitlines()
    moved = [
        f"input.path={tmp_path / 'captions.jsonl'}",
        f"input.image_root={scenes_folder / 'images'}",
        *AGAIN,
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join([*lines, *lines]))
    assert (
        evaluate_dataset(open_evaluation_set(inline_dataset, truth, moved), QUIET).figures.metrics
        == whole.figures.metrics
    )
    (tmp_path / "captions.jsonl").write_text("\n".join(lines[1:]))
    for settings in (moved, ["input.path=/gone.jsonl", *AGAIN]):
        with expect_error(InputError, key=("", "input.path")):
            evaluate_dataset(open_evaluation_set(inline_dataset, truth, settings), QUIET)


def test_stages_are_torn_down_where_one_fails(inline_dataset, truth, monkeypatch) -> None:
    judged = open_evaluation_set(inline_dataset, truth, AGAIN)
    steps = judged.steps(pixels=True)
    assert steps is not None

    def fail(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(steps.model_stage, "process", fail)
    with pytest.raises(KeyboardInterrupt):
        list(judged.rows_with_maps(steps, QUIET))
    assert not hasattr(steps.model_stage, "_explainer")
    assert steps.before[1]._pool is None


def test_a_dataset_of_other_weights_is_rejected(inline_dataset: Path, truth: Path, tmp_path: Path) -> None:
    dataset = changed(inline_dataset, tmp_path, is_own=True, model_fingerprint="demo:0")
    with expect_error(ConfigError):
        evaluate_dataset(open_evaluation_set(dataset, truth, AGAIN), QUIET)


@pytest.fixture(scope="module")
def troubled(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes without one of the images, and with a caption that names nothing."""
    folder = Path(shutil.copytree(scenes_folder, tmp_path_factory.mktemp("troubled") / "scenes"))
    lines = read_lines(folder / "captions.jsonl")
    (folder / "images" / Path(lines[2]["image"]).name).unlink()
    lines[4]["caption"] = "Beautiful!"
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.slow
@cases(
    "values",
    {
        "colours guide the maps": {"regions": {"upsample": "guided", "rule": "fixed"}},
        "phrases without a region": {"regions": {"min_area_share": 0.05}},
        "rollout": {"explain": {"kind": "rollout"}},
    },
)
def test_stored_maps_give_the_figures_of_computed_ones(
    troubled: Path, tmp_path: Path, values: Json
) -> None:
    config = config_of(troubled, tmp_path / "out", **values)
    dataset = run(config, QUIET)
    stored, computed = (
        evaluate_dataset(open_evaluation_set(dataset, troubled / "truth.json", settings), QUIET)
        for settings in ([], AGAIN)
    )
    assert (stored.maps, computed.maps) == ("stored", "computed")
    assert stored.figures.metrics["pointing"].n == stored.figures.counts.targets > 0
    assert repr(computed.figures) == repr(stored.figures)
    # Regions are the same rows with and without the maps beside them.
    output = config.output.model_copy(update={"path": tmp_path / "lacks", "heat_maps": False})
    lacks = run(config.model_copy(update={"output": output}), QUIET)
    columns = DATASET_SCHEMA.names
    assert (
        pq.read_table(lacks / "data")
        .select(columns)
        .equals(pq.read_table(dataset / "data", columns=columns))
    )


def test_stored_maps_need_neither_model_nor_input(whole, inline_dataset, truth, tmp_path) -> None:
    config = manifest_of(inline_dataset)["config"]
    model = {**config["model"], "name": "ViT-B-16", "weights": "/gone/model.safetensors"}
    source = {**config["input"], "path": "/gone.jsonl", "image_root": "/gone"}
    dataset = changed(inline_dataset, tmp_path, config={**config, "model": model, "input": source})
    figures = evaluate_dataset(
        open_evaluation_set(dataset, truth, ["regions.upsample=linear"]), QUIET
    )  # colours would need the images
    assert figures.maps == "stored"
    assert figures.figures.metrics["box_recall"] == whole.figures.metrics["box_recall"]
    assert "heat maps: as the dataset holds them" in table_of(figures)


def test_a_strangers_data_decides_neither_input_nor_model(
    whole, inline_dataset, truth, tmp_path, monkeypatch
) -> None:
    """Not for `eval` and `calibrate`; stored maps need neither, see above."""
    config = manifest_of(inline_dataset)["config"]
    config["phrases"]["spacy_models"] = {"en": "a_package"}
    dataset = changed(inline_dataset, tmp_path, config=config)
    source = config["input"]
    verbs: list[Callable[..., Any]] = [
        lambda *settings: evaluate_dataset(open_evaluation_set(dataset, truth, [*AGAIN, *settings]), QUIET),
        lambda *settings: write_calibration(
            open_evaluation_set(dataset, truth, [*AGAIN, *settings]), tmp_path / "fit.json", QUIET
        ),
    ]
    monkeypatch.setattr(
        "phrasebox.pipeline.evaluate.evaluation_set.build_steps",
        lambda config: pytest.fail("something was built"),
    )
    for verb in verbs:
        with expect_error(ConfigError):
            verb()
    monkeypatch.undo()
    named = [f"input.{name}={source[name]}" for name in ("path", "image_root")]
    figures = verbs[0](*named, "phrases.spacy_models={}")
    assert figures.figures.metrics == whole.figures.metrics, "the same maps, computed again"


def test_another_setting_of_the_explainer_has_the_maps_computed(whole, inline_dataset, truth) -> None:
    for setting, maps in (("explain.blocks=1", "computed"), ("regions.smooth_patches=2", "stored")):
        other = evaluate_dataset(open_evaluation_set(inline_dataset, truth, [setting]), QUIET)
        assert other.maps == maps
        assert other.figures.metrics["energy"] != whole.figures.metrics["energy"]
