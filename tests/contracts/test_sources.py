"""What every entry of SOURCES promises: as a run takes it, and by itself. A new source is tested once it is there."""

import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.config.run_config import RunConfig, check, load_config, stored_finished_config
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.run.steps import build_source_steps, build_steps
from phrasebox.stages.contract.errors import ConfigError, ResourceError
from phrasebox.stages.sources.source import HEAT_MAPS, SOURCES, RegionSource
from phrasebox.testing import check_settings, check_source
from phrasebox.testing.sources import draw_records
from tests.build.datasets import Json, manifest_of, rows_of
from tests.build.files import read_json, write_json
from tests.stages.model.detectors import save_detector
from tests.stages.model.saved import save_tower

DIRECT_KINDS = [kind for kind in SOURCES if kind != HEAT_MAPS]
kinds = pytest.mark.parametrize("kind", DIRECT_KINDS)

FEW: dict[str, Json] = {"crops": {"max_split": 3}, "proposals": {"count": 8, "min_score": 0.0}}
"""What makes a source quick."""

SIZE = {"width": 9, "height": 9}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """A tiny model in files, as the `model` section of a run."""
    return save_tower(tmp_path_factory.mktemp("model"), "class token")[1].model_dump(mode="json")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path) -> dict[str, Json]:
    """The settings that a kind cannot do without, and those of FEW."""
    truth = read_json(scenes_folder / "truth.json")
    for number, record in enumerate(draw_records()):
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
    check_settings(type(config), settings.get(kind))


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
def test_it_keeps_the_contract_of_sources(kind: str, settings: dict[str, Json]) -> None:
    check_source(SOURCES[kind], settings[kind])


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
