"""Step 4: one heat map per phrase.

To add an explainer, write one file with an `ExplainerConfig` and an `Explainer`, and name it in `EXPLAINERS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, SerializeAsAny

from stages.contract.errors import ConfigError
from stages.contract.kinds import KindTable
from stages.explain.config import ExplainerConfig
from stages.shared.model.config import TOWER_WORDS

if TYPE_CHECKING:
    from stages.explain.base import Explainer
    from stages.shared.model.config import TowerKind

__all__ = ["EXPLAINERS", "AnyExplainerConfig", "fit_to_tower", "kinds_for"]

ConfigT = TypeVar("ConfigT", bound=ExplainerConfig)

EXPLAINERS: Final[KindTable[Explainer[Any]]] = KindTable(
    {
        "grad_eclip": "stages.explain.grad_eclip:GradEclip",
        "attention_gradient": "stages.explainers.attention.gradients:AttentionGradient",
        "rollout": "stages.explainers.attention.rollout:Rollout",
        "game": "stages.explainers.attention.gradients:Game",
        "legrad": "stages.explainers.attention.gradients:LeGrad",
        "cam": "stages.explainers.cams:Cam",
        "grad_cam": "stages.explainers.cams:GradCam",
        "grad_cam_plus_plus": "stages.explainers.cams:GradCamPlusPlus",
        "maskclip": "stages.explainers.dense:MaskClip",
        "clip_surgery": "stages.explainers.dense:ClipSurgery",
        "gem": "stages.explainers.dense:Gem",
        "rise": "stages.explainers.perturbation.masks:Rise",
        "occlusion": "stages.explainers.perturbation.masks:Occlusion",
        "partition_shap": "stages.explainers.perturbation.shapley:PartitionShap",
        "score_cam": "stages.explainers.perturbation.masks:ScoreCam",
        "lrp": "stages.explainers.relevance.lrp:Lrp",
        "clrp": "stages.explainers.relevance.lrp:Clrp",
        "sg_lrp": "stages.explainers.relevance.lrp:SgLrp",
        "m2ib": "stages.explainers.m2ib:M2ib",
        "transformer_interpretability": (
            "stages.explainers.relevance.transformer_interpretability:TransformerInterpretability"
        ),
    },
    default="grad_eclip",
    settings={"grad_eclip": "stages.explain.config:GradEclipConfig"},
)
"""The explainers. `config` makes the `explain` section of a run."""


def kinds_for(tower: TowerKind) -> list[str]:
    """Return the kinds of explainers that are defined on a kind of tower, in the order of the table."""
    return [kind for kind in EXPLAINERS if tower in EXPLAINERS[kind].towers]


def fit_to_tower(config: ConfigT, tower: TowerKind, model: str) -> ConfigT:
    """Return the settings of an explainer for a kind of tower, see `ExplainerConfig.for_tower`.

    Raise ConfigError, which names `model` and the kinds that fit it, if the explainer or a setting does not.
    """
    explainer = EXPLAINERS[config.kind]
    if tower not in explainer.towers:
        kinds = kinds_for(tower)
        instead = f"use explain.kind={' or '.join(kinds)} for it" if kinds else "no explainer is"
        raise ConfigError(
            f"explain.kind: {config.kind} needs {explainer.needs}, and {model} has "
            f"{TOWER_WORDS[tower]}; {instead}. phrasebox models lists what fits which model"
        )
    return config.for_tower(tower)


AnyExplainerConfig = Annotated[SerializeAsAny[ExplainerConfig], BeforeValidator(EXPLAINERS.config)]
"""The `explain` section of a run."""
