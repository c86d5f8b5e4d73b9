from pathlib import Path

import pytest
from pydantic import ValidationError

from phrasebox.stages.model.catalog import CATALOG
from phrasebox.stages.model.config import OWN_MODELS, ModelConfig
from tests.build.datasets import Json


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": "a.pt"}, "weights needs a name or a config"),
        ({"name": "ViT-B-16", "config": "a.json", "weights": "a.pt"}, "give one of name and config"),
        (
            {"name": "ViT-B-16", "pretrained": "openai", "weights": "a.pt"},
            "give one of pretrained and weights",
        ),
        (
            {"name": "demo", "weights": "a.pt"},
            "demo brings its own weights: leave out weights, or set it to null",
        ),
        (
            {"name": "nosuch"},
            r"no model 'nosuch' \(`phrasebox models` lists them\)\. For open_clip's weights write --model NAME/TAG",
        ),
        ({"name": "Photo"}, "no model 'Photo' .*; did you mean photo"),
        (
            {"name": "ViT-B-16"},
            r"ViT-B-16 needs weights: set model.pretrained=TAG \(open_clip downloads it: openai, .*, \.\.\.\)",
        ),
        ({"weight": "a.pt"}, "Extra inputs"),
        ({"checkpoint": "a", "weights": "a.pt"}, "a brings its own weights: leave out weights"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: Json, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**values)


def test_the_five_forms_and_none() -> None:
    assert ModelConfig().label == "none"
    assert [ModelConfig(name=name).name for name in OWN_MODELS] == list(CATALOG)
    ModelConfig(name="ViT-B-16", weights=Path("a.pt"))
    ModelConfig(config=Path("a.json"), weights=Path("a.pt"))


def test_a_path_is_told_from_a_name_and_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "alone").touch()
    for name in ("models/mine", "alone", str(tmp_path), "./gone", "~/gone", "a/b/c", "gone.pt"):
        config = ModelConfig(name=name)
        assert (config.name, config.checkpoint) == (None, Path(name)), name
        assert ModelConfig.model_validate(config.model_dump(mode="json")) == config
        assert config.label == str(Path(name))
    for name in ("models/gone", "ViT-B-16/openai"):
        config = ModelConfig(name=name)
        assert (config.label, config.checkpoint) == (name, None), name
    (tmp_path / "demo").mkdir()
    assert ModelConfig(name="demo").checkpoint is None
    (tmp_path / "ViT-B-16").mkdir()
    assert ModelConfig(name="ViT-B-16", pretrained="openai").checkpoint is None
    assert ModelConfig(name="ViT-B-16", weights="a.pt").checkpoint is None
