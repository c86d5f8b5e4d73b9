"""Images with some of their captions: what a fit sees of them is what a run over these captions makes."""

from itertools import chain
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from phrasebox.pipeline.calibrate import caption_views
from phrasebox.pipeline.calibrate import presence as presence_fit
from phrasebox.pipeline.calibrate.caption_views import captionings_of, views_of, with_captions
from phrasebox.pipeline.calibrate.truth_fit import CalibrationFigures, write_calibration
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.photographs import INPUT
from phrasebox.pipeline.evaluate.evaluation import evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.geometry import xywh_to_xyxy
from phrasebox.stages.contract.records import Phrase, Record, Sample
from phrasebox.stages.contract.schema import mapped_record
from phrasebox.stages.model.catalog import WEIGHTS_ROOT
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.maker import facts_of, objects_of
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.captioning import Captioning
from phrasebox.stages.scores.learned_box import FACTS, overlaps
from phrasebox.stages.scores.score import read_calibration
from tests.build.datasets import Json, manifest_of, rows_of
from tests.build.files import read_json, write_json, write_lines
from tests.pipeline.commands.evaluated import QUIET, config_of, drawing
from tests.pipeline.evaluate.query_builders import map_of

drawn = drawing(90, 47)

CONTOUR: Json = {"rule": "otsu", "upsample": "linear"}


def record_of(*captions: tuple[str, ...]) -> Record:
    """Captions that are the phrases in them."""
    phrases = [
        Phrase(text=text, caption_index=index, start=9 * place, end=9 * place + 8, head=text.split()[-1])
        for index, texts in enumerate(captions)
        for place, text in enumerate(texts)
    ]
    sample = Sample(sample_id="a", source="a", captions=tuple(", ".join(texts) for texts in captions))
    return Record(
        sample=sample,
        width_px=10,
        height_px=10,
        phrases=tuple(phrases),
        heat_maps=tuple(map_of(np.ones((2, 2)), text) for text in dict.fromkeys(chain(*captions))),
        caption_scores=tuple(0.1 * number for number in range(len(captions))),
    )


def test_a_caption_keeps_its_phrases_and_nothing_of_the_others() -> None:
    record = record_of(("dog", "hat"), ("cat",), ("dog", "ball"))
    part = with_captions(record, [2, 0])
    assert part.sample.captions == ("dog, hat", "dog, ball")
    assert [(phrase.text, phrase.caption_index) for phrase in part.phrases] == [
        ("dog", 0),
        ("hat", 0),
        ("dog", 1),
        ("ball", 1),
    ]
    assert [heat_map.text for heat_map in part.heat_maps] == ["dog", "hat", "ball"]
    assert part.caption_scores == (0.0, 0.2)
    (dog, *_) = objects_of(part.phrases, [0, 1, 0, 2]).values()
    assert facts_of(dog, part, 3, 0.0)[3] == 1, "all captions name the dog, as those of a run over them do"


def test_all_captions_have_their_turn_and_a_single_one_has_no_other_view() -> None:
    record = record_of(("dog",), ("cat",), ("hat",))
    chosen = {
        view.record.phrases[0].text for image in range(3) for view in [*views_of({"id": image}, record)][1:]
    }
    assert chosen == {"dog", "cat", "hat"}
    whole, part = views_of({"id": 1, "captions": [*record.sample.captions]}, record)
    assert whole.record is record
    assert part.row["captions"] == ["cat"]
    assert captionings_of([whole, part]) == [Captioning(3, 1), Captioning(1, 1)]
    (only,) = views_of({"id": 7}, record_of(("dog", "hat")))
    assert only.captions is None


def test_a_view_gives_the_regions_of_a_run_over_its_caption(tmp_path: Path) -> None:
    """The maps of other phrases in a batch change the rounding of a map, which may move a box a little."""

    def dataset_of(name: str, path: str) -> Path:
        values: Json = {"model": {"name": "photo", "precision": "fp32"}, "engine": {"kind": "inline"}}
        values["input"] = {**INPUT, "path": path, "limit": 3}
        values["output"] = {"path": str(tmp_path / name), "heat_maps": True}
        return run(RunConfig.model_validate(values), QUIET)

    whole = dataset_of("five", INPUT["path"])
    first_captions = [
        {"id": row["sample_id"], "image": row["file_name"], "captions": row["captions"][:1]}
        for row in rows_of(whole)
    ]
    write_lines(tmp_path / "one.jsonl", first_captions)
    single = dataset_of("single", str(tmp_path / "one.jsonl"))
    config = RegionsConfig.model_validate(manifest_of(whole)["config"]["regions"])
    stage = RegionsStage(config, read_calibration(WEIGHTS_ROOT / "photo" / "calibration-photos.json"))
    for row, single_row in zip(rows_of(whole), rows_of(single), strict=True):
        part = with_captions(mapped_record(row), [0])
        record = mapped_record(single_row)
        assert part.phrases == record.phrases
        for regions, wanted in zip(stage.regions_of(part), stage.regions_of(record), strict=True):
            assert len(regions) == len(wanted) > 0
            for (region, evidence), (wanted_region, wanted_evidence) in zip(regions, wanted, strict=True):
                box, wanted_box = (
                    np.array(xywh_to_xyxy(part.box_xywh_px)) for part in (region, wanted_region)
                )
                assert overlaps(box, wanted_box) > 0.8
                facts, wanted_facts = (
                    {name: part.of_box[f"of_thing_{name}"] for name in FACTS}
                    for part in (evidence, wanted_evidence)
                )
                assert facts == pytest.approx(wanted_facts, rel=0.02, abs=0.01)


