"""What every entry of EXPLAINERS promises: through the configuration and the stage, as a run takes it, and by itself.

A new explainer is tested as soon as it is in the table, on every tower that it is defined on; a new tower as soon as it
is in `tests.factories.TOWERS`.
"""

import json
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.config.run_config import load_config, stored_config
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.records import Phrase, Pixels, Record, Sample
from phrasebox.stages.explain import EXPLAINERS, kinds_for
from phrasebox.stages.explain.stage import ExplainStage, ExplainStageConfig
from phrasebox.stages.model.config import TOWER_WORDS
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.towers.plan import plan_of
from phrasebox.testing import OpenClipModel, check_settings
from phrasebox.testing.explainers import (
    PHRASES,
    check_heat_maps,
    check_independence,
    check_model_stays,
    check_repetition,
    draw_images,
)
from tests.build.datasets import Json
from tests.factories import TOWERS, architecture_of
from tests.stages.explain.models import clip_of, module_of, tokenizer
from tests.stages.model.saved import save_tower

TOWER_KINDS = {name: plan_of(architecture_of(name)).kind for name in TOWERS}

kinds = pytest.mark.parametrize("kind", EXPLAINERS)
PAIRS = [
    (kind, name, has in EXPLAINERS[kind].towers) for kind in EXPLAINERS for name, has in TOWER_KINDS.items()
]
FEW_MASKS: dict[str, Json] = {
    "rise": {"masks": 6},
    "occlusion": {"window": 0.5, "stride": 1.0},
    "partition_shap": {"max_evaluations": 7},
    "score_cam": {"channels": 6},
}
"""What makes an explainer cheap that needs many forward passes by default."""

BLIND = {"rollout", "attention_flow"}
"""Explainers that give all phrases of an image the same map."""

ONE_OF_EACH_KIND = list({has: name for name, has in reversed(TOWER_KINDS.items())}.values())


def first_tower(kind: str) -> str:
    return next(name for name, has in TOWER_KINDS.items() if has in EXPLAINERS[kind].towers)


def in_time(kind: str, tower: str, grad_eclip_towers: Collection[str]) -> Any:
    """`make test` asks Grad-ECLIP on these towers, and others on the first that they fit; `make faults` all on all."""
    usual = tower == first_tower(kind) or (kind == "grad_eclip" and tower in grad_eclip_towers)
    return pytest.param(kind, tower, marks=() if usual else pytest.mark.slow)


on_towers, on_kinds_of_towers = (
    pytest.mark.parametrize(("kind", "tower"), [in_time(*pair[:2], towers) for pair in PAIRS if pair[2]])
    for towers in (TOWERS, ONE_OF_EACH_KIND)
)
elsewhere = pytest.mark.parametrize(
    ("kind", "tower"), [pair[:2] for pair in PAIRS if not pair[2] and pair[1] in ONE_OF_EACH_KIND]
)


@kinds
def test_a_run_takes_it(kind: str, tmp_path: Path) -> None:
    """From a configuration through the graph's own stage to maps, and back from what `dataset.json` stores."""
    keys = ["input.kind=jsonl", "input.path=a.jsonl", f"explain.kind={kind}", "model.batch_size=2"]
    keys += [f"explain.{name}={value}" for name, value in FEW_MASKS.get(kind, {}).items()]
    config = load_config(None, keys)
    assert stored_config(json.loads(config.model_dump_json())) == config
    tower = first_tower(kind)
    spec = TOWERS[tower][1]
    model = save_tower(tmp_path, tower)[1]
    stage_config = ExplainStageConfig(model=model, description=describe(model), explainer=config.explain)
    stage = pickle.loads(pickle.dumps(ExplainStage(stage_config)))
    stage.setup()
    phrases = tuple(Phrase(text=text, caption_index=0, start=0, end=3, head="dog") for text in PHRASES[0])
    rgb = draw_images(spec.patch_px)[0]
    samples = [Sample(sample_id=name, source="test") for name in ("a", "b", "c")]
    answers = stage.process(
        [Record(sample=one, phrases=phrases, pixels=Pixels(rgb=rgb)) for one in samples]
    )
    stage.teardown()
    for answer in answers:
        assert [heat_map.text for heat_map in answer.heat_maps] == PHRASES[0]
        assert all(heat_map.values.shape == (4, 4) for heat_map in answer.heat_maps)
    assert config.explain.canvas(spec)["patch_px"] == spec.patch_px
    assert config.explain.map_settings()["kind"] == config.explain.kind == kind


@kinds
def test_settings_are_closed_and_none_is_left_to_be_resolved(kind: str) -> None:
    check_settings(EXPLAINERS[kind].config_type)


@on_towers
def test_shapes_order_and_range(kind: str, tower: str) -> None:
    check_heat_maps(EXPLAINERS[kind], clip_of(tower), FEW_MASKS.get(kind), is_blind=kind in BLIND)


@on_kinds_of_towers
def test_the_same_input_gives_the_same_bytes(kind: str, tower: str) -> None:
    check_repetition(EXPLAINERS[kind], clip_of(tower), FEW_MASKS.get(kind))


@on_towers
def test_an_image_does_not_depend_on_its_neighbours(kind: str, tower: str) -> None:
    check_independence(EXPLAINERS[kind], clip_of(tower), FEW_MASKS.get(kind))


@on_kinds_of_towers
def test_nothing_is_left_on_the_model_even_after_an_error(kind: str, tower: str) -> None:
    model = OpenClipModel(module_of(tower), tokenizer, TOWERS[tower][1])
    check_model_stays(EXPLAINERS[kind], model, FEW_MASKS.get(kind))


@elsewhere
def test_other_towers_are_refused_with_what_fits(kind: str, tower: str) -> None:
    explainer = EXPLAINERS[kind]
    with pytest.raises(
        ConfigError, match=rf"explain\.kind: {kind} needs .*{TOWER_WORDS[TOWER_KINDS[tower]]}"
    ) as error:
        explainer(explainer.config_type(), clip_of(tower))
    assert all(f"{other}" in str(error.value) for other in kinds_for(TOWER_KINDS[tower]))
