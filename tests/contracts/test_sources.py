"""What every entry of SOURCES promises: as a run takes it, and by itself. A new source is tested once it is there."""

import pickle
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phrasebox.pipeline.config.run_config import RunConfig, check, load_config, stored_finished_config
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.run.steps import build_source_steps, build_steps
from phrasebox.stages.contract.errors import ConfigError, ResourceError, RowError
from phrasebox.stages.contract.masks import rle_area_px, rle_box_xywh_px
from phrasebox.stages.contract.records import ImageRef, Phrase, Pixels, Record, Sample
from phrasebox.stages.contract.schema import records_to_rows
from phrasebox.stages.contract.tables import records_to_table, table_to_records
from phrasebox.stages.sources.source import HEAT_MAPS, SOURCES, RegionSource
from tests.build.datasets import Json, manifest_of, rows_of
from tests.build.files import read_json, write_json
from tests.stages.model.detectors import save_detector
from tests.stages.model.saved import save_tower

DIRECT_KINDS = [kind for kind in SOURCES if kind != HEAT_MAPS]
kinds = pytest.mark.parametrize("kind", DIRECT_KINDS)

FEW: dict[str, Json] = {"crops": {"max_split": 3}, "proposals": {"count": 8, "min_score": 0.0}}
"""What makes a source quick."""

SIZE = {"width": 9, "height": 9}

