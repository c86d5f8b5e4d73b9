"""A whole training: it resumes where it stopped, writes a model that runs take, and loses nothing when it fails."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from phrasebox.pipeline.research.finetune.config import RECIPES, FinetuneConfig
from phrasebox.pipeline.research.finetune.folder import LATEST, LOG
from phrasebox.pipeline.research.finetune.loop import TunedModel, finetune
from phrasebox.stages.contract.errors import (
    ConfigError,
    InputError,
    OutputError,
    ResourceError,
    ResumeError,
)
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.module import module_of
from tests.build.files import read_lines
from tests.messages import expect_error
from tests.stages.model.hugging_face import save_images, transformers_clip
from tests.stages.model.saved import load_model, save_model, save_tower


def config_of(dataset: Path, out: Path, **settings: Any) -> FinetuneConfig:
    values = {"data": {"path": str(dataset)}, "model": {"name": "demo"}, "out": str(out), "batch_size": 4}
    return FinetuneConfig.model_validate({**values, "learning_rate": 1e-4, "warmup_steps": 2, **settings})


def weights(tuned: TunedModel) -> dict[str, torch.Tensor]:
    return dict(load_file(tuned.model / "open_clip_model.safetensors"))


class StopHereError(Exception):
    """Ends a training between two steps, as kill -9 would."""


def stop_after(steps: int, error: type[BaseException] = StopHereError) -> Any:
    def on_step(step: int, _: int) -> None:
        if step == steps:
            raise error

    return on_step


@pytest.fixture(scope="module")
def whole(inline_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TunedModel:
    """Three steps without a stop."""
    return finetune(config_of(inline_dataset, tmp_path_factory.mktemp("whole")))


def test_it_learns_and_its_model_is_one_that_runs_take(whole: TunedModel) -> None:
    assert whole.steps == 3
    lines = log_of(whole.model.parent)
    assert [line["step"] for line in lines] == [3]
    assert set(lines[0]) == {"step", "learning_rate", "loss", "captions", "regions"}
    model = load_model(ModelConfig(checkpoint=whole.model))
    by_folder, itself = (
        describe(ModelConfig(checkpoint=each)) for each in (whole.model.parent, whole.model)
    )
    assert by_folder.fingerprint.partition(":")[2] == itself.fingerprint.partition(":")[2]
    assert by_folder.name == whole.model.parent.name
    assert model.input == describe(ModelConfig(name="demo")).input
    start = load_model(ModelConfig(name="demo"))
    texts = ["red car", "a blue dog"]
    assert not torch.allclose(model.encode_text(texts), start.encode_text(texts))
    card = (whole.model / "README.md").read_text()
    assert "recipe align" in card
    assert '"learning_rate": 0.0001' in card
    assert "open_clip alone does not." in card


@pytest.mark.slow
def test_self_distillation_needs_no_text_and_changes_no_text_tower(
    inline_dataset: Path, tmp_path: Path
) -> None:
    config = config_of(inline_dataset, tmp_path / "out", recipe={"kind": "clipself", "max_split": 2})
    tuned = finetune(config)
    assert set(tuned.losses) == {"loss", "crops"}
    start = module_of(describe(ModelConfig(name="demo"))).state_dict()
    changed = {
        name.partition(".")[0]
        for name, value in weights(tuned).items()
        if not torch.equal(value, start[name])
    }
    assert changed == {"visual"}
    assert load_model(ModelConfig(checkpoint=tuned.model)).embed_dim == 192


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path: Path) -> ModelConfig:
    """A tiny model in one of the forms that a training begins with."""
    folder = tmp_path / "start"
    folder.mkdir()
    _, files = save_model(folder)
    if request.param == "model file and weights":
        return files
    transformers_clip().save_pretrained(folder / "clip")
    save_images(folder / "clip", image_mean=[0.4, 0.5, 0.6], resample=2)
    return ModelConfig(checkpoint=folder / "clip")


@pytest.mark.parametrize("start", ["model file and weights", "transformers folder"], indirect=True)
def test_a_tuned_model_prepares_images_as_its_training_did(
    start: ModelConfig, inline_dataset, tmp_path
) -> None:
    model = start.model_dump(exclude_none=True)
    recipe = {"kind": "captions"}
    tuned = finetune(config_of(inline_dataset, tmp_path / "tuned", model=model, recipe=recipe, epochs=0.34))
    spec = describe(start).input
    assert load_model(ModelConfig(checkpoint=tuned.model)).input == spec
    _, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tuned.model}")
    stretch, *_, scale = prepare.transforms
    assert (stretch.size, stretch.interpolation.value) == ((spec.size_px, spec.size_px), spec.interpolation)
    assert (tuple(scale.mean), tuple(scale.std)) == (spec.mean, spec.std)
    assert open_clip.get_tokenizer(f"local-dir:{tuned.model}")(["a red car"]).shape == (1, 77)
    assert "open_clip loads it by `local-dir:FOLDER`" in (tuned.model / "README.md").read_text()


@pytest.mark.slow
def test_a_training_that_was_killed_ends_with_the_same_weights(
    whole: TunedModel, inline_dataset: Path, tmp_path
) -> None:
    config = config_of(inline_dataset, tmp_path, checkpoint_every_s=0)
    (tmp_path / LOG).write_text(
        '{"step": 10}\n'
    )  # of a training that was killed before its first checkpoint
    with pytest.raises(StopHereError):
        finetune(config, stop_after(2))
    messages: list[str] = []
    resumed = finetune(config, say=messages.append)
    assert "resumes at step 1" in messages[0], "the step that was not saved is taken again"
    assert resumed.steps == 3
    wanted = weights(whole)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(resumed).items())
    assert (tmp_path / LOG).read_text() == (whole.model.parent / LOG).read_text()


def test_ctrl_c_writes_a_checkpoint_first(inline_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune(config_of(inline_dataset, tmp_path), stop_after(2, KeyboardInterrupt))
    assert torch.load(tmp_path / LATEST, weights_only=True)["step"] == 2


FROZEN = {"frozen": ["visual.transformer", "visual.conv1"]}


def test_only_what_shall_learn_changes(inline_dataset: Path, tmp_path: Path) -> None:
    tuned = weights(finetune(config_of(inline_dataset, tmp_path, epochs=0.34, **FROZEN)))
    start = module_of(describe(ModelConfig(name="demo"))).state_dict()
    same = {name for name, value in tuned.items() if torch.equal(value, start[name].float())}
    assert {name for name in start if name.startswith(tuple(FROZEN["frozen"]))} <= same
    assert not {"visual.proj", "text_projection"} & same


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "frozen"),
    [
        ("ConvNeXt", ["visual.trunk.stem", "visual.trunk.stages"]),
        (
            "SigLIP",
            [f"visual.trunk.{part}" for part in ("patch_embed", "pos_embed", "cls_token", "blocks")],
        ),
    ],
)
def test_outputs_of_frozen_networks_are_computed_once_and_change_no_loss(
    tower: str, frozen: list[str], inline_dataset: Path, tmp_path: Path
) -> None:
    _, model = save_tower(tmp_path, tower)
    settings = {"model": model.model_dump(exclude_none=True), "frozen": frozen}
    stored = {**settings, "frozen_outputs": str(tmp_path / "outputs")}
    finetune(config_of(inline_dataset, tmp_path / "computed", **settings))
    first = finetune(config_of(inline_dataset, tmp_path / "first", **stored))
    for wanted, line in zip(log_of(tmp_path / "computed"), log_of(tmp_path / "first"), strict=True):
        assert line == pytest.approx(wanted, rel=2e-3)
    files = sorted((tmp_path / "outputs").rglob("*.safetensors"))
    assert len(files) == 2 * first.images, "of two networks"
    second = weights(finetune(config_of(inline_dataset, tmp_path / "second", **stored)))
    assert all(torch.equal(value, second[name]) for name, value in weights(first).items())
    for path in files:
        save_file({"output": torch.zeros_like(load_file(path)["output"])}, path)
    finetune(config_of(inline_dataset, tmp_path / "third", **stored))
    assert log_of(tmp_path / "third")[0]["loss"] != pytest.approx(
        log_of(tmp_path / "first")[0]["loss"], rel=0.01
    )
    with expect_error(ConfigError, key="frozen_outputs"):
        finetune(config_of(inline_dataset, tmp_path / "fourth", **{**stored, "frozen": frozen[-1:]}))


def test_a_tower_without_a_network_stores_no_outputs(inline_dataset: Path, tmp_path: Path) -> None:
    with expect_error(ConfigError, key="frozen_outputs"):
        finetune(config_of(inline_dataset, tmp_path, frozen_outputs=str(tmp_path / "outputs"), **FROZEN))
    assert not (tmp_path / "outputs").exists()


def test_full_memory_is_one_line_and_a_slash_no_other_dataset(
    inline_dataset, tmp_path, monkeypatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    config = config_of(inline_dataset, tmp_path)
    monkeypatch.setattr(RECIPES["align"], "terms", full)
    with expect_error(ResourceError):
        finetune(config)
    slash = config.data.model_copy(update={"path": f"{inline_dataset}/"})
    assert config.model_copy(update={"data": slash}).result_settings() == config.result_settings()


def test_other_settings_and_nothing_to_learn_are_rejected(inline_dataset: Path, tmp_path: Path) -> None:
    with expect_error(ConfigError, key="frozen"):
        finetune(config_of(inline_dataset, tmp_path, frozen=[""]))
    finetune(config_of(inline_dataset, tmp_path, epochs=0.34))
    with expect_error(ResumeError):
        finetune(config_of(inline_dataset, tmp_path, epochs=0.34, learning_rate=1e-5, seed=3))
    assert (tmp_path / "model").is_dir()


@pytest.mark.filterwarnings("ignore:an image is skipped")
@pytest.mark.slow
def test_a_fresh_training_deletes_the_former_one_when_nothing_refuses_it_any_more(
    inline_dataset, tmp_path
) -> None:
    finetune(config_of(inline_dataset, tmp_path, epochs=0.34))
    former = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    moved = {"path": str(inline_dataset), "image_root": str(tmp_path)}
    for error, refused in ((ConfigError, {"frozen": [""]}), (InputError, {"data": moved})):
        with pytest.raises(error):
            finetune(config_of(inline_dataset, tmp_path, **refused), fresh=True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == former
    with pytest.raises(StopHereError):
        finetune(config_of(inline_dataset, tmp_path, seed=1), stop_after(1), fresh=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fresh", [False, True])
def test_a_model_that_no_training_wrote_is_not_replaced(
    fresh: bool, inline_dataset: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "model" / "open_clip_model.safetensors"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    (tmp_path / "model" / "README.md").write_text("# My model\n")
    with expect_error(ResumeError):
        finetune(config_of(inline_dataset, tmp_path), fresh=fresh)
    assert mine.read_bytes() == b"mine"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_rejected(inline_dataset: Path, tmp_path: Path) -> None:
    config = config_of(inline_dataset, tmp_path, checkpoint_every_s=0)
    with pytest.raises(StopHereError):
        finetune(config, stop_after(3))
    latest = tmp_path / LATEST
    latest.write_bytes(latest.read_bytes()[: latest.stat().st_size // 2])
    with expect_error(ResumeError):
        finetune(config)
    assert finetune(config, fresh=True).steps == 3


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_the_checkpoint_before_it_stays(
    inline_dataset, tmp_path, monkeypatch
) -> None:
    config = config_of(inline_dataset, tmp_path, checkpoint_every_s=0)
    with pytest.raises(StopHereError):
        finetune(config, stop_after(2))
    before = (tmp_path / LATEST).read_bytes()
    with monkeypatch.context() as patch, open("/dev/full", "wb", buffering=0) as full:
        patch.setattr(
            "phrasebox.pipeline.research.finetune.folder.torch.save", lambda *_: full.write(b"a checkpoint")
        )
        with expect_error(OutputError):
            finetune(config)
    assert (tmp_path / LATEST).read_bytes() == before
    assert finetune(config).steps == 3


def test_a_dataset_without_regions_is_refused_before_the_model_is_loaded(
    inline_dataset: Path, tmp_path: Path
) -> None:
    data = {"path": str(inline_dataset), "min_score": 0.99, "where": "phrase = 'nothing'"}
    for recipe in ({"kind": "align"}, {"kind": "clipself", "places": "regions"}):
        with expect_error(InputError):
            finetune(config_of(inline_dataset, tmp_path / "out", data=data, recipe=recipe))
    assert not (tmp_path / "out").exists()
    assert (
        finetune(
            config_of(inline_dataset, tmp_path, data=data, recipe={"kind": "captions"}, epochs=0.34)
        ).steps
        == 1
    )


RANK = """
import sys
from phrasebox.stages.contract.errors import PhraseboxError
from phrasebox.pipeline.research.finetune.config import FinetuneConfig
from phrasebox.pipeline.research.finetune.loop import finetune

