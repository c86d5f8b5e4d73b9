"""Every explainer on every tower, on the simulated device: the CPU's maps, and no pinned buffer that changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from phrasebox.stages.explain import EXPLAINERS
from phrasebox.stages.model.towers.plan import plan_of
from tests.build.datasets import Json
from tests.contracts.test_explainers import FEW_MASKS
from tests.cuda.both import assert_same_maps, both
from tests.cuda.simulated import SimulatedCuda
from tests.factories import TOWERS, architecture_of
from tests.stages.explain.models import image

VARIANTS: Sequence[Json] = ({}, {"affinity": "propagation"}, {"scales": (1.0, 0.5)})
"""Settings of Grad-ECLIP."""

PHRASES = [["red car", "dog", "two green fish"], [], ["dog"]]

CHEAP = [
    ("class token", "fp32", ["attention_gradient", "maskclip", "rise"]),
    ("SigLIP", "bf16", ["maskclip", "cam"]),
]
WHOLE = [
    pytest.param(tower, precision, list(EXPLAINERS), marks=pytest.mark.slow, id=f"{tower}, {precision}")
    for tower in TOWERS
    for precision in ("fp32", "bf16", "fp16")
]


@pytest.mark.parametrize(("tower", "precision", "kinds"), [*CHEAP, *WHOLE])
def test_maps_are_those_of_a_cpu(tower: str, precision: str, kinds: list[str], cuda: SimulatedCuda) -> None:
    on_cpu, on_gpu = both(tower, precision)
    has = plan_of(architecture_of(tower)).kind
    rgb = image(tower, count=3)
    for kind in kinds:
        explainer = EXPLAINERS[kind]
        if has not in explainer.towers:
            continue
        for settings in VARIANTS if kind == "grad_eclip" else ({},):
            config = explainer.config_type(**FEW_MASKS.get(kind, {}) | settings)
            wanted, maps = (explainer(config, model).explain(rgb, PHRASES) for model in (on_cpu, on_gpu))
            for mine, theirs in zip(maps, wanted, strict=True):
                assert_same_maps(mine, theirs, precision)
            cuda.synchronize()
            assert cuda.faults == [], f"{kind} {settings}"