CAPTIONS = ("A red car and two dogs", "a red car on a road")
PHRASES = (
    Phrase(text="red car", caption_index=0, start=2, end=9, head="car"),
    Phrase(text="two dogs", caption_index=0, start=14, end=22, head="dog", plural=True),
    Phrase(text="red car", caption_index=1, start=2, end=9, head="car"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """A tiny model in files, as the `model` section of a run."""
    return save_tower(tmp_path_factory.mktemp("model"), "class token")[1].model_dump(mode="json")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path) -> dict[str, Json]:
    """The settings that a kind cannot do without, and those of FEW."""
    truth = read_json(scenes_folder / "truth.json")
    for number, record in enumerate(records()):
        size = {"width": record.width_px, "height": record.height_px} if record.error is None else SIZE
        truth["images"].append({"id": 9000 + number, "file_name": f"{number}.jpg", **size})
        object_ = {
            "image_id": 9000 + number,
            "bbox": [3, 2.5, 20.4, 6],
            "category_id": 1,
            "phrase": "red car",
        }
        truth["annotations"].append({"id": 9000 + number, "iscrowd": 0, **object_})
    path = tmp_path_factory.mktemp("truth") / "truth.json"
    write_json(path, truth)
    detector = tmp_path_factory.mktemp("detector")
    save_detector("owlv2", detector)
    needed = {"boxes": {"truth": str(path)}, "detector": {"detector": str(detector), "min_score": 0.0}}
    return {kind: {"kind": kind, **FEW.get(kind, {}), **needed.get(kind, {})} for kind in DIRECT_KINDS}


def records() -> list[Record]:
    """Three images with phrases, one without, and one with an error in the middle."""
    draw = np.random.default_rng(3)
    error = RowError(reason="bad_image", detail="x.jpg: damaged")
    made = []
    for number, (height, width) in enumerate([(40, 56), (33, 47), (40, 56), (64, 40), (5, 90)]):
        rgb = draw.integers(0, 256, (height, width, 3), np.uint8)
        name = f"{number}.jpg"
        record = Record(
            sample=Sample(sample_id=name, source=name, captions=CAPTIONS, image=ImageRef(file_name=name)),
            width_px=2 * width,  # twice the pixels that the source sees
            height_px=2 * height,
            phrases=() if number == 3 else PHRASES,
            pixels=Pixels(rgb=rgb),
        )
        made.append(
            replace(record, pixels=None, width_px=0, height_px=0, error=error) if number == 2 else record
        )
    return made


@pytest.fixture(scope="module")
def stages(model: Json, settings: dict[str, Json]) -> dict[str, RegionSource[Any]]:
    """Each source, set up, as it comes out of a pickle."""
    made = {}
    for kind in DIRECT_KINDS:
        values = {"model": model, "source": settings[kind], "input": {"kind": "jsonl", "path": "a"}}
        config = check(values, RunConfig)
        stage = build_source_steps(config).model_stage
        assert isinstance(stage, RegionSource)
        made[kind] = pickle.loads(pickle.dumps(stage))
        made[kind].setup()
    return made


@pytest.mark.parametrize("kind", SOURCES)
def test_the_kind_is_the_key_and_settings_are_closed(kind: str, settings: dict[str, Json]) -> None:
    config = SOURCES.config(settings.get(kind, {"kind": kind}))
    assert config.kind == kind
    assert SOURCES[kind].config_type.model_config["extra"] == "forbid"
    assert SOURCES[kind].config_type.model_config["frozen"]
    assert kind == HEAT_MAPS or (SOURCES[kind].regions_come_from and SOURCES[kind].score_means)
    assert all(field.description for name, field in type(config).model_fields.items() if name != "kind")


@kinds
def test_on_a_device_that_is_not_there_it_raises(
    kind: str, stages: dict[str, RegionSource[Any]], monkeypatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    on_gpu = stages[kind].computing(device="cuda")
    assert (on_gpu.config, on_gpu.model.device) == (stages[kind].config, "cuda")
    with (
        nullcontext()
        if stages[kind].identify() is None and not stages[kind].needs_model
        else pytest.raises(ResourceError, match="sees no GPU")
    ):
        on_gpu.setup()


@kinds
def test_one_answer_for_each_record_in_order(kind: str, stages: dict[str, RegionSource[Any]]) -> None:
    given = records()
    answers = stages[kind].process(given)
    assert [answer.sample for answer in answers] == [record.sample for record in given]
    assert answers[2] == given[2], "an error passes through"
    assert all(answer.pixels is None for answer in answers)
    assert given[0].pixels is not None
    assert any(answer.regions for answer in answers)
    assert stages[kind].process([]) == []
    single = [answer for record in given[::-1] for answer in stages[kind].process([record])]
    assert answers == single[::-1], "no record depends on its neighbours"
    travelled = table_to_records(records_to_table(answers))
    rows = [records_to_rows(each).to_pylist() for each in (answers, travelled)]
    assert rows[0] == rows[1], "as they travel between workers"
    for answer in answers:  # boxes lie in the image and are those of their masks
        for region in answer.regions:
            x, y, w, h = region.box_xywh_px
            assert w > 0 < h
            assert 0 <= x < x + w <= answer.width_px
            assert 0 <= y < y + h <= answer.height_px
            assert region.mask.size_hw == (answer.height_px, answer.width_px)
            assert region.box_xywh_px == rle_box_xywh_px(region.mask)
            assert region.area_px == rle_area_px(region.mask)
            assert 0 <= region.score <= 1
            assert -1 <= region.similarity <= 1
            assert 0 <= region.phrase_index < len(answer.phrases)
        assert [region.phrase_index for region in answer.regions] == sorted(
            r.phrase_index for r in answer.regions
        )


@kinds
def test_a_run_takes_it(kind, model, settings, scenes_config, tmp_path) -> None:
    values = {
        **scenes_config,
        "model": model,
        "source": settings[kind],
        "output": {"path": str(tmp_path / "out")},
    }
    config = check(values, RunConfig)
    assert [*validate(run(config))] == []
    rows = rows_of(tmp_path / "out")
    assert [row["error"] for row in rows] == [None] * 12
    assert sum(len(row["annotations"]) for row in rows) > 12
    assert all(each["group"] is not None for row in rows for each in row["annotations"])
    manifest = manifest_of(tmp_path / "out")
    assert manifest["config"]["source"]["kind"] == kind
    assert manifest["config"]["output"]["heat_maps"] is False
    assert stored_finished_config(manifest["config"]).source == config.source
    assert SOURCES[kind].regions_come_from in (tmp_path / "out" / "README.md").read_text().replace(
        "\n", " "
    )


@kinds
@pytest.mark.parametrize(
    "setting",
    [{}, {"regions": {"calibration": "mine.json"}}, {"output": {"path": "out/", "heat_maps": True}}],
)
def test_what_concerns_heat_maps_is_rejected(kind, setting, settings, model) -> None:
    values = {"input": {"kind": "jsonl", "path": "a"}, "source": settings[kind], "model": model, **setting}
    if setting:
        is_read = "regions" in setting and SOURCES[kind].looks_for_phrases
        message = "cannot read mine.json" if is_read else f"it concerns heat maps, and source.kind={kind}"
        with pytest.raises(ConfigError, match=message):
            build_source_steps(check(values, RunConfig))
        return
    build_source_steps(check(values, RunConfig))
    with pytest.raises(ConfigError, match=rf"source\.kind: {kind} makes regions without.* set heat_maps"):
        build_steps(check(values, RunConfig))


def test_heat_maps_are_the_default_and_a_mistyped_kind_is_corrected() -> None:
    given = ["input.kind=jsonl", "input.path=a.jsonl"]
    config = load_config(None, given)
    assert config.source.kind == HEAT_MAPS == "heat_maps"
    assert "source" not in config.rows_depend_on()
    with pytest.raises(ConfigError, match=r"source\.kind: no kind 'boxs'; did you mean boxes\?"):
        load_config(None, [*given, "source.kind=boxs"])
