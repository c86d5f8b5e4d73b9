"""What every entry of EXPLAINERS promises: through the configuration and the stage, as a run takes it, and by itself.

A new explainer is tested as soon as it is in the table, on every tower that it is defined on; a new tower as soon as it
is in `tests.factories.TOWERS`.
"""

import copy
import json
import pickle
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from phrasebox.pipeline.config.run_config import load_config, stored_config
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.records import Phrase, Pixels, Record, Sample
from phrasebox.stages.explain import EXPLAINERS, kinds_for
from phrasebox.stages.explain.base import Explainer
from phrasebox.stages.explain.stage import ExplainStage, ExplainStageConfig
from phrasebox.stages.model.config import TOWER_WORDS
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.towers.plan import plan_of
from tests.build.datasets import Json
from tests.closeness import assert_close
from tests.factories import TOWERS, architecture_of
from tests.stages.explain.models import clip_of, image, tokenizer
from tests.stages.model.saved import save_tower

PHRASES = [["red car", "dog", "two green fish"], [], ["dog"]]

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


def pixels(tower: str, rows: int = 4, columns: int = 4) -> np.ndarray:
    return image(tower, rows, columns, count=len(PHRASES), seed=5)


def explainer_of(kind: str, tower: str, model: nn.Module | None = None, **settings: Any) -> Explainer[Any]:
    explainer = EXPLAINERS[kind]
    clip = clip_of(tower) if model is None else from_open_clip(model, tokenizer, TOWERS[tower][1])
    return explainer(explainer.config_type(**FEW_MASKS.get(kind, {}) | settings), clip)


def state_of(model: nn.Module) -> list[Any]:
    """All that an explainer could leave behind."""
    hooks = [
        name for name, value in vars(nn.Module()).items() if "hooks" in name and isinstance(value, dict)
    ]
    modules = [
        (
            name,
            module.training,
            getattr(module.forward, "__func__", module.forward),
            "forward" in vars(module),
            *(len(vars(module)[h]) for h in hooks),
        )
        for name, module in model.named_modules()
    ]
    parameters = [
        (name, id(p), p.requires_grad, p.grad, p.dtype, p.device, p._version)
        for name, p in model.named_parameters()
    ]
    return [modules, parameters, [(name, id(b), b._version) for name, b in model.named_buffers()]]


def make_model(tower: str) -> nn.Module:
    """In training mode, half of the parameters frozen: nothing that an explainer would want."""
    model = TOWERS[tower][0]().train()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    return model


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
    rgb = pixels(tower)[0]
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
    """A dataset says which settings made it: no setting but one that may be none is stored as null."""
    config_type = EXPLAINERS[kind].config_type
    stored = config_type().model_dump(mode="json")
    for name, value in stored.items():
        assert value is not None or config_type.model_fields[name].default is None, name
        assert name in ("kind", "contrast") or config_type.model_fields[name].description, name
    assert config_type.model_validate(stored) == config_type()
    assert config_type.model_config["extra"] == "forbid"
    assert config_type.model_config["frozen"]


@on_towers
def test_shapes_order_and_range(kind: str, tower: str) -> None:
    for rows, columns in ((4, 4), (3, 7)):
        answers = explainer_of(kind, tower, contrast=0.0).explain(pixels(tower, rows, columns), PHRASES)
        assert [[heat_map.text for heat_map in maps] for maps in answers] == PHRASES
        for heat_map in (heat_map for maps in answers for heat_map in maps):
            assert heat_map.values.shape == (rows, columns)
            assert heat_map.values.dtype == np.float32
            assert np.isfinite(heat_map.values).all()
            assert (heat_map.values >= 0).all()
            assert heat_map.values.any() != bool(heat_map.fault)
            assert -1 <= heat_map.similarity <= 1
            assert isinstance(heat_map.similarity, float)
        # Phrases get maps of their own, or it says that they do not.
        different = len({heat_map.values.tobytes() for heat_map in answers[0]})
        sound = sum(not heat_map.fault for heat_map in answers[0])
        assert different >= sound if kind not in BLIND else different == 1
    assert explainer_of(kind, tower).explain(pixels(tower), [[], [], []]) == [[], [], []]


@on_kinds_of_towers
def test_the_same_input_gives_the_same_bytes(kind: str, tower: str) -> None:
    rgb = pixels(tower)
    given = rgb.copy()
    marks = []
    for seed in (1, 99):
        torch.manual_seed(seed)  # no global random state
        answer = explainer_of(kind, tower).explain(rgb, PHRASES)
        marks.append([(m.values.tobytes(), m.similarity, m.fault) for maps in answer for m in maps])
    assert marks[0] == marks[1]
    assert np.array_equal(rgb, given)


@on_towers
def test_an_image_does_not_depend_on_its_neighbours(kind: str, tower: str) -> None:
    explainer = explainer_of(kind, tower, scales=(1.0, 0.5))
    rgb = pixels(tower)
    together = explainer.explain(rgb, PHRASES)
    turned = explainer.explain(rgb[::-1].copy(), PHRASES[::-1])[::-1]
    for heat_map, other in zip(chain(*together), chain(*turned), strict=True):
        assert heat_map.values.shape == (4, 4), "the grid of the first scale"
        assert heat_map.values.any() != bool(heat_map.fault)
        assert heat_map.values.min() >= 0
        assert heat_map.values.max() <= 1 + 1e-6
        assert_close(heat_map.values, other.values, 1e-3)
        assert heat_map.similarity == pytest.approx(other.similarity, abs=1e-5)


@on_kinds_of_towers
def test_nothing_is_left_on_the_model_even_after_an_error(kind: str, tower: str) -> None:
    model = make_model(tower)
    stride = TOWERS[tower][1].patch_px
    images = torch.randn(2, 3, TOWERS[tower][1].size_px, TOWERS[tower][1].size_px)
    before = state_of(model)
    # In training mode a forward pass of its own changes the statistics of batch normalisation.
    weights = copy.deepcopy(model.state_dict())
    outputs = copy.deepcopy(model).encode_image(images)
    affinities = get_args(EXPLAINERS[kind].config_type.model_fields["affinity"].annotation)
    explainer = explainer_of(kind, tower, model, affinity=affinities[-1])
    with pytest.raises(ValueError, match=f"multiples of the {stride} px patch"):
        explainer.explain(pixels(tower)[:, 1:], PHRASES)
    with pytest.raises(ValueError, match="as many phrase lists as images"):
        explainer.explain(pixels(tower), PHRASES[:1])
    assert len(explainer.explain(pixels(tower), PHRASES)[0]) == 3, "it still works"
    if "propagation" in affinities:
        tokens = explainer.maps(torch.from_numpy(pixels(tower))).tokens
        assert tokens.shape[:2] == (len(PHRASES), 16), "affinity looks at them"
        assert not tokens.requires_grad
    del explainer
    assert state_of(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert_close(model.encode_image(images), outputs)

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("in the middle")

    activations = (nn.GELU, nn.ReLU, nn.ReLU6, nn.SiLU)
    [part for part in model.visual.modules() if isinstance(part, activations)][-1].forward = fail
    before = state_of(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        explainer_of(kind, tower, model).explain(pixels(tower), PHRASES)
    assert state_of(model) == before
    assert torch.is_grad_enabled()


@elsewhere
def test_other_towers_are_refused_with_what_fits(kind: str, tower: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"explain\.kind: {kind} needs .*{TOWER_WORDS[TOWER_KINDS[tower]]}"
    ) as error:
        explainer_of(kind, tower)
    assert all(f"{other}" in str(error.value) for other in kinds_for(TOWER_KINDS[tower]))
