"""CLIPSelf's texts: row id - 1 of the embeddings is the category's, by the dataset's own model."""

from pathlib import Path

import numpy as np

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.text_cache import TextCache
from tests.build.files import read_json
from tests.closeness import assert_close
from tests.messages import expect_error
from tests.pipeline.export.datasets import exported, finished, records, write_dataset
from tests.stages.model.saved import load_model


def test_rows_are_the_categories_in_the_order_of_their_ids(tmp_path: Path) -> None:
    out, report = exported("clipself", write_dataset(tmp_path / "dataset"), tmp_path / "out")
    categories = read_json(out / "train.json")["categories"]
    assert [category["id"] for category in categories] == [*range(1, report.categories + 1)]
    texts = TextCache(load_model(ModelConfig(name="demo", device="cpu")))
    expected = texts([category["name"] for category in categories]).numpy()
    written = np.load(out / "text_embeddings.npy")
    assert written.dtype == np.float32
    assert_close(written, expected, 1e-4)


def test_a_dataset_of_other_weights_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    dataset = finished(tmp_path / "dataset", records(), fingerprint="other")
    with expect_error(InputError):
        exported("clipself", dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
