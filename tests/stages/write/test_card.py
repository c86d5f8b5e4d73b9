from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stages.contract.schema import dataset_schema
from stages.write import dataset_card, tally
from tests.stages.write.rows import HEIGHT, WIDTH, mixed, write_shards


@pytest.fixture
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Shards and their card."""
    embed_images: bool = request.param
    write_shards(mixed(), tmp_path / "data", embed_images=embed_images)
    schema = dataset_schema(embed_images=embed_images)
    card = dataset_card(tally(tmp_path / "data"), schema, model="demo", explainer="grad_eclip", fitted_to="2 images")
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    return tmp_path


plain = pytest.mark.parametrize("dataset", [False], indirect=True, ids=["plain"])
both = pytest.mark.parametrize("dataset", [False, True], indirect=True, ids=["plain", "embedded"])


def load(dataset: Path, cache: Path) -> Any:
    import datasets

    return datasets.load_dataset(str(dataset), cache_dir=str(cache))


@both
def test_load_dataset_reads_every_row(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    loaded = load(dataset, tmp_path_factory.mktemp("cache"))
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert rows.num_rows == 9
    for row, record in zip(rows, mixed(), strict=True):
        assert row["sample_id"] == record.sample.sample_id
        assert len(row["annotations"]) == len(record.regions)
        for annotation, region in zip(row["annotations"], record.regions, strict=True):
            assert annotation["bbox"] == list(region.box_xywh_px)
            assert annotation["segmentation"] == {"size": [HEIGHT, WIDTH], "counts": region.mask.counts}
        if "image" in rows.features:
            assert (row["image"] is None) == (record.error is not None)
            if row["image"] is not None:
                assert np.asarray(row["image"]).shape == (HEIGHT, WIDTH, 3)


@both
def test_the_cards_features_are_the_schemas(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No guessing from the first rows: a first file whose rows all failed must not decide on the types."""
    import datasets

    features = load(dataset, tmp_path_factory.mktemp("cache"))["train"].features
    schema = dataset_schema(embed_images="image" in features)
    assert list(features) == schema.names
    for field in schema:
        if field.name == "image":
            assert isinstance(features["image"], datasets.Image)
        else:
            assert features.arrow_schema.field(field.name).type == field.type, field.name


@plain
def test_the_header_is_yaml_that_names_the_shards(dataset: Path) -> None:
    text = (dataset / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert "license" not in header, "the images' licence is not ours to state"


@plain
def test_the_card_tells_the_figures_and_every_column(dataset: Path) -> None:
    text = (dataset / "README.md").read_text()
    for line in ("| images | 9 |", "| failed | 2 |", "| without phrases | 1 |", "| regions | 9 |", "`demo`"):
        assert line in text
    schema = dataset_schema(embed_images=False)
    annotation = schema.field("annotations").type.value_type
    for field in [*schema, *(annotation.field(i) for i in range(annotation.num_fields))]:
        assert f"| `{field.name}` | " in text
    assert "[x, y, w, h], half open, of the mask (px)" in text
