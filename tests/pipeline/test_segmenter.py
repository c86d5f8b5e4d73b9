"""A run with `regions.refine: sam`, on a real SAM 2 with random weights."""

import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig, load_config
from phrasebox.pipeline.run.engines.ray_cluster import choose_pools
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.run.steps import build_source_steps, build_steps
from phrasebox.stages.contract.errors import ConfigError, ResourceError, ResumeError
from tests.build.datasets import Json
from tests.messages import expect_error
from tests.pipeline.light import assert_alike, ended, rows_of
from tests.stages.model.segmenters import save_segmenter

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam")
    save_segmenter("sam2", folder)
    return folder


def config_of(values: Json, sam: Path, out: Path, **changed: Any) -> RunConfig:
    regions = {"refine": "sam", "sam": {"model": str(sam)}}
    return RunConfig.model_validate({**values, "regions": regions, "output": {"path": str(out)}, **changed})


@pytest.fixture(scope="module")
def dataset(scenes_config: Json, sam: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config_of(scenes_config, sam, tmp_path_factory.mktemp("run") / "out"), QUIET)


def test_rows_say_what_drew_each_region(dataset: Path, inline_dataset: Path) -> None:
    rows, contours = rows_of(dataset), rows_of(inline_dataset)
    regions = [region for row in rows for region in row["annotations"]]
    assert {region["refined"] for region in regions} == {"sam", "none"}
    assert all((region["refined"] == "sam") == (region["fallback"] is None) for region in regions)
    assert {region["refined"] for row in contours for region in row["annotations"]} == {"none"}
    assert {region["fallback"] for row in contours for region in row["annotations"]} == {None}
    assert [row["phrase_count"] for row in rows] == [row["phrase_count"] for row in contours]


def test_the_segmenters_weights_decide_rows(
    dataset: Path, scenes_config: Json, sam: Path, tmp_path
) -> None:
    assert run(config_of(scenes_config, sam, dataset), QUIET) == dataset
    save_segmenter("sam2", tmp_path, seed=1)
    other = config_of(scenes_config, tmp_path, dataset)
    with expect_error(ResumeError, key="output.path"):
        run(other, QUIET)
    digests = {build_steps(config).segmenter for config in (config_of(scenes_config, sam, dataset), other)}
    assert len(digests) == 2


def test_a_segmenter_that_is_not_used_decides_nothing(scenes_config: Json, tmp_path: Path) -> None:
    plain = RunConfig.model_validate({**scenes_config, "output": {"path": str(tmp_path)}})
    sam = plain.regions.sam.model_copy(update={"model": "a/b"})
    named = plain.model_copy(update={"regions": plain.regions.model_copy(update={"sam": sam})})
    assert named.rows_depend_on() == plain.rows_depend_on()
    assert build_steps(named).segmenter is None
    settings = ["input.path=a", "input.kind=jsonl", "regions.refine=sam", "regions.sam.model=a/b"]
    used, larger = (load_config(None, [*settings, *more]) for more in ([], ["regions.sam.batch_size=3"]))
    assert used.rows_depend_on() == larger.rows_depend_on() != plain.rows_depend_on()


def test_a_folder_is_the_same_from_everywhere(
    sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sam.parent)
    settings = ["input.path=a", "input.kind=jsonl", f"regions.sam.model=./{sam.name}"]
    config: RunConfig = load_config(None, settings)
    assert config.regions.sam.model == str(sam)


@pytest.mark.parametrize(
    "changed",
    [
        {"regions": {"refine": "sam"}},
        {"source": {"kind": "boxes", "truth": "truth.json"}},
    ],
)
def test_what_cannot_be_meant_is_rejected_before_any_work(changed, scenes_config, sam, tmp_path) -> None:
    with expect_error(ConfigError, key=("regions.refine", "regions.sam.model")):
        (build_source_steps if "source" in changed else build_steps)(
            config_of(scenes_config, sam, tmp_path / "out", **changed)
        )


@pytest.mark.parametrize(
    ("resources", "given", "expected"),
    [
        ({"CPU": 16.0, "GPU": 2.0}, {}, (2, 0.5)),
        ({"CPU": 16.0, "GPU": 2.0}, {"gpus_per_worker": 0.25}, (4, 0.25)),
        ({"CPU": 30.0}, {}, (4, 0.0)),
    ],
)
def test_both_models_share_the_gpus(resources, given, expected) -> None:
    engine = load_config(None, ["input.path=a", "input.kind=jsonl"], options=None).engine.model_copy(
        update={"address": "head:6379", **given}
    )
    both = choose_pools(engine, "auto", None, [{"Alive": True, "Resources": resources}], models=2)
    assert (both.max_workers, both.gpus) == expected


def test_with_a_gpu_that_torch_does_not_see_it_does_not_compute_on_a_cpu(
    scenes_config: Json, sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cuts = build_steps(config_of(scenes_config, sam, tmp_path / "out")).regions_stage.computing(
        device="cuda"
    )
    with expect_error(ResourceError, key="model.device"):
        cuts.setup()
    cuts.teardown()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_rows_of_one_process(dataset: Path, scenes_config: Json, sam: Path, tmp_path) -> None:
    engine = {"kind": "ray", "explain_workers": 1, "cpu_workers": 1}
    config = config_of(scenes_config, sam, tmp_path / "out", engine=engine)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    done = ended([sys.executable, "-m", "phrasebox", "run", tmp_path / "run.yaml"])
    assert done.returncode == 0, done.stderr
    assert_alike(rows_of(tmp_path / "out"), rows_of(dataset))
