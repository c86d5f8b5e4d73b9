"""A dataset that somebody else has made: it does not decide what is read, loaded or shown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from phrasebox.stages.contract.errors import ConfigError, SchemaError
from tests.build.datasets import Json, change_manifest, change_rows, list_shards, rows_of
from tests.build.files import write_json
from tests.pipeline.viewer.conftest import Served, serving
from tests.pipeline.viewer.test_app import ask

JPEG = b"\xff\xd8"
WARNING = b"You did not make this dataset on this machine"
Made = Callable[..., Path]


@pytest.fixture
def made_by_a_stranger(dataset: Path, viewed: Path) -> Made:
    """The dataset as a stranger sends it, who changed its configuration and put images and heat maps inside or not."""

    def make(*, images: bool = False, heat_maps: bool = False, **sections: Json) -> Path:
        if images:
            shutil.copytree(viewed.parent / "images", dataset / "images")
            sections = {"input": {"image_root": str(dataset / "images")}, **sections}
        if not heat_maps:
            without_heat_maps(dataset)
        change_manifest(
            dataset,
            lambda m: [m["config"][name].update(new) for name, new in sections.items()],
            signature="0" * 64,
        )
        return dataset

    return make


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "phrasebox.pipeline.viewer.sample_view.build_steps", lambda *_: pytest.fail("something was built")
    )


def without_heat_maps(dataset: Path) -> None:
    for path in (dataset / "data").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["phrases", "heat_maps"]), path)
    list_shards(dataset)


def first_with_regions(dataset: Path) -> int:
    return next(number for number, row in enumerate(rows_of(dataset)) if row["annotations"])


def heat_of(served: Served) -> tuple[int, bytes]:
    return ask(served, f"/rows/{first_with_regions(served.viewer.pages.dataset.path)}/heat/0.png")


def image_of(served: Served, row: int = 0) -> tuple[int, bytes]:
    return ask(served, f"/rows/{row}/image.jpg")


def test_a_dataset_of_ones_own_shows_its_images_and_computes_heat_maps(dataset: Path) -> None:
    without_heat_maps(dataset)
    with serving(dataset, build=False) as served:
        assert image_of(served)[1].startswith(JPEG)
        assert heat_of(served) == heat_of(served)
        assert heat_of(served)[0] == 200
        assert WARNING not in ask(served, "/")[1]


@pytest.mark.usefixtures("nothing_is_built")
def test_heat_maps_in_the_shards_need_neither_images_nor_a_model(made_by_a_stranger: Made) -> None:
    dataset = made_by_a_stranger(heat_maps=True, input={"image_root": "/"}, model={"name": "evil/model"})
    with serving(dataset) as served:
        status, content = heat_of(served)
        assert (status, content[1:4]) == (200, b"PNG")
    with serving(dataset, settings=["model.batch_size=2"]) as served:
        assert b"model.name=evil/model" in heat_of(served)[1], "who sets something has them computed"
    row = first_with_regions(dataset)
    path = sorted((dataset / "data").glob("*.parquet"))[row // 8]
    # Opened before the change, which a dataset of a stranger does not survive; without a list no shard is compared
    change_manifest(dataset, shards=None)
    with serving(dataset) as served:
        change_rows(path, lambda rows: rows[row % 8]["heat_maps"][0].update(size=[1, 100_000]))
        status, content = heat_of(served)
        assert status == 409
        assert b"cells" in content
    with pytest.raises(SchemaError, match="cells"), serving(dataset):
        pytest.fail("it was served")


def test_images_of_this_machine_are_not_shown(made_by_a_stranger: Made, viewed: Path) -> None:
    for root in ("/", "~", ".", "s3://bucket/images", "images"):
        with serving(made_by_a_stranger(heat_maps=True, input={"image_root": root}), build=False) as served:
            assert all(image_of(served, row)[0] == 404 for row in range(8)), root
            assert WARNING in ask(served, "/")[1]
    with serving(served.viewer.pages.dataset.path, image_root=viewed.parent / "images") as named:
        assert image_of(named)[1].startswith(JPEG)
        assert WARNING not in ask(named, "/")[1]


def test_configurations_of_any_form_break_nothing(dataset: Path) -> None:
    without_heat_maps(dataset)
    for config in ({"input": "x"}, {"input": {"kind": "csv", "image_root": 5}, "model": 1}):
        change_manifest(dataset, config=config)
        with serving(dataset, build=False) as served:
            assert (ask(served, "/")[0], image_of(served)[0], heat_of(served)[0]) == (200, 404, 409)


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        (
            "model",
            {"name": None, "config": "FOLDER/model.json", "weights": "FOLDER/w.pt"},
            "--set model.weights=FOLDER/w.pt --set model.config=FOLDER/model.json",
        ),
        (
            "phrases",
            {"spacy_models": {"en": "stranger_package"}},
            "--set 'phrases.spacy_models=",
        ),
        ("regions", {"refine": "sam", "sam": {"model": "evil/sam"}}, "--set regions.sam.model=evil/sam"),
    ],
    ids=["files", "a package", "a segmenter"],
)
@pytest.mark.usefixtures("nothing_is_built")
def test_what_a_stranger_names_is_not_loaded(
    section, values, told, made_by_a_stranger, tmp_path, monkeypatch
) -> None:
    package = tmp_path / "path" / "stranger_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(package.parent)
    text = {"tokenizer_kwargs": {"trust_remote_code": True}, "hf_tokenizer_name": "evil/tokenizer"}
    write_json(tmp_path / "model.json", {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text})
    filled = json.loads(json.dumps(values).replace("FOLDER", str(tmp_path)))
    with serving(made_by_a_stranger(images=True, **{section: filled}), build=False) as served:
        status, content = heat_of(served)
    assert status == 409
    assert told.replace("FOLDER", str(tmp_path)).encode() in content
    assert not (tmp_path / "ran").exists()


def test_what_the_user_names_too_is_loaded(
    made_by_a_stranger: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: Any) -> Any:
        raise ConfigError(f"built: {config.model.name} {config.model.pretrained} {config.phrases.packages}")

    monkeypatch.setattr("phrasebox.pipeline.viewer.sample_view.build_steps", build)
    model = {"name": "ViT-B-16", "pretrained": "openai"}
    dataset = made_by_a_stranger(images=True, model=model, phrases={"spacy_models": {"en": "other"}})
    settings = ["model.name=ViT-B-16", "model.pretrained=openai", "phrases.spacy_models={en: mine}"]
    with serving(dataset, build=False, settings=settings) as served:
        assert b"built: ViT-B-16 openai ('mine',)" in heat_of(served)[1]
