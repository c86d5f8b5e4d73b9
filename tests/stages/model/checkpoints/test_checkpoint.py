import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.tokenizer import tokenizer_of
from tests.build.files import read_json, write_json
from tests.factories import SPEC, tiny_architecture, tiny_clip
from tests.messages import expect_error
from tests.stages.model.hugging_face import (
    CLIP_TOKENS,
    assert_embeds_as,
    assert_same,
    config_of,
    embeddings,
    save_images,
)
from tests.stages.model.saved import assert_scales_as, load_model, shapes_of


def as_index(folder: Path, name: str) -> None:
    """The weights of a folder in two files and an index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    stem, end = name.split(".")
    halves = {f"{stem}-0000{k + 1}-of-00002.{end}": names[k::2] for k in (0, 1)}
    for file, part in halves.items():
        if end == "bin":
            torch.save({key: state[key] for key in part}, folder / file)
        else:
            save_file({key: state[key] for key in part}, folder / file)
    places = {key: file for file, part in halves.items() for key in part}
    write_json(folder / f"{name}.index.json", {"metadata": {}, "weight_map": places})


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_training_saved_it(folder: Path) -> None:
    state = {f"module.{key}": value for key, value in load_file(folder / "model.safetensors").items()}
    state["module.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save({"state_dict": state, "epoch": 3}, folder / "last.pt")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "change",
    [
        as_bin,
        lambda folder: as_index(folder, "model.safetensors"),
        lambda folder: as_index(folder, "pytorch_model.bin"),
        as_training_saved_it,
        lambda folder: (folder / "model.safetensors").rename(folder / "fine-tuned.safetensors"),
    ],
    ids=["bin", "index", "index of bin", "training", "another name"],
)
def test_all_the_ways_in_which_weights_are_kept(
    change: Callable[[Path], Any], clip: Any, clip_folder: Path
) -> None:
    change(clip_folder)
    assert_same(embeddings(clip_folder), clip, CLIP_TOKENS)


def test_a_folder_says_what_it_is(clip: Any, clip_folder: Path) -> None:
    assert_same(embeddings(clip_folder / "model.safetensors"), clip, CLIP_TOKENS)  # and what its files are
    description = describe(config_of(clip_folder))
    assert (description.name, description.layout) == ("my-clip", "transformers CLIPModel")
    assert description.described_by == "config.json, preprocessor_config.json"
    assert (description.input.size_px, description.input.patch_px, description.input.interpolation) == (
        32,
        8,
        "bicubic",
    )
    save_images(clip_folder, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.2], resample=2)
    new_description = describe(config_of(clip_folder))
    assert (new_description.input.mean, new_description.input.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert new_description.input.interpolation == "bilinear"
    assert new_description.fingerprint != description.fingerprint


def test_an_index_names_files_of_its_own_folder_alone(clip_folder: Path) -> None:
    as_index(clip_folder, "model.safetensors")
    index = clip_folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    (clip_folder / "model-00001-of-00002.safetensors").rename(
        clip_folder.parent / "model-00001-of-00002.safetensors"
    )
    with expect_error(WeightsError, key="model.checkpoint"):
        describe(config_of(clip_folder))


def test_the_fingerprint_follows_every_file_of_the_weights(clip_folder: Path) -> None:
    as_index(clip_folder, "model.safetensors")
    before = describe(config_of(clip_folder)).fingerprint
    assert before == describe(config_of(clip_folder)).fingerprint
    part = clip_folder / "model-00002-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x07")
    assert describe(config_of(clip_folder)).fingerprint != before


@pytest.fixture
def open_clip_folder(tmp_path: Path) -> tuple[Path, Any]:
    """A folder as open_clip's push_to_hf_hub leaves it, with transformers' config.json of another model in it."""
    model = tiny_clip(quick_gelu=True)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": list(SPEC.std), "interpolation": "bilinear"}
    parsed = {"model_cfg": {**tiny_architecture(), "quick_gelu": True}, "preprocess_cfg": preprocess}
    write_json(tmp_path / "open_clip_config.json", parsed)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors"
    )
    return tmp_path, model


def test_a_folder_of_open_clip(open_clip_folder: tuple[Path, Any], clip: Any) -> None:
    folder, model = open_clip_folder
    clip.save_pretrained(folder)  # as in many repositories, which hold the model twice
    assert_embeds_as(folder, model)
    assert_scales_as(load_model(config_of(folder)), model)
    description = describe(config_of(folder))
    assert (description.layout, description.described_by) == ("open_clip", "open_clip_config.json")
    assert (description.input.mean, description.input.interpolation) == ((0.5, 0.4, 0.3), "bilinear")


def test_a_checkpoint_of_open_clip_s_trainer(tmp_path: Path) -> None:
    """The trainer writes its arguments above the folder of the checkpoints."""
    folder = tmp_path / "logs" / "run-1" / "checkpoints"
    folder.mkdir(parents=True)
    architecture = open_clip.get_model_config("ViT-B-32")
    architecture["vision_cfg"] |= {"image_size": 64}
    architecture["text_cfg"] |= {"context_length": 16}
    state = {f"module.{name}": value for name, value in shapes_of("ViT-B-32", **architecture).items()}
    torch.save({"epoch": 5, "name": "run-1", "state_dict": state, "optimizer": {}}, folder / "epoch_5.pt")
    params = "force_image_size: 64\nforce_quick_gelu: True\nimage_mean: [0.5, 0.4, 0.3]\nimage_std: None\n"
    params += "force_context_length: 16\n"
    (folder.parent / "params.txt").write_text(f"batch_size: 64\n{params}model: ViT-B-32\nname: run-1\n")
    description = describe(config_of(folder / "epoch_5.pt"))
    assert (description.layout, description.described_by) == (
        "open_clip",
        "params.txt, which names ViT-B-32",
    )
    assert description.architecture == {**architecture, "quick_gelu": True}
    assert (description.input.size_px, description.input.mean, description.input.std) == (
        64,
        (0.5, 0.4, 0.3),
        SPEC.std,
    )
    (folder.parent / "params.txt").write_text("model: ViT-B-33\n")
    with expect_error(WeightsError, key="model.checkpoint"):
        describe(config_of(folder / "epoch_5.pt"))


@pytest.mark.slow
def test_the_trainer_prepares_images_as_its_start_was_trained(tmp_path: Path) -> None:
    torch.save(shapes_of("MobileCLIP-S1"), tmp_path / "epoch_5.pt")
    (tmp_path / "params.txt").write_text("model: MobileCLIP-S1\npretrained: datacompdr\nimage_mean: None\n")
    new_spec = describe(config_of(tmp_path / "epoch_5.pt")).input
    assert (new_spec.mean, new_spec.interpolation) == ((0, 0, 0), "bilinear")


def test_the_architecture_is_not_guessed_from_tensors(tmp_path: Path) -> None:
    """They do not tell the activation, with which everything would be a little wrong and nothing would fail."""
    torch.save(shapes_of("ViT-B-32"), tmp_path / "epoch_5.pt")
    with expect_error(WeightsError, key="model.checkpoint"):
        describe(config_of(tmp_path / "epoch_5.pt"))


def drop(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def change_json(name: str, **changes: Any) -> Callable[[Path], Any]:
    """Changes of keys; `vision__hidden_act` is `hidden_act` in `vision_config`."""

    def change(folder: Path) -> None:
        parsed = read_json(folder / name)
        for key, value in changes.items():
            section, _, inner = key.rpartition("__")
            (parsed[f"{section}_config"] if section else parsed)[inner] = value
        write_json(folder / name, parsed)

    return change


def change_state(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], Any]:
    return lambda folder: save_file(
        change(load_file(folder / "model.safetensors")), folder / "model.safetensors"
    )


def only(prefix: str) -> Callable[[Path], Any]:
    return change_state(
        lambda state: {name: value for name, value in state.items() if name.startswith(prefix)}
    )


def other_merges(folder: Path) -> None:
    (folder / "merges.txt").write_text("#version: 0.2\na b\nab c\n")


def index_of_a_missing_file(folder: Path) -> None:
    as_index(folder, "model.safetensors")
    (folder / "model-00001-of-00002.safetensors").unlink()


@pytest.mark.parametrize(
    "change",
    [
        drop("model.safetensors"),
        lambda f: (f / "model.safetensors").write_bytes(b""),
        lambda f: (f / "config.json").write_text("{"),
        change_json("config.json", model_type="blip"),
        change_json("config.json", vision__hidden_act="relu"),
        change_json("config.json", vision__hidden_act="gelu"),
        change_json("config.json", vision__image_size="big"),
        change_json("config.json", vision__num_attention_heads=7),
        change_json("config.json", vision__image_size=64),
        change_json("config.json", text__vocab_size=1000),
        drop("config.json"),
        change_json("preprocessor_config.json", resample=1),
        change_json("preprocessor_config.json", rescale_factor=1.0),
        change_json("preprocessor_config.json", image_mean=[0.5]),
        only("vision_model."),
        change_state(lambda s: {f"base_model.model.{k}": v for k, v in s.items()}),
        other_merges,
        index_of_a_missing_file,
        lambda f: (
            [shutil.copy(f / "model.safetensors", f / f"{k}.pt") for k in "ab"]
            and drop("model.safetensors")(f)
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(change, clip_folder) -> None:
    change(clip_folder)
    with expect_error(ConfigError, WeightsError, key="model.checkpoint"):
        describe(config_of(clip_folder))


@pytest.mark.parametrize(
    "change",
    [
        drop("spiece.model"),
        change_json("config.json", vision__vision_use_head=False),
        change_json("config.json", text__projection_size=32),
        lambda f: (f / "spiece.model").write_bytes(b"no model"),
        lambda f: (f / "tokenizer.json").write_text("{}"),
    ],
)
def test_a_siglip_that_cannot_be_loaded_is_said_in_one_line(change, siglip_folder) -> None:
    change(siglip_folder)
    with expect_error(ConfigError, WeightsError, key="model.checkpoint"):
        tokenizer_of(describe(config_of(siglip_folder)))