@pytest.fixture(scope="module")
def captioned(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with two to six captions. All name the main object, and one half each two other objects."""
    folder = tmp_path_factory.mktemp("captioned")
    truth = read_json(drawn / "truth.json")
    names = {category["id"]: category["name"] for category in truth["categories"]}
    several, single = list[Json](), list[Json]()
    for image in truth["images"]:
        kinds = (
            names[part["category_id"]] for part in truth["annotations"] if part["image_id"] == image["id"]
        )
        main, *minor = dict.fromkeys(kinds)
        if len(minor) > 1:
            is_first = image["id"] % 2  # the place in a caption does not tell the main object
            pairs = [(main, name) if is_first else (name, main) for name in minor[:2]]
            captions = [f"a {name} and a {other}" for name, other in pairs] * (1 + image["id"] % 3)
            row = {"id": f"{main}-{image['id']}", "image": image["file_name"]}
            several.append({**row, "captions": captions})
            single.append({**row, "captions": captions[:1]})
    write_lines(folder / "captions.jsonl", several)
    write_lines(folder / "single.jsonl", single)
    (folder / "images").symlink_to(drawn / "images")
    return folder


def truth_of_main_objects(dataset: Path, drawn: Path) -> Json:
    """Ground truth for which the regions of main objects are right, and all others are wrong."""
    truth = read_json(drawn / "truth.json")
    categories = {category["name"]: category["id"] for category in truth["categories"]}
    images = {image["file_name"]: image["id"] for image in truth["images"]}
    annotations = list[Json]()
    for row in rows_of(dataset):
        boxes = {region["head"]: region["bbox"] for region in row["annotations"]}
        for head, box in boxes.items():
            is_right = row["sample_id"].startswith(f"{head}-")
            far_x, far_y = (0.0 if box[side] > 150 else 330.0 for side in (0, 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[row["file_name"]],
                    "category_id": categories[head],
                    "bbox": box if is_right else [far_x, far_y, 30.0, 30.0],
                }
            )
    return {**truth, "annotations": annotations}


@pytest.mark.slow
def test_scores_of_images_with_one_caption_are_those_of_a_fit_to_such_images(
    captioned: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit to several captions alone takes every object of a single caption for the main one."""
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 1)

    def dataset_of(name: str, captions: str, calibration: str) -> Path:
        """Without contrast the map of a phrase does not depend on the other phrases."""
        settings = {"explain": {"contrast": 0.0}, "regions": {**CONTOUR, "calibration": calibration}}
        config = config_of(captioned, tmp_path / name, **settings)
        source = config.input.model_copy(update={"path": str(captioned / captions)})
        return run(config.model_copy(update={"input": source}), QUIET)

    several = dataset_of("several", "captions.jsonl", "none")
    truth = write_json(tmp_path / "truth.json", truth_of_main_objects(several, drawn))

    def fit(name: str) -> tuple[CalibrationFigures, float]:
        """Fit to several captions; the figures, and how far the mean score with one is above the share of right."""
        file = tmp_path / f"{name}.json"
        figures = write_calibration(open_evaluation_set(several, truth), file, QUIET)
        single = dataset_of(name, "single.jsonl", str(file))
        scores = [region["score"] for row in rows_of(single) for region in row["annotations"]]
        evaluation = evaluate_dataset(open_evaluation_set(single, truth), QUIET, [])
        return figures, fmean(scores) - evaluation.figures.thresholds[0].precision.value

    views, excess = fit("views")
    monkeypatch.setattr(caption_views, "FEWER", ())
    whole, whole_excess = fit("whole")
    assert whole_excess > 0.25
    assert abs(excess) < 0.1
    assert (views.regions, views.right) == (whole.regions, whole.right), "real regions count, views do not"
    assert views.error_with_fewer is not None
    assert whole.error_with_fewer is None
    made_from = read_json(tmp_path / "views.json")["made_from"]
    assert made_from["regions"] == views.regions
    assert [part["captions"] for part in made_from["captions"]] == pytest.approx([4, 1], abs=0.6)
