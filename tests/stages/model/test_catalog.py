import shutil
from pathlib import Path

import open_clip
import pytest
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

import phrasebox.stages.model.towers.photo_trunk  # noqa: F401 - it names the trunk to timm
from phrasebox.stages.contract.errors import WeightsError
from phrasebox.stages.model.catalog import CATALOG, WEIGHTS_ROOT, find_weights
from tests.build.files import read_json
from tests.messages import expect_error


@pytest.mark.parametrize(("name", "most_bytes"), [("demo", 12_000_000), ("photo", 20_000_000)])
def test_a_bundled_model_is_small_and_its_card_names_the_checksums(name: str, most_bytes: int) -> None:
    folder = find_weights(name)
    assert folder == WEIGHTS_ROOT / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < most_bytes
    card = (folder / "MODEL_CARD.md").read_text("utf-8")
    assert all(checksum in card for checksum in CATALOG[name].files.values())
    if name == "photo":
        assert "non-commercial research and education" in card
        assert "No box, mask or point" in card


@pytest.mark.parametrize("name", CATALOG)
def test_weights_that_are_not_there_are_named_with_the_remedy(name: str, tmp_path: Path) -> None:
    with expect_error(WeightsError):
        find_weights(name, tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS_ROOT / "demo", tmp_path / "demo")
    assert find_weights("demo", tmp_path / ".") == tmp_path / "demo"
    with (tmp_path / "demo" / "model.safetensors").open("r+b") as file:
        file.seek(100_000)
        file.write(b"\x00\x01\x02\x03")
    with expect_error(WeightsError):
        find_weights("demo", tmp_path / "demo" / "..")


@pytest.mark.parametrize("name", CATALOG)
def test_stock_open_clip_loads_a_bundled_model(name: str) -> None:
    folder = find_weights(name)
    architecture = read_json(folder / "model.json")["model_cfg"]
    model = open_clip.CLIP(**architecture)
    assert model.load_state_dict(load_file(folder / "model.safetensors")).missing_keys == []
    words = architecture["text_cfg"]["tokenizer_kwargs"]["bpe_path"]
    assert SimpleTokenizer(bpe_path=str(folder / words)).vocab_size == model.vocab_size
