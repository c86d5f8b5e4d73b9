from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.model.config import ModelConfig, ModelDescription
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.tokenizer import tokenizer_of
from tests.build.datasets import Json
from tests.build.files import read_json, write_json
from tests.factories import SPEC, tiny_architecture
from tests.messages import expect_error
from tests.stages.model.saved import save_json, save_model, shapes_of


@pytest.mark.parametrize(
    "values",
    [
        {"config": "tiny.json", "weights": "none.pt"},
        {"config": "none.json", "weights": "tiny.json"},
        {"name": "ViT-B16", "weights": "any"},
        {"name": "zzzzzzzz", "weights": "any"},
        {"name": "openai/clip-vit-base-patch32"},
        {"name": "ViT-B-16", "pretrained": "laion"},
        # open_clip would take any tokenizer option from there.
        {"name": "hf-hub:someone/something", "weights": "any"},
        {"name": "local-dir:.", "weights": "any"},
    ],
)
def test_models_that_are_not_there_are_named(values: Json, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_json(tmp_path)
    with expect_error(ConfigError, WeightsError, key=tuple(f"model.{name}" for name in values)):
        describe(ModelConfig(**values))


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"embed_dim": 3}', '{"model_cfg": {}}'])
def test_a_json_that_is_no_model_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(content)
    with expect_error(ConfigError, WeightsError, key="model.config"):
        describe(ModelConfig(config=tmp_path / "odd.json", weights=tmp_path / "odd.json"))


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    _, config = save_model(tmp_path)
    architecture = tiny_architecture()
    architecture["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": "words.txt.gz"}
    write_json(tmp_path / "tiny.json", architecture)
    with expect_error(WeightsError, key="model.config"):
        describe(config)


def test_the_fingerprint_follows_weights_architecture_input_and_vocabulary(tmp_path: Path) -> None:
    _, config = save_model(tmp_path)
    first = describe(config).fingerprint
    assert first.startswith("tiny:")
    assert describe(config).fingerprint == first
    fingerprints = {first}

    def is_new() -> bool:
        fingerprint = describe(config).fingerprint
        return fingerprint not in fingerprints and fingerprints.add(fingerprint) is None

    content = bytearray((tmp_path / "tiny.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "tiny.safetensors").write_bytes(content)
    assert is_new()
    save_json(tmp_path, quick_gelu=True)
    assert is_new()
    parsed = read_json(tmp_path / "tiny.json")
    for key, value in (("mean", [0.5, 0.5, 0.5]), ("std", [0.5, 0.5, 0.5]), ("interpolation", "bilinear")):
        parsed["preprocess_cfg"][key] = value
        write_json(tmp_path / "tiny.json", parsed)
        assert is_new(), key
    parsed["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": "words"}
    (tmp_path / "words").write_text("a b")
    write_json(tmp_path / "tiny.json", parsed)
    assert is_new()
    (tmp_path / "words").write_text("a c")
    assert is_new()


def test_a_tag_decides_about_the_fingerprint_which_needs_no_file_and_the_activation() -> None:
    tags = (("ViT-B-16", "openai"), ("ViT-B-16", "laion400m_e32"), ("ViT-B-32", "openai"))
    descriptions = [describe(ModelConfig(name=name, pretrained=tag)) for name, tag in tags]
    assert len({description.fingerprint for description in descriptions}) == 3
    assert [description.architecture.get("quick_gelu", False) for description in descriptions] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("options", [{"trust_remote_code": True}, [["trust_remote_code", True]]])
def test_tokenizer_options_that_are_not_on_the_list_are_refused(options: Any, tmp_path: Path) -> None:
    architecture = tiny_architecture()
    architecture["text_cfg"] |= {"hf_tokenizer_name": "someone/something", "tokenizer_kwargs": options}
    path = tmp_path / "model.json"
    write_json(path, {"model_cfg": architecture})
    with expect_error(ConfigError, key="model.config"):
        describe(ModelConfig(config=path, weights=path))


def test_a_tokenizer_of_hugging_face_never_gets_leave_to_run_code(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        open_clip.tokenizer, "HFTokenizer", lambda *args, **options: calls.append((args, options))
    )
    architecture = tiny_architecture()
    architecture["text_cfg"] |= {"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"strip_sep_token": True}}
    tokenizer_of(ModelDescription(name="tiny", architecture=architecture, input=SPEC))
    [(_, options)] = calls
    assert options["trust_remote_code"] is False


@pytest.mark.parametrize(
    ("name", "mean", "interpolation"),
    [
        ("ViT-B-16-SigLIP", (0.5, 0.5, 0.5), "bicubic"),
        ("ViT-L-14-CLIPA", (0.485, 0.456, 0.406), "bilinear"),
        ("ViT-L-14", open_clip.OPENAI_DATASET_MEAN, "bicubic"),  # one of its tags differs
    ],
)
def test_a_checkpoint_by_name_is_normalised_as_all_tags_of_the_name_are(
    name, mean, interpolation, tmp_path
) -> None:
    torch.save(shapes_of(name), tmp_path / "weights.pt")
    spec = describe(ModelConfig(name=name, weights=tmp_path / "weights.pt")).input
    assert (spec.mean, spec.interpolation) == (mean, interpolation)
