"""`phrasebox models` and `phrasebox models check` as a person types them."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from typer.testing import CliRunner, Result

from phrasebox.pipeline.commands.cli import app
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.photographs import INPUT, TRUTH
from phrasebox.pipeline.evaluate.evaluation import evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.model.checkpoints.dual_encoders import DUAL_ENCODERS, REFUSED
from phrasebox.stages.model.config import OWN_MODELS
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.truth import read_truth
from tests.build.datasets import Json
from tests.pipeline.commands.evaluated import QUIET
from tests.stages.model.saved import save_model


def phrasebox(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


@pytest.mark.slow
def test_the_model_of_drawings_is_not_sane_on_photographs_and_is_told_why() -> None:
    result = phrasebox("check", "demo")
    assert result.exit_code == 1, result.output
    text = " ".join(result.output.split())
    headings = ("photographs are nearest to their own caption", "heat on the object", "box recall")
    cost = ("images/s, with all phrases of their captions, on cpu", "peak memory")
    for words in (
        *headings,
        *cost,
        "demo fails the sanity check on photographs",
        "trained on synthetic scenes",
    ):
        assert words in text


def test_json_has_all_figures_and_nothing_else_is_printed(tmp_path: Path) -> None:
    _, model = save_model(tmp_path)
    named = (model.config, "--weights", model.weights)
    result = phrasebox("check", *named, "--json")
    assert result.exit_code == 1
    figures = json.loads(result.stdout)
    assert figures["sane"] is False
    assert figures["faults"]
    assert figures["photographs"] == len(read_truth(TRUTH).images)
    assert figures["peak_memory_bytes"] > 1e8
    assert figures["weights"] == str(model.weights)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("ViT-B-16", "needs weights"),
        ("no-such-model/laion2b", "no-such-model"),
        ("demo --set explain.kind=cam", "cam needs tokens that are averaged"),
    ],
)
def test_faults_are_reported_before_any_work(arguments: str, words: str) -> None:
    result = phrasebox("check", *arguments.split())
    assert result.exit_code not in (0, 1) or isinstance(result.exception, ConfigError)
    assert words in f"{result.output}{result.exception}"


@pytest.fixture(scope="module")
def listed() -> dict[str, Json]:
    result = phrasebox("--json")
    assert result.exit_code == 0, result.output
    return {row["model"]: row for row in json.loads(result.stdout)}


def test_every_name_of_open_clip_is_supported_or_refused_with_the_reason(listed: dict[str, Json]) -> None:
    names = [*OWN_MODELS, *open_clip.list_models()]
    assert list(listed)[: len(names)] == names
    for row in (listed[name] for name in names):
        if row["refused"] is None:
            assert row["explainers"]
            assert row["input_px"] % row["grid"] == 0
            assert row["text_tokens"] > 0
            assert row["vocabulary_bytes"] > 1e5
        else:
            assert row["refused"].startswith("the image tower ")
            assert row["tower"] is row["explainers"] is None
    assert sum(listed[name]["refused"] is not None for name in names) < 15


def test_folders_of_transformers_are_listed_with_their_licence_or_the_reason(
    listed: dict[str, Json],
) -> None:
    for model_type in DUAL_ENCODERS:
        [weights] = listed[f"folder: {model_type}"]["weights"]
        assert weights["licence"]
    for model_type, reason in REFUSED.items():
        assert listed[f"folder: {model_type}"]["refused"] == reason


def test_every_tag_has_its_licence(listed: dict[str, Json]) -> None:
    tags = {f"{row['model']}/{part['tag']}": part for row in listed.values() for part in row["weights"]}
    assert {f"{name}/{tag}" for name, tag in open_clip.list_pretrained()} <= tags.keys()
    assert tags["ViT-B-16/openai"]["commercial"] == "see its card"
    assert tags["ViT-B-16/metaclip_400m"]["commercial"] == "no"
    assert tags["ViT-B-16/laion2b_s34b_b88k"]["commercial"] == "yes"


def test_long_texts_and_large_vocabularies_show(listed: dict[str, Json]) -> None:
    assert listed["PE-Core-B-16"]["text_tokens"] == 32
    assert listed["ViT-B-16-SigLIP2"]["text_tokens"] == 64
    assert listed["ViT-H-14-worldwide"]["vocabulary_bytes"] == 901_629 * 1024 * 4


def test_the_matrix_is_a_table_for_people() -> None:
    result = phrasebox()
    assert result.exit_code == 0, result.output
    first, second, *_ = result.output.splitlines()
    assert first.startswith("demo was trained on synthetic scenes")
    assert second.startswith("photo is a small model for photographs")
    text = " ".join(result.output.split())
    for words in (
        "RN50-quickgelu",
        "why it cannot be explained",
        "coca_ViT-B-32",
        "CoCa",
        "licence",
        "CC-BY-NC-4.0",
        "folder: blip",
    ):
        assert words in text


@pytest.mark.slow
def test_the_check_measures_what_a_run_makes_and_leaves_no_file(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calibration of `photo` decides where its maps are cut."""
    monkeypatch.chdir(tmp_path)
    figures = json.loads(phrasebox("check", "photo", "--json").stdout)
    assert list(tmp_path.iterdir()) == []
    config = RunConfig.model_validate(
        {"input": INPUT, "model": {"name": "photo"}, "output": {"path": "out"}}
    )
    metrics = evaluate_dataset(
        open_evaluation_set(Path(str(run(config, QUIET))), TRUTH), QUIET, []
    ).figures.metrics
    assert figures["box_recall"] == pytest.approx(metrics["box_recall"].value)


@pytest.mark.slow
@pytest.mark.parametrize("name", open_clip.list_models())
def test_the_matrix_is_what_is_built(name: str, listed: dict[str, Json]) -> None:
    """Every architecture in full, without memory: what its configuration says is what its layers are."""
    row = listed[name]
    architecture = open_clip.get_model_config(name)
    text = {"context_length": 77, "vocab_size": 512, "width": 64, "heads": 2, "layers": 1}
    if row["refused"] is not None:
        return
    settings = {key: architecture[key] for key in ("embed_dim", "vision_cfg")}
    with torch.device("meta"):
        model = open_clip.CLIP(**settings, text_cfg=text)
    model.logit_scale = torch.nn.Parameter(torch.ones(()))  # a number, which the model keeps
    tower = from_open_clip(model, open_clip.get_tokenizer("ViT-B-32")).tower
    assert (tower.kind, tower.placement.stride_px) == (row["tower"], row["input_px"] // row["grid"])
