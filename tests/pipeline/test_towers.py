"""What a model's image tower decides about a run, before any work."""

from pathlib import Path
from typing import Any

from phrasebox.pipeline.config.run_config import ExplainCommandConfig, check
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.stages.contract.errors import ConfigError
from tests.messages import expect_error
from tests.stages.model.saved import save_tower


def config_of(folder: Path, tower: str, **explain: Any) -> ExplainCommandConfig:
    return check({"model": save_tower(folder, tower)[1], "explain": explain}, ExplainCommandConfig)


def test_a_pool_is_one_block_and_a_class_token_keeps_those_that_were_configured(tmp_path: Path) -> None:
    config = config_of(tmp_path, "ResNet")
    steps = build_steps(config)
    assert steps.explainer.blocks == 1
    again = config_of(tmp_path, "ResNet", **steps.explainer.model_dump(mode="json"))
    assert build_steps(again).explainer == steps.explainer
    assert build_steps(config_of(tmp_path, "class token", blocks=4)).explainer.blocks == 4
    with expect_error(ConfigError, key="explain.blocks"):
        build_steps(config_of(tmp_path, "ResNet", blocks=3))


def test_an_explainer_that_does_not_fit_is_refused_with_what_does(tmp_path: Path) -> None:
    with expect_error(ConfigError, key="explain.kind"):
        build_steps(config_of(tmp_path, "ConvNeXt"))
    assert build_steps(config_of(tmp_path, "ConvNeXt", kind="cam")).explainer.kind == "cam"