try:
    finetune(FinetuneConfig.model_validate_json(sys.argv[1]))
except PhraseboxError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def ranks_of(*configs: FinetuneConfig) -> list[tuple[int, str]]:
    """Train in a group of processes, one for each configuration; their exit codes and what they said to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = []
    for rank, config in enumerate(configs):
        command = [sys.executable, "-c", RANK, config.model_dump_json()]
        environment = {**os.environ, **group, "WORLD_SIZE": str(len(configs)), "RANK": str(rank)}
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=300)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [(process.returncode, text) for process, text in zip(ranks, errors, strict=True)]


@pytest.mark.slow
def test_ranks_without_a_shared_disk_go_on_from_the_first_ones_checkpoint(
    whole, inline_dataset, tmp_path
) -> None:
    first, second = (
        config_of(inline_dataset, tmp_path / name, checkpoint_every_s=0) for name in ("first", "second")
    )
    with pytest.raises(StopHereError):
        finetune(first, stop_after(2))
    assert ranks_of(first, second) == [(0, ""), (0, "")]
    assert log_of(first.out)[-1] == pytest.approx(log_of(whole.model.parent)[-1], rel=2e-4)
    tuned = load_file(first.out / "model" / "open_clip_model.safetensors")
    for name, value in weights(whole).items():
        assert torch.allclose(value, tuned[name], atol=2e-4), name
    assert list(second.out.iterdir()) == []


@pytest.mark.slow
def test_a_failure_of_one_rank_ends_all_of_them(inline_dataset: Path, tmp_path: Path) -> None:
    config = config_of(inline_dataset, tmp_path / "out")
    elsewhere = config.data.model_copy(update={"image_root": str(tmp_path)})
    answers = ranks_of(config, config.model_copy(update={"data": elsewhere}))
    message = f"InputError: {inline_dataset}: none of the 2 images of step 0 on rank 1 can be read"
    assert all(code == 1 and message in text for code, text in answers), answers


@pytest.mark.slow
def test_more_ranks_than_images_of_a_step_are_rejected(inline_dataset: Path, tmp_path: Path) -> None:
    answers = ranks_of(*[config_of(inline_dataset, tmp_path / "out", batch_size=2)] * 3)
    message = "ConfigError: batch_size: 2 images a step are fewer than the 3 ranks"
    assert all(code == 1 and message in text for code, text in answers), answers


def log_of(out: Path) -> list[dict[str, float]]:
    return read_lines(out / LOG)
